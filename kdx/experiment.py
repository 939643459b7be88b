"""One run from Python, in a notebook or a script, as often in a process as is wanted. Imports no torch by itself."""

import logging
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdx import cli
from kdx.compose import compose_run
from kdx.config.settings import read_settings
from kdx.errors import KdxError
from kdx.results import Run, Stage, load, read_run
from kdx.run import CONF
from kdx.run_folder import FolderBefore
from kdx.users_code import users_errors

if TYPE_CHECKING:
    import pandas as pd

LOG = "run.log"


@dataclass(frozen=True)
class Results:
    """A finished run: its folder, its record, and the value on validation that chose the delivered stage's epoch."""

    folder: Path
    run: Run
    value: float | None

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by role, with their scores, e.g. `results.stages["student"].test["accuracy"]`."""
        return self.run.stages

    def frame(self) -> "pd.DataFrame":
        """The run as a row of `kdx.results.load`."""
        return load(self.folder)


def run_experiment(overrides: str | Sequence[str] = (), config_dir: str | Path | None = None) -> Results:
    """Compose, check and run what `kdx OVERRIDES` would; a text is read as a command line, a list word by word.

    `KdxError`, in one line and before any training, for whatever cannot work. `plan=true` tells the plan and returns
    an empty record. Threads and determinism of torch are as before afterwards.
    """
    words = shlex.split(overrides) if isinstance(overrides, str) else [str(word) for word in overrides]
    option = [] if config_dir is None else ["--config-dir", str(config_dir)]
    config, typed = compose_run(CONF, [*option, *words])
    settings = read_settings(config)
    if threading.current_thread() is not threading.main_thread():
        raise KdxError("run_experiment: a run answers to signals, which only the main thread hears; call it there")
    folder = Path(str(config.hydra.run.dir))
    before = FolderBefore.of(folder)
    from kdx.chain.chain import run_chain  # imports torch

    with _logged(folder), _surroundings(), users_errors():
        try:
            value = run_chain(settings, folder, typed)
        except KdxError:
            before.restore(folder, LOG, shared=False)
            raise
    if settings.plan:
        before.restore(folder, LOG, shared=False)
        return Results(folder, Run(overrides=typed), None)
    return Results(folder, read_run(folder), value)


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """What kdx says, in the run's own log, and wherever the caller's logging puts it."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / LOG, encoding="utf-8")
    handler.setFormatter(cli.HarmlessFormatter("[%(asctime)s][%(levelname)s] %(message)s"))
    logger = logging.getLogger("kdx")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _surroundings() -> Iterator[None]:
    """Leave torch's threads and its determinism as they were."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
