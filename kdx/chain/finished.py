"""Whether something that is finished is what is configured: by fingerprints, whatever is in the index."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdx.chain.context import Workplace, stage_fingerprint
from kdx.chain.index import StageIndex
from kdx.chain.plan import Step, make_plan
from kdx.errors import KdxError
from kdx.results import SUMMARY, Run, read_run

TRAINED = "trained"


def configured_fingerprints(place: Workplace) -> dict[str, str]:
    """The fingerprint of every stage on the way to what is delivered, as if nothing were finished."""
    from_nothing = replace(place, settings=replace(place.settings, reuse="never", missing="train"))
    plan = make_plan(from_nothing, StageIndex(Path(place.settings.output_dir)))
    return {step.role: step.fingerprint for step in plan}


def differing_role(place: Workplace, run: Run) -> str | None:
    """A role whose stage in a finished run is not the one configured; None where the run stands for it.

    With `stage.reuse=latest` a teacher may be any, and a stage is compared under the teacher that it had.
    """
    settings, expected = place.settings, configured_fingerprints(place)
    told = {entry.role: entry.fingerprint for entry in run.plan}
    for role in dict.fromkeys((*settings.deliver, *told)):
        if settings.reuse == "latest" and role in told and role not in settings.deliver:
            continue
        wanted = expected.get(role)
        if settings.reuse == "latest" and role in run.stages and settings.stage(role).checkpoint is None:
            wanted = stage_fingerprint(place, settings.stage(role), run.stages[role].guide_fingerprint)
        if wanted != told.get(role):
            return role
    return None


def refuse_other_run(run_dir: Path, plan: Sequence[Step]) -> None:
    """`KdxError` where a folder holds a finished run, or a trained stage, that is not the plan's.

    Its numbers would become those of another run. A finished run is not trained in again either.
    """
    if not (run_dir / SUMMARY).exists():
        return
    run = read_run(run_dir)
    finished = run.status == "finished"
    told = {entry.role: entry.fingerprint for entry in run.plan}
    if finished and any(step.action == "train" or told.get(step.role) != step.fingerprint for step in plan):
        raise KdxError(f"hydra.run.dir={run_dir}: holds a finished run; choose another folder")
    for step in plan:
        stage = run.stages.get(step.role)
        if stage and stage.status == TRAINED and stage.fingerprint != step.fingerprint:
            raise KdxError(f"hydra.run.dir={run_dir}: holds the {step.role} of another run; choose another folder")
