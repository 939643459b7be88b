"""Command lines as configs: read as Hydra reads them, composed without starting a job. Imports no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kdx.config.hydra_keys import check_hydra_keys
from kdx.config.schema import Settings
from kdx.config.settings import read_settings
from kdx.config.stage_overrides import from_hydra, to_hydra
from kdx.config_loader import all_keys, chosen_config, composed, config_loader, key_ending_in
from kdx.errors import KdxError, suggest
from kdx.explain import explain


def compose_jobs(conf: Path, base: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[Settings]:
    """The settings of a sweep's jobs; `base` is the part of the command line that all have in common."""
    args = get_args_parser().parse_args(list(base))
    if "~hydra/job_logging" in args.overrides:
        raise KdxError("~hydra/job_logging: it is needed; write hydra/job_logging=none to do without")
    with config_loader(conf, args.config_dir) as loader:
        name = args.config_name or "config"
        lines = [[*args.overrides, *map(to_hydra, job)] for job in jobs]
        configs = [composed(loader, name, line, run_mode=RunMode.RUN) for line in lines]
    return [read_settings(config) for config in configs]


def compose_one(conf: Path, base: Sequence[str], overrides: Sequence[str]) -> Settings:
    """The settings of one run, for a command that is not Hydra's: whatever is wrong with them is a `KdxError`."""
    try:
        (settings,) = compose_jobs(conf, base, [overrides])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise KdxError(explain(error, conf, [*base, *overrides])) from error
    return settings


def compose_line(conf: Path, arguments: Sequence[str]) -> tuple[DictConfig, list[str], list[str]]:
    """A command line's config, the part of it with which a job finds the same files, and its overrides."""
    args = parse_line(conf, arguments)
    kept = {"overrides", "config_name", "config_dir"}
    for option, value in vars(args).items():
        if value not in (None, False) and option not in kept:
            raise KdxError(f"--{option.replace('_', '-')}: has no meaning here; choose --config-dir, --config-name")
    base = ["--config-name", args.config_name or "config"]
    if args.config_dir:
        base += ["--config-dir", str(Path(args.config_dir).resolve())]
    with config_loader(conf, args.config_dir) as loader:
        config = composed(loader, args.config_name or "config", args.overrides, run_mode=RunMode.RUN)
    return config, base, list(map(from_hydra, args.overrides))


def compose_run(conf: Path, arguments: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The config of one run and its overrides; whatever is wrong with them is a `KdxError`."""
    try:
        config, _, overrides = compose_line(conf, arguments)
        check_hydra_keys(config)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise KdxError(explain(error, conf, arguments)) from error
    return config, overrides


def options_first(arguments: Sequence[str]) -> list[str]:
    """A command line as Hydra reads it: overrides in a row, also where an option is between, `kd=none -m seed=1,2`.

    Overrides of one stage are put in Hydra's words.
    """
    args, unknown = _known_args(arguments)
    overrides = [*args.overrides, *(word for word in unknown if not word.startswith("-"))]
    options = list(arguments)
    for word in overrides:
        options.remove(word)
    return [*options, *map(to_hydra, overrides)]


def parse_line(conf: Path, arguments: Sequence[str]) -> argparse.Namespace:
    """A command line's options and overrides; `KdxError` for an option that there is not or that cannot be used."""
    args, unknown = _known_args(options_first(arguments))
    if unknown:
        raise KdxError(f"unknown option {unknown[0]}: {_as_override(unknown[0], conf, arguments)}")
    if args.experimental_rerun is not None:
        raise KdxError("--experimental-rerun: starts what a pickle holds; use the run's command, in summary.json")
    if args.config_path is not None:
        raise KdxError("--config-path: kdx needs its own configs; add yours with --config-dir")
    chosen = [name for name in ("run", "cfg", "multirun", "shell_completion", "info") if getattr(args, name)]
    if len(chosen) > 1:
        raise KdxError(f"{' '.join('--' + name.replace('_', '-') for name in chosen)}: choose one")
    if args.resolve and not (args.cfg or args.help):
        raise KdxError("--resolve: only with --cfg or --help")
    return args


def _known_args(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Hydra's parser knows of a command line, and the words that it does not."""

    def refuse(message: str) -> NoReturn:
        raise KdxError(f"{message.removeprefix('argument ')}; see kdx --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # instead of the usage of every option
    parser.allow_abbrev = False  # --experiment is no short form of --experimental-rerun
    return parser.parse_known_args(list(arguments))


def _as_override(option: str, conf: Path, arguments: Sequence[str]) -> str:
    word = option.lstrip("-").split("=")[0].replace("-", "_")
    keys = all_keys(*chosen_config(conf, arguments))
    whole = key_ending_in(word, keys)
    hint = suggest(word, keys) if whole is None else f"; did you mean {whole}=...?"
    return f"keys are written key=value, without dashes{hint}"
