"""What a sweep found, as sweep.csv, sweep.md and report.html: `python -m kdx.report DIR...`, also for a single run.

Of several folders also how each differs from the first one.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdx.command import Command, Flag, Key, Text, run_command
from kdx.errors import KdxError
from kdx.report.comparison import compare_folders
from kdx.report.run import write_run_report
from kdx.report.sweep import write_report
from kdx.results import SUMMARY
from kdx.sweeps.costs import measure_costs
from kdx.sweeps.pages import write_job_pages

USAGE = """
python -m kdx.report DIR... [rows=KEY] [columns=KEY] [costs=true] [jobs=true]

DIR is the folder of a sweep, also while it runs, or of a run. Writes sweep.csv, sweep.md and report.html into a
sweep's folder, report.html into a run's, and prints what was found. `rows` and `columns` are the swept keys of the heat
map, such as kd.temperature and kd.alpha. `costs=true` measures first what each network of a sweep costs to use, as the
sweep itself does at its end where it has several; networks of your own code are left out. `jobs=true` writes
the page of each job, too, to which the sweep's leads. Of several folders each is compared with the first one at the
end, paired by seed: the configurations that both have, or the best on validation.
"""
KEYS: dict[str, Key] = {"rows": Text(), "columns": Text(), "costs": Flag(), "jobs": Flag()}


def write_reports(words: list[str], rows: str | None, columns: str | None, costs: bool, jobs: bool) -> Iterator[str]:
    """The reports of the folders, one by one, in words."""
    gone = next((word for word in words if not Path(word).is_dir()), None)
    if gone is not None:
        raise KdxError(f"{gone}: no such folder")
    for folder in map(Path, words):
        if (folder / SUMMARY).exists():
            if rows or columns or costs or jobs:
                raise KdxError(f"{folder}: a run; rows=, columns=, costs= and jobs= are for the folder of a sweep")
            yield write_run_report(folder)
        else:
            if costs:
                measure_costs(folder, own=False)
            if jobs:
                write_job_pages(folder)
            yield write_report(folder, rows, columns)
    if len(words) > 1:
        yield compare_folders([Path(word) for word in words])


COMMAND = Command(USAGE, write_reports, KEYS, words=("DIR...",))


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(COMMAND, arguments)


if __name__ == "__main__":
    main()
