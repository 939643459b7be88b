"""What is wrong with a command line, in one line with the choices or the near miss."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from kdx.config.schema import DatasetSchema
from kdx.config.swap_points import SWAP_POINTS
from kdx.config_loader import all_keys
from kdx.errors import KdxError, suggest


def explain(error: Exception, conf: Path, overrides: Sequence[str] = ()) -> str:
    """An error of ours or Hydra's as one line with the choices or the near miss, among the keys of what is chosen."""
    if isinstance(error, KdxError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes the run's folder itself
        return f"{error.filename}: {error.strerror}; choose another output_dir"
    cause = error.__cause__ if str(error).startswith("Error merging override") else None
    lines = [line.strip() for line in f"{error}\n{cause or ''}".splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [o for o in error.options if not o.startswith("_")]
        return f"{group}={option}: no such option{suggest(option, options)} choose {', '.join(options)}".replace(
            "option choose", "option; choose"
        )
    if isinstance(error, OverrideParseException) and "missing EQUAL" in str(error):
        return f"{error.override}: a value is missing, write {error.override}=VALUE"
    if lines[0].startswith("Error merging override ") and "Cannot merge" in str(error.__cause__):
        override = lines[0].removeprefix("Error merging override ").lstrip("+")
        key = override.partition("=")[0]
        return f"{override}: does not go into what is there already; write {shlex.join([f'~{key}', f'+{override}'])}"
    if lines[0].startswith("Error merging override hydra.launcher.") and isinstance(cause, OmegaConfBaseException):
        return f"{lines[0].removeprefix('Error merging override ')}: {str(cause).splitlines()[0]}"
    if lines[0].startswith("Could not override '"):
        key, known = lines[0].split("'")[1], all_keys(conf, overrides)
        if key in known:
            return f"{key}: the value holds keys that are not there yet; add each with +{key}.<key>=<value>"
        group = key.rpartition(".")[0]
        optional = [] if group == "kd" and "kd.terms" in known else _optional_keys(group)  # those are of each term
        if key in optional:
            return f"{key}: not among the keys of the chosen option; write +{key}=VALUE to add it"
        return f"{key}: no such key{suggest(key, [*known, *optional])}"
    return " ".join(lines)


def _optional_keys(group: str) -> list[str]:
    """The keys of a group that kdx knows and the files in conf may leave out."""
    names = DatasetSchema.__dataclass_fields__ if group == "dataset" else SWAP_POINTS.get(group, {})
    return [f"{group}.{name}" for name in names]
