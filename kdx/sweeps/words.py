"""What is told of jobs that run."""

from collections.abc import Sequence

from kdx.recipe import DECIMALS
from kdx.sweeps.jobs import Job
from kdx.sweeps.outlook import Doing
from kdx.text import harmless

MOST = 4  # jobs that one line tells of


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def about_left(seconds: float | None) -> str:
    """The end of a line, empty where the time left is unknown."""
    return "" if seconds is None else f", about {duration(seconds)} left"


def heading(ended: int, total: int, running: int, left: float | None) -> str:
    """How far all jobs are."""
    return f"{ended} of {total} ended, {running} running{about_left(left)}"


def title(job: Job) -> str:
    """A job by its number, a shared stage by its role and fingerprint, as its folder is named."""
    return f"job {job.number}" if job.folder.name == str(job.number) else job.folder.name


def state(doing: Doing) -> list[str]:
    """What a job is doing: stage, epoch, best so far, time left; what is unknown is empty."""
    stage = doing.stage
    if stage is None:
        return [f"at work for {duration(doing.spent)}", "", "", ""]
    epoch = f"epoch {stage.epoch}" + ("" if stage.epochs is None else f"/{stage.epochs}")
    best = "" if stage.best is None else f"best {stage.best:.{DECIMALS[stage.selected_by]}f}"
    return [stage.role, epoch, best, "" if doing.left is None else f"{duration(doing.left)} left"]


def table(running: Sequence[Doing], names: Sequence[str]) -> list[str]:
    """A line a job, in columns; the names stand last, where a narrow terminal cuts them."""
    rows = [[title(doing.job), *state(doing), name] for doing, name in zip(running, names, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width) for row in rows]
    return [harmless(line.rstrip()) for line in lines]


def sentence(running: Sequence[Doing]) -> str:
    """What the first few jobs are doing and how many more run, in one line."""
    told = [f"{title(doing.job)}: {', '.join(filter(None, state(doing)))}" for doing in running[:MOST]]
    more = len(running) - len(told)
    return "; ".join([*told, *([f"and {more} more"] if more else [])])
