"""A trainer with its keeper, from plain objects: no config, tiny networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdx.data.batches import Batches, Preprocessing, mean_and_std
from kdx.epoch_log import EpochLogger
from kdx.losses.distillation import Distillation, Term, Weight, as_objective
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Facts, Objective
from kdx.models.features import Outputs, Watched, resolve_layers
from kdx.recipe import Recipe
from kdx.reproducibility import setup_reproducibility
from kdx.training.distributed import Ranks
from kdx.training.keeper import Keeper
from kdx.training.learner import Learner
from kdx.training.progress import Best
from kdx.training.runtime import Precision, choose_precision, match_layout
from kdx.training.schedules import Schedule, Span, cosine
from kdx.training.stopping import StopRequest
from kdx.training.teachers import LogitsCache, Teacher
from kdx.training.trainer import Trainer
from tests import tiny

CPU = torch.device("cpu")


class Training:
    """One stage's training in a folder."""

    def __init__(self, trainer: Trainer, keeper: Keeper) -> None:
        self.trainer, self.keeper = trainer, keeper
        self.network = trainer.learner.network

    def fit(self, epochs: int | None = None) -> Best:
        """Train, up to `epochs` where that is said, as a run that dies then."""
        if epochs is not None:  # not by the recipe: schedules and weights depend on its number of epochs
            self.trainer._is_patience_spent = lambda: self.trainer.progress.epochs >= epochs  # type: ignore[method-assign]
        return self.trainer.fit(self.keeper)

    def resume(self, folder: Path) -> bool:
        found = self.keeper.resume(folder)
        match_layout(self.trainer.optimizer)
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.trainer.progress.history

    @property
    def teacher(self) -> Teacher:
        (teacher,) = self.trainer.teachers.values()
        return teacher


def make_training(
    folder: Path,
    *,
    epochs: int = 3,
    task: str = "multi-class",
    teachers: Mapping[str, nn.Module] | None = None,
    objective: Any = None,
    terms: Mapping[str, Term] | None = None,
    hard: float | Weight = 1.0,
    several: str = "mean",
    amp: str | Precision = "off",
    seed: int = 0,
    network: nn.Module | None = None,
    save_interval: int = 0,
    checkpoint_every_steps: int = 0,
    stop: StopRequest | None = None,
    count: int = 30,
    augment: Sequence[str] = ("crop",),
    balance: bool = False,
    cache: LogitsCache | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    compile_mode: str | None = None,
    ranks: Ranks | None = None,
    **recipe: Any,
) -> Training:
    """`objective` is a method, or any callable of three tensors, which is then the whole loss; or there are `terms`."""
    data = tiny.dataset(task, classes=2 if task == "binary-class" else 3, count=count)
    preprocessing = Preprocessing(*mean_and_std(data.train.images))
    setup_reproducibility(seed, threads=1)
    ranks = ranks or Ranks()
    network = ranks.prepare(network or tiny.network(data.num_classes, 1))
    precision = choose_precision(amp, CPU) if isinstance(amp, str) else amp
    teachers, images = teachers or {}, torch.zeros(2, 1, 8, 8)
    if terms is None:
        terms = {} if objective is None else {"kd": Term(as_objective(objective), Weight.of(1))}
    by_labels = hard if isinstance(hard, Weight) else Weight.of(hard)
    whole = objective is not None and not isinstance(objective, Objective)
    loss = Distillation(HardLoss(task), Weight.of(0) if whole else by_labels, terms, several)
    layers = resolve_layers(network, loss.layers, images)
    theirs = {role: resolve_layers(net, loss.teacher_layers, images) for role, net in teachers.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        ours = _say(network, layers, images)
        known = [
            Facts(task, data.num_classes, count, ours, _say(net, theirs[role], images))
            for role, net in teachers.items()
        ]
        loss.prepare(known[:1] if several == "mean" else known)
    ranks.prepare(loss)
    learner = Learner(network, loss, precision, layers)
    optimizer = torch.optim.AdamW(learner.trained(), lr=0.02) if optimizer is None else optimizer(learner.trained())
    batches = Batches(
        data.train,
        preprocessing,
        batch_size=8,
        device=CPU,
        shuffle=True,
        augment=augment,
        seed=seed,
        num_classes=data.num_classes,
        balance=balance,
    )
    span = Span(epochs, len(batches), recipe.pop("warmup", 0.0))
    trainer = Trainer(
        learner,
        {role: Teacher(net, precision, theirs[role], cache, ranks) for role, net in teachers.items()},
        batches,
        Batches(data.val, preprocessing, batch_size=16, device=CPU),
        optimizer,
        Schedule(optimizer, cosine(optimizer, span) if schedule is None else schedule(optimizer), span.warmup_updates),
        Recipe(epochs=epochs, batch_size=8, **recipe),
        compile_mode=compile_mode,
        ranks=ranks,
        name="student",
        task=task,
        num_classes=data.num_classes,
    )
    keeper = Keeper(
        folder,
        {"fingerprint": f"seed{seed}"},
        trainer.state,
        trainer.progress,
        EpochLogger(folder / "log.csv", "student", epochs),
        save_interval=save_interval,
        checkpoint_every_steps=checkpoint_every_steps,
        stop=stop,
    )
    return Training(trainer, keeper)


def _say(network: nn.Module, layers: Mapping[str, Sequence[str]], images: torch.Tensor) -> Outputs:
    if not layers:
        return Outputs(torch.zeros(2, 3))
    watched = Watched(network, layers)
    network.eval()
    with torch.no_grad():
        outputs = watched(images)
    watched.close()
    return outputs
