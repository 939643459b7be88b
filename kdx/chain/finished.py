"""Whether something that is finished is what is configured: by fingerprints, whatever is in the index."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdx.chain.context import RunContext
from kdx.chain.fingerprints import stage_fingerprint
from kdx.chain.index import StageIndex
from kdx.chain.plan import PlannedStage, make_plan
from kdx.errors import KdxError
from kdx.results import SUMMARY, Run, read_run

TRAINED = "trained"


def configured_fingerprints(context: RunContext) -> dict[str, str]:
    """The fingerprint of every stage on the way to what is delivered, as if nothing were finished."""
    from_nothing = replace(context, settings=replace(context.settings, reuse="never", missing="train"))
    plan = make_plan(from_nothing, StageIndex(Path(context.settings.output_dir)))
    return {planned.role: planned.fingerprint for planned in plan}


def differing_role(context: RunContext, run: Run) -> str | None:
    """A role whose stage in a finished run is not the one configured; None where the run stands for it.

    With `stage.reuse=latest` a teacher may be any, and a stage is compared under the teacher that it had.
    """
    settings, expected = context.settings, configured_fingerprints(context)
    recorded = {entry.role: entry.fingerprint for entry in run.plan}
    for role in dict.fromkeys((*settings.deliver, *recorded)):
        if settings.reuse == "latest" and role in recorded and role not in settings.deliver:
            continue
        wanted = expected.get(role)
        if settings.reuse == "latest" and role in run.stages and settings.stage(role).checkpoint is None:
            stage = settings.stage(role)
            start = None if stage.start_role is None else recorded.get(stage.start_role)
            wanted = stage_fingerprint(context, stage, run.stages[role].guide_fingerprint, start)
        if wanted != recorded.get(role):
            return role
    return None


def run_that_stays(run_dir: Path, plan: Sequence[PlannedStage]) -> Run | None:
    """The plan's run where its folder holds it, finished, and its record tells of stages that the plan needs no more.

    `KdxError` where a folder holds a finished run, or a trained stage, that is not the plan's: its numbers would become
    those of another run. A finished run is not trained in again either.
    """
    if not (run_dir / SUMMARY).exists():
        return None
    run = read_run(run_dir)
    finished = run.status == "finished"
    recorded = {entry.role: entry.fingerprint for entry in run.plan}
    if finished and any(
        planned.action == "train" or recorded.get(planned.role) != planned.fingerprint for planned in plan
    ):
        raise KdxError(f"hydra.run.dir={run_dir}: holds a finished run; choose another folder")
    for planned in plan:
        stage = run.stages.get(planned.role)
        if stage and stage.status == TRAINED and stage.fingerprint != planned.fingerprint:
            raise KdxError(f"hydra.run.dir={run_dir}: holds the {planned.role} of another run; choose another folder")
    return run if finished and recorded.keys() - {planned.role for planned in plan} else None
