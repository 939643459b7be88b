"""What a stage tells while it trains: the CSV, a line an epoch, a progress bar."""

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from kdx.files import write_atomic

log = logging.getLogger(__name__)

SCORES = ("loss", "accuracy", "precision", "recall", "f1_score")
COLUMNS = (
    "epoch",
    *(f"train_{name}" for name in SCORES),
    *(f"val_{name}" for name in SCORES),
    "learning_rate",
    "epoch_time_sec",
    "gpu_memory_mb",
)

Item = TypeVar("Item")


class Tracker(Protocol):
    """Takes all epochs so far each time and passes on those that are new to it."""

    def log(self, rows: Sequence[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


class Untracked:
    """Tracks nothing."""

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def close(self) -> None:
        pass


class EpochLogger:
    """Writes a stage's epochs to a CSV file and to the log.

    The whole file is written anew from its rows each time: after a crash it has every epoch once.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        epochs: int,
        progress: bool = True,
        log_interval: int = 10,
        tracker: Tracker | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.epochs = epochs
        self.progress = progress
        self.log_interval = log_interval
        self.tracker = tracker or Untracked()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows so far; columns beyond COLUMNS follow in the order of their first appearance."""
        extra = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*COLUMNS, *extra], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())
        self._tell_tracker(lambda: self.tracker.log(rows))

    def close(self) -> None:
        """Nothing more will be written."""
        self._tell_tracker(self.tracker.close)

    def _tell_tracker(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # a server that went away must not end a training: the CSV has all of it
            log.warning("the tracker fails and gets no more: %s: %s", type(error).__name__, str(error).split("\n")[0])
            self.tracker = Untracked()

    def announce(self, row: dict[str, Any], is_best: bool) -> None:
        """One line for the epoch that has just ended."""
        trained, validated = f"train loss {row['train_loss']:.4f}", f"val loss {row['val_loss']:.4f}"
        if "val_accuracy" in row:  # else no classifier learns
            trained += f" acc {row['train_accuracy']:.2f}"
            validated += f" acc {row['val_accuracy']:.2f} f1 {row['val_f1_score']:.2f}"
        if "val_auc" in row:  # where it chooses the epoch
            validated += f" auc {row['val_auc']:.4f}"
        log.info(
            "%s epoch %d/%d  %s  %s  lr %.2e  %.1f s%s",
            *(self.name, row["epoch"], self.epochs, trained, validated, row["learning_rate"]),
            row["epoch_time_sec"],
            "  *best" if is_best else "",
        )

    def bar(self, steps: Iterable[Item], epoch: int, total: int, initial: int = 0) -> Iterator[Item]:
        """`steps` behind a progress bar that is redrawn every `log_interval` steps; none where nobody watches."""
        disable = None if self.progress else True  # None: off unless the output is a terminal
        title = f"{self.name} {epoch}/{self.epochs}"
        with tqdm(total=total, initial=initial, desc=title, leave=False, disable=disable) as bar:
            for done, step in enumerate(steps, start=1):
                yield step
                if done % self.log_interval == 0:
                    bar.update(self.log_interval)
