"""Which stages to reuse, load or train, decided and checked before anything is trained."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from kdx.chain.check import check_stage
from kdx.chain.context import RunContext, metadata
from kdx.chain.fingerprints import as_recorded, average_of, network_code, stage_fingerprint
from kdx.chain.foreign import as_imported, import_fingerprint, import_network
from kdx.chain.headless import headless_source, import_features
from kdx.chain.index import FinishedStage, StageIndex, fingerprint
from kdx.chain.loaded import LoadedStage, check_answers, load_network, refuse_key
from kdx.chain.logits import logits_to_come
from kdx.chain.objective import check_teachers, learns_classes
from kdx.chain.start import Start, start_of_file
from kdx.checkpoint import check_metadata, load_hashed
from kdx.config.schema import StageSettings
from kdx.errors import KdxError, errors_of
from kdx.files import free_bytes, from_here, hash_file, nearest
from kdx.models.foreign import is_kdx_file
from kdx.models.networks import count_parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStage:
    """What the plan does about one stage: `train` it, `reuse` a finished one, or take a named file.

    `load` is for a checkpoint of kdx's; weights from elsewhere are to `import`: their `source` is then the named file,
    and `finished` how they were filed before, if they were.
    """

    stage: StageSettings
    action: str
    fingerprint: str
    checkpoint: Path | None = None
    finished: FinishedStage | None = None
    source: Path | None = None

    @property
    def role(self) -> str:
        return self.stage.role


@contextmanager
def errors_of_stage(stage: StageSettings) -> Iterator[None]:
    """Let an error that begins with a key begin with the stage's own one where that gave the value."""
    try:
        yield
    except KdxError as error:
        text = str(error)
        key = re.match(r"[a-z_]+(\.\w+)*", text)
        if key is None or stage.key_of(key[0]) == key[0]:
            raise
        raise type(error)(stage.key_of(key[0]) + text.removeprefix(key[0])) from error


def make_plan(context: RunContext, index: StageIndex) -> list[PlannedStage]:
    """The stages that deliver what is asked for, teachers first; a reused stage needs no teacher."""
    settings = context.settings
    stages: dict[str, PlannedStage] = {}
    for stage in settings.stages:
        taught_by = as_recorded([stages[role].fingerprint for role in stage.teachers])
        start = None if stage.start_role is None else stages[stage.start_role].fingerprint
        with errors_of_stage(stage):
            own = stage_fingerprint(context, stage, taught_by, start)
        stages[stage.role] = _find(context, stage, own, index)
    needed = set(settings.deliver)
    for planned in reversed(stages.values()):
        if planned.role in needed and planned.action == "train":
            needed.update(planned.stage.needs)
            if planned.role not in settings.deliver and settings.missing == "error":
                raise KdxError(
                    f"stage.missing=error: no finished {planned.role} ({planned.stage.network} on "
                    f"{settings.dataset_name}, fingerprint {planned.fingerprint}) in {index.folder}: run "
                    f"stage={planned.role} with the same values, name a file with stage.{planned.role}.checkpoint, "
                    "or set stage.missing=train"
                )
    plan = [planned for planned in stages.values() if planned.role in needed]
    if not plan[-1].stage.head:
        role = plan[-1].role
        raise KdxError(f"stage.{role}.head=false: has no classifier to deliver; set stage.deliver to whom it teaches")
    return plan


