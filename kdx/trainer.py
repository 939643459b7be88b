"""Fit one network: the visible training loop, validation, best checkpoint, resume. Knows no config and no roles."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx.batches import Batches
from kdx.checkpoint import (
    BEST_PATTERN,
    LATEST,
    best_name,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from kdx.epoch_log import EpochLogger
from kdx.errors import KdxError
from kdx.losses import Objective, loss_terms
from kdx.memory import peak_mb, start_peak
from kdx.metrics import epoch_scores, full_scores, predict
from kdx.models import set_training_mode
from kdx.precision import Precision
from kdx.reproducibility import random_state, restore_random_state
from kdx.stopping import StopRequest

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The epoch that validation chose so far."""

    epoch: int
    accuracy: float
    loss: float
    file: str

    def beaten_by(self, accuracy: float, loss: float) -> bool:
        """Higher accuracy wins; the lower loss decides between equals. NaN never wins."""
        return accuracy > self.accuracy or (accuracy == self.accuracy and loss < self.loss)


@dataclass
class Partial:
    """An epoch under way: the sums of losses weighted by the batch's size, and what was predicted so far."""

    step: int = 0
    count: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    predictions: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, step: int, terms: dict[str, Tensor], predictions: Tensor, labels: Tensor) -> None:
        """Count a step; everything stays on the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value * len(labels) if name in self.sums else value * len(labels)
        self.step, self.count = step, self.count + len(labels)
        self.predictions.append(predictions)
        self.labels.append(labels)

    def mean_losses(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}

    def plain(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        kept = {"sums": {name: value.cpu() for name, value in self.sums.items()}}
        for name in ("predictions", "labels"):
            kept[name] = [torch.cat(getattr(self, name)).cpu()]  # type: ignore[assignment]
        return {"step": self.step, "count": self.count, "seconds": self.seconds, **kept}

    @classmethod
    def of(cls, kept: dict[str, Any], device: torch.device) -> "Partial":
        moved = {name: [value.to(device) for value in kept[name]] for name in ("predictions", "labels")}
        sums = {name: value.to(device) for name, value in kept["sums"].items()}
        return cls(kept["step"], kept["count"], kept["seconds"], sums, **moved)


def is_due(number: int, interval: int) -> bool:
    """Whether something that happens every `interval` times happens now; 0 is never."""
    return interval > 0 and number % interval == 0


class Trainer:
    """Trains `network`, by the labels alone or with a `guide` and an `objective` that compares the two."""

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        task: str,
        num_classes: int,
        train: Batches,
        val: Batches,
        epochs: int,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        precision: Precision,
        logger: EpochLogger,
        folder: Path,
        identity: dict[str, Any],
        guide: nn.Module | None = None,
        objective: Objective | None = None,
        save_interval: int = 0,
        log_interval: int = 10,
        checkpoint_every_steps: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.network, self.guide, self.objective = network, guide, objective
        self.name, self.task, self.num_classes = name, task, num_classes
        self.train, self.val = train, val
        self.epochs, self.save_interval, self.log_interval = epochs, save_interval, log_interval
        self.optimizer, self.scheduler = optimizer, scheduler
        self.precision, self.device = precision, precision.device
        self.scaler = precision.scaler()
        self.logger, self.folder, self.identity = logger, folder, identity
        self.checkpoint_every_steps, self.stop = checkpoint_every_steps, stop or StopRequest()
        self.partial: Partial | None = None
        self.history: list[dict[str, Any]] = []
        self.best: Best | None = None
        self.guide_val_logits: Tensor | None = None
        if guide is not None:
            guide.eval().requires_grad_(False)

    def fit(self) -> Best:
        """Train the epochs that are left; the best one lies in `folder` as `best_acc_*.pth`.

        Raises `KdxError` that names epoch and step where a loss is not finite; `latest.pth` is then the last
        epoch that was sound.
        """
        if self.guide is not None:
            self.guide_val_logits = self._logits(self.guide)  # never changes: once a stage, not once an epoch
        for epoch in range(len(self.history) + 1, self.epochs + 1):
            started = time.perf_counter() - (self.partial.seconds if self.partial else 0.0)
            start_peak(self.device)
            learning_rate = self.optimizer.param_groups[0]["lr"]  # the one used in this epoch, read before it changes
            trained = self._train_epoch(epoch, started)
            validated = self._validate(epoch)
            if self.scheduler is not None:
                self.scheduler.step()
            row: dict[str, Any] = {"epoch": epoch}
            row |= {f"train_{key}": value for key, value in trained.items()}
            row |= {f"val_{key}": value for key, value in validated.items()}
            row |= {"learning_rate": learning_rate, "gpu_memory_mb": round(peak_mb(self.device), 1)}
            row["epoch_time_sec"] = round(time.perf_counter() - started, 3)
            self._finish_epoch(row)
        assert self.best is not None
        return self.best

    def _train_epoch(self, epoch: int, started: float) -> dict[str, float]:
        """One pass over the training split; mean losses and scores of the predictions made on the way."""
        set_training_mode(self.network)
        done, self.partial = self.partial or Partial(), None
        steps = self.logger.bar(self.train.epoch(epoch, start=done.step), epoch, len(self.train), done.step)
        for step, (images, labels) in enumerate(steps, start=done.step + 1):
            logits, terms = self._train_step(images, labels, epoch, step)
            done.add(step, terms, predict(logits, self.task), labels)
            wanted = self.stop.number is not None
            if step < len(self.train) and (wanted or is_due(step, self.checkpoint_every_steps)):
                done.seconds = time.perf_counter() - started
                self._require_sound_weights(epoch, step)
                save_checkpoint(self.folder / LATEST, self._state() | {"partial": done.plain()})
                self.stop.raise_if_asked()
        losses = done.mean_losses()  # the epoch's only wait for the device
        self._require_finite(losses["loss"], epoch, done.step, "mean training loss")
        predictions, labels_seen = torch.cat(done.predictions), torch.cat(done.labels)
        return losses | epoch_scores(predictions, labels_seen, self.task, self.num_classes)

    def _train_step(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward, loss, backward, update. Losses are computed in float32 whatever the precision."""
        with self.precision.autocast():
            logits = self.network(images)
            with torch.no_grad():
                guide_logits = None if self.guide is None else self.guide(images)
        logits = logits.float()
        terms = loss_terms(self.objective, logits, None if guide_logits is None else guide_logits.float(), labels)
        if self.device.type == "cpu" or step % self.log_interval == 0:  # elsewhere each look is a host sync
            self._require_finite(terms["loss"].item(), epoch, step, "loss")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms["loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return logits.detach(), {key: value.detach() for key, value in terms.items()}

    def _validate(self, epoch: int) -> dict[str, float]:
        """The same losses as in training, and scores, on the validation split."""
        logits = self._logits(self.network)
        labels = self.val.labels
        terms = {k: float(v) for k, v in loss_terms(self.objective, logits, self.guide_val_logits, labels).items()}
        self._require_finite(terms["loss"], epoch, len(self.train), "validation loss")
        return terms | epoch_scores(predict(logits, self.task), labels, self.task, self.num_classes)

    def _logits(self, network: nn.Module) -> Tensor:
        return logits_of(network, self.val, self.precision)

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        """Keep the epoch: best checkpoint first, then latest.pth, which says which best one counts, then the CSV."""
        self.history.append(row)
        accuracy, loss = row["val_accuracy"], row["val_loss"]
        is_best = self.best is None or self.best.beaten_by(accuracy, loss)
        if is_best:
            self.best = Best(row["epoch"], accuracy, loss, best_name(accuracy))
            save_checkpoint(self.folder / self.best.file, self._content(row))
        state = self._state()
        save_checkpoint(self.folder / LATEST, state)
        if is_due(row["epoch"], self.save_interval):
            save_checkpoint(self.folder / f"epoch_{row['epoch']:04d}.pth", state)
        self._drop_other_bests()
        self.logger.write(self.history)
        self.logger.announce(row, is_best)
        self.stop.raise_if_asked()

    def _content(self, row: dict[str, Any]) -> dict[str, Any]:
        validation = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
        model = self.network.state_dict()
        return {"model": model, "epoch": row["epoch"], "validation": validation, "meta": self.identity}

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return self._content(self.history[-1] if self.history else {"epoch": 0}) | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
            "history": self.history,
            "best": None if self.best is None else vars(self.best),
            "partial": None,
        }

    def restore(self, source: Path) -> bool:
        """Go on from the newest sound state in `source`; whether there was one.

        A damaged file is set aside under another name. What lies in another folder than the trainer's own is
        copied, so that this one is complete by itself. Raises `KdxError` where it belongs to another stage.
        """
        for path in (source / LATEST, *sorted(source.glob("epoch_*.pth"), reverse=True)):
            if not path.exists():
                continue
            try:
                state = load_checkpoint(path)
            except KdxError as error:
                log.warning("%s; it is set aside", error)
                path.replace(path.with_name(path.name + ".damaged"))
                continue
            try:
                best = None if state["best"] is None else load_checkpoint(source / state["best"]["file"])
                break
            except KdxError as error:
                log.warning("%s: without it %s cannot be gone on from", error, path.name)
        else:
            return False
        if state["meta"].get("fingerprint") != self.identity.get("fingerprint"):
            raise KdxError(f"{path}: belongs to another stage than the one configured; choose another run folder")
        self._load_state(state)
        if source != self.folder:
            if best is not None:
                save_checkpoint(self.folder / state["best"]["file"], best)
            save_checkpoint(self.folder / LATEST, state)
        self._drop_other_bests()
        if self.history:
            self.logger.write(self.history)
        return True

    def _load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.partial = None if state["partial"] is None else Partial.of(state["partial"], self.device)
        restore_random_state(state["random"])

    def _drop_other_bests(self) -> None:
        for path in self.folder.glob(BEST_PATTERN):
            if self.best is None or path.name != self.best.file:
                remove_checkpoint(path)

    def _require_sound_weights(self, epoch: int, step: int) -> None:
        """An infinite gradient spoils the weights though the loss was finite: such a state is never saved."""
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            self._require_finite(math.nan, epoch, step, "a weight")

    def _require_finite(self, loss: float, epoch: int, step: int, what: str) -> None:
        if not math.isfinite(loss):
            rate = self.optimizer.param_groups[0]["lr"]
            raise KdxError(
                f"{self.name}: {what} is {loss} in epoch {epoch}, step {step} (lr {rate:.2e}); "
                "lower optimizer.lr or set amp=off; the checkpoints of earlier epochs are sound"
            )


def logits_of(network: nn.Module, batches: Batches, precision: Precision) -> Tensor:
    """float32 logits (N, C) of a whole split in its own order, in eval mode and without gradient."""
    network.eval()
    with torch.no_grad(), precision.autocast():
        return torch.cat([network(images).float() for images, _ in batches.epoch(0)])


def evaluate(network: nn.Module, batches: Batches, precision: Precision, task: str, num_classes: int) -> dict[str, Any]:
    """Loss by the labels alone, and all scores, of a network on a split."""
    logits = logits_of(network, batches, precision)
    loss = float(loss_terms(None, logits, None, batches.labels)["loss"])
    return {
        "loss": loss,
        **full_scores(logits, batches.labels, task, num_classes),
        "num_samples": len(batches.labels),
    }


def step_schedule(
    optimizer: torch.optim.Optimizer, epochs: int, milestones: list[float], gamma: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate times `gamma` after each fraction of `epochs`, e.g. [0.5, 0.75]."""
    rounded = [max(1, round(fraction * epochs)) for fraction in milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, rounded, gamma)
