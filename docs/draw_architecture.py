"""Draws docs/architecture.md's picture from the code: which room imports which.

``python docs/draw_architecture.py`` writes it between the file's two markers. tests/test_layers.py reads imports with
the same functions, and checks that the picture is current.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by docs/draw_architecture.py -->", "<!-- end of the drawing -->"


def files() -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every module; ``kernels/`` is installed as ``slca_fast.kernels``."""
    for folder, package in (("slca_fast", "slca_fast"), ("kernels", "slca_fast.kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything of ours that ``path`` imports, inside functions too."""
    package = module.removesuffix(".__init__").split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "slca_fast":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            if base.split(".")[0] == "slca_fast":
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"


def room(name: str) -> str:
    """The file or folder directly below ``slca_fast`` that a dotted name lies in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def rooms() -> dict[str, set[str]]:
    """Every room but the doors (``__init__``, ``__main__``) -> the rooms it imports."""
    found: dict[str, set[str]] = {}
    for module, path in files():
        found.setdefault(room(module), set()).update(room(name) for _, name in imports(module, path))
    doors = {"", "__init__", "__main__"}
    return {name: others - doors - {name} for name, others in found.items() if name not in doors}


def purpose(name: str) -> str:
    """The first sentence of the room's docstring."""
    homes = (ROOT / "slca_fast" / f"{name}.py", ROOT / "slca_fast" / name / "__init__.py", ROOT / name / "__init__.py")
    path = next(home for home in homes if home.exists())
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{path.relative_to(ROOT)} needs a docstring that says what the room is for"
    return text.splitlines()[0].split(". ")[0].rstrip(".")


def from_the_roof(graph: dict[str, set[str]]) -> list[str]:
    """The rooms in an order in which each stands above all that it imports; raises ValueError for a circle."""
    floor: dict[str, int] = {}

    def floor_of(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"imports go in a circle: {' -> '.join((*above, name))}")
        if name not in floor:
            floor[name] = 1 + max((floor_of(other, (*above, name)) for other in graph[name]), default=0)
        return floor[name]

    return sorted(graph, key=lambda name: (-floor_of(name), name))


def picture() -> str:
    """A row and a column a room, the roof first: a cross where the row's room imports the column's."""
    graph = rooms()
    order = from_the_roof(graph)
    width = max(map(len, order)) + 4
    header = " " * width + "".join(f"{number:>3}" for number in range(1, len(order) + 1))
    lines = [header]
    for row, name in enumerate(order):
        marks = "".join("  x" if other in graph[name] else "  ." if column > row else "   "
                        for column, other in enumerate(order))  # fmt: skip
        lines.append(f"{row + 1:>2}  {name:<{width - 4}}{marks}".rstrip())
    table = ["| | room | what it is |", "|---|---|---|"]
    table += [f"| {number} | `{name}` | {purpose(name)} |" for number, name in enumerate(order, 1)]
    return "\n".join(["```text", *lines, "```", "", *table])


def drawn(page: str) -> str:
    """``page`` with the present picture between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
