"""What is wrong with a command line, in one line with the choices or the near miss."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.config.build import arguments_of
from kdx.config.data_keys import DEFAULTS, check_data_keys
from kdx.config.problems import Problems
from kdx.config.stage_overrides import OWN_KEYS, from_hydra
from kdx.config.swap_points import COMBINED, KEYS_OF_KDX, SWAP_POINTS, is_shipped
from kdx.config_loader import all_keys, chosen_config, key_ending_in, read_words
from kdx.errors import KdxError, no_such, suggest
from kdx.method_numbers import METHOD

SLURM = ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_local")
NEEDS_EXTRA = 'needs the extra slurm: pip install -e ".[slurm]" in the checkout of kdx'


def explain(error: Exception, conf: Path, arguments: Sequence[str] = ()) -> str:
    """An error of ours or Hydra's as one line with the choices or the near miss, among the keys of what is chosen."""
    if isinstance(error, KdxError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes the run's folder itself
        return f"{error.filename}: {error.strerror}; choose another output_dir"
    cause = error.__cause__ if str(error).startswith("Error merging override") else None
    lines = [line.strip() for line in f"{error}\n{cause or ''}".splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, error.options, arguments)
    if isinstance(error, OverrideParseException) and ("missing EQUAL" in str(error) or "=" not in error.override):
        word = str(error.override)
        groups = sorted(path.parent.name for path in conf.glob(f"*/{word}.yaml")) if word.isidentifier() else []
        meant = f"; did you mean {groups[0]}={word}?" if groups else ""
        return f"{error.override}: a value is missing, write {error.override}=VALUE{meant}"
    if lines[0].startswith(("Ambiguous value for argument '", "Sweep parameters '")):
        return _several(from_hydra(lines[0].split("'", 1)[1].rsplit("'", 1)[0]), chosen_config(conf)[1])
    if lines[0].startswith("Error merging override ") and "Cannot merge" in str(error.__cause__):
        override = lines[0].removeprefix("Error merging override ").lstrip("+")
        key = override.partition("=")[0]
        return f"{override}: does not go into what is there already; write {shlex.join([f'~{key}', f'+{override}'])}"
    if lines[0].startswith("Error merging override hydra.launcher.") and isinstance(cause, OmegaConfBaseException):
        return f"{lines[0].removeprefix('Error merging override ')}: {str(cause).splitlines()[0]}"
    if lines[0].startswith("Could not override '"):
        return _not_there(lines[0].split("'")[1], conf, arguments)
    return " ".join(lines)


def _several(override: str, groups: Sequence[str]) -> str:
    """Values that only a sweep takes; of a group's options there is no list either."""
    key, _, value = override.partition("=")
    of_group = key in groups or (key.startswith("stage.") and key.rpartition(".")[2] in groups)
    or_list = "" if of_group or "(" in value else f", or write {key}=[{value}] for a list"
    return f"{override}: several values; add --multirun to try each{or_list}"


def _no_option(missing: str, options: Sequence[str], arguments: Sequence[str]) -> str:
    """An option that a group does not have, under the key that was typed."""
    group, _, option = missing.rpartition("/")
    words = [from_hydra(word).partition("=")[0] for word in read_words(arguments)[1] if option in word.split("=")[-1]]
    key = next((word for word in words if word.startswith("stage.") and word.endswith(f".{group}")), group)
    if f"{group}={option}" in SLURM:
        return f"{group}={option}: {NEEDS_EXTRA}"
    return f"{key}={option}: {no_such('option', option, [one for one in options if not one.startswith('_')])}"


def _not_there(key: str, conf: Path, arguments: Sequence[str]) -> str:
    """A key that the chosen options do not have, or of a sweep the first one."""
    lines = _with_one_option(key.partition(".")[0], arguments)
    for line in lines:
        config, groups = chosen_config(conf, line)
        known = all_keys(config, groups)
        if key not in known:
            return _why_not(key, config, known, conf, line)
    if len(lines) > 1:  # Hydra first composes what all jobs share, under the group's usual option
        return f"{key}: a value for options that are swept is to be swept, too; write '{key}=choice(VALUE)'"
    return f"{key}: the value holds keys that are not there yet; add each with +{key}.<key>=<value>"


def _with_one_option(group: str, arguments: Sequence[str]) -> list[list[str]]:
    """A command line for each option of a group that it sweeps over."""
    swept = next((word for word in arguments if word.startswith(f"{group}=") and "," in word), None)
    if swept is None:
        return [list(arguments)]
    options = swept.partition("=")[2].split(",")
    return [[f"{group}={option}" if word == swept else word for word in arguments] for option in options]


def _why_not(key: str, config: DictConfig, known: Sequence[str], conf: Path, arguments: Sequence[str]) -> str:
    """Why a key is not there: how it is added where something reads it, else what is near."""
    group, _, name = key.rpartition(".")
    if group == "dataset" and name in DEFAULTS:
        return _not_read(key, conf, arguments)
    target = OmegaConf.select(config, f"{group}._target_") if group in SWAP_POINTS else None
    names = METHOD if group == "kd" else SWAP_POINTS.get(group, {})  # METHOD has those of KD, too
    if group in SWAP_POINTS and target != COMBINED and (name in names or not is_shipped(target)):
        return _not_taken(key, target, config)
    optional = [] if target == COMBINED else [f"{group}.{own}" for own in SWAP_POINTS.get(group, {})]
    return f"{key}: no such key{_near(key, [*known, *optional])}"


def _not_read(key: str, conf: Path, arguments: Sequence[str]) -> str:
    """A key of dataset that the chosen option leaves out: its source may read it, or nothing."""
    config, _ = chosen_config(conf, arguments, values=(key, "dataset.unlabelled"))
    problems = Problems()
    check_data_keys(OmegaConf.to_container(config, resolve=False), problems)  # type: ignore[arg-type]
    refused = [line for line in problems.lines if line.startswith(f"{key}=")]
    return refused[0] if refused else _to_add(key)


def _not_taken(key: str, target: str | None, config: DictConfig) -> str:
    """A key of a swap point that the chosen option leaves out: what it names may take it."""
    group, _, name = key.rpartition(".")
    taken = set(KEYS_OF_KDX[group]) | (set() if target is None else arguments_of(target))
    if name in taken or "kwargs" in taken:
        return _to_add(key)
    keys = [str(own) for own in OmegaConf.select(config, group) if not str(own).startswith("_")]
    chosen = group.partition(".")[0]
    if chosen not in config.hydra.runtime.choices:
        return f"{key}: ~{chosen} leaves it out"
    its = f"; its keys: {', '.join(keys)}" if keys else ""
    return f"{key}: {chosen}={config.hydra.runtime.choices.get(chosen)} has no such key{its}"


def _to_add(key: str) -> str:
    return f"{key}: not among the keys of the chosen option; write +{key}=VALUE to add it"


def _near(key: str, known: Sequence[str]) -> str:
    """The near miss of a key: one that ends in it, for a stage one that may be set for a stage."""
    parts = key.split(".")
    if len(parts) == 1:
        whole = key_ending_in(key, known)
        return suggest(key, known) if whole is None else f"; did you mean '{whole}'?"
    if len(parts) == 3 and parts[0] == "stage":
        if parts[2] == "model":
            return f"; did you mean 'model.{parts[1]}'?"
        if parts[2] in known:
            return f"; {parts[2]} is the same for all stages"
        known = [*known, *(f"stage.{parts[1]}.{name}" for name in sorted(OWN_KEYS))]
    return suggest(key, known)
