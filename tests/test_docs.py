"""What the documents say about the tree is true: the picture, the files and the tests that they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import draw_architecture
import pytest
from draw_architecture import PAGE, ROOT, drawn, from_the_roof

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = (".py", ".cpp", ".h", ".md", ".sbatch", ".toml", ".cff")
FOLDERS = ("slca_fast/", "kernels/", "tests/", "bench/", "docs/")


def named_files(text: str) -> set[str]:
    """Source files and our folders in a page's code and links; patterns (``<op>``, ``*``, ``_suffix.h``) are none."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    spans = [word for code in [*fenced, *inline] for word in code.split()]
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = {word.partition("::")[0].partition("#")[0].strip(",;:()") for word in [*spans, *links]}
    return {
        name
        for name in named
        if (name.endswith(SOURCE) or name.startswith(FOLDERS)) and not re.search(r"^_|[<>*{}$\[\]]|\.\.\.|://", name)
    }


def exists(name: str, page: Path) -> bool:
    """From the root, from the package, or from where the page lies."""
    return any((base / name).exists() for base in (ROOT, ROOT / "slca_fast", page.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    assert sorted(name for name in named_files(page.read_text()) if not exists(name, page)) == []


def test_the_check_sees_files_in_code_spans_and_links():
    text = "`python bench/gone.py --json x`, [here](../lost.md), `tests/gone/test_a.py::test_b`, `kernels/<op>/x.py`"
    assert named_files(text) == {"bench/gone.py", "../lost.md", "tests/gone/test_a.py"}
    assert named_files("```\npython a/b.py\n```\n`c/d.py`, and e/f.py in words") == {"a/b.py", "c/d.py"}
    assert not exists("bench/gone.py", PAGE) and exists("test_docs.py", Path(__file__))


def test_every_test_that_a_page_names_exists():
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = {name for page in PAGES for name in re.findall(r"`(?:[\w/.]+::)?(test_\w+)`", page.read_text())}
    assert named and named - tests == set()


def test_the_picture_is_the_code():
    assert PAGE.read_text() == drawn(PAGE.read_text()), "run: python docs/draw_architecture.py"


def test_rooms_are_drawn_above_what_they_import_and_a_circle_is_refused():
    assert from_the_roof({"ground": set(), "attic": {"floor"}, "floor": {"ground"}}) == ["attic", "floor", "ground"]
    with pytest.raises(ValueError, match="attic -> floor -> attic|floor -> attic -> floor"):
        from_the_roof({"attic": {"floor"}, "floor": {"attic"}})


def test_an_import_more_changes_the_picture(monkeypatch):
    graph = draw_architecture.rooms()
    before = draw_architecture.picture()
    monkeypatch.setattr(
        draw_architecture, "rooms", lambda: {**graph, "cli": graph["cli"] | {"newcomer"}, "newcomer": set()}
    )
    monkeypatch.setattr(draw_architecture, "purpose", lambda name: name)
    assert draw_architecture.picture().count("\n") > before.count("\n")
