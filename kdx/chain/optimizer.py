"""A stage's optimizer and schedule, from its settings; kdx reads some of their keys itself."""

from typing import Any

import torch

from kdx.chain.batches import updates_per_epoch
from kdx.chain.context import RunContext
from kdx.config.build import arguments_of, build
from kdx.config.schema import StageSettings
from kdx.errors import KdxError
from kdx.metrics.selection import Selection
from kdx.training.learner import Learner
from kdx.training.schedules import UPDATE, Schedule, Span


def build_optimizer(stage: StageSettings, learner: Learner) -> torch.optim.Optimizer:
    """The optimizer of all that is trained; of its keys, kdx reads `decay` where it does not take one of its own."""
    ours, node = _split("decay", node=stage.optimizer)
    decay = ours.get("decay", "all")
    rate = stage.kd.get("lr")
    if rate is not None and not any(parameter.requires_grad for parameter in learner.objective.parameters()):
        raise KdxError(f"kd.lr={rate:g}: this method trains nothing of its own; leave it null")
    groups = _groups(learner, rate, decay)
    optimizer = build(node, "optimizer", groups)
    if decay == "weights" and "weight_decay" not in getattr(optimizer, "defaults", {}):
        raise KdxError(f"optimizer.decay={decay}: {node['_target_']} has no weight_decay; choose all")
    return optimizer


def _groups(learner: Learner, own_rate: float | None, decay: str) -> list[Any]:
    """What the optimizer is given: the objective's parameters at their own rate, if any.

    Where only weights decay, biases and norms, which have fewer than two dimensions, have groups without.
    """
    if own_rate is None and decay == "all":
        return learner.trained()
    groups: list[dict[str, Any]] = []
    for module, rate in ((learner.network, None), (learner.objective, own_rate)):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        least = 2 if decay == "weights" else 0  # dimensions of what decays
        decayed = [parameter for parameter in trained if parameter.ndim >= least]
        others = [parameter for parameter in trained if parameter.ndim < least]
        for parameters, options in ((decayed, {}), (others, {"weight_decay": 0.0})):
            if parameters:
                groups.append({"params": parameters, **options} | ({} if rate is None else {"lr": rate}))
    return groups


def span_of(context: RunContext, stage: StageSettings) -> Span:
    """How long the stage's training is."""
    ours, _ = _split("warmup", node=stage.scheduler)
    return Span(stage.recipe.epochs, updates_per_epoch(context, stage), ours.get("warmup", 0.0))


def build_schedule(stage: StageSettings, optimizer: torch.optim.Optimizer, span: Span, task: str) -> Schedule:
    """The stage's schedule; a scheduler that takes a `span` learns how long the training is."""
    ours, node = _split("warmup", "every", node=stage.scheduler)
    target, every = node.get("_target_"), ours.get("every")
    if target is not None and target.endswith(".ReduceLROnPlateau"):
        higher = Selection.resolve(stage.recipe.select, task).higher_is_better
        mode = "max" if higher else "min"
        if node.get("mode", mode) != mode or every == UPDATE:
            raise KdxError(f"scheduler: {target} steps once an epoch by what select chooses; its mode must be {mode}")
        node["mode"] = mode
    named = {"span": span} if target is not None and "span" in arguments_of(target) else {}
    before = _rates(optimizer)
    scheduler = build(node, "scheduler", optimizer, **named)
    if stage.kd.get("lr") is not None and len(before) > 1 and len(_rates(optimizer) - {0.0}) == 1:
        told = f"{target} gives all that is trained one learning rate; leave kd.lr null, or choose another scheduler"
        raise KdxError(f"kd.lr={stage.kd['lr']:g}: {told}")
    return Schedule(optimizer, scheduler, span.warmup_updates, every)


def _rates(optimizer: torch.optim.Optimizer) -> set[float]:
    return {group["lr"] for group in optimizer.param_groups}


def _split(*ours: str, node: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys that kdx reads itself, unless the `_target_` takes an argument of that name; and the others."""
    target = node.get("_target_")
    taken = set() if target is None else arguments_of(target)
    read = {key: node[key] for key in ours if key in node and key not in taken}
    return read, {key: value for key, value in node.items() if key not in read}
