"""`python -m kdx.data`: data sets before training. torch is imported when there is one to read."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdx.command import Choice, Command, Flag, Key, Names, Text, choice, run_command
from kdx.errors import KdxError
from kdx.report.tables import aligned

USAGE = """
python -m kdx.data list|prepare NAME...|verify NAME... [data_dir=DIR] [size=28|64|128|224]
python -m kdx.data prepare imagefolder PATH

list shows the data sets with their sizes and licences, and of those that are there how many classes each split has
and how uneven they are; prepare fetches and checks some; verify checks what is there, without network. `data_dir` is
where they lie (default: $KDX_DATA, else data), `size` the pixels of MedMNIST+. Of a folder of your pictures, prepare
tells what it would train: images of each class, sizes, files that cannot be read. The same is said by --list,
--prepare NAME... and prepare=NAME,NAME.
"""
FOLDER = "imagefolder"
ACTIONS = ("list", "prepare", "verify")
KEYS: dict[str, Key] = {
    "list": Flag(),
    "prepare": Names(),
    "verify": Names(),
    "data_dir": Text(),
    "size": Choice("28", ("28", "64", "128", "224")),
}


def handle_data_sets(words: list[str], data_dir: str | None, size: str, **actions: Any) -> Iterator[str | KdxError]:
    """List, prepare or verify, which the words or one of the keys say."""
    root, pixels = Path(data_dir or os.environ.get("KDX_DATA", "data")), int(size)
    asked = {name: value for name, value in actions.items() if value}
    if words:
        action, *wanted = words
        asked[choice("action", action, ACTIONS)] = (not wanted or None) if action == "list" else wanted
    if len(asked) != 1 or not all(asked.values()):
        raise KdxError("choose one of list, prepare NAME..., verify NAME...")
    ((action, wanted),) = asked.items()
    from kdx.data.catalogue import TITLES, check_names, prepare, rows_of_all
    from kdx.data.survey import survey

    if action == "list":
        yield aligned([*TITLES, f"in {root}"], rows_of_all(root, pixels))
        return
    if wanted[0] == FOLDER:
        if len(wanted) != 2:
            raise KdxError(f"{action} {FOLDER}: one folder is needed, {action} {FOLDER} PATH")
        yield from survey(wanted[1])
        return
    check_names(wanted)
    for name in wanted:  # each is told when it is done: a download may take long
        yield prepare(name, root, pixels, download=action == "prepare")


COMMAND = Command(USAGE, handle_data_sets, KEYS, words=("[list|prepare|verify [NAME...]]",))


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(COMMAND, arguments)


if __name__ == "__main__":
    main()
