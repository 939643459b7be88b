"""Which stages to reuse, load or train, decided and checked before anything is trained."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdx.chain.check import check_stage
from kdx.chain.context import Workplace, identity, network_code, stage_fingerprint
from kdx.chain.index import FinishedStage, StageIndex, fingerprint
from kdx.chain.logits import logits_to_come
from kdx.chain.stage import Loaded, check_answers, load_network
from kdx.checkpoint import check_identity, load_hashed
from kdx.config.schema import StageSettings
from kdx.errors import KdxError
from kdx.files import hash_file, relative
from kdx.models.networks import count_parameters

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


def describe_plan(plan: Sequence[Step]) -> list[str]:
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


def check_plan(place: Workplace, plan: Sequence[Step], run_dir: Path) -> dict[str, Loaded]:
    """Build all that will be trained and load all that will be used: what fails, fails now. Returns what was loaded."""
    parameters = []
    loaded: dict[str, Loaded] = {}
    networks: dict[str, nn.Module] = {}
    logits = 0
    for step in plan:
        if step.checkpoint is None:
            guides = [step.stage.guide] if step.stage.guide else []
            networks[step.role] = check_stage(place, step.stage, {role: networks[role] for role in guides})
            parameters.append(count_parameters(networks[step.role]))
            guide = loaded.get(step.stage.guide or "")
            logits += logits_to_come(place, step.stage, None if guide is None else guide.sha256)
        else:
            loaded[step.role] = load_network(place, step.stage, step.checkpoint)
            networks[step.role] = loaded[step.role].network
            check_answers(place, step.stage, networks[step.role], step.checkpoint)
        if step.finished is not None:
            here, there = place.surroundings(), step.finished.surroundings
            differ = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
            if differ:
                log.info("note: the reused %s was made with %s: its last bits may differ", step.role, "; ".join(differ))
    _check_space(parameters, run_dir, logits, Path(place.settings.output_dir))
    place.sources.confirm()  # now that everything has been imported
    return loaded


def _check_space(parameters: Sequence[int], run_dir: Path, logits: int, output_dir: Path) -> None:
    """`KdxError` unless the disks can take the checkpoints of networks with these numbers of weights, and the logits.

    latest.pth holds the weights and up to two optimizer moments, best_acc_*.pth the weights, and one more latest.pth
    is being written, all in float32.
    """
    checkpoints = 4 * (4 * sum(parameters) + 3 * max(parameters, default=0))
    run_disk, output_disk = (_nearest(folder) for folder in (run_dir, output_dir))
    needs = [(run_disk, f"hydra.run.dir={run_dir}", "checkpoints", checkpoints)]
    if logits and run_disk.stat().st_dev == output_disk.stat().st_dev:
        what = f"checkpoints and kd.cache_logits ({logits / 1e6:.1f} MB)"
        needs = [(run_disk, f"hydra.run.dir={run_dir}", what, checkpoints + logits)]
    elif logits:
        needs.append((output_disk, f"output_dir={output_dir}", "kd.cache_logits", logits))
    for folder, key, what, needed in needs:
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise KdxError(
                f"{key}: needs about {needed / 1e6:.1f} MB for {what}, the disk has {free / 1e6:.1f} MB free; "
                "make room or choose another output_dir"
            )


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def reuse_finished(place: Workplace, stage: StageSettings, finished: FinishedStage, index: StageIndex) -> Step | None:
    """A step that reuses a finished stage, or None where its checkpoint is damaged or does not fit."""
    path = index.path_of(finished)
    try:
        content, _ = load_hashed(path, known=finished.sha256, mapped=True)
        check_identity(path, content["meta"], identity(place, stage))
    except KdxError as error:
        log.warning("%s: this %s is not reused", error, stage.role)
        return None
    return Step(stage, "reuse", finished.fingerprint, path, finished)


def _find(place: Workplace, stage: StageSettings, own: str, index: StageIndex) -> Step:
    """The stage as a step: from the checkpoint that is named, from the index, or to be trained."""
    settings = place.settings
    if stage.checkpoint is not None:
        path = Path(stage.checkpoint)
        if not path.is_file():
            raise KdxError(f"stage.{stage.role}.checkpoint={stage.checkpoint}: no such file")
        facts = {"sha256": hash_file(path), "network": stage.network, "code": network_code(place, stage)}
        return Step(stage, "load", f"file:{fingerprint(facts)}", path)
    exact = None if settings.reuse == "never" else index.find(own)
    candidates = [] if exact is None else [exact]
    if settings.reuse == "latest" and stage.role in settings.teachers():
        candidates += index.newest_first(
            role=stage.role,
            network=stage.network,
            code=network_code(place, stage),
            data_digest=place.dataset.digest,
            num_classes=place.dataset.num_classes,
        )
    steps = (reuse_finished(place, stage, finished, index) for finished in candidates)
    return next((step for step in steps if step is not None), Step(stage, "train", own))
