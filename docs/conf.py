"""The site: README, the pages of docs/, notebooks with their stored outputs and the API, by Sphinx
and MyST, without a network.

The source folder is the repository itself (`sphinx-build -c docs . site`), so that a relative link
means the same on the site as in the files. Nothing is executed: notebooks show what is committed.
Pages are found by pattern: a new one joins by itself.
"""

import json
import os
import re
import sys
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRITON_INTERPRET", "1")

from plantlib import __version__  # noqa: E402

project, author, release = "PLANT companion", "The plantlib maintainers", __version__
copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx-mathjax-offline"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "notebooks/*.ipynb",
    "*.md",
    "results/*.md",
    "plantlib/kernels/README.md",
    "data_scripts/README.md",
]
exclude_patterns = [
    ".*",
    "site",
    "artefacts",
    "data",
    "jupyter_execute",
    "results/local",
    "results/executed",
    "docs/_templates",
]

nb_execution_mode = "off"
nb_merge_streams = True
# tables that a cell makes are read as those of a page; CommonMark has none
nb_render_markdown_format = "myst"
# no scripts from elsewhere: the widgets of a notebook are shown as their static figures
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False}
templates_path = ["_templates"]
default_role = "code"

# what is left fails the build: dead links, missing pages and figures, modules that cannot be
# imported
suppress_warnings = [
    "docutils",
    "misc.highlighting_failure",
    "mystnb.unknown_mime_type",
    "mystnb.lexer",
    "myst.header",
    "toc.not_included",
]

html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_title = f"PLANT companion {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}


def as_written(app, what, name, object, options, lines):
    """Docstrings of plantlib are plain text with `code`: keep their lines and take nothing for
    reStructuredText markup.
    """
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    lines[:] = [line for block in blocks for line in (*_block(block.split("\n")), "")]


def _block(lines):
    """A paragraph stays one; lines that are indented or listed become a line block, which keeps
    them apart.
    """
    plain = all(
        not line.startswith((" ", "* ", "- ")) and not re.match(r"\d+\. ", line) for line in lines
    )
    written = [_escaped(line) for line in lines]
    return written if plain else ["| " + line.replace("    ", "\u2003") for line in written]


def _escaped(line):
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*|_`:<>])", r"\\\1", line)
    outside = [re.sub(r"([\\*|_:<>])", r"\\\1", part) for part in parts]
    return "".join(
        f"``{part}``" if i % 2 and part.strip() == part and part else outside[i]
        for i, part in enumerate(parts)
    )


def front_page(app, error):
    """index.html of the site leads to the front page of the documents."""
    if error is None and app.builder.name == "html":
        head = '<!doctype html><meta charset="utf-8"><title>PLANT companion</title>'
        turn = (
            '<meta http-equiv="refresh" content="0; url=docs/index.html"><a'
            ' href="docs/index.html">PLANT companion</a>\n'
        )
        (Path(app.outdir) / "index.html").write_text(head + turn, encoding="utf-8")


def numbered(app, docname, source):
    """The title of a notebook begins with its number, on its page and in the sidebar."""
    found = re.fullmatch(r"notebooks/([0-9A]\d)_\w+", docname)
    if found:
        notebook = json.loads(source[0])
        first = notebook["cells"][0]
        first["source"] = re.sub(r"^# ", f"# {found[1]} ", "".join(first["source"]))
        source[0] = json.dumps(notebook)


def with_alt_text(app, doctree):
    """A figure that a cell made is described by its section and the prose nearest above it."""
    prose, title = "", ""
    for node in doctree.findall():
        if isinstance(node, nodes.title):
            prose, title = "", node.astext()
        elif isinstance(node, nodes.paragraph):
            prose = node.astext()
        elif isinstance(node, nodes.image) and not node.get("alt"):
            sentence = re.split(r"(?<=[.:?!])\s", " ".join(prose.split()))[0]
            node["alt"] = f"Figure of the section {title}. {sentence}".strip()[:300]


def setup(app):
    app.connect("source-read", numbered)
    app.connect("doctree-read", with_alt_text)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("build-finished", front_page)
