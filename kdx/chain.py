"""Which stages to reuse, load or train; trains them guides first; tells it in summary.json."""

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdx.checkpoint import load_checkpoint, verify, versions
from kdx.config import Settings, StageSettings
from kdx.errors import KdxError
from kdx.files import hash_file, relative, write_json
from kdx.index import FinishedStage, StageIndex
from kdx.memory import full_cleanup
from kdx.models import count_parameters
from kdx.report import stage_table
from kdx.stage import (
    Outcome,
    Workplace,
    check_stage,
    load_network,
    network_spec,
    open_workplace,
    scores_on_test,
    stage_fingerprint,
    train_stage,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What the plan does about one stage: `train` it, `reuse` a finished one, or `load` a named checkpoint."""

    stage: StageSettings
    action: str
    fingerprint: str
    checkpoint: Path | None = None
    finished: FinishedStage | None = None

    @property
    def role(self) -> str:
        return self.stage.role


def run_chain(settings: Settings, run_dir: Path, overrides: Sequence[str] = ()) -> float | None:
    """Deliver the configured stages; the best validation accuracy of the last one (None when only planning).

    Raises `KdxError` before the first training step for whatever in any stage cannot work.
    """
    outputs = Path(settings.output_dir)
    index = StageIndex(outputs)
    place = open_workplace(settings)
    plan = make_plan(place, index)
    for line in describe_plan(plan, run_dir):
        log.info(line)
    check_plan(place, plan)
    if settings.plan:
        return None
    summary = _Summary(run_dir, place, plan, overrides)
    outcomes: dict[str, Outcome] = {}
    try:
        for step in plan:
            summary.write("running")
            outcomes[step.role] = _deliver(place, step, outcomes, plan, run_dir, index)
            summary.add(step, outcomes[step.role])
            full_cleanup()
    except BaseException as error:
        summary.write("failed", f"{type(error).__name__}: {error}")
        raise
    summary.write("finished")
    rows = {step.role: summary.stages[step.role] for step in plan}
    log.info("\n%s\n", stage_table(rows))
    log.info("results: %s", relative(run_dir, Path.cwd()))
    return outcomes[plan[-1].role].validation["accuracy"]


def make_plan(place: Workplace, index: StageIndex) -> list[Step]:
    """The steps that deliver what is asked for, guides first; a reused stage needs no guide."""
    settings = place.settings
    steps: dict[str, Step] = {}
    for stage in settings.stages:
        guide = steps[stage.guide].fingerprint if stage.guide else None
        steps[stage.role] = _find(place, stage, stage_fingerprint(place, stage, guide), index)
    needed = set(settings.deliver)
    for step in reversed(steps.values()):
        if step.role in needed and step.action == "train":
            if step.stage.guide:
                needed.add(step.stage.guide)
            if step.role not in settings.deliver and settings.missing == "error":
                raise KdxError(
                    f"stage.missing=error: no finished {step.role} ({step.stage.network} on {settings.dataset_name}, "
                    f"fingerprint {step.fingerprint}) in {index.folder}: run stage={step.role} with the same values, "
                    f"name a file with stage.{step.role}.checkpoint, or set stage.missing=train"
                )
    return [step for step in steps.values() if step.role in needed]


def describe_plan(plan: Sequence[Step], run_dir: Path) -> list[str]:
    """The plan in words, a line a stage."""
    lines = ["plan:"]
    for step in plan:
        stage = step.stage
        how = {"train": f"train {stage.epochs} epochs", "reuse": "reuse", "load": "load"}[step.action]
        if step.action == "train" and stage.guide:
            how += f", taught by the {stage.guide}"
        if step.checkpoint is not None:
            how += f" {relative(step.checkpoint, Path.cwd())}"
        lines.append(f"  {step.role:<10} {stage.network:<12} {step.fingerprint}  {how}")
    return lines


def check_plan(place: Workplace, plan: Sequence[Step]) -> None:
    """Build all that will be trained and load all that will be used: what fails, fails now."""
    for step in plan:
        if step.checkpoint is None:
            check_stage(place, step.stage)
        else:
            load_network(place, step.stage, step.checkpoint)
        if step.finished is not None:
            here, there = place.surroundings(), step.finished.surroundings
            differ = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
            if differ:
                log.warning(
                    "the reused %s was made elsewhere (%s): its last bits may differ",
                    step.role,
                    "; ".join(differ),
                )


def _find(place: Workplace, stage: StageSettings, own: str, index: StageIndex) -> Step:
    """The stage as a step: from the checkpoint that is named, from the index, or to be trained."""
    settings = place.settings
    if stage.checkpoint is not None:
        path = Path(stage.checkpoint)
        if not path.is_file():
            raise KdxError(f"stage.{stage.role}.checkpoint={stage.checkpoint}: no such file")
        return Step(stage, "load", f"file:{hash_file(path)[:16]}", path)
    finished = None if settings.reuse == "never" else index.find(own)
    if finished is None and settings.reuse == "latest" and stage.role in settings.teachers():
        finished = index.find_latest(
            role=stage.role,
            network=stage.network,
            data_digest=place.dataset.digest,
            num_classes=place.dataset.num_classes,
        )
    if finished is not None:
        path = index.path_of(finished)
        try:
            verify(path)
            return Step(stage, "reuse", finished.fingerprint, path, finished)
        except KdxError as error:
            log.warning("%s: the %s is trained again", error, stage.role)
    return Step(stage, "train", own)


def _deliver(
    place: Workplace,
    step: Step,
    outcomes: dict[str, Outcome],
    plan: Sequence[Step],
    run_dir: Path,
    index: StageIndex,
) -> Outcome:
    """Carry one step out."""
    stage = step.stage
    if step.action == "train":
        return _train(place, step, outcomes, plan, run_dir, index)
    assert step.checkpoint is not None
    network, content = load_network(place, stage, step.checkpoint)
    parameters = count_parameters(network)
    if step.finished is not None:
        done = step.finished
        return Outcome(step.checkpoint, done.epoch, done.validation, done.test, parameters, 0.0)
    test = scores_on_test(place, stage, network)
    return Outcome(step.checkpoint, content["epoch"], content["validation"], test, parameters, 0.0)


def _train(
    place: Workplace,
    step: Step,
    outcomes: dict[str, Outcome],
    plan: Sequence[Step],
    run_dir: Path,
    index: StageIndex,
) -> Outcome:
    """Train a stage under its guide and file it in the index."""
    stage = step.stage
    guide, guide_own = None, None
    if stage.guide:
        teacher_step = next(s for s in plan if s.role == stage.guide)
        guide, _ = load_network(place, teacher_step.stage, outcomes[stage.guide].checkpoint)
        guide_own = teacher_step.fingerprint
    outcome = train_stage(place, stage, run_dir / stage.role, step.fingerprint, guide, guide_own)
    index.add(
        FinishedStage(
            fingerprint=step.fingerprint,
            role=stage.role,
            network=stage.network,
            dataset=place.dataset.name,
            data_digest=place.dataset.digest,
            num_classes=place.dataset.num_classes,
            checkpoint=index.entry_path(outcome.checkpoint),
            sha256=hash_file(outcome.checkpoint),
            epoch=outcome.epoch,
            validation=outcome.validation,
            test=outcome.test,
            seconds=outcome.seconds,
            finished=datetime.now(UTC).isoformat(),
            surroundings=place.surroundings(),
        )
    )
    return outcome


class _Summary:
    """summary.json: what was run, how it went, and how to do it again. Each role is a key of its own."""

    def __init__(self, run_dir: Path, place: Workplace, plan: Sequence[Step], overrides: Sequence[str]) -> None:
        self.path = run_dir / "summary.json"
        self.place = place
        self.stages: dict[str, dict[str, Any]] = {}
        self.lineage: list[dict[str, str]] = [
            {"what": "data", "name": place.dataset.name, "hash": place.dataset.digest}
        ]
        self.head = {
            "overrides": list(overrides),
            "plan": [{"role": s.role, "action": s.action, "fingerprint": s.fingerprint} for s in plan],
            "surroundings": place.surroundings(),
            "versions": versions(),
            "git_commit": _git_commit(),
        }

    def add(self, step: Step, outcome: Outcome) -> None:
        content = load_checkpoint(outcome.checkpoint)
        status = {"train": "trained", "reuse": "reused", "load": "loaded"}[step.action]
        self.lineage.append({"what": step.role, "name": step.stage.network, "hash": hash_file(outcome.checkpoint)})
        self.stages[step.role] = {
            "network": step.stage.network,
            "stem": network_spec(self.place, step.stage).stem,
            "status": status,
            "fingerprint": step.fingerprint,
            "guide": step.stage.guide,
            "guide_fingerprint": content["meta"].get("guide_fingerprint"),
            "checkpoint": relative(outcome.checkpoint, self.path.parent),
            "epoch": outcome.epoch,
            "parameters": outcome.parameters,
            "validation": outcome.validation,
            "test": outcome.test,
            "seconds": round(outcome.seconds, 3),
        }

    def write(self, status: str, error: str | None = None) -> None:
        write_json(self.path, {"status": status, "error": error, **self.head, "lineage": self.lineage, **self.stages})


def _git_commit() -> str | None:
    """The commit of kdx's own checkout, with `+` if it was changed since; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(here), "rev-parse", "HEAD"]
        commit = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        ask = ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
