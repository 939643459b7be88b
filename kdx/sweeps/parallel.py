"""joblib does the scheduling: which job runs when, on which thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

THREADS: Mapping[str, Any] = {"backend": "threading"}  # each waits for a process

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_parallel(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    note: Callable[[Result], None],
    stop: Callable[[], None],
    n_jobs: int,
    options: Mapping[str, Any],
) -> None:
    """Call `work` with each item, `n_jobs` at a time in joblib's threads, and `note` here with each result as it comes.

    `options` are further ones of `joblib.Parallel`. After an error, also one that a signal raises, `stop` is called: it
    makes all calls of `work` return soon. joblib itself runs in a thread, so that no signal interrupts it halfway.
    """
    results: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def schedule() -> None:
        try:
            from joblib import Parallel, delayed

            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", **options)
            for result in parallel(delayed(work)(item) for item in items):
                results.put(("result", result))
            results.put(("end", None))
        except BaseException as error:  # raised again where it is heard of
            results.put(("error", error))

    thread = threading.Thread(target=schedule, name="joblib", daemon=True)
    try:
        thread.start()
        while (got := results.get())[0] == "result":
            note(got[1])
        if got[0] == "error":
            raise got[1]
    except BaseException:
        stop()
        raise
    finally:
        thread.join()
