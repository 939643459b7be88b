"""What a run at work is doing, from the files that it writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdx.errors import KdxError
from kdx.files import read_bytes
from kdx.recipe import LOSS, SCORES
from kdx.results.logs import log_of, rows_of
from kdx.results.records import SUMMARY, read_run

RECENT = 3  # epochs whose mean time tells that of the next: the first ones of a process take longer


@dataclass(frozen=True)
class UnderWay:
    """The stage that a run trains: `epoch` of at most `epochs` are finished; `best` of them by `selected_by`.

    `an_epoch` is the seconds of a recent one, None before the first has ended; `written` is when the stage or its last
    epoch so far left a file, as `time.time()` counts. `ahead` are the stages to train after it, with their epochs.
    """

    role: str
    epoch: int
    epochs: int | None
    best: float | None
    selected_by: str
    an_epoch: float | None
    written: float
    ahead: tuple[tuple[str, int | None], ...] = ()

    def left(self, pace: Mapping[str, float], now: float) -> float | None:
        """The seconds until the last of its stages ends, None where that cannot be told; `now` as `written`.

        `pace` is the seconds of an epoch of each role, as other runs show it.
        """
        own = pace.get(self.role) if self.an_epoch is None else self.an_epoch
        if own is None or self.epochs is None:
            return None
        spent = min(max(0.0, now - self.written), own)
        later = sum((epochs or 0) * pace.get(role, own) for role, epochs in self.ahead)
        return max(0.0, (self.epochs - self.epoch) * own - spent) + later


def read_under_way(folder: Path) -> UnderWay | None:
    """None where a run has not begun its stages yet, or trains none. `KdxError` names a file that cannot be read."""
    if not (folder / SUMMARY).exists():
        return None
    run = read_run(folder)
    ahead = [entry for entry in run.plan if entry.action == "train" and entry.role not in run.stages]
    if run.status != "running" or not ahead:
        return None
    entry, path = ahead[0], log_of(folder / ahead[0].role)
    rows = [] if path is None else _whole_rows(path)
    scores = [row[name] for row in rows if (name := f"val_{SCORES[entry.selected_by]}") in row]
    seconds = [row["epoch_time_sec"] for row in rows[-RECENT:] if "epoch_time_sec" in row]
    return UnderWay(
        entry.role,
        epoch=len(rows),
        epochs=entry.epochs,
        best=(min if entry.selected_by == LOSS else max)(scores, default=None),
        selected_by=entry.selected_by,
        an_epoch=sum(seconds) / len(seconds) if seconds else None,
        written=_written(folder / SUMMARY if path is None else path),
        ahead=tuple((other.role, other.epochs) for other in ahead[1:]),
    )


def _whole_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a log that may be in the middle of being written: what has no end of line yet is left out."""
    text = read_bytes(path)
    whole = text[: text.rfind(b"\n") + 1]
    return rows_of(whole, path) if whole else []


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise KdxError(f"cannot read {path}: {error.strerror}") from error
