"""The suite's teeth: planted mistakes, and the test by name that must notice each.

Two more stand beside the tests that they check: every piece of saved state left out (test_resume) and writing in
place under SIGKILL (test_kills).
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdx.chain.index import FinishedStage, StageIndex
from kdx.epoch_log import COLUMNS, EpochLogger
from kdx.training.trainer import Trainer
from tests import test_trainer
from tests.faults import test_disk, test_resume


def append_to_the_csv(patch: pytest.MonkeyPatch) -> None:
    def append(self: EpochLogger, rows: Sequence[dict[str, Any]]) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(rows[-1])

    patch.setattr(EpochLogger, "write", append)


def choose_the_latest_by_modification_time(patch: pytest.MonkeyPatch) -> None:
    def newest(self: StageIndex, **wanted: object) -> list[FinishedStage]:
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [stage for stage in map(self._read, paths) if stage is not None]

    patch.setattr(StageIndex, "newest_first", newest)


def leave_out_the_fsync_of_the_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kdx.files._sync_folder", lambda folder: None)


def let_nan_be_best(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trainer, "_require_finite", lambda *arguments: None)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], dict[str, Any]]] = [
    (
        append_to_the_csv,
        test_resume.test_stopped_after_any_step_it_ends_with_the_same_bits,
        {"stop_after": 6, "amp": "off"},
    ),
    (choose_the_latest_by_modification_time, test_disk.test_latest_does_not_trust_file_times, {}),
    (leave_out_the_fsync_of_the_folder, test_disk.test_order_of_an_atomic_write, {"monkeypatch": None}),
    (let_nan_be_best, test_trainer.test_not_a_number_stops_and_leaves_the_last_good_checkpoint, {}),
]


@pytest.mark.parametrize(("plant", "test", "arguments"), MUTANTS, ids=[plant.__name__ for plant, _, _ in MUTANTS])
def test_mutant_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None],
    test: Callable[..., None],
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = {
        name: {"monkeypatch": monkeypatch, "caplog": caplog}.get(name, value) for name, value in arguments.items()
    }
    (tmp_path / "sound").mkdir()
    (tmp_path / "mutant").mkdir()
    if "monkeypatch" not in wanted:
        test(tmp_path=tmp_path / "sound", **wanted)  # the test itself passes without the mutant
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception, FileNotFoundError)):
            test(tmp_path=tmp_path / "mutant", **wanted)
