"""What a stage is made of: its learner, its teachers, optimizer and schedule, built from its settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdx.chain.batches import known_labels, train_size
from kdx.chain.context import RunContext, network_spec
from kdx.chain.objective import build_objective
from kdx.chain.optimizer import build_optimizer, build_schedule, span_of
from kdx.chain.start import Start, begin
from kdx.config.schema import StageSettings
from kdx.errors import KdxError
from kdx.losses.distillation import MEAN, Distillation, Weight
from kdx.losses.hard import HardLoss, balanced_weights
from kdx.losses.objective import Facts
from kdx.models.activation_checkpointing import recompute_blocks
from kdx.models.features import Layers, Outputs, Watched, eval_mode, resolve_layers
from kdx.models.networks import build_network
from kdx.recipe import BALANCED
from kdx.reproducibility import derive_seed, setup_reproducibility
from kdx.training.learner import Learner
from kdx.training.schedules import Schedule


@dataclass
class Parts:
    """What a trainer needs of a stage; built twice, once to check it and once to train it."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    teacher_layers: Mapping[str, Layers]  # by the teacher's role
    started: str | None = None  # what was taken of the weights that it starts from


def build_parts(
    context: RunContext, stage: StageSettings, teachers: Mapping[str, nn.Module], start: Start | None = None
) -> Parts:
    """The stage's parts on the device, under these networks of its teachers, from these weights where there are any.

    Else the network's first weights depend on (seed, role) only, and the objective's as well.
    """
    settings = context.settings
    setup_reproducibility(derive_seed(settings.seed, stage.role, "init"), settings.deterministic, settings.threads)
    network = _network(context, stage)
    started = None if start is None else begin(network, start, stage.role)
    objective = _objective(context, stage)
    images = torch.zeros(2, network_spec(context, stage).in_channels, *context.input_size, device=context.device)
    student_layers = _resolved(objective, network, f"the {stage.role}, {stage.network}", images)
    teacher_layers = {
        role: _resolved(objective, net, f"the {role}, {settings.stage(role).network}", images, teaches=True)
        for role, net in teachers.items()
    }
    with torch.random.fork_rng(devices=[]):  # what a method draws must not change what the network draws later
        torch.manual_seed(derive_seed(settings.seed, stage.role, "objective"))
        student = _say(network, student_layers, images, context.dataset.num_classes)
        known = [
            Facts(
                task=context.dataset.task,
                num_classes=context.dataset.num_classes,
                train_size=train_size(context, stage),
                student=student,
                teacher=_say(teachers[role], layers, images, context.dataset.num_classes),
            )
            for role, layers in teacher_layers.items()
        ]
        objective.prepare(known[:1] if stage.several == MEAN else known)
    context.ranks.prepare(objective)
    learner = Learner(network, objective.to(context.device), context.precision, student_layers)
    optimizer = build_optimizer(stage, learner)
    schedule = build_schedule(stage, optimizer, span_of(context, stage), context.dataset.task)
    return Parts(learner, optimizer, schedule, teacher_layers, started)


def _network(context: RunContext, stage: StageSettings) -> nn.Module:
    spec = network_spec(context, stage)
    try:
        network = build_network(spec, context.settings.download)
    except KdxError as error:
        reason = str(error).removeprefix(f"model '{stage.network}': ")
        raise KdxError(f"model.{stage.role}={stage.network}: {reason}") from error
    if context.settings.activation_checkpointing:
        recompute_blocks(network)
    if any(map(is_lazy, network.parameters())):  # their shapes come with the first images
        with eval_mode(network), torch.no_grad():
            network(torch.zeros(2, spec.in_channels, *context.input_size))
    return context.precision.place(context.ranks.prepare(network))


def _objective(context: RunContext, stage: StageSettings) -> Distillation:
    hard_loss = _hard_loss(context, stage)
    if not stage.distilled:
        return Distillation(hard_loss, Weight.of(1))
    return build_objective(stage, hard_loss, context.dataset)


def _hard_loss(context: RunContext, stage: StageSettings) -> HardLoss:
    """The loss by the labels, whose class weights are counted among the labels that the stage may use."""
    data, wanted = context.dataset, stage.recipe.class_weights
    if wanted == BALANCED:
        known = known_labels(context, stage)
        labels = data.train.labels if known is None else data.train.labels[known]
        wanted = balanced_weights(labels, data.task, data.num_classes)
    elif wanted is not None and len(wanted) != data.num_classes:
        raise KdxError(f"class_weights={list(wanted)}: {len(wanted)} numbers for {data.num_classes} classes")
    return HardLoss(data.task, stage.recipe.label_smoothing, wanted)


def _resolved(
    objective: Distillation, network: nn.Module, called: str, images: Tensor, teaches: bool = False
) -> dict[str, Any]:
    """The layers that each term's words stand for in a network that learns or teaches; errors name the key and it."""
    found: dict[str, Any] = {}
    for term in objective.terms.values():
        method = term.method
        own = "teacher_layers" if teaches and method.teacher_layers is not None else "layers"
        try:
            found |= resolve_layers(network, method.words_of_teacher if teaches else method.layers, images)
        except KdxError as error:
            raise KdxError(f"{term.key}.{own}: {error} (in {called})") from error
    return found


def _say(network: nn.Module, layers: Layers, images: Tensor, num_classes: int) -> Outputs:
    """What a network says of images, with the features of some layers; blank logits where no layer is asked for."""
    if not layers:
        return Outputs(torch.zeros(len(images), num_classes, device=images.device))
    watched = Watched(network, layers)
    try:
        with eval_mode(network), torch.no_grad():
            return watched(images)
    finally:
        watched.close()
