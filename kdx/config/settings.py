"""From a composed config to plain, checked settings. Nothing behind this file sees a config; it imports no torch."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.augmentations import read_augment
from kdx.config.augment import check_augment, check_kept_logits
from kdx.config.checks import (
    check_left_out,
    check_recipe,
    check_swap_points,
    check_together,
    check_torchrun,
    check_values,
)
from kdx.config.data_keys import check_data_keys
from kdx.config.folder_name import start_name
from kdx.config.problems import Problems
from kdx.config.roles import roles_of, teachers_of
from kdx.config.schema import RoleSchema, RunKeys, Schema, Settings, StageSettings
from kdx.config.swap_points import GROUPS, KEYS_OF_KDX
from kdx.config.unlabelled import check_unlabelled, read_unlabelled
from kdx.errors import KdxError
from kdx.ranges import leaves, shown
from kdx.recipe import Recipe
from kdx.torchrun import world

# ${kdx.start:...} names the output folder's first level: how the networks start.
OmegaConf.register_new_resolver("kdx.start", start_name, replace=True)


def read_settings(config: DictConfig) -> Settings:
    """Checked settings; `KdxError` lists every bad key with its value and the choices, in one line."""
    composed: Any = OmegaConf.to_container(config, resolve=False)
    config, typed = _typed(config)
    problems, torchrun = Problems(), world()
    if torchrun is not None:
        check_torchrun(typed, torchrun, problems)
        typed.devices = torchrun.size
    check_together(typed, problems)
    check_data_keys(composed, problems)
    order = _teachers_first(config, roles_of(config.stage), problems)
    problems.raise_if_any()
    stages = tuple(_stage(config, role) for role in order)
    augment = read_augment(typed.dataset.augment)
    check_kept_logits(augment, typed.dataset.balance, stages, problems)
    check_unlabelled(typed.dataset.unlabelled, config.stage, problems)
    for stage in stages:
        check_recipe(stage, typed, problems)
    problems.raise_if_any()
    deliver = config.stage.deliver
    dataset = OmegaConf.to_container(config.dataset, resolve=True)
    assert isinstance(dataset, dict)
    return Settings(
        stages=stages,
        deliver=tuple(order) if deliver == "all" else (deliver,),
        reuse=config.stage.reuse,
        missing=config.stage.missing,
        dataset_name=typed.dataset.name,
        source=dataset["source"],
        resize=typed.dataset.resize,
        augment=augment,
        balance=typed.dataset.balance,
        unlabelled=read_unlabelled(typed),
        normalize=dataset["normalize"],
        stem=config.model.stem,
        torchrun=torchrun,
        **{field.name: getattr(typed, field.name) for field in dataclasses.fields(RunKeys)},
    )


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a config or of nested dicts."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [prefix + str(key), *flat_keys(value, f"{prefix}{key!s}.")]
    return keys


def keep_environment(node: Any) -> Any:
    """`node` with `${oc.env:...}` escaped, so that a dump never holds what the environment does."""
    if isinstance(node, dict):
        return {key: keep_environment(value) for key, value in node.items()}
    if isinstance(node, list):
        return [keep_environment(value) for value in node]
    if isinstance(node, str) and "${oc.env:" in node:
        return node.replace("${", "\\${")
    return node


def _typed(config: DictConfig) -> tuple[DictConfig, Schema]:
    """The config with every value checked, its texts and numbers of the schema's types; and as an object."""
    kept: list[Any] = [key for key in config if key != "hydra"]  # `on:` of a YAML file is a key that is no text
    plain = OmegaConf.masked_copy(config, kept)
    OmegaConf.set_struct(plain, False)
    written = leaves(OmegaConf.to_container(plain, resolve=False))
    problems = Problems({key for key, value in written if isinstance(value, str) and "${" in value})
    try:
        values: Any = OmegaConf.to_container(plain, resolve=True)
        check_values(values, problems)
        check_augment(values, problems)
        checked = _with_types(plain, values) if not problems.lines else plain
        check_swap_points(OmegaConf.to_container(checked, resolve=True), problems)  # type: ignore[arg-type]
        problems.raise_if_any()
        typed = OmegaConf.to_object(checked)
    except OmegaConfBaseException as error:
        check_left_out(Schema, OmegaConf.to_container(plain, resolve=False), "", problems)  # what it may refer to
        problems.raise_if_any()
        raise KdxError(explain_key(error)) from error
    except RecursionError:
        raise KdxError("a value refers to itself through ${...}") from None
    assert isinstance(typed, Schema) and isinstance(checked, DictConfig)
    return checked, typed


