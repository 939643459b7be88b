"""The code of what a user plugs in: which source files it consists of, and a hash of each. Nothing of it is run."""

import ast
import hashlib
import importlib
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from kdx.chain.deeds import deeds_of
from kdx.chain.imports import EVERYTHING, NOTHING, Edge, Wanted, edges_of
from kdx.errors import KdxError
from kdx.users_code import is_installed, is_standard

STAMP = "kdx_source"  # on the spec of a loaded module: the hash of the source that it was loaded from
NOT_PLUGGED_IN = {"torch", "torchvision", "hydra", "omegaconf"}  # their versions are told in summary.json
UNKNOWN = "?"  # a name that stands for whatever a file does that is no Python source
LOCATORS = ("hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.get_object")


@dataclass
class _Source:
    """A module of the user's: its file, the hash of what it says, the modules that it imports, and what it does.

    `deeds` are the names that it uses where importing it may do something to others, such as fill a registry.
    """

    path: Path
    digest: str
    edges: list[Edge] = field(default_factory=list)
    is_package: bool = False
    deeds: frozenset[str] = frozenset()


class Sources:
    """Reads source files once; `of` tells what code a target consists of.

    Counted are the module that holds the target, the `__init__` of the packages around it and, transitively, what
    these import of the user's own: neither the standard library nor installed packages nor kdx. An installed package
    that holds the target itself counts with all its files. Comments, blank lines and layout do not count, docstrings
    do; files other than modules (JSON, weights) that the code reads are not seen.

    What an `__init__` imports and nobody wants of it, whatever the form, counts where importing it does something to
    others, such as fill a registry: else any edit in a package whose `__init__` names all its modules would train
    everything again.
    """

    def __init__(self) -> None:
        importlib.invalidate_caches()  # a file that appeared a moment ago counts
        self._sources: dict[str, _Source | None] = {}

    def of_node(self, node: Any) -> dict[str, str]:
        """The code of every `_target_` in a swap point's config, at any depth."""
        if isinstance(node, dict):
            target = str(node.get("_target_") or "")
            found = self.of(str(node.get("path") or "") if target in LOCATORS else target)
            return reduce(lambda known, value: known | self.of_node(value), node.values(), found)
        if isinstance(node, list):
            return reduce(lambda known, value: known | self.of_node(value), node, {})
        return {}

    def of(self, target: str) -> dict[str, str]:
        """Module -> hash of what `package.module:callable`, or with a dot, consists of.

        Empty for what is torch's and torchvision's; for kdx's own, its `version` where that is not 1. Also empty for
        what cannot be found: who builds it says so.
        """
        parts = target.replace(":", ".").split(".")
        if parts[0] == "kdx":
            version = _version_of(parts)
            return {} if version == 1 else {target: f"version {version}"}
        if parts[0] in NOT_PLUGGED_IN or not all(part.isidentifier() for part in parts):
            return {}
        module = next((name for name in _prefixes(parts) if _spec(name) is not None), None)
        if module is None:
            self._sources |= {name: None for name in _prefixes(parts) if name not in self._sources}
            return {}
        if _is_installed(_spec(module)):
            return _installed_package(parts[0])
        attribute = parts[len(module.split(".")) :][:1]
        return self._walk([Edge("", module, frozenset(attribute) if attribute else EVERYTHING)])

    def confirm(self) -> None:
        """`KdxError` where a file has changed since it was read, or was found only once the code was imported.

        To be called once the code has been imported: what runs is then known to be what was hashed. Marks the loaded
        modules with what they were read as.
        """
        paths = {source.path.resolve() for source in self._sources.values() if source is not None}
        for name, source in self._sources.items():
            if source is None:
                _refuse_found_late(name, paths)
            else:
                if _read(source.path) is None or _digest(source.path)[0] != source.digest:
                    raise KdxError(f"{source.path}: was edited while the run started; start it again")
                spec = _loaded_spec(name)
                if spec is not None:
                    _refuse_found_late(name, paths)
                    vars(spec).setdefault(STAMP, source.digest)

    def _walk(self, edges: Sequence[Edge]) -> dict[str, str]:
        todo, seen = list(edges), set()
        found: dict[str, str] = {}
        while todo:
            edge = todo.pop()
            if (edge.module, edge.wanted) in seen:
                continue
            seen.add((edge.module, edge.wanted))
            around, source = _packages_around(edge.module), self._source(edge.module)
            if edge.wanted != NOTHING or (source is not None and source.deeds):
                for name in (*around, edge.module):
                    found |= self._counted(name)
            todo += [Edge("", above, NOTHING) for above in around]
            todo += [] if source is None else _followed(source, edge.wanted)
        return found

    def _source(self, name: str) -> _Source | None:
        """A module of the user's own, or None for all others."""
        if name not in self._sources:
            self._sources[name] = _read_source(name)
        return self._sources[name]

    def _counted(self, name: str) -> dict[str, str]:
        """The hash of a module that is the user's own, by its name; `KdxError` where the process runs another state."""
        source = self._source(name)
        if source is None:
            return {}
        if getattr(_loaded_spec(name), STAMP, source.digest) != source.digest:
            raise KdxError(f"{source.path}: was edited since this process loaded {name}; start a new process")
        return {name: source.digest}


