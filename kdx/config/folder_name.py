"""The first level of the output folder: how the networks of a run start."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdx.config.roles import roles_of, teachers_of

SCRATCH, IMAGENET, SOME = "from_scratch", "imagenet_pretrained", "pretrained"
BY_OTHERS = (":", "timm/")  # in names of networks whose weights may have been learnt from anything


def start_name(pretrained: Any, *, _root_: DictConfig) -> str:
    """`from_scratch` or `imagenet_pretrained` where it is true of every role, else who is: `teacher_pretrained`.

    `pretrained` is the global value. A role's weights may also come from a file, to start from or as they are, or with
    a network that is not trained. Roles that this run cannot need do not count. The config need not have been checked.
    """
    config: Mapping[str, Any] = {
        group: OmegaConf.select(_root_, group, throw_on_resolution_failure=False) for group in ("stage", "model", "kd")
    }
    stage = config["stage"]
    roles = roles_of(stage) if isinstance(stage, Mapping) else []
    begins = {role: _begin(config, role, roles, pretrained) for role in _needed(config, roles)}
    if begins and all(begin == IMAGENET for begin in begins.values()):
        return IMAGENET
    named = [role for role in roles if begins.get(role, SCRATCH) != SCRATCH]
    return "_".join([*named, SOME]) if named else SCRATCH


def _needed(config: Mapping[str, Any], roles: list[str]) -> set[str]:
    """The roles that deliver what is asked for, and those that teach or start them, as far as a config tells."""
    deliver = config["stage"].get("deliver") if roles else None
    waiting, needed = [deliver] if deliver in roles else [*roles], set[str]()
    while waiting:
        role = waiting.pop()
        if role not in needed:
            needed.add(role)
            waiting += _upstream(config, role, roles)
    return needed


def _upstream(config: Mapping[str, Any], role: str, roles: list[str]) -> list[str]:
    """Who teaches a role, and who gives it its first weights; nobody where it is not trained."""
    own = config["stage"][role]
    if own.get("checkpoint") is not None or own.get("head") is False:
        return []
    groups = (group for group in (own.get("kd"), config["kd"]) if isinstance(group, Mapping))
    taught = next((group["_target_"] for group in groups if "_target_" in group), None) is not None
    guides = teachers_of(own) if taught and isinstance(own.get("guide"), str | Sequence) else ()
    return [one for one in (*guides, own.get("start")) if one in roles]


def _begin(config: Mapping[str, Any], role: str, roles: list[str], pretrained: Any) -> str:
    """What a role's weights are before this run trains it; those of another role of the run do not count."""
    own = config["stage"][role]
    wanted = (pretrained if own.get("pretrained") is None else own.get("pretrained")) is True
    if own.get("checkpoint") is not None or own.get("start") not in (None, *roles):
        return SOME
    if not wanted:
        return SOME if own.get("head") is False else SCRATCH
    other, model = own.get("start"), config["model"]
    if other is not None and _begin(config, other, [one for one in roles if one != role], pretrained) != IMAGENET:
        return SOME
    network = model.get(role) if isinstance(model, Mapping) else None
    return SOME if any(part in str(network) for part in BY_OTHERS) else IMAGENET
