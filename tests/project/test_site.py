"""The site as `make site` builds it: no warning, every page there, every link alive, nothing loaded
from elsewhere.

It is built once, whole, from the stored outputs. The lessons' answers in code are run.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from companion import tour
from plantlib.utils.io import read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-c",
        "docs",
        "-d",
        str(folder.parent / "trees"),
    ]
    done = subprocess.run([*command, ".", str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def module(name: str):
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert module("check_links").problems(site) == []


def test_every_notebook_stands_there_with_its_outputs(site):
    for path in sorted((ROOT / "notebooks").glob("[0-9A]*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert "cell_output" in page and "binder" in page, path.name
    assert '<details class="admonition hide above-input"' in page, "the install cell is folded away"
    front = (site / "docs" / "index.html").read_text(encoding="utf-8")
    assert (
        "00_start_here.html" in front and "method_figure.png" in front and "data_flow.png" in front
    )
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


def test_the_sidebar_numbers_the_notebooks_and_figures_have_alt_texts(site):
    front = (site / "docs" / "index.html").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("[0-9A]*.ipynb")):
        link = re.search(rf'href="[^"]*{path.stem}.html">([^<]*)<', front.split("</aside>")[0])
        assert link[1].startswith(f"{path.stem[:2]} "), link
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        for image in re.findall(r"<img [^>]*_images[^>]*>", page):
            assert len(re.search(r'alt="([^"]*)"', image)[1]) > 20, (path.name, image[:200])


def test_tables_and_formulas_are_not_left_as_text(site):
    marked_up = r"<(pre|code|script|style|title)\b.*?</\1>|<(span|div)[^>]*\bmath\b.*?</\2>"
    for path in sorted((*site.glob("docs/*.html"), *site.glob("notebooks/*.html"))):
        page = path.read_text(encoding="utf-8")
        assert "<p>|" not in page, f"{path.name}: a table whose bars are shown"
        left = re.sub(marked_up, "", page, flags=re.S)
        assert "$" not in re.sub(r"<[^>]*>", "", left), f"{path.name}: a dollar outside a formula"


def test_the_tour_stands_on_the_front_page_without_a_script(site):
    front = (site / "docs" / "index.html").read_text(encoding="utf-8")
    assert tour.page(read_json(ROOT / tour.NUMBERS)) in front
    assert "planting_worth.png" in front and front.count('class="tour-still"') == 3


def test_every_module_has_its_page_with_the_docstrings(site):
    names = {
        p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for p in (ROOT / "plantlib").rglob("*.py")
    }
    names = {name.removesuffix(".__init__") for name in names}
    assert {p.stem for p in (site / "docs" / "_api").glob("*.html")} >= names
    page = (site / "docs" / "_api" / "plantlib.utils.io.html").read_text(encoding="utf-8")
    assert "Yield a path in a temporary folder" in page and "FileNotFoundError" in page


def test_search_and_mathematics_work_without_a_network(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert re.search(r"\bplant", index) and "notebooks/02_mutual_information" in index
    page = (site / "notebooks" / "02_mutual_information.html").read_text(encoding="utf-8")
    script = re.search(r'src="([^"]*mathjax[^"]*?)(?:\?[^"]*)?"', page)[1]
    assert (site / "notebooks" / script).resolve().is_file()


def test_the_checker_sees_dead_links_missing_anchors_and_foreign_scripts(tmp_path):
    links = ("b.html#there", "#here", "c.html", "https://example.org/")
    body = '<h1 id="here">A</h1><img src="data:image/png;base64,AA">' + "".join(
        f'<a href="{link}">x</a>' for link in links
    )
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text(
        '<script src="https://example.org/x.js"></script><a href="a.html#here">a</a>'
    )
    assert module("check_links").problems(tmp_path) == [
        "a.html: b.html#there has no such anchor",
        "a.html: c.html is not there",
        "b.html: needs https://example.org/x.js from elsewhere",
    ]
    assert module("check_links").main([str(tmp_path)]) == 1


def answers() -> list[str]:
    """The code of the lessons, in order."""
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "lessons.md").read_text(encoding="utf-8"), re.S
    )


@pytest.mark.parametrize(
    "code", answers(), ids=lambda code: re.sub(r"\W+", " ", code.strip().splitlines()[-1])[:50]
)
def test_answers_in_code_hold(code):
    assert "assert " in code
    exec(compile(code, "answer", "exec"), {})


def test_there_are_six_lessons_over_the_notebooks():
    text = (ROOT / "docs" / "lessons.md").read_text(encoding="utf-8")
    lessons = re.split(r"^## Lesson ", text, flags=re.M)[1:]
    assert [lesson[0] for lesson in lessons] == list("123456")
    for lesson in lessons:
        assert all(
            word in lesson
            for word in ("**Run**", "**Ask**", "**Exercise", "<details><summary>Answer")
        )
        assert sum(map(int, re.findall(r"\((\d+) minutes\)", lesson))) == 20, lesson[:40]
    used = set(re.findall(r"notebooks/(\d\d)_", text))
    assert used == {"00", "01", "02", "03", "04", "05", "07"}
    stored = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    assert stored["cells"][1]["id"] == "00-install"
