"""The imports of a source tree: which file uses which, in what layer, and whose private names.

Files are named by their paths in the repository. An import counts wherever it stands: at the top,
within a function, under ``if TYPE_CHECKING``. ``from package import name`` uses the module of that
name where there is one, and the package's ``__init__.py`` where it is something else; that a module
also runs the ``__init__.py`` of the packages that it is in does not count.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOMS = {
    "amidmath": "amidmath",
    "backends": "amidmath.backends",
    "integrations": "amidmath.integrations",
}
"""The folders of the repository, and the packages that they are when they are installed."""


@dataclass
class Imports:
    """What the files of a tree import of each other.

    Args:
        used: by file, the files that it imports.
        private: by file, the names with an underscore that it takes from other files.
    """

    used: dict[str, set[str]] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)

    def circles(self) -> list[frozenset[str]]:
        """Files each of which leads to every other, the largest such sets."""
        reached = {file: self._reached(file) for file in self.used}
        found = {
            frozenset(other for other in reached[file] if file in reached[other])
            for file in self.used
            if file in reached[file]
        }
        return sorted(found, key=sorted)

    def _reached(self, file: str) -> set[str]:
        seen: set[str] = set()
        ahead = [file]
        while ahead:
            new = self.used[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    def way_round(self, circle: frozenset[str]) -> str:
        """A shortest way from the first file of a circle back to it, to be read."""
        first = min(circle)
        ways = [[first]]
        for way in ways:  # which grows
            for file in sorted(self.used[way[-1]] & circle):
                if file == first:
                    return " → ".join([*way, first])
                if all(file not in other for other in ways):
                    ways.append([*way, file])
        raise ValueError(f"{sorted(circle)} is no circle")


def read(root: Path) -> Imports:
    """The imports of the folders of :data:`ROOMS` that there are below a root."""
    modules: dict[str, str] = {}
    for folder, package in ROOMS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            named = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join((package, *named))] = path.relative_to(root).as_posix()
    imports = Imports()
    for module, file in modules.items():
        tree = ast.parse((root / file).read_text("utf-8"))
        visitor = _Visitor(modules, module)
        visitor.visit(tree)
        imports.used[file] = {modules[name] for name in visitor.used} - {file}
        imports.private[file] = visitor.private
    return imports


class _Visitor(ast.NodeVisitor):
    """Collects what one file imports, and which names it knows modules by."""

    def __init__(self, modules: dict[str, str], module: str) -> None:
        self.modules, self.module = modules, module
        self.used: set[str] = set()
        self.private: set[str] = set()
        self.known: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name in self.modules:
                self.used.add(alias.name)
                known = alias.name if alias.asname else alias.name.partition(".")[0]
                self.known[alias.asname or known] = known

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            raise ValueError(f"{self.module} has a relative import, in line {node.lineno}")
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in self.modules:
                self.used.add(inner)
                self.known[alias.asname or alias.name] = inner
            elif node.module in self.modules:
                self.used.add(node.module)
                if _is_private(alias.name):
                    self.private.add(inner)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        module = self._module(node.value)
        if module is not None and module != self.module and _is_private(node.attr):
            self.private.add(f"{module}.{node.attr}")
        self.generic_visit(node)

    def _module(self, node: ast.expr) -> str | None:
        """The module that an expression is, if it is one of the tree's."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            outer = self._module(node.value)
            inner = f"{outer}.{node.attr}"
            within = any(name == inner or name.startswith(f"{inner}.") for name in self.modules)
            return inner if within else None
        return None


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def layers(page: str) -> list[list[str]]:
    """The layers of a Markdown page, lowest first: the code spans of the first column of a table.

    The table is the first one after the heading "Layers". A layer is folders with a slash at the
    end, files, and patterns such as ``integrations/*.py``.
    """
    _, _, section = page.partition("\n## Layers\n")
    rows = []
    for line in section.splitlines():
        if line.startswith("|"):
            rows.append(line.strip("|").split("|")[0])
        elif rows:
            break
    return [row.split("`")[1::2] for row in rows[2:]]


def place(file: str, tree: list[list[str]]) -> tuple[int, str]:
    """The layer of a file, and which of its rooms."""
    places = [
        (height, room)
        for height, rooms in enumerate(tree)
        for room in rooms
        if (file.startswith(room) if room.endswith("/") else PurePosixPath(file).match(room))
    ]
    if len(places) != 1:
        raise ValueError(f"{file} must be in one layer, is in {[room for _, room in places]}")
    return places[0]


def arrows_up(imports: Imports, tree: list[list[str]]) -> set[tuple[str, str]]:
    """Imports of a file of a higher layer, or of another room of the same one."""
    places = {file: place(file, tree) for file in imports.used}
    found = set()
    for file, others in imports.used.items():
        height, room = places[file]
        found |= {
            (file, other)
            for other in others
            if places[other][0] > height
            or (places[other][0] == height and places[other][1] != room)
        }
    return found
