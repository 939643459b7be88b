"""What a parallel sweep tells while it runs: from the files of its jobs to the words, the time left and the table."""

import io
import logging
import os
import re
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdx.results import PlanEntry, Run, UnderWay, read_run, read_sweep, read_under_way, write_run
from kdx.results.records import SUMMARY
from kdx.sweeps.board import Board
from kdx.sweeps.jobs import Job, JobEnd
from kdx.sweeps.outlook import Doing, Outlook, seconds_left
from kdx.sweeps.watch import draw, tell
from kdx.sweeps.words import duration, heading, sentence, table
from tests.test_report import write_job as write_finished_job

PLAN = [
    PlanEntry("professor", "load"),
    PlanEntry("teacher", "train", epochs=10),
    PlanEntry("student", "train", epochs=4, selected_by="loss"),
]
HEADER = "epoch,val_accuracy,val_loss,epoch_time_sec\n"
AT = 1_000_000.0  # when the files were written


def write_job(folder: Path, log: str | None, run: Run, role: str = "teacher") -> Path:
    write_run(folder, run)
    os.utime(folder / SUMMARY, (AT, AT))
    if log is not None:
        path = folder / role / "logs" / f"net_{role}_log.csv"
        path.parent.mkdir(parents=True)
        path.write_text(log)
        os.utime(path, (AT, AT))
    return folder


ROWS = HEADER + "1,50,2,90\n2,70,1.5,10\n3,60,1,11\n4,65,1.2,12\n"


@pytest.mark.parametrize("torn", ["", "5", "5,61", "5,61,1,1"])
def test_a_run_tells_its_stage_its_epoch_its_best_and_the_time_left(tmp_path: Path, torn: str) -> None:
    """The last line is being written: until it ends, it is none."""
    stage = read_under_way(write_job(tmp_path, ROWS + torn, Run("running", plan=PLAN)))
    assert stage == UnderWay("teacher", 4, 10, 70.0, "accuracy", 11.0, AT, (("student", 4),))
    assert stage.left({}, AT) == 6 * 11 + 4 * 11  # as long as its own
    assert stage.left({"student": 3.0}, AT + 5) == 6 * 11 - 5 + 4 * 3
    assert stage.left({"student": 3.0}, AT + 1000) == 5 * 11 + 4 * 3  # an epoch that takes long is one epoch
    assert stage.left({"student": 3.0}, AT - 1000) == 6 * 11 + 4 * 3  # another machine's clock


def test_before_the_first_epoch_other_jobs_tell_how_long_one_takes(tmp_path: Path) -> None:
    for name, log in (("none", None), ("empty", ""), ("header", HEADER), ("torn", HEADER[:9])):
        stage = read_under_way(write_job(tmp_path / name, log, Run("running", plan=PLAN)))
        assert stage is not None and (stage.epoch, stage.best, stage.an_epoch) == (0, None, None), name
        assert stage.left({}, AT) is None
        assert stage.left({"teacher": 2.0, "student": 1.0}, AT + 1) == 10 * 2 - 1 + 4


def test_which_stage_and_which_best(tmp_path: Path) -> None:
    summary = Run("running", plan=PLAN)
    begun = read_under_way(write_job(tmp_path / "begun", ROWS, summary, "student"))
    assert begun is not None and (begun.role, begun.epoch) == ("teacher", 0)  # the student's log is an earlier start's
    loss = read_under_way(write_job(tmp_path / "loss", ROWS, replace(summary, plan=PLAN[2:]), "student"))
    assert loss is not None and (loss.best, loss.selected_by, loss.ahead) == (1.0, "loss", ())
    for status in ("open", "stopped", "failed", "finished"):
        assert read_under_way(write_job(tmp_path / status, ROWS, replace(summary, status=status))) is None
    assert read_under_way(tmp_path / "nothing") is None
    assert read_under_way(write_job(tmp_path / "loads", None, replace(summary, plan=PLAN[:1]))) is None


def test_the_files_are_those_of_a_chain_and_older_ones_are_read(tiny_run) -> None:
    folder = tiny_run("stage=teacher", "select=f1").folder
    run = read_run(folder)
    del run.stages["teacher"]
    write_run(folder, replace(run, status="running"))
    stage = read_under_way(folder)
    assert stage is not None and (stage.role, stage.epoch, stage.epochs, stage.selected_by) == ("teacher", 2, 2, "f1")
    assert stage.best is not None and stage.an_epoch is not None and stage.an_epoch > 0
    plan = [PlanEntry(entry.role, entry.action, entry.fingerprint) for entry in run.plan]  # what kdx wrote before
    write_run(folder, replace(run, status="running", plan=plan))
    older = read_under_way(folder)
    assert older is not None and (older.epochs, older.left({}, AT)) == (None, None)


