"""What the values of a configuration must be; each problem names the key, the value and the choices."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import MISSING

from kdx.config.problems import Problems
from kdx.config.roles import check_role_names, roles_of
from kdx.config.schema import NETWORK, ModelSchema, RoleSchema, Schema, StageSchema, StageSettings, world_of
from kdx.config.swap_points import COMBINED, GROUPS, OF_COMBINED, SWAP_POINTS, TERM_NAME, is_shipped, rules_of
from kdx.errors import suggest
from kdx.ranges import Flag, Group, ListOf, Nullable, Real, Rule, Whole, leaves, shown, stray
from kdx.recipe import Recipe
from kdx.torchrun import World

MEDMNIST_SIZES = (28, 64, 128, 224)
CHANNELS = (1, 4)  # fewest and most values of a mean or a standard deviation


def check_values(config: Mapping[str, Any], problems: Problems) -> None:
    """Every key of kdx's own in a composed config of plain, resolved values: known, and within its range."""
    check_fields(Schema, config, "", problems)
    model, stage = config.get("model"), config.get("stage")
    if isinstance(stage, Mapping) and isinstance(model, Mapping):
        roles = roles_of(stage)
        check_fields(StageSchema, stage, "stage.", problems, others=roles)
        check_fields(ModelSchema, model, "model.", problems, others=roles)
        check_role_names(roles, stage, problems)
        for role in roles:
            check_fields(RoleSchema, stage[role], f"stage.{role}.", problems)
            if stage[role].get("start") is not None and stage[role].get("checkpoint") is not None:
                why = f"a stage that is not trained has no start; leave out stage.{role}.checkpoint or this"
                problems.add(f"stage.{role}.start", stage[role]["start"], why)
            key, start = stage[role].get("checkpoint_key"), stage[role].get("start")
            if key is not None and stage[role].get("checkpoint") is None and start in (None, *roles):
                why = f"it names a place in a file; stage.{role}.checkpoint=FILE or stage.{role}.start=FILE is needed"
                problems.add(f"stage.{role}.checkpoint_key", key, why)
            check_groups_of_stage(role, stage[role], config, problems)
            needed = NETWORK.problem(model.get(role))
            if needed is not None and f"stage.{role}" not in problems.keys:  # a role that there is
                problems.add(f"model.{role}", model.get(role), f"stage.{role} needs {needed}")


def check_swap_points(config: Mapping[str, Any], problems: Problems) -> None:
    """The keys of the swap points; whatever else a config holds, such as a user's own keys, is finite and printable."""
    for name in SWAP_POINTS:
        check_swap_point(name, config, problems)
    for name, value in leaves(config):
        needed = stray(value)
        if needed is not None and not any(f"{name}.".startswith(f"{key}.") for key in problems.keys):
            problems.add(name, value, needed)


def check_fields(
    schema: type, node: Mapping[str, Any], prefix: str, problems: Problems, others: Iterable[str] = ()
) -> None:
    """The keys of a mapping by the fields of a dataclass; `others` are known, too, and are checked elsewhere."""
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in node:
        if name in fields or name in others:
            continue
        if schema is ModelSchema:
            needed = f"no role of this name under stage{suggest(str(name), others)}"
            problems.add(f"{prefix}{name}", node[name], needed)
        else:
            problems.unknown(f"{prefix}{name}", (*fields, *others))
    for name, field in fields.items():
        if name not in node:
            if _is_needed(schema, field):
                problems.left_out(f"{prefix}{name}")
            continue
        rule, value = field.metadata["rule"], unquoted(node[name], field.metadata["rule"])
        nullable = types.NoneType in typing.get_args(hints[name])
        problems.rule(f"{prefix}{name}", value, Nullable(rule) if nullable else rule)
        if isinstance(rule, Group) and rule.schema is not None and isinstance(value, Mapping):
            check_fields(rule.schema, value, f"{prefix}{name}.", problems)


