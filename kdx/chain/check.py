"""Try a stage before anything is trained: whatever in it cannot work, fails now, in one line."""

import copy
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from torch import nn

from kdx.chain.context import RunContext, network_spec
from kdx.chain.loaded import blank_network
from kdx.chain.logits import compile_mode
from kdx.chain.optimizer import span_of
from kdx.chain.parts import Parts, build_parts
from kdx.chain.stage import make_trainer, raise_if_out_of_memory
from kdx.chain.start import Start
from kdx.config.schema import StageSettings
from kdx.data.batches import Batches
from kdx.data.dataset import Dataset, Split
from kdx.errors import KdxError
from kdx.losses.distillation import Distillation, Weight
from kdx.losses.objective import Objective
from kdx.metrics.selection import Selection
from kdx.models.batch_norm import slow_momentum
from kdx.models.networks import capture_features, check_network
from kdx.models.timm_networks import PREFIX, tell_licence
from kdx.trackers.trackers import check_tracker
from kdx.training.runtime import Precision, compiled
from kdx.training.schedules import Span
from kdx.training.synced_norm import unknown_norms
from kdx.training.teachers import Teacher
from kdx.training.trainer import Trainer
from kdx.users_code import reason_of

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_OF_FIRST = 0.05  # of an average of weights that may be those it began with
IMAGES = 2  # of which the trial step is made: what an image costs is not known yet


def check_stage(
    context: RunContext, stage: StageSettings, teachers: Mapping[str, nn.Module], start: Start | None = None
) -> nn.Module:
    """Build everything of a stage, make one training step of it, and throw it away; its network, untrained.

    `teachers` are networks like those that will teach it, trained or not, and `start` like its first weights.
    """
    check_tracker(context.settings.logger)
    data = context.dataset
    Selection.resolve(stage.recipe.select, data.task).check(data.val.labels, data.task, data.num_classes)
    parts = _attempt(lambda: _build(context, stage, teachers, start), stage)
    if parts.started is not None:
        log.info("%s: %s", stage.role, parts.started)
    if not parts.learner.objective.teaches_classes:
        log.info("%s: no label enters its loss: it learns no classifier and has no accuracy", stage.role)
    _tell_unused(stage, parts.learner.objective)
    _tell_short(stage, span_of(context, stage))
    if stage.pretrained and stage.network.startswith(PREFIX):
        tell_licence(stage.network)
    network = parts.learner.network
    _check_network(context, stage, network)
    untouched = copy.deepcopy(network.state_dict())
    _try_step(context, stage, parts, teachers)
    mode = compile_mode(context, stage)
    if mode is not None and not context.settings.plan:  # it takes up to a minute
        _try_compiled(context, stage, build_parts(context, stage, teachers, start), teachers, mode)
    network.load_state_dict(untouched)  # what a wild step made of it must not teach in the next stage's trial
    _check_ranks(context, stage, parts)
    _check_drawn_layer(context, stage, network)
    _tell_batch_norm(context, stage, network)
    if stage.freeze_backbone and not stage.pretrained and stage.start is None and stage.start_role is None:
        told = "freeze_backbone=true keeps random weights; take some from elsewhere by pretrained=true or start="
        log.warning("warning: stage.%s: %s", stage.role, told)
    return network


def _tell_unused(stage: StageSettings, objective: Distillation) -> None:
    """Warn of a method without a teacher, and of keys of the loss by the labels where that loss weighs nothing.

    It is no error: in a sweep other jobs, and in a chain other stages, may use them.
    """
    own = stage.config["stage"][stage.role]
    if not stage.distilled and own.get("kd") and own["kd"].get("_target_", "") is not None:
        why = "kd=none" if own["guide"] else f"stage.{stage.role}.guide=null"
        log.warning("warning: stage.%s.kd does nothing: %s", stage.role, why)
    if objective.hard != Weight(0, 0):
        return
    for key, usual in (("label_smoothing", 0.0), ("class_weights", None)):
        value = getattr(stage.recipe, key)
        if value != usual:
            told = "does nothing: the loss by the labels, which it changes, weighs 0 here (kd.hard)"
            log.warning("warning: stage.%s: %s=%s %s", stage.role, key, value, told)