def describe_plan(plan: Sequence[PlannedStage], unlabelled: int = 0) -> list[str]:
    """The plan in words, a line a stage; `unlabelled` is how many pictures without labels distilled stages see."""
    lines = ["plan:"]
    for planned in plan:
        stage = planned.stage
        how = f"train {stage.recipe.epochs} epochs" if planned.action == "train" else planned.action
        if planned.action == "train" and stage.recipe.labelled != 1:
            share = stage.recipe.labelled
            how += f", with {f'{share:.3g} of the' if share < 1 else f'{share:g}'} labels"
        if planned.action == "train" and stage.teachers:
            how += f", taught by the {' and the '.join(stage.teachers)}"
            how += f", also on {unlabelled} images without labels" if unlabelled else ""
        if planned.action == "train" and (stage.start_role or stage.start):
            how += (
                f", from the {stage.start_role}" if stage.start_role else f", from {from_here(Path(stage.start or ''))}"
            )
        if planned.checkpoint is not None:
            how += f" {from_here(planned.source or planned.checkpoint)}"
        how += "" if stage.head else ", features only: it has no accuracy"
        lines.append(f"  {planned.role:<10} {stage.network:<12} {planned.fingerprint}  {how}")
    return lines


def check_plan(context: RunContext, plan: Sequence[PlannedStage], run_dir: Path) -> dict[str, LoadedStage]:
    """Build all that will be trained and load all that will be used: what fails, fails now. Returns what was loaded."""
    parameters = []
    loaded: dict[str, LoadedStage] = {}
    networks: dict[str, nn.Module] = {}
    logits, unlearnt = 0, set[str]()
    for planned in plan:
        if planned.checkpoint is None and planned.action == "train":
            hashes = {role: loaded[role].sha256 for role in planned.stage.teachers if role in loaded}
            with errors_of_stage(planned.stage):
                check_teachers(planned.stage, unlearnt)
                networks[planned.role] = _try(context, planned.stage, networks)
                logits += logits_to_come(context, planned.stage, hashes)
            unlearnt |= set() if learns_classes(planned.stage) else {planned.role}
            parameters.append(count_parameters(networks[planned.role]))
        else:
            loaded[planned.role] = _load(context, planned)
            networks[planned.role] = loaded[planned.role].network
            unlearnt |= {planned.role} if planned.stage.head and not loaded[planned.role].classifies else set()
        if planned.finished is not None:
            _note_surroundings(planned.role, context.surroundings(), planned.finished.surroundings)
    _check_space(parameters, run_dir, logits, Path(context.settings.output_dir))
    context.sources.confirm()  # now that everything has been imported
    return loaded


def _try(context: RunContext, stage: StageSettings, networks: Mapping[str, nn.Module]) -> nn.Module:
    """Try a stage that will be trained, under networks by role like those that it needs; its network, untrained."""
    start = start_of_file(context, stage)
    if stage.start_role is not None:
        start = Start(networks[stage.start_role].state_dict(), f"the {stage.start_role}")
    return check_stage(context, stage, {role: networks[role] for role in stage.teachers}, start)


def _note_surroundings(role: str, here: dict[str, Any], there: dict[str, Any]) -> None:
    """Say in what a reused stage was made otherwise, where its fingerprint does not tell."""
    there = {"devices": 1} | there  # which is told of several only
    here = {"devices": 1} | here
    unlike = [key for key in here | there if there.get(key) != here.get(key)]
    if unlike:
        differ = "; ".join(f"{key} {there.get(key)} there, {here.get(key)} here" for key in unlike)
        log.info("note: the reused %s was made with %s: its last bits may differ", role, differ)


def _load(context: RunContext, planned: PlannedStage) -> LoadedStage:
    """The network of a stage that is not trained, tried on images of the validation split."""
    stage, checkpoint = planned.stage, planned.checkpoint
    if not stage.head and planned.finished is None:
        return import_features(context, stage, planned.source)
    assert checkpoint is not None
    if planned.action == "import" and planned.finished is None:
        return import_network(context, stage, checkpoint)
    loaded = load_network(context, stage, checkpoint)
    check_answers(context, stage, loaded.network, checkpoint)
    if planned.source is not None and stage.head:
        told = f"{from_here(planned.source)} reaches {loaded.validation['accuracy']:.2f} % on the validation split"
        log.info("%s: %s; it was imported before, as %s", stage.role, told, from_here(checkpoint))
    return loaded