LEFT = {
    "one after the other": (([], 3, 1, [10.0, 20.0]), 45.0),
    "nothing waits": (([(5, 30.0), (9, 12.0)], 0, 2, []), 30.0),
    "the next one takes the place that is free first": (([(10, 30.0), (10, 10.0)], 1, 2, [40.0, 30.0]), 42.5),
    "two rounds": (([(10, 10.0), (10, 10.0)], 4, 2, []), 50.0),
    "a place is free": (([(10, 10.0)], 1, 2, []), 20.0),
    "one of which nothing is known": (([(5, None), (10, 10.0)], 0, 2, [30.0, 10.0]), 15.0),
    "one that takes longer than others": (([(99, None)], 0, 2, [30.0]), 0.0),
    "nothing is known": (([(5, None), (6, None)], 7, 2, []), None),
}


@pytest.mark.parametrize("case", LEFT)
def test_the_time_left_counts_what_runs_and_what_waits(case: str) -> None:
    (running, waiting, at_once, ended), seconds = LEFT[case]
    assert seconds_left(running, waiting, at_once, ended) == seconds


def doing(number: int, stage: UnderWay | None, left: float | None, folder: str | None = None) -> Doing:
    return Doing(Job(number, (f"seed={number}",), Path(folder or str(number))), 12.0, stage, left)


STAGE = UnderWay("student", 12, 30, 91.204, "accuracy", 2.0, AT)