def _followed(source: _Source, wanted: Wanted) -> list[Edge]:
    """The imports of a module that matter to who wants these names; of a package's `__init__` those that bind them.

    What else is imported matters by what it does then.
    """
    if wanted is None or (not source.is_package and (wanted or source.deeds)):
        return source.edges
    edges = [edge._replace(binds="", wanted=NOTHING) for edge in source.edges]
    for name in wanted | source.deeds:
        binding = [edge for edge in source.edges if edge.binds == name]
        edges += binding or source.edges  # it is made there, of whatever was imported
    return edges


def _own_file(name: str) -> Path | None:
    """The file of a module of the user's own, or None for all others."""
    spec = _spec(name)
    if name.split(".")[0] == "kdx" or spec is None or not spec.has_location or not spec.origin:
        return None
    path = Path(spec.origin)
    return None if _is_installed(spec) or is_standard(path) or _read(path) is None else path


def _read_source(name: str) -> _Source | None:
    path = _own_file(name)
    if path is None:
        return None
    digest, tree = _digest(path)
    is_package = bool(_folders(name))
    package = name if is_package else name.rpartition(".")[0]
    if tree is None:
        return _Source(path, digest, [], is_package, frozenset({UNKNOWN}))
    edges = list(edges_of(tree, package, is_package, path, lambda n: _spec(n) is not None))
    return _Source(path, digest, edges, is_package, deeds_of(tree))


def _refuse_found_late(name: str, known: Collection[Path]) -> None:
    """`KdxError` where a module now comes from a file of the user's that is not among those that were known before."""
    path = _own_file(name)
    if path is not None and path.resolve() not in known:
        folder = path.parents[name.count(".") + (path.stem == "__init__")]
        raise KdxError(
            f"{path}: {name} was found only once your code had been imported (does it change sys.path?), "
            f"so that its edits would go unnoticed; put {folder} on PYTHONPATH"
        )


def _digest(path: Path) -> tuple[str, ast.Module | None]:
    """The hash of what a file says, whatever its layout, and its tree; of its bytes where it is no Python source."""
    content = _read(path) or b""
    tree = None
    if path.suffix == ".py":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python tells them when it imports the file
                tree = ast.parse(content)
                content = ast.unparse(tree).encode(errors="surrogatepass")
        except (SyntaxError, ValueError, RecursionError):
            tree = None  # who imports it says so
    return hashlib.sha256(content).hexdigest()[:16], tree


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _spec(name: str) -> ModuleSpec | None:
    """How a module is, or would be, loaded; unlike importlib's own this does not import the packages around it."""
    spec = _loaded_spec(name)
    if spec is not None:
        return spec
    package, _, _ = name.rpartition(".")
    folders = _folders(package) if package else None
    if package and not folders:
        return None
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, folders) if hasattr(finder, "find_spec") else None
        except KeyError:  # a namespace in a package that is not loaded: importlib asks the package for its path
            spec = ModuleSpec(name, None, is_package=True)
        if spec is not None:
            return spec
    return None


def _loaded_spec(name: str) -> ModuleSpec | None:
    return getattr(sys.modules.get(name), "__spec__", None)


def _folders(package: str) -> list[str]:
    """Where the modules of a package lie; none for a module that is no package."""
    spec = _spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    if spec.origin is None and "." in package:  # a namespace, likewise
        above, _, own = package.rpartition(".")
        return [str(folder) for folder in (Path(place, own) for place in _folders(above)) if folder.is_dir()]
    return list(spec.submodule_search_locations)


def _prefixes(parts: Sequence[str]) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`."""
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def _packages_around(module: str) -> list[str]:
    return list(_prefixes(module.split(".")[:-1]))


def _is_installed(spec: ModuleSpec | None) -> bool:
    return spec is not None and spec.origin is not None and is_installed(Path(spec.origin))


def _installed_package(name: str) -> dict[str, str]:
    """One hash of all Python files of an installed package."""
    spec = _spec(name)
    files = [Path(spec.origin)] if spec is not None and spec.origin else []
    for folder in _folders(name):
        files += sorted(Path(folder).rglob("*.py"))
    whole = hashlib.sha256()
    for path in dict.fromkeys(files):
        whole.update(repr((path.name, _read(path))).encode())
    return {name: whole.hexdigest()[:16]}


def _version_of(parts: Sequence[str]) -> int:
    """The `version` of a class of kdx's, or the `VERSION` of the module that defines a function; 1 where neither is."""
    for name in _prefixes(parts[:-1]):
        try:
            found = reduce(getattr, parts[len(name.split(".")) :], importlib.import_module(name))
        except (ImportError, AttributeError):
            continue
        home = sys.modules.get(str(getattr(found, "__module__", "")))
        return int(getattr(found, "version", getattr(home, "VERSION", 1)))
    return 1
