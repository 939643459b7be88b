"""Whole programs of jobs for tests of what runs them; imports nothing that takes time."""

import os
import sys
import time
from pathlib import Path


def act() -> None:
    """`act.exit=CODE` ends the process, `act.sleep=FILE` leaves the file and sleeps."""
    how, _, value = next(argument for argument in sys.argv if argument.startswith("act.")).partition("=")
    if how == "act.exit":
        os._exit(int(value))
    Path(value).touch()
    time.sleep(60)
