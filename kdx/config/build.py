"""What a `_target_` names, built from plain values. The only file that instantiates; imports no torch."""

import inspect
import pkgutil
import re
import sys
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kdx.config.swap_points import rules_of
from kdx.errors import KdxError, suggest, then
from kdx.ranges import shown
from kdx.users_code import reason_of, text_of, users_code


def build(node: dict[str, Any], key: str, *arguments: Any, **named: Any) -> Any:
    """The object that a swap point's `_target_` names, or None without one.

    A `_partial_` target is called with `arguments` and `named` ones, which so stay what they are (an optimizer).
    """
    if node.get("_target_") is None:
        return None
    try:
        built = instantiate({**node, "_convert_": "all"})
        return built(*arguments, **named) if arguments else built
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's own code may raise anything
        cause = _cause_of(error)
        if isinstance(cause, KdxError):
            raise cause from None
        target = node["_target_"]
        unknown = re.search(r"unexpected keyword argument '(\w+)'", text_of(cause))
        if unknown is not None and unknown[1] in node and unknown[1] not in arguments_of(target):
            raise KdxError(f"{key}.{unknown[1]}: {_not_taken(unknown[1], key, target, len(arguments))}") from error
        reason = _without_attribute(target, cause) or shown(reason_of(cause))
        raise KdxError(f"{key}: {target} cannot be built: {reason}") from error


def _cause_of(error: BaseException) -> BaseException:
    """What a target, or the module that holds it, raised, without what Hydra says about it."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, ImportError) and str(error).startswith("Error loading '") and error.__cause__ is not None:
            error = error.__cause__
    return error


def arguments_of(target: str) -> set[str]:
    """The names of the arguments that a `_target_` takes by name; none where it cannot be found or says nothing."""
    return set(_arguments_of(target))


def _arguments_of(target: str) -> list[str]:
    """The names of a `_target_`'s arguments in their order."""
    try:
        with users_code(target):
            return list(inspect.signature(pkgutil.resolve_name(target)).parameters)
    except KdxError:
        return []


def _without_attribute(target: str, cause: BaseException) -> str | None:
    """What is wrong with a `_target_` whose module does not hold it; None where it is something else."""
    module, _, name = target.rpartition(".")
    if not isinstance(cause, ModuleNotFoundError) or module not in sys.modules or hasattr(sys.modules[module], name):
        return None
    return f"{module} has no attribute {name}{suggest(name, vars(sys.modules[module]))}"


def _not_taken(name: str, key: str, target: str, given: int) -> str:
    """What to do about a key that a `_target_` does not take: a near one, or out with what another option left.

    The first `given` arguments are not the user's to give.
    """
    keys = _keys_of(target, key)
    hint = f"; leave it out with ~{key}.{name}" if name in keys else suggest(name, keys)
    own = [*_arguments_of(target)[given:], *(ours for ours in ("hard", "weight") if key.split(".")[0] == "kd")]
    keys_told = f"its keys: {', '.join(dict.fromkeys(own))}" if own else f"it has none; leave it out with ~{key}.{name}"
    return then(f"{target} has no such key{hint}", keys_told)


def _keys_of(target: str, key: str) -> set[str]:
    """What may be meant by a key that a `_target_` does not take."""
    taken = arguments_of(target) if key.split(".")[0] == "kd" else set()  # the table has the keys of all methods
    return taken | {"hard", "weight"} if taken else set(rules_of(key, target))
