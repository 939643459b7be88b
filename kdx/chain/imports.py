"""What a Python file imports, read from its syntax tree."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Wanted = frozenset[str] | None  # names of a module that somebody uses
EVERYTHING: Wanted = None
NOTHING: Wanted = frozenset()  # but what the module does when it is imported

BY_NAME = {"import_module", "__import__"}
BY_FILE = {"spec_from_file_location", "walk_packages", "iter_modules", "run_path", "exec_module"}


class Edge(NamedTuple):
    """An import: the name that it binds (empty where none does), the module, and the names wanted of that."""

    binds: str
    module: str
    wanted: Wanted


def edges_of(
    tree: ast.Module, package: str, is_package: bool, path: Path, is_module: Callable[[str], bool]
) -> Iterator[Edge]:
    """The imports anywhere in a module; `package` is the one that holds it, or it itself where it is one.

    Where it imports by names that are computed, everything beside it counts. A name that an `__init__` both imports
    and assigns anew is not bound by the import alone.
    """
    remade = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        found: Iterator[Edge] = iter(())
        if isinstance(node, ast.Import):
            found = _plain(node)
        elif isinstance(node, ast.ImportFrom):
            found = _from(node, package, is_module)
        elif isinstance(node, ast.Call):
            found = _call(node, package, path)
        for edge in found:
            yield edge._replace(binds="") if edge.binds in remade else edge
    if is_package:
        yield from (Edge(name, f"{package}.{name}", None) for name in _exported(tree) if is_module(f"{package}.{name}"))


def _plain(node: ast.Import) -> Iterator[Edge]:
    for alias in node.names:
        parts = alias.name.split(".")
        if alias.asname:
            yield Edge(alias.asname, alias.name, EVERYTHING)
        else:  # every package on the way is reachable by its name
            yield from (Edge(parts[0], ".".join(parts[: length + 1]), EVERYTHING) for length in range(len(parts)))


def _from(node: ast.ImportFrom, package: str, is_module: Callable[[str], bool]) -> Iterator[Edge]:
    base = _absolute("." * node.level + (node.module or ""), package)
    for alias in node.names:
        binds, inner = alias.asname or alias.name, f"{base}.{alias.name}"
        if alias.name == "*":
            yield Edge("", base, EVERYTHING)
        elif is_module(inner):
            yield Edge(binds, inner, EVERYTHING)
        elif base:
            yield Edge(binds, base, frozenset({alias.name}))
            if not is_module(base):  # it may be found later, as a folder without __init__, too
                yield Edge(binds, inner, EVERYTHING)


def _call(node: ast.Call, package: str, path: Path) -> Iterator[Edge]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if called in BY_NAME and isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield Edge("", _absolute(first.value, package), EVERYTHING)
    elif called in BY_NAME | BY_FILE:
        yield from (Edge("", name, EVERYTHING) for name in _all_beside(package, path))


def _all_beside(package: str, path: Path) -> Iterator[str]:
    """Every module of the package tree; beside a module that is in no package, those of its folder."""
    if not package:
        yield from (file.stem for file in sorted(path.parent.glob("*.py")))
        return
    depth = len(package.split("."))
    root = path.parents[depth - 1]
    for file in sorted(root.rglob("*.py")):
        parts = (root.name, *file.relative_to(root).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _absolute(name: str, package: str) -> str:
    """`..b` in the package `a.c` is `a.b`."""
    plain = name.lstrip(".")
    level = len(name) - len(plain)
    if level == 0:
        return plain
    parts = package.split(".")
    above = ".".join(parts[: len(parts) - level + 1])
    return ".".join(filter(None, (above, plain)))


def _exported(tree: ast.Module) -> set[str]:
    """The strings in `__all__`: `from package import *` imports the modules among them."""
    lists = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0])
    )
    return {str(node.value) for found in lists for node in ast.walk(found) if isinstance(node, ast.Constant)}
