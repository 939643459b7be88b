"""What determines a stage's weights, as the fingerprint by which the stage is found again."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdx.augmentations import plain_augment
from kdx.chain.context import RunContext, network_spec
from kdx.chain.index import fingerprint
from kdx.chain.objective import VALIDATION_VERSION, build_terms, is_validated_anew
from kdx.config.schema import StageSettings
from kdx.errors import KdxError, errors_of
from kdx.files import hash_file
from kdx.metrics.selection import Selection
from kdx.models.features import FOUND_LAYERS_VERSION, LAST_MAP, STAGES
from kdx.models.foreign import holds_average
from kdx.models.networks import NetworkSpec, may_be_transformer
from kdx.recipe import Recipe, changed


def as_recorded(teachers: Sequence[str]) -> str | list[str] | None:
    """The roles or fingerprints of a stage's teachers as records hold them: none, one, or a list."""
    return None if not teachers else teachers[0] if len(teachers) == 1 else list(teachers)


def stage_fingerprint(
    context: RunContext, stage: StageSettings, guide_fingerprint: str | list[str] | None, start: str | None = None
) -> str:
    """Hash of exactly what determines the stage's weights, the teachers' fingerprints as they are recorded.

    `start` is the fingerprint of the stage that it starts from.
    """
    facts = _stage_facts(context, stage, guide_fingerprint)
    if stage.start is not None:
        facts |= {"start": start_hash(stage), "start_key": stage.checkpoint_key}
        with errors_of(f"stage.{stage.role}.start"):
            facts |= average_of(Path(stage.start))
    elif stage.start_role is not None:
        facts["start"] = start
    return fingerprint(facts)


def configuration_fingerprint(context: RunContext, stage: StageSettings) -> str:
    """Hash of what repetitions of a stage under other seeds have in common, its teachers' with it.

    What the data give is left out, which may be others for every seed, and of a file that a seed may have of its own
    only the network is known.
    """
    if stage.checkpoint is not None or not stage.head:
        return fingerprint({"file": stage.network})

    def of_role(role: str) -> str:
        return configuration_fingerprint(context, context.settings.stage(role))

    facts = _stage_facts(context, stage, as_recorded([of_role(role) for role in stage.teachers]))
    del facts["seed"]
    facts["data"] = {key: value for key, value in facts["data"].items() if key not in ("digest", "mean", "std")}
    if stage.start is not None:
        facts["start_key"] = stage.checkpoint_key
    elif stage.start_role is not None:
        facts["start"] = of_role(stage.start_role)
    return fingerprint(facts)


def _stage_facts(
    context: RunContext, stage: StageSettings, guide_fingerprint: str | list[str] | None
) -> dict[str, Any]:
    """What determines the stage's weights, but for what it starts from."""
    facts: dict[str, Any] = {
        "role": stage.role,  # seeds are derived from it
        "data": {
            "digest": context.dataset.digest,
            "augment": plain_augment(context.settings.augment),
            **context.preprocessing.plain,
            **({"balance": True} if context.settings.balance else {}),
        },
        "network": _facts(network_spec(context, stage)),
        "optimizer": stage.optimizer,
        "scheduler": stage.scheduler,
        "recipe": changed(_as_on_one_device(context, stage.recipe))
        | {"select": Selection.resolve(stage.recipe.select, context.dataset.task).name},
        "amp": context.settings.amp,
        "seed": context.settings.seed,
        "code": data_code(context) | network_code(context, stage),
    }
    for node in (stage.optimizer, stage.scheduler, stage.kd if stage.distilled else {}):
        facts["code"] |= context.sources.of_node(node)
    if stage.distilled:
        facts |= {"kd": stage.kd, "guide": guide_fingerprint}
        if _looks_where_kdx_finds(context, stage):
            facts["found_layers"] = FOUND_LAYERS_VERSION
        if is_validated_anew(stage):
            facts["validation"] = VALIDATION_VERSION
        if len(stage.teachers) > 1:
            facts["several"] = stage.several
        if context.dataset.unlabelled is not None:
            facts["data"]["unlabelled"] = context.dataset.unlabelled.digest
    return facts


def average_of(path: Path) -> dict[str, bool]:
    """What says that a file stands for an average of weights: before, the raw weights beside it were taken."""
    return {"average": True} if holds_average(path) else {}


def start_hash(stage: StageSettings) -> str | None:
    """The sha256 of the file that a stage starts from; None without one."""
    path = None if stage.start is None else Path(stage.start)
    if path is not None and not path.is_file():
        raise KdxError(f"stage.{stage.role}.start={path}: {'a folder' if path.is_dir() else 'no such role nor file'}")
    return None if path is None else hash_file(path)


def network_code(context: RunContext, stage: StageSettings) -> dict[str, str]:
    """The code of a user's own network; nothing for the others."""
    return context.sources.of(stage.network) if ":" in stage.network else {}


def data_code(context: RunContext) -> dict[str, str]:
    """The code of a user's own data set.

    It counts beside the digest, which need not show it: images may be decoded when they are asked for, and a user's
    own `Dataset` states its digest itself.
    """
    return context.sources.of_node(context.settings.source)


def _looks_where_kdx_finds(context: RunContext, stage: StageSettings) -> bool:
    """Whether its method names layers by words of which kdx finds out what they mean in what may be a transformer."""
    networks = [stage.network, *(context.settings.stage(role).network for role in stage.teachers)]
    if not any(map(may_be_transformer, networks)):
        return False
    methods = [term.method for term in build_terms(stage.kd)[1].values()]
    return any({STAGES, LAST_MAP} & {*method.layers, *method.words_of_teacher} for method in methods)


def _as_on_one_device(context: RunContext, recipe: Recipe) -> Recipe:
    """The recipe that gives the same weights on one device: several are as one, or each takes a part of a batch."""
    settings = context.settings
    parts = recipe.micro_batches * (1 if settings.sync_batchnorm else settings.world)
    return recipe if parts == recipe.micro_batches else replace(recipe, micro_batches=parts)


def _facts(spec: NetworkSpec) -> dict[str, Any]:
    """What of a network determines its first weights beside the data, whose images have one size."""
    left_out = {"image_size", "head"}  # who is trained has a classifier
    return {key: value for key, value in asdict(spec).items() if value is not None and key not in left_out}
