"""Fit one network: the visible training loop, validation, best checkpoint, resume. Knows no config and no roles."""

import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx.checkpoint import (
    BEST_PATTERN,
    LATEST,
    best_name,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    serialised,
    write_checkpoint,
)
from kdx.data.batches import Batch, Batches
from kdx.epoch_log import EpochLogger
from kdx.errors import KdxError
from kdx.losses.hinton import Objective, loss_terms
from kdx.memory import peak_mb, start_peak
from kdx.metrics.classification import epoch_scores, predict
from kdx.models.networks import set_training_mode
from kdx.reproducibility import random_state, restore_random_state
from kdx.training.background import Background
from kdx.training.evaluation import logits_of
from kdx.training.progress import Best, Losses, Partial
from kdx.training.runtime import Precision, compile_networks, match_layout
from kdx.training.stopping import StopRequest
from kdx.training.teachers import GuideLogits, LogitsCache

log = logging.getLogger(__name__)


def parts_of(
    batch: Batch, guide_logits: Tensor | None, accumulate: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Images, labels and known guide logits in up to `accumulate` nearly equal parts of at least two images."""
    count = max(1, min(accumulate, len(batch.labels) // 2))
    guides = [None] * count if guide_logits is None else guide_logits.tensor_split(count)
    return zip(batch.images.tensor_split(count), batch.labels.tensor_split(count), guides, strict=True)


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
        accumulate: int = 1,
        compile_mode: str | None = None,
        cache: LogitsCache | None = None,
        after_epoch: Callable[[int], None] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.network, self.objective = network, objective
        self.guide = None if guide is None else GuideLogits(guide, precision, cache)
        self.name, self.task, self.num_classes = name, task, num_classes
        self.train, self.val = train, val
        self.epochs, self.save_interval, self.log_interval = epochs, save_interval, log_interval
        self.optimizer, self.scheduler = optimizer, scheduler
        self.precision, self.device = precision, precision.device
        self.scaler = precision.scaler()
        self.logger, self.folder, self.identity = logger, folder, identity
        self.checkpoint_every_steps, self.stop = checkpoint_every_steps, stop or StopRequest()
        self.accumulate, self.compile_mode = accumulate, compile_mode
        self.after_epoch = after_epoch
        self.partial: Partial | None = None
        self.history: list[dict[str, Any]] = []
        self.best: Best | None = None
        self.guide_val_logits: Tensor | None = None

    def fit(self) -> Best:
        """Train the epochs that are left; the best one lies in `folder` as `best_acc_*.pth`.

        Raises `KdxError` that names epoch and step where a loss is not finite; `latest.pth` is then the last
        epoch that was sound.
        """
        if self.compile_mode:
            guides = [] if self.guide is None else [self.guide.network]
            compile_networks([self.network, *guides], self.compile_mode)
        if self.guide is not None:  # what it says of the validation split never changes: once a stage
            self.guide_val_logits = self.guide.of_split("val", self.val)
        with Background() as self.saving:
            self._fit_epochs()
        assert self.best is not None
        return self.best

    def _fit_epochs(self) -> None:
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

    def _train_epoch(self, epoch: int, started: float) -> dict[str, float]:
        """One pass over the training split; mean losses and scores of the predictions made on the way."""
        set_training_mode(self.network)
        done, self.partial = self.partial or Partial(), None
        known, to_keep = self._guide_logits_of(epoch, whole=done.step == 0)
        steps = self.logger.bar(self.train.epoch(epoch, start=done.step), epoch, len(self.train), done.step)
        for step, batch in enumerate(steps, start=done.step + 1):
            guide_logits = None if known is None else known[batch.indices]
            logits, guide_logits, losses = self._train_step(batch, guide_logits, epoch, step)
            done.add(step, losses, predict(logits, self.task), batch.labels)
            if to_keep is not None and guide_logits is not None:
                to_keep[batch.indices] = guide_logits
            wanted = self.stop.number is not None
            if step < len(self.train) and (wanted or is_due(step, self.checkpoint_every_steps)):
                done.seconds = time.perf_counter() - started
                self._require_sound_weights(epoch, step)
                self.saving.wait()  # so that no earlier copy is in memory beside the new one
                self._save({LATEST: serialised(self._state() | {"partial": done.plain()})})
                self.stop.raise_if_asked()
        means = done.mean_losses()  # the epoch's only wait for the device
        self._require_finite(means["loss"], epoch, done.step, "mean training loss")
        if to_keep is not None and self.guide is not None:
            self.guide.keep(epoch, to_keep)
        predictions, labels_seen = torch.cat(done.predictions), torch.cat(done.labels)
        return means | epoch_scores(predictions, labels_seen, self.task, self.num_classes)

    def _train_step(
        self, batch: Batch, guide_logits: Tensor | None, epoch: int, step: int
    ) -> tuple[Tensor, Tensor | None, Losses]:
        """Forward, loss, backward for each part of the batch, then one update; losses in float32 at any precision.

        The guide is asked where its logits are not known. Returns the logits of both and the batch's mean losses.
        """
        self.optimizer.zero_grad(set_to_none=True)
        seen, taught, losses = [], [], Losses()
        for images, labels, known in parts_of(batch, guide_logits, self.accumulate):
            if known is None and self.guide is not None:
                known = self.guide.ask(images)  # before the student's activations are there: needs the least memory
            with self.precision.autocast():
                logits = self.network(images).float()
            terms = loss_terms(self.objective, logits, known, labels)
            if self.device.type == "cpu":  # elsewhere a look is a host sync: there the epoch's mean tells
                self._require_finite(terms["loss"].item(), epoch, step, "loss")
            share = len(labels) / len(batch.labels)
            self.scaler.scale(terms["loss"] * share).backward()
            seen.append(logits.detach().clone() if self.accumulate > 1 else logits.detach())
            taught += [] if known is None else [known]
            losses.add(terms, share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.cat(seen), torch.cat(taught) if taught else None, losses

    def _validate(self, epoch: int) -> dict[str, float]:
        """The same losses as in training, and scores, on the validation split."""
        logits = logits_of(self.network, self.val, self.precision)
        labels = self.val.labels
        terms = {k: float(v) for k, v in loss_terms(self.objective, logits, self.guide_val_logits, labels).items()}
        self._require_finite(terms["loss"], epoch, len(self.train), "validation loss")
        return terms | epoch_scores(predict(logits, self.task), labels, self.task, self.num_classes)

    def _guide_logits_of(self, epoch: int, whole: bool) -> tuple[Tensor | None, Tensor | None]:
        """The guide's logits (N, C) of this epoch's views if they are known, else room for them if they are to be kept.

        Of an epoch that is gone on with, not a `whole` one, the first part would be missing: it is not kept.
        """
        if self.guide is None or self.guide.cache is None:
            return None, None
        known = self.guide.of_epoch(self.train, epoch)
        if known is not None or not whole:
            return known, None
        return None, torch.full((len(self.train.labels), self.num_classes), math.nan, device=self.device)

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        """Keep the epoch: best checkpoint first, then latest.pth, which says which best one counts."""
        self.history.append(row)
        accuracy, loss = row["val_accuracy"], row["val_loss"]
        is_best = self.best is None or self.best.beaten_by(accuracy, loss)
        self.saving.wait()  # so that no earlier copies are in memory beside the new ones
        copies = {}
        if is_best:
            self.best = Best(row["epoch"], accuracy, loss, best_name(accuracy))
            copies[self.best.file] = serialised(self._content(row))
        copies[LATEST] = serialised(self._state())
        if is_due(row["epoch"], self.save_interval):
            copies[f"epoch_{row['epoch']:04d}.pth"] = copies[LATEST]
        self._save(copies)
        self.logger.write(self.history)
        self.logger.announce(row, is_best)
        if self.after_epoch is not None:
            self.after_epoch(row["epoch"])
        self.stop.raise_if_asked()

    def _save(self, copies: dict[str, io.BytesIO]) -> None:
        """Write serialised checkpoints in this order while training goes on."""
        best = self.best
        self.saving.start(lambda: self._write(copies, best))

    def _write(self, copies: dict[str, io.BytesIO], best: Best | None) -> None:
        for name, copy in copies.items():
            write_checkpoint(self.folder / name, copy)
        self._drop_bests_but(best)

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
        self._drop_bests_but(self.best)
        if self.history:
            self.logger.write(self.history)
        return True

    def _load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        match_layout(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.partial = None if state["partial"] is None else Partial.of(state["partial"], self.device)
        restore_random_state(state["random"])

    def _drop_bests_but(self, best: Best | None) -> None:
        for path in self.folder.glob(BEST_PATTERN):
            if best is None or path.name != best.file:
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


def step_schedule(
    optimizer: torch.optim.Optimizer, epochs: int, milestones: list[float], gamma: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate times `gamma` after each fraction of `epochs`, e.g. [0.5, 0.75]."""
    rounded = [max(1, round(fraction * epochs)) for fraction in milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, rounded, gamma)
