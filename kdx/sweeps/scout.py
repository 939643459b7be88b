"""What only a process that has imported torch can tell of jobs: whether what is finished is what is configured."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError
from kdx.process import end_with_parent
from kdx.results import read_run
from kdx.signals import heard_signals, stop_ignoring
from kdx.sweeps.jobs import Job, Program, finished_before
from kdx.sweeps.processes import forkserver

if TYPE_CHECKING:
    from kdx.chain.context import RunContext

log = logging.getLogger(__name__)


def refuse_other_plans(program: Program, jobs: Sequence[Job]) -> None:
    """`KdxError` where a job was finished with other settings, code or data than those which it would have now.

    A config file, the user's code or the images may have changed since; what was finished then is kept.
    """
    finished = [job for job in jobs if finished_before(job) is not None]
    if finished:
        answers = _ask(_differences, program, [(list(job.overrides), str(job.folder)) for job in finished])
        for job, answer in zip(finished, answers, strict=True):
            if answer is not None:
                raise KdxError(f"hydra.sweep.dir={job.folder.parent}: job {job.number} {answer}; choose another folder")


def shared_stages(program: Program, jobs: Sequence[Job], sweep_dir: Path) -> list[list[Job]]:
    """Jobs that train what several of `jobs` need, teachers first: one list for each place in the chain."""
    try:
        found = _ask(_shared, program, [list(job.overrides) for job in jobs])
    except KdxError:
        log.warning("could not tell in advance what the jobs share: each looks for itself")
        return []
    return [
        [
            Job(
                1000 * depth + position,
                (*jobs[number].overrides, f"stage.deliver={role}"),
                sweep_dir / "shared" / f"{role}-{own}",
            )
            for position, (number, role, own) in enumerate(stages)
        ]
        for depth, stages in enumerate(found)
    ]


def fingerprints_of(program: Program, jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each job's overrides, the fingerprints of the stages that it delivers or needs, by role.

    Where one cannot be told, the reason under `error`; `KdxError` where none can.
    """
    answers: list[dict[str, str]] = _ask(_fingerprints, program, [list(overrides) for overrides in jobs])
    if all("error" in answer for answer in answers):
        raise KdxError(answers[0]["error"])
    return answers


def _ask(work: Callable[..., Any], program: Program, about: Any) -> Any:
    """What `work(program, about)` returns in a process of its own (plain values); its `KdxError` is raised here."""
    context = forkserver()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, program, about, sender, heard_signals()))
    process.start()
    sender.close()
    try:
        answer, error = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise KdxError(f"the data set or its code ended the process that compares runs ({process.exitcode})") from None
    process.join()
    if error is not None:
        raise KdxError(error)
    return answer


def _answer(
    work: Callable[..., Any], program: Program, about: Any, sender: Connection, heard: Sequence[Signals]
) -> None:
    stop_ignoring(heard)
    end_with_parent()
    logging.disable()  # what is worth telling, the jobs tell
    answer, reason = None, None
    try:
        answer = work(program, about)
    except KdxError as error:
        reason = str(error)
    sender.send_bytes(json.dumps([answer, reason]).encode())


def _differences(program: Program, jobs: Sequence[tuple[list[str], str]]) -> list[str | None]:
    """Of each finished job, in what it is not the one configured now."""
    from kdx.chain.finished import differing_role

    answers: list[str | None] = []
    for context, (_, folder) in zip(_contexts(program, [overrides for overrides, _ in jobs]), jobs, strict=True):
        try:
            if isinstance(context, KdxError):
                raise context
            role = differing_role(context, read_run(Path(folder)))
        except KdxError as error:  # such as a network that cannot be built any more
            answers.append(f"is finished and cannot be compared with what is configured now: {error}")
            continue
        told = f"was finished with another {role} (its settings, code or data have changed since)"
        answers.append(None if role is None else told)
    return answers


def _shared(program: Program, jobs: Sequence[list[str]]) -> list[list[tuple[int, str, str]]]:
    """For every place in the chain, (job number, role, fingerprint) of the unfinished stages that jobs share."""
    from kdx.chain.index import StageIndex
    from kdx.chain.plan import make_plan

    users: dict[tuple[int, str, str], list[int]] = {}
    for number, context in enumerate(_contexts(program, jobs)):
        if isinstance(context, KdxError) or context.settings.reuse == "never":
            continue
        try:
            plan = make_plan(context, StageIndex(Path(context.settings.output_dir)))
        except KdxError:
            continue
        for depth, planned in enumerate(plan):
            if planned.action == "train":
                users.setdefault((depth, planned.role, planned.fingerprint), []).append(number)
    shared = {stage: numbers[0] for stage, numbers in users.items() if len(numbers) > 1}
    return [
        [(number, role, own) for (at, role, own), number in shared.items() if at == depth]
        for depth in sorted({at for at, _, _ in shared})
    ]


def _fingerprints(program: Program, jobs: Sequence[list[str]]) -> list[dict[str, str]]:
    from kdx.chain.finished import configured_fingerprints

    answers = []
    for context in _contexts(program, jobs):
        try:
            if isinstance(context, KdxError):
                raise context
            answers.append(configured_fingerprints(context))
        except KdxError as error:  # one of its networks cannot be built, or a file is missing
            answers.append({"error": str(error)})
    return answers


def _contexts(program: Program, jobs: Sequence[list[str]]) -> Iterator["RunContext | KdxError"]:
    """What the stages of each job share, or why it cannot be had; a data set is loaded once.

    A network that brings its weights is built once for all jobs, too, and not kept.
    """
    from kdx.chain.context import AsBuilt, load_dataset, make_run_context

    data: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for settings in program.compose(program.conf, program.base, jobs):
        key = repr((settings.source, settings.unlabelled))
        try:
            if key not in data:
                data[key] = load_dataset(settings)
            yield replace(make_run_context(settings, data[key]), as_built=AsBuilt(hashes))
        except KdxError as error:
            yield error
