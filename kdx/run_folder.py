"""A run's folder before Hydra writes into it, so that a run which trains nothing leaves everything as it was."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdx.results import SUMMARY

HYDRA_FOLDER = ".hydra"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


@dataclass(frozen=True)
class FolderBefore:
    """What was there before a run: its folder and those above, its entries, and Hydra's files of an earlier run."""

    folders: frozenset[Path]
    files: dict[Path, bytes] = field(default_factory=dict)
    entries: frozenset[str] = frozenset()
    summary: tuple[int, int] | None = None

    @classmethod
    def of(cls, folder: Path) -> "FolderBefore":
        """Look at `folder`, which need not exist."""
        folder = folder.absolute()
        hydra_files = (folder / HYDRA_FOLDER / name for name in HYDRA_FILES)
        return cls(
            folders=frozenset(path for path in (folder / HYDRA_FOLDER, folder, *folder.parents) if path.is_dir()),
            files={path: path.read_bytes() for path in hydra_files if path.is_file()},
            entries=frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset(),
            summary=_stamp(folder / SUMMARY),
        )

    def restore(self, folder: Path, log_name: str, shared: bool) -> None:
        """Undo what Hydra did in `folder`, unless a stage was begun: then summary.json was written.

        Removed are its files, the run's log file and folders that are empty now, of all these none that was there
        before. What an earlier run's files held they hold again. In a folder that is `shared` with a run at work no
        file is removed: it may be that one's.
        """
        folder = folder.absolute()
        if _stamp(folder / SUMMARY) != self.summary:
            return
        logging.shutdown()
        for path in (folder / HYDRA_FOLDER / name for name in HYDRA_FILES):
            if path in self.files:
                path.write_bytes(self.files[path])
            elif not shared:
                path.unlink(missing_ok=True)
        if log_name not in self.entries and not shared:
            (folder / log_name).unlink(missing_ok=True)
        for empty in (folder / HYDRA_FOLDER, folder, *folder.parents):
            if empty not in self.folders:
                with suppress(OSError):  # it holds something, or another run has just removed it
                    empty.rmdir()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is replaced."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