def _check_space(parameters: Sequence[int], run_dir: Path, logits: int, output_dir: Path) -> None:
    """`KdxError` unless the disks can take the checkpoints of networks with these numbers of weights, and the logits.

    latest.pth holds the weights and up to two optimizer moments, best_acc_*.pth the weights, and one more latest.pth
    is being written, all in float32.
    """
    checkpoints = 4 * (4 * sum(parameters) + 3 * max(parameters, default=0))
    run_disk, output_disk = (nearest(folder) for folder in (run_dir, output_dir))
    needs = [(run_disk, f"hydra.run.dir={run_dir}", "checkpoints", checkpoints)]
    if logits and run_disk.stat().st_dev == output_disk.stat().st_dev:
        what = f"checkpoints and kd.cache_logits ({logits / 1e6:.1f} MB)"
        needs = [(run_disk, f"hydra.run.dir={run_dir}", what, checkpoints + logits)]
    elif logits:
        needs.append((output_disk, f"output_dir={output_dir}", "kd.cache_logits", logits))
    for folder, key, what, needed in needs:
        free = free_bytes(folder)
        if needed > free:
            raise KdxError(
                f"{key}: needs about {needed / 1e6:.1f} MB for {what}, the disk has {free / 1e6:.1f} MB free; "
                "make room or choose another output_dir"
            )


def reuse_finished(
    context: RunContext, stage: StageSettings, finished: FinishedStage, index: StageIndex
) -> PlannedStage | None:
    """A planned stage that reuses a finished stage, or None where its checkpoint is damaged or does not fit."""
    path = index.path_of(finished)
    try:
        content, _ = load_hashed(path, known=finished.sha256, mapped=True)
        check_metadata(path, content["meta"], metadata(context, stage))
    except KdxError as error:
        log.warning("%s: this %s is not reused", error, stage.role)
        return None
    return PlannedStage(stage, "reuse", finished.fingerprint, path, finished)


def _find(context: RunContext, stage: StageSettings, own: str, index: StageIndex) -> PlannedStage:
    """What the plan does about a stage: from the checkpoint that is named, from the index, or to be trained."""
    settings = context.settings
    if not stage.head:
        return _find_import(context, stage, headless_source(stage), index)
    if stage.checkpoint is not None:
        path, key = Path(stage.checkpoint), f"stage.{stage.role}.checkpoint"
        if not path.is_file():
            raise KdxError(f"{key}={path}: {'a folder, a file is needed' if path.is_dir() else 'no such file'}")
        with errors_of(key):
            ours = is_kdx_file(path)
        if not ours:
            return _find_import(context, stage, path, index)
        refuse_key(stage, path)
        facts = {"sha256": hash_file(path), "network": stage.network, "code": network_code(context, stage)}
        return PlannedStage(stage, "load", f"file:{fingerprint(facts | average_of(path))}", path)
    exact = None if settings.reuse == "never" else index.find(own)
    candidates = [] if exact is None else [exact]
    if settings.reuse == "latest" and stage.role in settings.teaching_roles():
        candidates += index.newest_first(
            role=stage.role,
            network=stage.network,
            code=network_code(context, stage),
            data_digest=context.dataset.digest,
            num_classes=context.dataset.num_classes,
        )
    stages = (reuse_finished(context, stage, finished, index) for finished in candidates)
    return next((planned for planned in stages if planned is not None), PlannedStage(stage, "train", own))


def _find_import(context: RunContext, stage: StageSettings, path: Path | None, index: StageIndex) -> PlannedStage:
    """Weights that kdx did not train, of a file or of a network as it is built: as they were filed, or to be tried."""
    if path is not None:
        stage = as_imported(context, stage, path)
    own = import_fingerprint(context, stage, path)
    finished = None if context.settings.reuse == "never" else index.find(own)
    known = None if finished is None else reuse_finished(context, stage, finished, index)
    if known is None:
        return PlannedStage(stage, "import", own, path, source=path)
    return replace(known, action="import", source=path)
