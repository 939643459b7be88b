"""The epochs of a stage, from the CSV file that its training writes."""

import csv
import io
import math
from pathlib import Path

from kdx.errors import KdxError
from kdx.files import read_bytes


def read_log(stage_folder: Path) -> list[dict[str, float]]:
    """The epochs of a stage so far, from its folder; none where it has no log."""
    path = log_of(stage_folder)
    return [] if path is None else read_csv(path)


def log_of(stage_folder: Path) -> Path | None:
    """The CSV file of a stage's epochs; None before the first of them has ended."""
    return min((stage_folder / "logs").glob("*_log.csv"), default=None)


def log_of_last_stage(run_dir: Path, checkpoint: Path | None) -> Path | None:
    """The CSV file of the stage whose `checkpoint` a run delivers; without one, of the stage that it trains now."""
    if checkpoint is not None:
        return log_of(checkpoint.parent.parent)
    return max(run_dir.glob("*/logs/*_log.csv"), key=lambda path: path.stat().st_mtime_ns, default=None)


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of an epoch log as numbers; what is blank, or not finite as a user's own loss term may be, is left out.

    `KdxError` names the line and the column of what is no epoch log.
    """
    return rows_of(read_bytes(path), path)


def rows_of(content: bytes, path: Path) -> list[dict[str, float]]:
    """The rows of an epoch log, as `read_csv`, from what is read of a file so far."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        if "epoch" not in (reader.fieldnames or ()):
            raise KdxError(f"{path}: no epoch log: its first line names no column epoch")
        return [_numbers(row, f"{path}: line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise KdxError(f"{path}: no epoch log ({error})") from error


def _numbers(row: dict[str, str | None], where: str) -> dict[str, float]:
    if None in row or None in row.values():  # csv's way to say that the line is longer or shorter than the header
        raise KdxError(f"{where}: has another number of cells than the header")
    numbers = {key: _number(text or "nan", f"{where}: {key}") for key, text in row.items()}
    if not 1 <= numbers["epoch"] <= 2**53:
        raise KdxError(f"{where}: epoch={row['epoch']}: a number of at least 1 is needed")
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KdxError(f"{where}={text[:50]!r}: a number is needed") from None
