"""The first level of the output folder: how the networks of a run start."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdx.config.checks import roles_of

SCRATCH, IMAGENET, SOME = "from_scratch", "imagenet_pretrained", "pretrained"


def start_name(pretrained: Any, *, _root_: DictConfig) -> str:
    """`from_scratch` or `imagenet_pretrained` where it is true of every role, else who is: `teacher_pretrained`.

    `pretrained` is the global value. A role's weights may also come from a file, to start from or as they are.
    The config need not have been checked.
    """
    stage = OmegaConf.select(_root_, "stage", throw_on_resolution_failure=False)
    roles = roles_of(stage) if isinstance(stage, Mapping) else []
    if pretrained is True and not any(stage[role].get("pretrained") is False for role in roles):
        return IMAGENET
    named = [role for role in roles if _has_weights(stage[role], pretrained, roles)]
    return "_".join([*named, SOME]) if named else SCRATCH


def _has_weights(own: Mapping[str, Any], pretrained: Any, roles: list[str]) -> bool:
    """Whether a role has weights before this run trains it; those of another role of the run do not count."""
    wanted = pretrained if own.get("pretrained") is None else own.get("pretrained")
    return wanted is True or own.get("checkpoint") is not None or own.get("start") not in (None, *roles)