def check_left_out(schema: type, node: Any, prefix: str, problems: Problems) -> None:
    """The keys that a dataclass needs and a mapping, which need not be resolved, does not have."""
    for field in dataclasses.fields(schema) if isinstance(node, Mapping) else ():
        inner = getattr(field.metadata["rule"], "schema", None)
        if field.name not in node and _is_needed(schema, field):
            problems.left_out(f"{prefix}{field.name}")
        elif inner is not None:
            check_left_out(inner, node.get(field.name), f"{prefix}{field.name}.", problems)


def _is_needed(schema: type, field: "dataclasses.Field[Any]") -> bool:
    """Whether a key has no default, or is a group with such a key.

    A number of the recipe has one, which changes nothing: what a run uses stands in conf/config.yaml.
    """
    group = getattr(field.metadata["rule"], "schema", None)
    if schema is Schema and field.name in Recipe.__dataclass_fields__:
        return True
    if field.default is not dataclasses.MISSING or group is None:
        return field.default == MISSING
    return any(inner.default == MISSING for inner in dataclasses.fields(group))


def check_swap_point(name: str, config: Mapping[str, Any], problems: Problems, prefix: str = "") -> None:
    """The keys of kd, optimizer, scheduler or dataset.source that its `_target_` gives a meaning.

    `prefix` is what stands before the name where it holds for one stage.
    """
    node: Any = config
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return
    if name in GROUPS and "_target_" not in node:  # what is there is kdx's own
        return problems.left_out(f"{prefix}{name}")
    rules = rules_of(name, node.get("_target_"))
    for key, value in node.items():
        if key in rules:
            problems.rule(f"{prefix}{name}.{key}", value, rules[key])
    if name == "kd" and node.get("_target_") == COMBINED:
        _check_terms(node, f"{prefix}kd", problems)
    if name in ("optimizer", "dataset.source") and node.get("_target_") is None:
        problems.add(f"{prefix}{name}._target_", None, "the dotted name of a callable is needed, or an option of conf")


def _check_terms(node: Mapping[str, Any], kd: str, problems: Problems) -> None:
    """The keys of several methods at once, the terms of `kd`; what else a term holds, its method decides."""
    terms = node.get("terms")
    for name in node:
        if name not in OF_COMBINED:
            problems.unknown(f"{kd}.{name}", OF_COMBINED)
    if not isinstance(terms, Mapping) or not terms:
        problems.add(f"{kd}.terms", terms, "a mapping {name: {_target_: ..., weight: ...}} of methods is needed")
        return
    for name, term in terms.items():
        key = f"{kd}.terms.{name}"
        target = term.get("_target_") if isinstance(term, Mapping) else None
        needed = TERM_NAME.problem(name)
        if needed is not None:
            problems.add(f"{kd}.terms", name, needed)
        elif target is None or target == COMBINED:
            problems.add(f"{key}._target_", target, "the dotted name of one method is needed")
        else:
            rules = rules_of("kd", target)
            for own in term.keys() & rules.keys():
                problems.rule(f"{key}.{own}", term[own], rules[own])


def check_groups_of_stage(role: str, own: Mapping[str, Any], config: Mapping[str, Any], problems: Problems) -> None:
    """The keys of kd, optimizer and scheduler that hold for one stage."""
    for group in GROUPS:
        node, usual = own.get(group), config.get(group)
        if not isinstance(node, Mapping) or not isinstance(usual, Mapping):
            continue
        if "_target_" in node:  # all of another option
            check_swap_point(group, own, problems, f"stage.{role}.")
            continue
        target = usual.get("_target_")
        rules = rules_of(group, target)
        for key, value in node.items():
            if key in rules:
                problems.rule(f"stage.{role}.{group}.{key}", value, rules[key])
            elif key not in usual and is_shipped(target):
                problems.unknown(f"stage.{role}.{group}.{key}", usual)
        if group == "optimizer" and own.get("lr") is not None and node.get("lr") is not None:
            problems.add(f"stage.{role}.lr", own["lr"], f"stage.{role}.optimizer.lr={shown(node['lr'])} says it, too")


