"""`kdx` and `python -m kdx.run`: compose the config, check every job, run the chain."""

import os
import signal
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from kdx import cli, torchrun
from kdx.compose import options_first
from kdx.config_loader import HYDRA_VERSION, add_plugins

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())  # wheel, checkout


def main(check: bool = True) -> None:
    """Run the command line; `check=False` for a job of a sweep, which was checked before the sweep began."""
    cli.share_processors()
    add_plugins()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m kdx.run` does: a user's own modules beside the call
    place = torchrun.world()
    if place is not None and place.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch is imported
        from kdx.chain.beside import run_beside

        run_beside(place)
    with torchrun.Followers(place) as followers, cli.one_line_errors(CONF) as command:
        followers.meet()
        sys.argv[1:] = options_first(sys.argv[1:])
        checked = cli.check_jobs(CONF) if check else cli.Checked()
        command.answers = checked.answers

        @hydra.main(version_base=HYDRA_VERSION, config_path=str(CONF), config_name="config")
        def job(config: DictConfig) -> float | None:
            return cli.run_job(config, checked.before, followers if place is not None else None)

        with cli.hydra_errors(checked.before):
            job()


if __name__ == "__main__":
    main()
