"""What the pages promise: the README's size and examples, generated blocks equal to the records, an
index of the log that names every entry, links that lead somewhere.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from companion import pages
from companion.report import report

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/LOG.md"]
NOT_COMMITTED = ("results/local", "results/executed")
WRITTEN += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text: rows of cells, the line of dashes left out."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        lines = [line.strip("| ").split(" | ") for line in block.splitlines()]
        found.append([cells for cells in lines if not set("".join(cells)) <= set("-: ")])
    return found


def blocks_of_code(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.S)


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def test_the_readme_is_short_and_has_one_small_table():
    text = text_of("README.md")
    assert len(text.split()) <= 1000
    (table,) = tables(text)
    head, *rows = table
    assert len(rows) <= 8 and all(len(cells) <= 5 for cells in table), head
    assert text.count("![") == 1, "one figure"


def test_the_readme_has_two_commands_a_short_example_in_python_and_one_in_the_shell():
    from plantlib.cli import main

    (code,) = blocks_of_code("README.md", "python")
    assert len([line for line in code.splitlines() if line]) == 5
    imported = next(n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom))
    library = pytest.importorskip(imported.module)
    assert {alias.name for alias in imported.names} <= set(library.__all__)
    first, shell = blocks_of_code("README.md", "sh")
    assert re.findall(r"^make (\S+)", first, re.M) == ["reproduce", "test"]
    commands = [shlex.split(line, comments=True) for line in shell.splitlines()]
    assert [words[:1] for words in commands] == [["plant"]] * 4
    for words in commands:
        main.parser().parse_args(words[1:])


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Every block, from the committed records."""
    return pages.blocks(report.load(ROOT / "results" / "runs"))


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, names in pages.PAGES.items() for name in names]
)
def test_a_generated_block_equals_what_the_records_say(made, page, name):
    assert pages.section(ROOT / page, name) == made[name].strip(), "run `make figures`"


def test_every_block_of_a_page_is_known_to_the_code():
    for page in WRITTEN:
        found = re.findall(r"<!-- table:begin (\S+) -->", text_of(page))
        assert found == pages.PAGES.get(page, []), page


def test_only_what_stands_between_markers_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PAGES", {"a.md": ["x", "y"], "b.md": ["z"]})
    fresh = {"x": "X", "y": "Y", "z": "Z"}
    monkeypatch.setattr(pages, "blocks", lambda records, groups=None: fresh)
    marked = "<!-- table:begin {0} -->\n{1}\n<!-- table:end {0} -->\n"
    (tmp_path / "a.md").write_text("one\n" + marked.format("x", "old") + marked.format("y", "Y"))
    (tmp_path / "b.md").write_text(marked.format("z", "Z") + "end\n")
    assert pages.write([], tmp_path) == [tmp_path / "a.md"], "b.md is as it should be"
    expected = "one\n" + marked.format("x", "X") + marked.format("y", "Y")
    assert (tmp_path / "a.md").read_text() == expected
    (tmp_path / "b.md").write_text("no markers\n")
    with pytest.raises(ValueError, match="b.md: .* one .*table:begin z"):
        pages.write([], tmp_path)


def test_the_index_of_the_log_names_every_entry_with_its_date():
    index, entries = re.split(r"^## (?=\d{4})", text_of("results/LOG.md"), maxsplit=1, flags=re.M)
    headings = re.findall(r"^## (.+)$", "## " + entries, re.M)
    lines = re.findall(r"^\* (\d{4}-\d\d-\d\d): .+\[Entry\]\(#(\S+)\)$", index, re.M)
    assert {anchor for _, anchor in lines} == {slug(heading) for heading in headings}
    assert all(anchor.startswith(date) for date, anchor in lines)


PAGES_ABOUT_CODE = ["README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/results.md"]


@pytest.mark.parametrize("page", PAGES_ABOUT_CODE)
def test_modules_and_files_that_pages_name_are_there(page):
    text = text_of(page)
    modules = re.findall(r"python -m ([\w.]+)", text)
    modules += re.findall(r"`(?:python -m )?((?:plantlib|companion)(?:\.\w+)+)", text)
    for name in set(modules):
        path = ROOT / name.replace(".", "/")
        # the last part may be a function of the module
        assert (
            path.exists()
            or path.with_suffix(".py").exists()
            or (path.parent.with_suffix(".py").exists())
        ), name
    pattern = r"\b(?:runs|plantlib|companion|data_scripts|results|benchmarks|tests)/[\w./-]*\w"
    for name in set(re.findall(pattern, text)):
        placeholder = name.endswith("_")  # of get_<name>.py
        assert placeholder or (ROOT / name).exists() or name.startswith(NOT_COMMITTED), name


@pytest.mark.parametrize("page", WRITTEN)
def test_relative_links_and_anchors_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)\s#]*)(?:#([^)\s]*))?\)", text_of(page))
    for target, anchor in links:
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"
