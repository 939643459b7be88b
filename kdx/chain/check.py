"""Try a stage before anything is trained: whatever in it cannot work, fails now, in one line."""

import copy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from kdx.chain.context import RunContext, network_spec
from kdx.chain.parts import Parts, build_parts
from kdx.chain.stage import make_trainer, raise_if_out_of_memory
from kdx.config.schema import StageSettings
from kdx.data.dataset import Split
from kdx.errors import KdxError
from kdx.losses.objective import Objective
from kdx.models.networks import capture_features, check_network
from kdx.trackers.trackers import check_tracker
from kdx.training.teachers import Teacher

IMAGES = 2  # of which the trial step is made: what an image costs is not known yet


def check_stage(context: RunContext, stage: StageSettings, teachers: Mapping[str, nn.Module]) -> nn.Module:
    """Build everything of a stage, make one training step of it, and throw it away; its network, untrained.

    `teachers` are networks like those that will teach it, trained or not.
    """
    check_tracker(context.settings.logger)
    parts = build_parts(context, stage, teachers)
    network = parts.learner.network
    check_network(network, network_spec(context, stage), context.input_size, stage.batch_size)
    untouched = copy.deepcopy(network.state_dict())
    _try_step(context, stage, parts, teachers)
    network.load_state_dict(untouched)  # what a wild step made of it must not teach in the next stage's trial
    _check_drawn_layer(context, stage, network)
    return network


def _try_step(context: RunContext, stage: StageSettings, parts: Parts, teachers: Mapping[str, nn.Module]) -> None:
    """One step of loss, backward, optimizer and scaler on real images, then the schedule to its end."""
    few = min(IMAGES, stage.batch_size, len(context.dataset.train))
    split = Split(*context.dataset.train.first(max(few, min(2, len(context.dataset.train)))))
    asked = {role: Teacher(net, context.precision, parts.teacher_layers[role]) for role, net in teachers.items()}
    plain = replace(stage, cache_logits=False)
    trainer = make_trainer(context, plain, parts, asked, replace(context.dataset, train=split, val=split))
    try:
        trainer.learner.train()
        _attempt(lambda: trainer.train_step(next(trainer.train.epoch(1)), 1, 1), stage, parts)
        for _ in range(stage.epochs):
            _attempt(lambda: parts.schedule.after_epoch(0.0), stage, parts)
    finally:
        for teacher in asked.values():
            teacher.watched.close()


def _attempt(work: Callable[[], Any], stage: StageSettings, parts: Parts) -> None:
    try:
        work()
    except KdxError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise_if_out_of_memory(error, stage)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise KdxError(f"{_culprit(error, stage, parts)} fails in a training step ({reason})") from error


def _culprit(error: Exception, stage: StageSettings, parts: Parts) -> str:
    """The key and the value of the part in whose code an error came up: the innermost one on the way to it."""
    scheduler = parts.schedule.scheduler
    found = f"model.{stage.role}={stage.network}:"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        where = frame.f_locals.get("self")
        term = parts.learner.objective.term_of(where) if isinstance(where, Objective) else None
        if term is not None:
            found = f"{term.key}: {term.target}"
        elif where is parts.optimizer:
            found = f"optimizer: {stage.optimizer['_target_']}"
        elif scheduler is not None and where is scheduler:
            found = f"scheduler: {stage.scheduler['_target_']}"
        elif where is parts.learner.network:
            found = f"model.{stage.role}={stage.network}:"
    return found


def _check_drawn_layer(context: RunContext, stage: StageSettings, network: nn.Module) -> None:
    requested = context.settings.visualize
    if not requested.samples or requested.layer is None:
        return
    with capture_features(network, requested.layer) as seen:
        check_network(network, network_spec(context, stage), context.input_size, stage.batch_size)
    if not seen or seen[0].ndim != 4:
        raise KdxError(f"visualize.layer={requested.layer}: gives no maps in the {stage.role}; choose an earlier layer")