def check_recipe(stage: StageSettings, run: Schema, problems: Problems) -> None:
    """What the numbers of a stage's training allow only together."""
    role, recipe = stage.role, stage.recipe
    if run.dataset.balance and stage.distilled and recipe.labelled != 1:
        needed = f"the {role} must not know the classes of images whose labels are hidden; choose false"
        problems.add("dataset.balance", True, needed)
    if recipe.micro_batches > max(1, recipe.batch_size // 2):
        needed = f"parts of at least two images are needed, and the {role}'s batch_size is {recipe.batch_size}"
        _add_once(_key_of(role, "micro_batches", recipe, run), recipe.micro_batches, needed, problems)
    world = world_of(run.devices)
    if world > 1 and recipe.micro_batches * world > max(1, recipe.batch_size // 2):
        times = f"{recipe.micro_batches} micro_batches, " if recipe.micro_batches > 1 else ""
        needed = f"two images for each are needed at least ({times}batch_size={recipe.batch_size} of the {role})"
        _add_once("devices", run.devices, needed, problems)
    # of gradients summed over parts, only one part may arrive (PyTorch issue 96693)
    if recipe.micro_batches > 1 and run.compile == "reduce-overhead":
        needed = "CUDA graphs spoil gradients summed by micro_batches; choose default"
        _add_once("compile", run.compile, needed, problems)


def _add_once(key: str, value: Any, needed: str, problems: Problems) -> None:
    """A problem with a key of the run that other stages may have had, too."""
    if key not in problems.keys:
        problems.add(key, value, needed)


def _key_of(role: str, name: str, recipe: Recipe, run: Schema) -> str:
    """The key that gave a stage its number: the stage's own one, or the run's."""
    return name if getattr(recipe, name) == getattr(run, name) else f"stage.{role}.{name}"


def check_together(run: Schema, problems: Problems) -> None:
    """What two keys allow only together."""
    if run.activation_checkpointing and run.compile not in ("auto", "off"):
        problems.add("compile", run.compile, "does not go together with activation_checkpointing=true; choose off")
    if world_of(run.devices) > 1 and run.compile == "reduce-overhead":
        problems.add("compile", run.compile, "does not go together with several devices; choose default")
    if not isinstance(run.devices, int) and len(set(run.devices)) < len(run.devices):
        problems.add("devices", run.devices, "each device can be named once")
    dataset = run.dataset
    if isinstance(dataset.normalize, Mapping):
        _check_mean_and_std(dataset.normalize, problems)
    source = str(dataset.source["_target_"])
    if source == "kdx.data.sources.load_medmnist" and dataset.size not in MEDMNIST_SIZES:
        problems.add("dataset.size", dataset.size, f"choose {', '.join(map(str, MEDMNIST_SIZES))}")


def check_torchrun(run: Schema, world: World, problems: Problems) -> None:
    """Whether `devices` says nothing else than torchrun does."""
    if run.devices not in (1, world.size):
        needed = f"torchrun started {world.size} processes: leave it out; CUDA_VISIBLE_DEVICES chooses the cards"
        problems.add("devices", run.devices, needed)


def _check_mean_and_std(value: Mapping[str, Any], problems: Problems) -> None:
    rules = {"mean": Real(least=0, most=1), "std": Real(above=0, most=10)}
    sound = set(value) == set(rules) and all(
        ListOf(rule, *CHANNELS).problem(value[key]) is None for key, rule in rules.items()
    )
    if not sound or len(value["mean"]) != len(value["std"]):
        needed = "auto, imagenet, dataset or {mean: [...], std: [...]} of equal lengths is needed, of pixels scaled to "
        problems.add("dataset.normalize", value, f"{needed}0-1: mean from 0 to 1, std above 0 and at most 10")


def unquoted(value: Any, rule: Rule) -> Any:
    """A number or flag that arrives as text, as every value of the environment does."""
    if not isinstance(value, str):
        return value
    if isinstance(rule, Flag):
        return {"true": True, "false": False}.get(value.lower(), value)
    for read in (int, float) if isinstance(rule, Whole | Real) else ():
        try:
            return read(value)
        except ValueError:
            continue
    return value
