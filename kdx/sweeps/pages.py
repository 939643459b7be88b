"""A sweep's page while it runs, and the pages of its jobs."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

from kdx.errors import KdxError
from kdx.process import end_with_parent
from kdx.report.run import REPORT, write_run_report
from kdx.report.sweep import write_report
from kdx.results import FINISHED, SUMMARY, load_sweep
from kdx.sweeps.processes import forkserver

log = logging.getLogger(__name__)

EVERY = 15.0  # seconds between two versions of the page
REST = 20  # times as long as writing it takes: at most a twentieth of one processor


@contextmanager
def live_pages(sweep_dir: Path, wanted: bool) -> Iterator[None]:
    """Keep the sweep's page up to date in a process of its own, of low priority, as long as the block lasts."""
    if not wanted:
        yield
        return
    context = forkserver()
    over = context.Event()
    process = context.Process(target=_keep_written, args=(sweep_dir, over), name="pages", daemon=True)
    process.start()
    try:
        yield
    finally:
        over.set()
        process.join()


def write_job_pages(sweep_dir: Path) -> None:
    """Write the page of every finished job that has none, or an older one than its summary."""
    for run in load_sweep(sweep_dir).to_dict("records"):
        folder = Path(run["folder"])
        page, summary = folder / REPORT, folder / SUMMARY
        if run["status"] == FINISHED and (not page.exists() or page.stat().st_mtime_ns < summary.stat().st_mtime_ns):
            write_run_report(folder)


def _keep_written(sweep_dir: Path, over: Event) -> None:
    end_with_parent()
    os.nice(10)
    pause = EVERY
    while not over.wait(pause):
        began = time.monotonic()
        try:
            write_report(sweep_dir, reload=round(pause))  # first: the jobs' pages take a while
            write_job_pages(sweep_dir)
        except (KdxError, OSError) as error:  # a file that is written or moved meanwhile; the last page tells it again
            log.warning("the sweep's page is not up to date: %s", error)
        pause = max(EVERY, REST * (time.monotonic() - began))
