"""Overrides in Hydra's own words: `stage.<role>.<group>.<key>=value` as a user types it, and back; odd values."""

import dataclasses
import re

from kdx.config.schema import RoleSchema
from kdx.config.swap_points import GROUPS

OPTION = r"[A-Za-z_][\w.\-]*"  # the name of a group's file
LIST = rf"\[{OPTION}(, ?{OPTION})*\]"  # which is refused as it is for the run's own group
OPTIONS = re.compile(rf"({OPTION}|{LIST})(,({OPTION}|{LIST}))*")  # one, or a sweep's
OWN_KEYS = {field.name for field in dataclasses.fields(RoleSchema)}


def to_hydra(override: str) -> str:
    """An override of a stage as Hydra takes it: a key that is not there yet is added, an option of conf is chosen."""
    name, equals, value = override.partition("=")
    parts = re.sub(r"^(stage\.\w+)\.checkpoint\.(key|check)$", r"\1.checkpoint_\2", name).split(".")
    override = ".".join(parts) + equals + value
    if not equals or len(parts) < 3 or parts[0] != "stage":
        return override
    if len(parts) == 3 and parts[2] in GROUPS and OPTIONS.fullmatch(value) and value != "null":
        return f"+{parts[2]}@{override}"
    return f"++{override}" if len(parts) > 3 or parts[2] in OWN_KEYS else override


def from_hydra(override: str) -> str:
    """An override as it was typed."""
    return re.sub(r"^\+(\+|\w+@)?(?=stage\.[^.=]+\.)", "", override)


def quoted(text: str) -> str:
    """A value, such as a path, as Hydra's grammar takes it whatever it contains; in quotes where it needs them."""
    if re.fullmatch(r"[\w.\-]*/[\w./\-]*", text, re.ASCII):  # a plain path, which is no number, no null
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
