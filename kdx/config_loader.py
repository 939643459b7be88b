"""Hydra's own loader of configs, as its main would make it. Imports no torch."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kdx.config.settings import flat_keys
from kdx.errors import KdxError

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
        return loader.load_configuration(name, overrides, run_mode=run_mode)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError):
        raise
    except Exception as error:  # a group that is a number, a key of a key that is a number
        pairs = {override: override.lstrip("+~").partition("=")[::2] for override in overrides}
        groups = [o for o, (group, option) in pairs.items() if option not in loader.get_group_options(group)]
        where = " ".join([o for o in groups if pairs[o][0] in loader.list_groups("")] or overrides)
        raise KdxError(f"{where}: cannot be composed: {str(error) or type(error).__name__}") from error


def all_keys(conf: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Every dotted key and every group of the default config, with kdx's own options that overrides choose."""
    with config_loader(conf, None) as loader:
        pairs = [(override, *override.partition("=")[::2]) for override in overrides]
        groups = loader.list_groups("")
        chosen = [o for o, group, option in pairs if group in groups and option in loader.get_group_options(group)]
        config = composed(loader, "config", chosen, run_mode=RunMode.RUN)
        keys = sorted(flat_keys(config), key=lambda key: key.startswith("hydra"))  # our own before Hydra's
        return [*loader.list_groups(""), *keys]
