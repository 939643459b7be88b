"""Hydra's own loader of configs, as its main would make it. Imports no torch."""

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kdx.config.settings import flat_keys
from kdx.config.stage_overrides import from_hydra, to_hydra
from kdx.config.swap_points import SWAP_POINTS
from kdx.errors import KdxError, no_such

HYDRA_VERSION = "1.3"


def add_plugins() -> None:
    """Let Hydra find kdx's launcher, whether kdx is installed or not; also in processes that other launchers start."""
    folder = str(Path(__file__).resolve().parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "")
    if folder not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (inherited, folder)))


@contextmanager
def config_loader(conf: Path, extra: str | None) -> Iterator[Any]:
    """Hydra's config loader as its own main would make it."""
    version.setbase(HYDRA_VERSION)
    add_plugins()
    search_path = create_config_search_path(str(conf))
    assert isinstance(search_path, ConfigSearchPathImpl)
    if extra is not None:
        folder = Path(extra).resolve()
        if not folder.is_dir():
            raise KdxError(f"--config-dir {extra}: no such folder")
        search_path.prepend("command-line", f"file://{folder}")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("run", search_path).config_loader
    finally:
        GlobalHydra.instance().clear()


def composed(loader: Any, name: str, overrides: list[str], run_mode: RunMode) -> DictConfig:
    """A composed config; what Hydra does not foresee in an override is an error of ours, too."""
    try:
        refuse_several_options(loader, overrides)
        return loader.load_configuration(name, overrides, run_mode=run_mode)
    except (KdxError, HydraException, OmegaConfBaseException, yaml.YAMLError, OSError):
        raise
    except Exception as error:  # a group that is a number, a key of a key that is a number
        pairs = {override: override.lstrip("+~").partition("=")[::2] for override in overrides}
        groups = [o for o, (group, option) in pairs.items() if option not in loader.get_group_options(group)]
        wrong = [override for override in groups if pairs[override][0] in loader.list_groups("")]
        if wrong and str(error).startswith("Config group override must be"):
            raise KdxError(
                f"{wrong[0]}: {no_such('option', pairs[wrong[0]][1], _options(loader, wrong[0]))}"
            ) from error
        where = " ".join(wrong or overrides)
        raise KdxError(f"{where}: cannot be composed: {str(error) or type(error).__name__}") from error


def refuse_several_options(loader: Any, overrides: Sequence[str]) -> None:
    """`KdxError` for a list of a group's options, which Hydra would merge into one that is neither."""
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        group = override.key_or_group
        if override.is_delete():
            continue
        for value in override.sweep_iterator() if override.is_choice_sweep() else [override.value()]:
            if isinstance(value, list) and len(value) != 1 and _options(loader, group):
                key = from_hydra(str(override.input_line)).partition("=")[0].lstrip("+")
                raise KdxError(f"{key}=[{','.join(map(str, value))}]: {_one_option(loader, key, group, value)}")


def _one_option(loader: Any, key: str, group: str, given: Sequence[Any]) -> str:
    """What is needed in the place of a list."""
    if group == "kd":
        return f"one option is needed; several methods: {key}=combined"
    if not given:
        return f"one option is needed; choose {', '.join(_options(loader, group))}"
    return f"one option is needed; to try each: --multirun {key}={','.join(map(str, given))}"


def _options(loader: Any, override: str) -> list[str]:
    """The options of an override's group that a user may choose; none where it is no group."""
    group = override.lstrip("+").partition("=")[0].partition("@")[0]
    return [option for option in loader.get_group_options(group) if not option.startswith("_")]


def read_words(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Hydra's parser knows of a command line, whose overrides may stand on both sides of an option."""
    args, unknown = get_args_parser().parse_known_args(list(arguments))
    return args, [*args.overrides, *(word for word in unknown if not word.startswith("-"))]


def chosen_config(
    conf: Path, arguments: Sequence[str] = (), values: Collection[str] = ()
) -> tuple[DictConfig, list[str]]:
    """The config of the options that a command line chooses, without other values than those of some keys.

    And every group.
    """
    values = {*values, *(f"{point}._target_" for point in SWAP_POINTS)}
    args, words = read_words(arguments)
    with config_loader(conf, args.config_dir) as loader:
        groups = loader.list_groups("")
        pairs = [(word, *word.lstrip("+").partition("=")[::2]) for word in map(to_hydra, words)]
        chosen = [w for w, key, value in pairs if value in loader.get_group_options(key.partition("@")[0])]
        chosen += [word for word in words if word.startswith("~") and word[1:] in groups]
        chosen += [f"++{key}={value}" for _, key, value in pairs if key in values and "," not in value]
        return composed(loader, args.config_name or "config", chosen, run_mode=RunMode.RUN), groups


def key_ending_in(word: str, keys: Sequence[str]) -> str | None:
    """A key whose last part is this word; the optimizer's own before those of a method, that of a run before others."""
    found = [key for key in keys if key.rsplit(".", 1)[-1] == word]
    return min(
        found, key=lambda key: (key != word, not key.startswith("optimizer."), key.startswith("stage.")), default=None
    )


def all_keys(config: DictConfig, groups: Sequence[str]) -> list[str]:
    """Every dotted key of a config and every group."""
    keys = sorted(flat_keys(config), key=lambda key: key.startswith("hydra"))  # our own before Hydra's
    return [*groups, *keys]
