"""The key dataset.unlabelled: a folder of pictures without labels, for stages that are taught. Imports no torch."""

import os
from collections.abc import Mapping
from typing import Any

from kdx.config.problems import Problems
from kdx.config.roles import roles_of, teachers_of
from kdx.config.schema import Schema, UnlabelledSettings

KEY = "dataset.unlabelled"


def check_unlabelled(path: str | None, stage: Mapping[str, Any], problems: Problems) -> None:
    """The folder is there, and one of the roles in `stage` that the run needs has a guide.

    With kd=none nobody is taught, but such a run is what a distilled one is compared with: it may be given the folder.
    """
    if path is None:
        return
    if not os.path.isdir(path):
        problems.add(KEY, path, "a file; a folder is needed" if os.path.exists(path) else "no such folder")
    if not any(teachers_of(stage[role]) for role in _needed(stage)):
        needed = "only a stage that has a guide learns from pictures without labels, and this run needs none; choose"
        problems.add(KEY, path, f"{needed} null, or e.g. stage=student")


def read_unlabelled(run: Schema) -> UnlabelledSettings | None:
    """What the keys say of the folder; decoded pictures are kept where a data set's own are, usually in output_dir."""
    data = run.dataset
    if data.unlabelled is None:
        return None
    cache_dir = data.cache_dir or os.path.join(run.output_dir, "cache")
    return UnlabelledSettings(data.unlabelled, data.cache, cache_dir, data.in_memory_gb)


def _needed(stage: Mapping[str, Any]) -> set[str]:
    """The roles on the way to what is delivered."""
    roles = roles_of(stage)
    needed = set(roles) if stage["deliver"] == "all" else {stage["deliver"]}
    for _ in roles:
        for role in needed & set(roles):
            needed |= {*teachers_of(stage[role]), stage[role].get("start")} & set(roles)
    return needed