def _tell_short(stage: StageSettings, span: Span) -> None:
    """Warn of an average that is mostly of the first weights, and of a warm-up that never ends."""
    decay, first = stage.recipe.ema, stage.recipe.ema**span.updates
    if span.updates and first > MOST_OF_FIRST:
        fitting = math.floor(1000 * MOST_OF_FIRST ** (1 / span.updates)) / 1000
        told = f"after {span.updates:,} updates {first:.0%} of the average that is kept are the first weights"
        log.warning("warning: stage.%s: ema=%g: %s; at most ema=%g fits", stage.role, decay, told, fitting)
    if span.warmup >= span.epochs:
        told = f"scheduler.warmup={span.warmup:g}: the learning rate rises during all {span.epochs} epochs"
        log.warning("warning: stage.%s: %s", stage.role, told)


def _build(context: RunContext, stage: StageSettings, teachers: Mapping[str, nn.Module], start: Start | None) -> Parts:
    """The stage's parts. Where making them fails in the network, its own check says what images it takes."""
    try:
        return build_parts(context, stage, teachers, start)
    except KdxError:
        raise
    except Exception:
        _check_network(context, stage, blank_network(context, stage))
        raise


def _try_step(context: RunContext, stage: StageSettings, parts: Parts, teachers: Mapping[str, nn.Module]) -> None:
    """One step of loss, backward, optimizer and scaler on real images, then the schedule to its end."""
    few = min(IMAGES, stage.recipe.batch_size, len(context.dataset.train))
    split = Split(*context.dataset.train.first(max(few, min(2, len(context.dataset.train)))))
    with _on_trial(context, stage, parts, teachers, replace(context.dataset, train=split, val=split)) as trainer:
        trainer.learner.train()
        _attempt(lambda: trainer.train_step(next(trainer.train.epoch(1)), 1, 1), stage, parts)
        _attempt(lambda: parts.schedule.rehearse(span_of(context, stage)), stage, parts)


@contextmanager
def _on_trial(
    context: RunContext,
    stage: StageSettings,
    parts: Parts,
    teachers: Mapping[str, nn.Module],
    dataset: Dataset | None = None,
) -> Iterator[Trainer]:
    """The stage's trainer as long as the block lasts, whose teachers keep no logits."""
    asked = {role: Teacher(net, context.precision, parts.teacher_layers[role]) for role, net in teachers.items()}
    try:
        yield make_trainer(context, replace(stage, cache_logits=False), parts, asked, dataset)
    finally:
        for teacher in asked.values():
            teacher.watched.close()


def _try_compiled(
    context: RunContext, stage: StageSettings, parts: Parts, teachers: Mapping[str, nn.Module], mode: str
) -> None:
    """The first and the last batch of training and of validation, compiled, in the sizes that are to come.

    What a compiler cannot do depends on sizes and on the mode. The training then finds most of it in torch's cache on
    the disk, so that this costs a few seconds of the minute that compiling takes.
    """
    settings = context.settings
    part = max(1, math.ceil(stage.recipe.batch_size / settings.world))  # that a rank sees
    alone = replace(stage, recipe=replace(stage.recipe, batch_size=part))
    with _on_trial(context, alone, parts, teachers) as trainer:
        try:
            with compiled([trainer.learner.network, *teachers.values()], mode):
                for network in teachers.values():
                    _answer(network, trainer.val, context.precision)
                trainer.learner.train()
                for step in dict.fromkeys((1, len(trainer.train))):
                    trainer.train_step(next(trainer.train.epoch(1, start=step - 1)), 1, step)
                _answer(trainer.learner.network, trainer.val, context.precision)
        except (KdxError, KeyboardInterrupt):
            raise
        except BaseException as error:
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            raise_if_out_of_memory(error, stage)
            what = f"the {stage.role}, {stage.network}, cannot be compiled here ({reason_of(error)})"
            damaged = "ImportError" in what  # code that a killed compiler left half written
            choice = f"choose off, or delete {cache_dir()}, what torch has compiled before" if damaged else "choose off"
            raise KdxError(f"compile={settings.compile}: {what}; {choice}") from error


