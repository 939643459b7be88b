"""What a sweep found, as sweep.csv, sweep.md and report.html: `python -m kdx.report DIR...`, also for a single run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdx.command import errors_end_the_process
from kdx.report.run import write_run_report
from kdx.report.sweep import write_report
from kdx.results import SUMMARY


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kdx.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the folder of a sweep or of a run")
    parser.add_argument("--rows", metavar="KEY", help="the heat map's rows, e.g. kd.temperature")
    parser.add_argument("--columns", metavar="KEY", help="the heat map's columns, e.g. kd.alpha")
    args = parser.parse_args(arguments)
    with errors_end_the_process():
        for folder in args.folders:
            single = (folder / SUMMARY).exists()
            print(write_run_report(folder) if single else write_report(folder, args.rows, args.columns))


if __name__ == "__main__":
    main()
