"""What a Python file does to others when it is imported, beside defining names; read from its syntax tree.

A registry is filled so: by a decorator, a call, an item that is set, or a class whose base notes its subclasses.
"""

import ast
import builtins
from collections.abc import Iterable, Mapping, Sequence

LOCAL = "local"  # stands before the name of a class of the file's own
HARMLESS = (  # to call: they make something, and keep nothing of it
    *(f"builtins.{name}" for name in "bool bytes dict float frozenset int len list object range set str tuple".split()),
    *(f"builtins.{name}" for name in "classmethod property staticmethod".split()),
    *(f"functools.{name}" for name in "cache cached_property lru_cache partial total_ordering wraps".split()),
    *("abc", "collections", "contextlib", "dataclasses", "enum", "math", "pathlib", "typing"),
    *("logging.getLogger", "os.environ.get", "os.getenv", "os.path", "re.compile"),
    *("numpy.array", "torch.device", "torch.inference_mode", "torch.no_grad", "torch.tensor"),
)
BASES = (LOCAL, "builtins", "abc", "collections", "enum", "typing", "torch", "torchvision", "kdx")
OF_PROPERTIES = {"setter", "getter", "deleter"}


def deeds_of(tree: ast.Module) -> frozenset[str]:
    """The names that a file uses where importing it may do something to others; none where it only defines.

    What is not known to be harmless counts: who is wrong so trains once too often.
    """
    known = _known(tree)
    return frozenset(name for node in _acting(tree.body, known) for name in _used(node, known))


def _known(tree: ast.Module) -> dict[str, str]:
    """What the names in a file stand for: what it imports, Python's own, and its own classes; nothing for others."""
    known = {name: f"builtins.{name}" for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            above = "." * node.level + (node.module or "")
            known |= {alias.asname or alias.name: f"{above}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            known[node.name] = f"{LOCAL}.{node.name}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            known[node.name] = ""
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known[node.id] = ""
    return known


def _acting(body: Iterable[ast.stmt], known: Mapping[str, str]) -> list[ast.AST]:
    """The statements that may do something to others."""
    found: list[ast.AST] = []
    for node in body:
        match node:
            case ast.If() if ast.unparse(node.test) == "__name__ == '__main__'":
                found += _acting(node.orelse, known)  # the rest is for who runs the file
            case ast.If():
                found += [node.test] if _calls(node.test, known) else []
                found += _acting([*node.body, *node.orelse], known)
            case ast.Try():
                handled = [statement for handler in node.handlers for statement in handler.body]
                found += _acting([*node.body, *handled, *node.orelse, *node.finalbody], known)
            case _ if not _only_defines(node, known):
                found.append(node)
    return found


def _only_defines(node: ast.stmt, known: Mapping[str, str]) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            defaults = [value for value in (*node.args.defaults, *node.args.kw_defaults) if value is not None]
            own = node.name != "__init_subclass__"
            return own and _harmless(node.decorator_list, known) and not any(_calls(each, known) for each in defaults)
        case ast.ClassDef():
            bases = [*node.bases, *(each.value for each in node.keywords)]
            notes_nothing = all(_is_among(_name_of(base, known), BASES) for base in bases)
            return notes_nothing and _harmless(node.decorator_list, known) and not _acting(node.body, known)
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return not _calls(node.value, known) and not any(map(_sets_part, targets))
        case ast.AugAssign(target=ast.Name(id="__all__")) | ast.Assert() | ast.Raise():
            return not _calls(node, known)
    return False


def _harmless(decorators: Sequence[ast.expr], known: Mapping[str, str]) -> bool:
    """Whether decorators, which are called with what they decorate, note nothing of it."""
    for each in decorators:
        of_property = isinstance(each, ast.Attribute) and each.attr in OF_PROPERTIES
        if not of_property and (not _is_among(_name_of(each, known), HARMLESS) or _calls(each, known)):
            return False
    return True


def _calls(node: ast.AST | None, known: Mapping[str, str]) -> bool:
    """Whether an expression calls something that is not known to be harmless."""
    if node is None or isinstance(node, ast.Lambda):
        return False
    if isinstance(node, ast.Call) and not _is_among(_name_of(node.func, known), HARMLESS):
        return True
    return any(_calls(child, known) for child in ast.iter_child_nodes(node))


def _sets_part(target: ast.expr) -> bool:
    """Whether an assignment changes something that exists: an item or an attribute."""
    parts = (node for node in ast.walk(target) if isinstance(node, ast.Subscript | ast.Attribute))
    return any(isinstance(part.ctx, ast.Store) for part in parts)


def _name_of(node: ast.expr, known: Mapping[str, str]) -> str:
    """The dotted name of what is called or derived from, of a call that of who made it; empty where it is unknown."""
    match node:
        case ast.Name():
            return known.get(node.id, "")
        case ast.Attribute():
            above = _name_of(node.value, known)
            return f"{above}.{node.attr}" if above else ""
        case ast.Call():
            return _name_of(node.func, known)
        case ast.Subscript():
            return _name_of(node.value, known)
        case ast.Constant():
            return "builtins.str"
    return ""


def _is_among(name: str, among: Iterable[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in among)


def _used(statement: ast.AST, known: Mapping[str, str]) -> set[str]:
    """The names that a statement takes from elsewhere, but for Python's own; code in a string may use any."""
    found, loops = set(), set()
    for node in ast.walk(statement):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.For | ast.comprehension):
            loops |= {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
    own = {name for name in found if name.startswith("__") or known.get(name, "").startswith("builtins.")}
    return found - loops - (own - {"exec", "eval"})
