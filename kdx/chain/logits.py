"""Where a teacher's logits are kept for all stages that are taught by it, and how much room they take."""

import math
from pathlib import Path
from typing import Any

import torch

from kdx.augmentations import plain_augment
from kdx.chain.context import RunContext, data_code, metadata, network_code
from kdx.chain.index import fingerprint
from kdx.checkpoint import versions
from kdx.config.schema import StageSettings
from kdx.training.runtime import choose_compile


def compile_mode(context: RunContext, stage: StageSettings) -> str | None:
    settings = context.settings
    if settings.compile == "auto" and settings.activation_checkpointing:  # the two do not go together
        return None
    steps = stage.epochs * math.ceil(len(context.dataset.train) / stage.batch_size)
    return choose_compile(settings.compile, context.device, steps)


def logits_folder(context: RunContext, stage: StageSettings, teacher_sha256: str) -> Path:
    """Where the teacher's logits are kept, under a name that stands for all that determines their bits."""
    known, settings, augment = metadata(context, stage), context.settings, context.settings.augment
    card = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    facts: dict[str, Any] = {"guide": teacher_sha256, "surroundings": context.surroundings()}
    facts |= {"versions": versions(), "card": card, "compiled": compile_mode(context, stage)}
    taught_by = [other for other in settings.stages if other.role == stage.guide]
    facts["code"] = [data_code(context), *(network_code(context, guide) for guide in taught_by)]
    facts |= {"data_digest": known["data_digest"], "preprocessing": known["preprocessing"]}
    facts |= {"augment": plain_augment(augment), "batch_size": stage.batch_size, "accumulate": settings.accumulate}
    if augment:  # then they are those of this stage's views
        facts |= {"seed": settings.seed, "role": stage.role}
    return Path(settings.output_dir) / "index" / "logits" / fingerprint(facts)


def logits_to_come(context: RunContext, stage: StageSettings, teacher_sha256: str | None) -> int:
    """Bytes that `kd.cache_logits` will still write: float32 logits of every training view, of validation and test.

    Of a teacher that is to be trained (None) nothing is kept yet.
    """
    if not stage.cache_logits or stage.guide is None:
        return 0
    data, views = context.dataset, stage.epochs if context.settings.augment else 1
    everything = 4 * data.num_classes * (views * len(data.train) + len(data.val) + len(data.test))
    kept = () if teacher_sha256 is None else logits_folder(context, stage, teacher_sha256).glob("*.npy")
    return max(0, everything - sum(path.stat().st_size for path in kept))
