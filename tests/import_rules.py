"""Which file of a package imports which, read from the source, and what breaks the two rules of its imports:

1. No import goes up: a file imports from its own layer and from those below.
2. No circle: no file reaches itself by following imports, however many files lie between.

Imports inside functions and under TYPE_CHECKING count like all others. A package's `__init__.py` is a file too: an
import from outside the package counts as an import of it as well, since Python runs it first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    importer: str
    line: int
    target: str


class Problem(NamedTuple):
    """``files``: the importing modules, one for an import that goes up, all of a circle; ``message`` says the rest."""

    files: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Package:
    """A package to be checked.

    name       its import name. Its own `__init__.py` is a facade: its imports do not count
    folders    import name → folder, of the package and of packages in it that have their source elsewhere
    layers     names directly under the package, top layer first
    facade_by  those of them that may import names from the facade; all may import its submodules
    compiled   modules without source
    """

    name: str
    folders: dict[str, Path]
    layers: tuple[tuple[str, ...], ...]
    facade_by: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()

    def files(self) -> dict[str, Path]:
        """Module name → file."""
        found = {}
        for prefix, folder in self.folders.items():
            for file in sorted(folder.rglob("*.py")):
                parts = file.relative_to(folder).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                name = ".".join((prefix, *parts))
                elsewhere = any((f"{name}.").startswith(f"{other}.") for other in self.folders if other != self.name)
                if prefix != self.name or not elsewhere:  # else a link to that folder
                    found[name] = file
        return found

    def room(self, module: str) -> str:
        """The name directly under the package, as "ops" of "package.ops.numerics"; "" for the facade."""
        return module[len(self.name) + 1 :].split(".")[0]

    def layer(self, module: str) -> int | None:
        """Number of the module's layer, 0 at the top; None: it is in none."""
        return next((i for i, rooms in enumerate(self.layers) if self.room(module) in rooms), None)


def _shown(file: Path) -> Path:
    """The file as one would type it here."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _bound_names(tree: ast.Module) -> set[str]:
    """Names that a module binds, as far as they can be seen without running it."""
    names, waiting = set(), list(tree.body)
    for node in waiting:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            names |= {getattr(node, "name", "")}  # and not the names that it binds inside
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _imported(node: ast.AST, importer: str, is_package: bool) -> Iterator[tuple[str, str | None]]:
    """(module, name) for each name that an import statement, or a call of import_module, takes; None: no name."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            parents = importer.split(".")
            parents = parents[: len(parents) - node.level + is_package]
            module = ".".join([*parents, *([module] if module else [])])
        for alias in node.names:
            yield module, alias.name
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = node.args[0]
        if called in ("import_module", "__import__") and isinstance(given, ast.Constant):
            yield str(given.value), None


def read_imports(package: Package) -> list[Import]:
    """All imports of a module of the package by another. Raises ValueError for a module that does not exist."""
    files = package.files()
    trees = {module: ast.parse(file.read_text(), str(file)) for module, file in files.items()}
    known = {*files, *package.compiled}
    bound = {m: _bound_names(trees[m]) for m, file in files.items() if file.name == "__init__.py"}
    bound[package.name] = bound.get(package.name, set()) - {name.rpartition(".")[2] for name in known}
    found = []
    for importer, tree in trees.items():
        if importer == package.name:
            continue
        is_package = importer in bound
        for node in ast.walk(tree):
            for module, name in _imported(node, importer, is_package):
                if module.split(".")[0] != package.name:
                    continue
                target = module
                submodule = f"{module}.{name}"
                if submodule in known and (module == importer or name not in bound.get(module, ())):
                    target = submodule
                if target not in known:
                    raise ValueError(f"{_shown(files[importer])}:{node.lineno} imports {target}, which does not exist")
                found += [Import(importer, node.lineno, run) for run in _run_by(importer, target, package.name)]
    return found


def _run_by(importer: str, target: str, top: str) -> Iterator[str]:
    """The target, and the packages around it whose `__init__.py` Python runs first, if the importer is not in them."""
    if target != importer:
        yield target
    while (target := target.rpartition(".")[0]) not in ("", top):
        if not f"{importer}.".startswith(f"{target}."):
            yield target


def _upward(package: Package, imports: list[Import], files: dict[str, Path]) -> Iterator[Problem]:
    rooms = sorted({package.room(module) for module in files if package.layer(module) is None} - {""})
    for room in rooms:
        yield Problem((f"{package.name}.{room}",), f"{package.name}/{room} is in no layer: LAYERS must name it")
    told = set()
    for importer, line, target in imports:
        where = f"{_shown(files[importer])}:{line} imports {target}"
        if target == package.name:
            if package.room(importer) not in package.facade_by:
                yield Problem(
                    (importer,),
                    f"{where}: only {', '.join(package.facade_by)} may import names from {package.name}/__init__.py. "
                    f"Right would be to import them from the files where they are defined",
                )
            continue
        own, other = package.layer(importer), package.layer(target)
        if own is not None and other is not None and other < own and (importer, line) not in told:
            told.add((importer, line))
            yield Problem(
                (importer,),
                f"{where}: no import goes up, and {package.room(target)} is above {package.room(importer)}. Right "
                f"would be to move what both need to {package.room(importer)} or below, or to take it as an argument",
            )


def _circle_through(start: str, targets: dict[str, dict[str, int]]) -> list[str] | None:
    """The shortest way along imports from a module to itself."""
    came_from, waiting = {}, [start]
    for module in waiting:
        for target in targets.get(module, {}):
            if target == start:
                way = [module]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target not in came_from:
                came_from[target] = module
                waiting.append(target)
    return None


def _circles(package: Package, imports: list[Import], files: dict[str, Path]) -> Iterator[Problem]:
    """Shortest first, none that shares an import with one before. A circle through several layers has an import that
    goes up, which `_upward` tells, so only circles within a layer are looked for.
    """
    targets: dict[str, dict[str, int]] = {}
    for importer, line, target in imports:
        if package.layer(importer) == package.layer(target):
            targets.setdefault(importer, {}).setdefault(target, line)
    circles = [circle for module in sorted(targets) if (circle := _circle_through(module, targets))]
    told: set[tuple[str, str]] = set()
    for circle in sorted(circles, key=len):
        steps = list(zip(circle, [*circle[1:], circle[0]], strict=True))
        if told.isdisjoint(steps):
            way = ", ".join(f"{_shown(files[a])}:{targets[a][b]} imports {b}" for a, b in steps)
            yield Problem(
                tuple(circle),
                f"a circle of imports: {way}. "
                f"Right would be to move what they share to a file that imports none of them",
            )
        told.update(steps)


def problems(package: Package) -> list[Problem]:
    """Everything in the package that breaks a rule."""
    files, imports = package.files(), read_imports(package)
    return [*_upward(package, imports, files), *_circles(package, imports, files)]
