"""Knowledge distillation of image classifiers. Import the modules by name: this package imports none."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdx.experiment import Results

__version__ = "0.1.0"


def run_experiment(overrides: str | Sequence[str] = (), config_dir: str | None = None) -> "Results":
    """What `kdx OVERRIDES` does, from Python: compose, check, run; the run's folder, its record and its scores.

    `overrides` is a command line, `"experiment=quickstart seed=1"`, or a list of its words. Raises
    `kdx.errors.KdxError` before any training for whatever cannot work. May be called again and again.
    """
    from kdx.experiment import run_experiment as run

    return run(overrides, config_dir)