def test_words() -> None:
    running = [
        doing(3, STAGE, 36.2),
        doing(1000, replace(STAGE, role="teacher", epoch=0, best=None), None, "teacher-ab12"),
        doing(14, None, None),
        doing(15, replace(STAGE, best=0.51239, selected_by="loss", epochs=None), None),
        doing(16, STAGE, 600.0),
    ]
    names = ["kd.alpha=0.3", "", "seed=14", "note=\x1b[2J", "seed=16"]
    assert table(running, names) == [
        "job 3         student           epoch 12/30  best 91.20   36 s left    kd.alpha=0.3",
        "teacher-ab12  teacher           epoch 0/30",
        "job 14        at work for 12 s                                         seed=14",
        "job 15        student           epoch 12     best 0.5124               note=\\x1b[2J",
        "job 16        student           epoch 12/30  best 91.20   10 min left  seed=16",
    ]
    assert table([], []) == []
    first = "job 3: student, epoch 12/30, best 91.20, 36 s left; teacher-ab12: teacher, epoch 0/30"
    assert sentence(running[:2]) == first
    assert sentence(running).startswith(first) and sentence(running).endswith("; and 1 more")
    assert [duration(seconds) for seconds in (0, 89, 90, 5000, 5400, 100_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "83 min",
        "1.5 h",
        "27.8 h",
    ]
    assert heading(3, 8, 2, 250.0) == "3 of 8 ended, 2 running, about 4 min left"
    assert heading(0, 8, 2, None) == "0 of 8 ended, 2 running"


def test_a_job_s_end_tells_the_same_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jobs = [Job(number, ("kd=none", f"seed={number}"), tmp_path / str(number)) for number in range(3)]
    board = Board(tmp_path, jobs)
    board.note(jobs[1], JobEnd("finished", 8.0, 91.5), 120.0)
    board.note(jobs[0], JobEnd("finished", 8.0, 91.5), None)
    board.note(jobs[2], JobEnd("finished", 8.0, 91.5), 0.0)
    assert caplog.messages == [
        "[1/3] job 1 seed=1: val 91.50 (8 s, about 2 min left)",
        "[2/3] job 0 seed=0: val 91.50 (8 s)",
        "[3/3] job 2 seed=2: val 91.50 (8 s)",
    ]


def test_a_sweep_that_is_started_again_keeps_how_long_its_jobs_took(tmp_path: Path) -> None:
    jobs = [Job(number, (f"seed={number}",), tmp_path / str(number)) for number in range(2)]
    for job in jobs:
        write_finished_job(tmp_path, job.number, [*job.overrides], 91.5, 90.0)
    Board(tmp_path, jobs).note(jobs[0], JobEnd("finished", 8.8, 91.5), None)
    again = Board(tmp_path, jobs)
    assert [read_sweep(tmp_path)[str(job.number)].seconds for job in jobs] == [8.8, 0.0]
    assert not again.unfinished()


class Looks:
    """In the place of the event that ends the watch: so many looks without a pause, at each of which `act` is called."""

    def __init__(self, looks: int, act=lambda: None) -> None:
        self.looks, self.act = looks, act

    def wait(self, pause: float) -> bool:
        self.act()
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def outlook(tmp_path: Path) -> Outlook:
    """Two jobs run of five: one in its teacher's fourth epoch, one with a summary that cannot be read."""
    jobs = [Job(number, (f"seed={number}",), tmp_path / str(number)) for number in (1, 2)]
    write_job(jobs[0].folder, ROWS, Run("running", plan=PLAN[:2]))
    jobs[1].folder.mkdir()
    (jobs[1].folder / SUMMARY).write_text("{")
    ended = [JobEnd("finished", 200.0, 91.0), JobEnd("failed", 1.0, reason="killed")]
    return Outlook(SimpleNamespace(at_once=2, ended=ended, at_work=lambda: dict.fromkeys(jobs, 50.0)), 5)  # type: ignore[arg-type]


def test_the_outlook_of_jobs(outlook: Outlook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: AT + 1)
    running = outlook.look()
    assert [(doing.job.number, doing.left) for doing in running] == [(1, 65.0), (2, None)]
    assert outlook.pace == {"teacher": 11.0}
    a_job = (200 + 50 + 65) / 2  # the failed one tells nothing
    assert outlook.left(running) == 65 + a_job  # the fifth waits for the first


def test_elsewhere_a_line_a_minute(outlook: Outlook, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("time.time", lambda: AT + 1)
    caplog.set_level(logging.INFO)
    tell(outlook, lambda job: "", Looks(2))  # type: ignore[arg-type]
    told = "2 of 5 ended, 2 running, about 4 min left; job 1: teacher, epoch 4/10, best 70.00, 65 s left; job 2: at work for"
    assert caplog.messages == [f"{told} 50 s"] * 2


def screen(printed: str) -> list[str]:
    """What a terminal shows in the end of what was printed on it."""
    rows, row, column = [[" "] * 200 for _ in range(50)], 0, 0
    for token in re.findall(r"\x1b\[A|.", printed, re.DOTALL):
        if token == "\x1b[A":
            row -= 1
        elif token in "\r\n":
            row, column = row + (token == "\n"), 0
        else:
            rows[row][column] = token
            column += 1
    lines = ["".join(line).rstrip() for line in rows]
    return lines[: max((number for number, line in enumerate(lines, start=1) if line), default=0)]


class Console(io.StringIO):
    """What is printed on a terminal, whose size is that of the device `terminal`."""

    terminal: int

    def fileno(self) -> int:
        return self.terminal

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self.terminal, (20, columns))


@pytest.fixture
def console() -> Iterator[Console]:
    made = Console()
    other, made.terminal = os.openpty()
    yield made
    os.close(other)
    os.close(made.terminal)


def test_on_a_terminal_the_log_stands_above_a_table_which_goes(outlook: Outlook, console: Console, monkeypatch) -> None:
    monkeypatch.setattr("time.time", lambda: AT + 1)
    monkeypatch.setattr(sys, "stdout", console)
    elsewhere, root, shown = io.StringIO(), logging.getLogger(), []
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(stream) for stream in (console, elsewhere)])
    console.resize(100)

    def act() -> None:
        root.warning("a job ended")
        shown.append(screen(console.getvalue()))
        console.resize(70)

    draw(outlook, lambda job: f"seed={job.number}" + "x" * 99, Looks(2, act))  # type: ignore[arg-type]
    heading, *rows = shown[1][2:]
    assert shown[1][:2] == ["a job ended"] * 2 and heading == "2 of 5 ended, 2 running, about 4 min left"
    assert rows[0].startswith("job 1  teacher           epoch 4/10  best 70.00  65 s left  seed=1xx")
    assert rows[1].startswith("job 2  at work for 50 s" + " " * 37 + "seed=2xx")
    assert [len(row) for row in rows] == [69, 69]
    root.warning("all ended")
    assert screen(console.getvalue()) == ["a job ended"] * 3 + ["all ended"]
    assert elsewhere.getvalue() == "a job ended\n" * 3 + "all ended\n"
