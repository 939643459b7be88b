"""The roles of a chain, every mapping under `stage`: their names, and who teaches whom. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdx.config.problems import Problems
from kdx.config.schema import ModelSchema, StageSchema
from kdx.errors import suggest
from kdx.ranges import Choice, shown

RESERVED_ROLES = {
    *("plan", "status", "error", "lineage", "versions", "git_commit", "overrides", "surroundings"),
    *("class_names", "data_notes"),
    *("all", "shared", "none", "null", "true", "false"),  # choices, and a sweep's folder of stages
    *(field.name.lower() for schema in (StageSchema, ModelSchema) for field in dataclasses.fields(schema)),
}


def teachers_of(role: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles that a role's `guide` names."""
    guide = role.get("guide")
    return () if guide is None else (guide,) if isinstance(guide, str) else tuple(guide)


def roles_of(stage: Mapping[str, Any]) -> list[str]:
    """The roles: every mapping under `stage`."""
    return [str(key) for key, value in stage.items() if isinstance(value, Mapping)]


def check_role_names(roles: list[str], stage: Mapping[str, Any], problems: Problems) -> None:
    """The words that name the roles, and those that choose among them."""
    with_guide = [role for role in roles if "guide" in stage[role]]  # as those of conf
    for role in roles:
        if role.lower() in RESERVED_ROLES or not role.isidentifier() or len(role) > 64:
            problems.add("stage", role, "this word cannot name a role")
        elif "guide" not in stage[role] and suggest(role, with_guide):
            problems.unknown_role(role, with_guide)
        guide, others = stage[role].get("guide"), [other for other in roles if other != role]
        named = guide if isinstance(guide, list | tuple) else [guide]
        unfit = [one for one in named if one not in others] if guide is not None else []
        if unfit or len({shown(one) for one in named}) < len(named) or guide == []:
            near = suggest(shown(unfit[0]), others) if unfit else ""
            choices = ", ".join(("null", *others))
            problems.add(
                f"stage.{role}.guide", guide, f"choose {choices}{near or ', or some of them in a list, each once'}"
            )
    if not roles:
        problems.add("stage", stage, "a role is needed: a mapping {guide: null}")
    problems.rule("stage.deliver", stage.get("deliver"), Choice(("all", *roles)))