def _with_types(plain: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """The config with the schema's types, so that what refers to a key has its type, too."""
    checked = OmegaConf.merge(OmegaConf.structured(Schema), plain)
    assert isinstance(checked, DictConfig)
    for role in roles_of(values["stage"]):
        checked.stage[role] = OmegaConf.merge(OmegaConf.structured(RoleSchema), checked.stage[role])
    return checked


def explain_key(error: OmegaConfBaseException) -> str:
    """An error of OmegaConf's in one line that begins with the key."""
    key = shown(getattr(error, "full_key", "") or getattr(error, "key", ""))
    first = shown(str(error).split("\n")[0])
    return f"{key}: {first}" if key and key not in first else first


def _teachers_first(config: DictConfig, roles: list[str], problems: Problems) -> list[str]:
    """The roles in an order in which every teacher precedes whom it teaches, and every start whom it starts."""
    needed = {role: {*teachers_of(config.stage[role]), config.stage[role].get("start")} & {*roles} for role in roles}
    order: list[str] = []
    while len(order) < len(roles):
        ready = [role for role in roles if role not in order and needed[role] <= set(order)]
        if not ready:
            stuck = ", ".join(r for r in roles if r not in order)
            problems.add("stage.<role>.guide", stuck, "these roles guide each other in a circle; a start counts")
            return roles
        order += ready
    return order


def _group_of_stage(group: str, usual: DictConfig, own: DictConfig) -> Any:
    """A group's keys for one stage: its own in the place of the usual ones, or all of another option of conf."""
    if "_target_" not in own:
        return OmegaConf.merge(usual, own)
    kept = {key: usual[key] for key in KEYS_OF_KDX[group] if key in usual}
    return OmegaConf.merge(OmegaConf.create(kept), own)


def _staged(config: Any, role: str) -> dict[str, Any]:
    """A config, which is changed, with a role's own values in the place of the global ones, resolved."""
    own = config.stage[role]
    for group in GROUPS:
        if own.get(group) is not None:
            config[group] = _group_of_stage(group, config[group], own[group])
    for field in dataclasses.fields(Recipe):
        if own.get(field.name) is not None:
            config[field.name] = own[field.name]
    if own.get("lr") is not None:
        OmegaConf.update(config, "optimizer.lr", own.lr, force_add=True)
    for name in ("pretrained", "freeze_backbone"):
        if own.get(name) is not None:
            config.model[name] = own[name]
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _stage(config: DictConfig, role: str) -> StageSettings:
    """A role's stage: its own values in the place of the global ones."""
    own = config.stage[role]
    resolved = _staged(copy.deepcopy(config), role)
    kd = resolved["kd"]
    cache_logits = kd.pop("cache_logits", False)  # no number of the loss: changes what it costs only
    several, start = kd.pop("teachers", "mean"), own.start
    teachers = teachers_of(own) if kd.get("_target_") is not None else ()
    starts_from_role = start in roles_of(config.stage)
    return StageSettings(
        role=role,
        network=config.model[role],
        teachers=teachers,
        several=several,
        recipe=Recipe(**{field.name: resolved[field.name] for field in dataclasses.fields(Recipe)}),
        pretrained=resolved["model"]["pretrained"],
        freeze_backbone=resolved["model"]["freeze_backbone"],
        cache_logits=cache_logits,
        kd=kd if teachers else {},
        optimizer=resolved["optimizer"],
        scheduler=resolved["scheduler"],
        config=_staged(OmegaConf.create(keep_environment(OmegaConf.to_container(config, resolve=False))), role),
        start=None if starts_from_role else start,
        start_role=start if starts_from_role else None,
        headless=tuple(teacher for teacher in teachers if not config.stage[teacher].head),
        **{name: own[name] for name in ("checkpoint", "checkpoint_key", "checkpoint_check", "head")},
    )
