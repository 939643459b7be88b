"""Code that a user plugs in may raise anything: it becomes one line that says where in the user's own file."""

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdx.errors import KdxError

OURS = Path(__file__).resolve().parent
INSTALLED = frozenset({"site-packages", "dist-packages"})
LONGEST_REASON = 300  # characters


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Run a user's code within: whatever it raises, `SystemExit` too, is a `KdxError` that begins with `what`.

    Ctrl-C and signals, which are `KeyboardInterrupt`, pass.
    """
    try:
        yield
    except (KdxError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise KdxError(f"{what}: {reason_of(error)}") from error


@contextmanager
def users_errors(what: str = "") -> Iterator[None]:
    """Where kdx's code and a user's are mixed: errors from a line of the user's, and exits, are `KdxError`s."""
    try:
        yield
    except (KdxError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if place_of(error) is None and not isinstance(error, SystemExit):
            raise
        raise KdxError(": ".join(filter(None, (what, reason_of(error))))) from error


def reason_of(error: BaseException) -> str:
    """An error in one line: its type, what it says, and the line of the user's code that it comes from, if any."""
    text = text_of(error)
    text = text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
    place = place_of(error)
    return ": ".join(filter(None, (type(error).__name__, text))) + (f" ({place})" if place else "")


def text_of(error: BaseException) -> str:
    """What an error says, in one line."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)  # whose text repeats the place
    except Exception:  # it, too, is the user's code
        text = ""
    return " ".join(text.split())


def place_of(error: BaseException) -> str | None:
    """`file, line n` of the innermost frame in neither kdx nor Python nor an installed package; None without one."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 1))
    own = [(Path(file), line) for file, line in frames if _is_users(Path(file))]
    if not own:
        return None
    file, line = own[-1]
    return f"{os.path.relpath(file) if file.is_relative_to(Path.cwd()) else file}, line {line}"


def is_installed(path: Path) -> bool:
    """Part of an installed package."""
    return bool(INSTALLED & set(path.parts))


def is_standard(path: Path) -> bool:
    """Part of Python itself."""
    folders = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib")}
    return any(
        path.is_relative_to(folder) or path.resolve().is_relative_to(Path(folder).resolve()) for folder in folders
    )


def _is_users(path: Path) -> bool:
    return path.is_file() and not (path.resolve().is_relative_to(OURS) or is_installed(path) or is_standard(path))
