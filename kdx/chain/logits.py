"""Where a teacher's logits are kept for all stages that are taught by it, and how much room they take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdx.augmentations import plain_augment
from kdx.chain.batches import train_size, unlabelled_of, updates_per_epoch
from kdx.chain.context import RunContext, metadata
from kdx.chain.fingerprints import average_of, data_code, network_code
from kdx.chain.index import fingerprint
from kdx.chain.objective import build_terms
from kdx.checkpoint import versions
from kdx.config.augment import why_not_kept
from kdx.config.schema import StageSettings
from kdx.recipe import AUTO
from kdx.training.runtime import choose_compile


def compile_mode(context: RunContext, stage: StageSettings) -> str | None:
    settings = context.settings
    if settings.compile == "auto" and settings.activation_checkpointing:  # the two do not go together
        return None
    steps = stage.recipe.epochs * updates_per_epoch(context, stage)
    return choose_compile(settings.compile, context.device, steps)


def keeps_logits(context: RunContext, stage: StageSettings, looks_at_layers: bool) -> bool:
    """Whether a teacher's logits are kept: under `auto` where they can be, and no method looks at its layers."""
    if stage.cache_logits != AUTO:
        return bool(stage.cache_logits)
    return not looks_at_layers and why_not_kept(context.settings.augment, context.settings.balance) is None


def logits_folder(context: RunContext, stage: StageSettings, teacher: str, teacher_sha256: str) -> Path:
    """Where the logits of a role that teaches are kept, under a name that stands for all that determines their bits."""
    known, settings, augment = metadata(context, stage), context.settings, context.settings.augment
    card = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    facts: dict[str, Any] = {"guide": teacher_sha256, "surroundings": context.surroundings()}
    facts |= {"versions": versions(), "card": card, "compiled": compile_mode(context, stage)}
    named = settings.stage(teacher).checkpoint
    facts |= {} if named is None else average_of(Path(named))
    facts["code"] = [data_code(context), network_code(context, settings.stage(teacher))]
    facts |= {"data_digest": known["data_digest"], "preprocessing": known["preprocessing"]}
    facts |= {
        "augment": plain_augment(augment),
        "batch_size": stage.recipe.batch_size,
        "micro_batches": stage.recipe.micro_batches,
    }
    pictures = unlabelled_of(context, stage)
    if pictures is not None:
        facts["unlabelled"] = pictures.digest
    if augment:  # then they are those of this stage's views
        facts |= {"seed": settings.seed, "role": stage.role}
    return Path(settings.output_dir) / "index" / "logits" / fingerprint(facts)


def logits_to_come(context: RunContext, stage: StageSettings, known: Mapping[str, str]) -> int:
    """Bytes that `kd.cache_logits` will still write: float32 logits of every training view, of validation and test.

    `known` has the sha256 of the teachers that are there; of one that is to be trained nothing is kept yet.
    """
    if not (stage.distilled and stage.cache_logits):
        return 0
    methods = [term.method for term in build_terms(stage.kd)[1].values()]
    if not keeps_logits(context, stage, any(method.words_of_teacher for method in methods)):
        return 0
    data, views = context.dataset, stage.recipe.epochs if context.settings.augment else 1
    everything = 4 * data.num_classes * (views * train_size(context, stage) + len(data.val) + len(data.test))
    to_come = 0
    for teacher in stage.teachers:
        kept = logits_folder(context, stage, teacher, known[teacher]).glob("*.npy") if teacher in known else ()
        to_come += max(0, everything - sum(path.stat().st_size for path in kept))
    return to_come
