"""Hydra's own keys that become names of files and counts of processes. Imports no torch."""

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.config.problems import Problems
from kdx.config.schema import DASK
from kdx.ranges import Choice, Either, Flag, Folder, Group, ListOf, Nullable, Real, Rule, Text, Whole

OUR_LAUNCHER = "hydra_plugins.kdx_launcher.ProcessLauncher"
HYDRA_KEYS: dict[str, Rule] = {
    "run.dir": Folder(own=True),
    "sweep.dir": Folder(own=True),
    "sweep.subdir": Folder(),
    "job.name": Text(r"[^/\\]+", "a plain name is needed: it becomes that of the log file", 100),
    "launcher": Group(words="an option of the group, such as hydra/launcher=basic,"),
    "launcher._target_": Text(),
    "launcher.n_jobs": Either((Whole(1, 1024), Whole(-1024, -1))),
    "launcher.gpu_ids": Nullable(ListOf(Whole(0, 1023))),
    "launcher.timeout": Nullable(Real(above=0, most=1e9)),
    "launcher.backend": Nullable(Choice(("threading", DASK))),
    "launcher.prefer": Choice(("processes", "threads")),
    "launcher.require": Nullable(Choice(("sharedmem",))),
    "launcher.verbose": Whole(0, 1000),
    "launcher.pre_dispatch": Text(
        r"all|[1-9]\d{0,5}|([1-9]\d{0,5}\*)?n_jobs", "all, a number or e.g. 2*n_jobs is needed"
    ),
    "launcher.batch_size": Text(r"auto|[1-9]\d{0,5}", "auto or a number is needed"),
    "launcher.temp_folder": Nullable(Folder()),
    "launcher.max_nbytes": Nullable(Text(r"[1-9]\d{0,17}[KMG]?", "a number of bytes such as 1M is needed")),
    "launcher.mmap_mode": Nullable(Choice(("r", "r+", "w+", "c"))),
    "verbose": Either((Flag(), Text(r"[^\d].*", "the name of a logger is needed"), ListOf(Text()))),
}


def check_hydra_keys(config: DictConfig) -> None:
    """`KdxError` for a value of Hydra's own keys that would fail later; only for a config that still holds them.

    What depends on something that only a running job knows is left to Hydra.
    """
    problems, launcher = Problems(), None
    for name, rule in HYDRA_KEYS.items():
        with suppress(OmegaConfBaseException):
            value = OmegaConf.select(config.hydra, name, default=problems)
            if value is not problems:
                plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                problems.rule(f"hydra.{name}", plain, rule)
                launcher = plain if name == "launcher" else launcher
    if isinstance(launcher, Mapping) and launcher.get("_target_") == OUR_LAUNCHER:
        _check_launcher(launcher, problems)
    problems.raise_if_any()


def _check_launcher(launcher: Mapping[Any, Any], problems: Problems) -> None:
    known = [name.partition(".")[2] for name in HYDRA_KEYS if name.startswith("launcher.")]
    for name in launcher:
        if name not in known:
            problems.unknown(f"hydra.launcher.{name}", known)
    check_backend("hydra.launcher.backend", launcher.get("backend"), problems)
    if launcher.get("backend") == DASK and launcher.get("gpu_ids"):
        needed = "a worker of backend=dask has its own GPUs, those of its CUDA_VISIBLE_DEVICES; leave it out"
        problems.add("hydra.launcher.gpu_ids", launcher["gpu_ids"], needed)


def check_backend(key: str, backend: str | None, problems: Problems) -> None:
    """That what a backend needs is installed."""
    if backend == DASK and importlib.util.find_spec("distributed") is None:
        problems.add(key, backend, 'needs distributed: pip install -e ".[dask]" in the checkout of kdx')