def _answer(network: nn.Module, batches: Batches, precision: Precision) -> None:
    """Let a network answer for the first and the last batch of a split."""
    network.eval()
    with precision.no_gradient(), precision.autocast():
        for start in dict.fromkeys((0, len(batches) - 1)):
            network(next(batches.epoch(0, start=start)).images)


def _attempt(work: Callable[[], T], stage: StageSettings, parts: Parts | None = None) -> T:
    try:
        return work()
    except (KdxError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's own code may raise anything
        raise_if_out_of_memory(error, stage)
        raise KdxError(f"{_culprit(error, stage, parts)} fails in a training step: {reason_of(error)}") from error


def _culprit(error: BaseException, stage: StageSettings, parts: Parts | None) -> str:
    """The key and the value of the part in whose code an error came up: the innermost one on the way to it."""
    network = f"model.{stage.role}={stage.network}:"
    known: list[tuple[object, str]] = []
    if parts is not None:
        known.append((parts.optimizer, f"optimizer: {stage.optimizer['_target_']}"))
        known.append((parts.schedule.scheduler, f"scheduler: {stage.scheduler['_target_']}"))
        known.append((parts.learner.network, network))
    found = network
    for frame, _ in traceback.walk_tb(error.__traceback__):
        where = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))  # self, whatever a user calls it
        if isinstance(where, Objective) and parts is not None:
            term = parts.learner.objective.term_of(where)
            found = found if term is None else f"{term.key}: {term.target}"
        found = next((called for part, called in known if where is part is not None), found)
    return found


def _check_network(context: RunContext, stage: StageSettings, network: nn.Module) -> None:
    called = f"model.{stage.role}={stage.network}:"
    check_network(network, network_spec(context, stage), context.input_size, stage.recipe.batch_size, called)


def _check_ranks(context: RunContext, stage: StageSettings, parts: Parts) -> None:
    """What several devices cannot train as one does."""
    settings = context.settings
    if settings.world == 1:
        return
    unknown, terms = unknown_norms(parts.learner), parts.learner.objective.terms.values()
    if settings.sync_batchnorm and unknown:
        raise KdxError(
            f"sync_batchnorm=true: {', '.join(unknown)} of the {stage.role} cannot be synchronised; set false"
        )
    memories = [term.key for term in terms if term.method.remembers]
    if not settings.sync_batchnorm and memories:
        raise KdxError(
            f"sync_batchnorm=false: {memories[0]} of the {stage.role} remembers all devices' images; set true"
        )


def _tell_batch_norm(context: RunContext, stage: StageSettings, network: nn.Module) -> None:
    """What validation by running statistics means for this stage, where it is not what one would expect."""
    called, chosen = f"model.{stage.role}={stage.network}", network_spec(context, stage).norm_momentum
    if chosen is not None:
        why = "which is meant for hundreds of epochs: short trainings would be validated at chance"
        log.info("%s: batch-norm has momentum %s instead of torchvision's own, %s", called, chosen, why)
    steps = span_of(context, stage).updates
    slow = slow_momentum(network, steps)
    if slow is not None:
        share = f"{100 * (1 - slow) ** steps:.0f} % of batch-norm's statistics will be those from before"
        log.warning("%s: after %d steps %s (momentum %g): validation lags behind", called, steps, share, slow)


def _check_drawn_layer(context: RunContext, stage: StageSettings, network: nn.Module) -> None:
    requested = context.settings.visualize
    if not requested.samples or requested.layer is None:
        return
    with capture_features(network, requested.layer) as seen:
        _check_network(context, stage, network)
    if not seen or seen[0].ndim != 4:
        raise KdxError(f"visualize.layer={requested.layer}: gives no maps in the {stage.role}; choose an earlier layer")
