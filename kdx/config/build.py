"""What a `_target_` names, built from plain values. The only file that instantiates; imports no torch."""

import inspect
import pkgutil
import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kdx.config.swap_points import rules_of
from kdx.errors import KdxError, suggest
from kdx.ranges import shown
from kdx.users_code import reason_of, users_code


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
        reason = shown(reason_of(cause))
        unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
        hint = "" if unknown is None else _hint_at(unknown[1], key, node["_target_"])
        raise KdxError(f"{key}: {node['_target_']} cannot be built: {reason}{hint}") from error


def _cause_of(error: BaseException) -> BaseException:
    """What a target, or the module that holds it, raised, without what Hydra says about it."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, ImportError) and str(error).startswith("Error loading '") and error.__cause__ is not None:
            error = error.__cause__
    return error


def arguments_of(target: str) -> set[str]:
    """The names of the arguments that a `_target_` takes by name; none where it cannot be found or says nothing."""
    try:
        with users_code(target):
            return set(inspect.signature(pkgutil.resolve_name(target)).parameters)
    except KdxError:
        return set()


def _hint_at(name: str, key: str, target: str) -> str:
    """What to do about a key that a `_target_` does not take: a near one, or out with what another option left."""
    keys = _keys_of(target, key)
    return f"; leave it out with ~{key}.{name}" if name in keys else suggest(name, keys)


def _keys_of(target: str, key: str) -> set[str]:
    """What may be meant by a key that a `_target_` does not take."""
    taken = arguments_of(target) if key.split(".")[0] == "kd" else set()  # the table has the keys of all methods
    return taken | {"hard", "weight"} if taken else set(rules_of(key, target))
