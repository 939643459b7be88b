"""Train one learner under any number of teachers: the visible loop. Knows no config and no roles."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx.data.batches import Batch, Batches
from kdx.errors import KdxError
from kdx.losses.hard import LEAST
from kdx.losses.objective import Lesson
from kdx.memory import peak_mb, start_peak
from kdx.metrics.auc import auc_of_logits
from kdx.metrics.classification import epoch_scores
from kdx.metrics.logits import predict
from kdx.metrics.selection import Selection
from kdx.models.features import Outputs
from kdx.recipe import AUC, Recipe
from kdx.reproducibility import RandomState
from kdx.training.averaging import Average
from kdx.training.distributed import Ranks
from kdx.training.evaluation import logits_by_ranks
from kdx.training.keeper import Bystander, Keeper, State
from kdx.training.learner import Learner
from kdx.training.progress import Best, Losses, Progress
from kdx.training.runtime import Precision, compile_networks, match_layout
from kdx.training.schedules import Schedule
from kdx.training.teachers import Teacher

AT_THE_END = 1.0  # the progress whose weights, and whatever else of a loss depends on it, validate every epoch


class Trainer:
    """Trains a learner, by the labels alone or under teachers; `state` is all that the next step depends on."""

    def __init__(
        self,
        learner: Learner,
        teachers: Mapping[str, Teacher],
        train: Batches,
        val: Batches,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        recipe: Recipe,
        *,
        compile_mode: str | None = None,
        ranks: Ranks | None = None,
        name: str,
        task: str,
        num_classes: int,
    ) -> None:
        self.learner, self.teachers, self.train, self.val = learner, teachers, train, val
        self.optimizer, self.schedule, self.recipe = optimizer, schedule, recipe
        self.name, self.task, self.num_classes, self.compile_mode = name, task, num_classes, compile_mode
        self.selection = Selection.resolve(recipe.select, task)
        self.precision: Precision = learner.precision
        self.device = self.precision.device
        self.scaler = self.precision.scaler()
        self.average = Average(learner.network, recipe.ema)
        self.validated = self._learner_to_validate()
        self.ranks = ranks or Ranks()
        self.model: nn.Module = learner  # what a step calls; on several ranks, what averages their gradients
        self.progress = Progress(self.device)
        self.state: State = {
            "model": learner.network,
            "objective": learner.objective,
            "optimizer": optimizer,
            "schedule": schedule,
            "scaler": self.scaler,
            "average": self.average,
            "progress": self.progress,
            "random": RandomState(),
        }
        self.val_outputs: list[Outputs] = []

    def fit(self, keeper: Keeper | Bystander, after_epoch: Callable[[int], None] | None = None) -> Best:
        """Train the epochs that are left; the best one lies in the keeper's folder.

        Raises `KdxError` that names epoch and step where a loss is not finite; `latest.pth` is then the last epoch
        that was sound.
        """
        if self.compile_mode:
            networks = [self.learner.network, *(teacher.network for teacher in self.teachers.values())]
            compile_networks(networks, self.compile_mode)
        self.ranks.follow(self.state)
        match_layout(self.optimizer)
        self.model = self.ranks.wrap(self.learner)
        if self.ranks.rank == 0:  # which scores; what teachers say of that split never changes: once a stage
            self.val_outputs = [Outputs(teacher.of_split("val", self.val)) for teacher in self.teachers.values()]
        with keeper.writing():
            while self.progress.epochs < self.recipe.epochs and not self._is_patience_spent():
                trained = self._train_epoch(keeper)
                row = self._close_epoch(trained)
                keeper.after_epoch(row, self.average.network)
                if after_epoch is not None:
                    after_epoch(row["epoch"])
                keeper.stop.raise_if_asked()
        assert self.progress.best is not None
        return self.progress.best

    def _train_epoch(self, keeper: Keeper | Bystander) -> dict[str, float]:
        """One pass over the training split; mean losses and scores of the predictions made on the way."""
        epoch, done = self.progress.epochs + 1, self.progress.under_way
        done.start_clock()
        if not done.step:
            done.learning_rate = self.optimizer.param_groups[0]["lr"]
        start_peak(self.device)
        self.learner.train()
        for teacher in self.teachers.values():
            teacher.start_epoch(self.train, epoch, done.step == 0, self.num_classes)
        batches = keeper.logger.bar(self.train.epoch(epoch, start=done.step), epoch, len(self.train), done.step)
        for step, batch in enumerate(batches, start=done.step + 1):
            logits, losses = self.train_step(batch, epoch, step)
            done.add(step, losses, predict(logits, self.task), batch.labels, batch.known)
            if keeper.wants_step(step, len(self.train)):
                done.read_clock()
                self._require_sound_weights(epoch, step)
                keeper.after_step()
        means = done.mean_losses()  # the epoch's only wait for the device
        self._require_finite(means["loss"], epoch, done.step, "mean training loss")
        self._require_sound_weights(epoch, done.step)  # of taps that see padding only, no loss tells
        for teacher in self.teachers.values():
            teacher.end_epoch(epoch)
        return means | self._scores(torch.cat(done.predictions), torch.cat(done.labels))

    def train_step(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Losses]:
        """Forward, loss, backward for each part of the batch, then one update; the logits and the mean losses."""
        self.optimizer.zero_grad(set_to_none=True)
        progress = (epoch - 1 + (step - 1) / len(self.train)) / self.recipe.epochs
        counts, seen, losses = self.learner.objective.hard_loss.counts, [], Losses()
        self.ranks.seed_step(self.train.seed, self.train.name, epoch, step)
        for part in self.ranks.parts(batch, self.recipe.micro_batches):
            taught = [teacher(part) for teacher in self.teachers.values()]  # before the student: needs the least memory
            share = len(part.labels) / (len(batch.labels) * self.ranks.copies)
            with self.ranks.statistics(self.learner):
                terms = self.model(part.images, taught, lesson_of(part, batch, progress, counts))
                logits = terms.pop("logits")
                if self.device.type == "cpu":  # elsewhere a look is a host sync: there the epoch's mean tells
                    self._require_finite(self.ranks.sum(terms["loss"]).item(), epoch, step, "loss")
                self.ranks.backward(self.scaler.scale(terms["loss"] * (share * self.ranks.world)))
            seen.append(logits.clone() if self.recipe.micro_batches > 1 else logits)  # CUDA graphs reuse their memory
            seen[-1] = self.ranks.gather(seen[-1])
            losses.add(terms, share)
        losses = losses.over(self.ranks.sum)
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.learner.trained(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.after_update()
        self.average.update()
        return torch.cat(seen), losses

    def _close_epoch(self, trained: Mapping[str, float]) -> dict[str, Any]:
        """Validate after an epoch, and see whether it is the best; its row of the log."""
        epoch, done = self.progress.epochs + 1, self.progress.under_way
        learning_rate = done.learning_rate
        logits = logits_by_ranks(self.average.network, self.val, self.precision, self.ranks, self.num_classes)
        validated = self.ranks.first_says(lambda: self._validate(epoch, logits))
        self.schedule.after_epoch(self.selection.value_of(validated))
        row: dict[str, Any] = {"epoch": epoch}
        row |= {f"train_{key}": value for key, value in trained.items()}
        row |= {f"val_{key}": value for key, value in validated.items()}
        row |= {"learning_rate": learning_rate, "gpu_memory_mb": round(peak_mb(self.device), 1)}
        row["epoch_time_sec"] = round(done.read_clock(), 3)
        before = self.progress.best
        is_best = self.selection.is_better(validated, None if before is None else before.scores)
        best = Best(epoch, self.selection.value_of(validated), self.selection.best_file(validated), validated)
        self.progress.close_epoch(row, best if is_best else None)
        return row

    @torch.no_grad()
    def _validate(self, epoch: int, logits: Tensor) -> dict[str, float]:
        """The same losses as in training, those that look at layers left out, and scores, on the validation split.

        Weights that ramp are those of the end: the losses of all epochs are then one quantity, which can be compared.
        While a ramp lasts the training's own loss is another one.
        """
        labels = self.val.labels
        lesson = Lesson(labels, torch.arange(len(labels), device=self.device), AT_THE_END)
        self.learner.objective.eval()
        if self.learner.objective.by_features_alone:
            means = self._compare_features()
        else:
            terms = self.learner.objective(Outputs(logits), self.val_outputs, lesson)
            means = {name: float(term) for name, term in terms.items()}
        self._require_finite(means["loss"], epoch, len(self.train), "validation loss")
        means |= self._scores(predict(logits, self.task), labels)
        if self.selection.name == AUC:
            means["auc"] = math.nan if (auc := auc_of_logits(logits.cpu(), labels.cpu(), self.task)) is None else auc
        return means

    def _scores(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Scores of an epoch's predictions; none where no classifier learns."""
        if not self.learner.objective.teaches_classes:
            return {}
        return epoch_scores(predictions, labels, self.task, self.num_classes)

    def _learner_to_validate(self) -> Learner:
        """What is asked for features on validation: the learner, with the average's weights where there is one."""
        if not self.recipe.ema or not self.learner.objective.by_features_alone:
            return self.learner
        network, layers = self.average.network, self.learner.watched.layers
        return Learner(network, self.learner.objective, self.precision, layers)

    def _compare_features(self) -> dict[str, float]:
        """The losses by layers on the validation split, where nothing else is minimised at the end of training."""
        self.validated.eval()
        losses = Losses()
        for batch in self.val.epoch(0):
            taught = [teacher.ask(batch.images) for teacher in self.teachers.values()]
            terms = self.validated(batch.images, taught, Lesson(batch.targets, batch.indices, AT_THE_END))
            terms.pop("logits")
            losses.add(terms, len(batch.labels) / len(self.val.labels))
        return losses.plain()

    def _is_patience_spent(self) -> bool:
        return self.recipe.patience is not None and self.progress.epochs_since_best >= self.recipe.patience

    def _require_sound_weights(self, epoch: int, step: int) -> None:
        """An infinite gradient spoils the weights though the loss was finite: such a state is never saved."""
        sound = [torch.isfinite(parameter).all() for parameter in self.learner.parameters()]
        if sound and not torch.stack(sound).all():  # one wait for the device, not one a weight
            self._require_finite(math.nan, epoch, step, "a weight")

    def _require_finite(self, loss: float, epoch: int, step: int, what: str) -> None:
        if not math.isfinite(loss):
            rate = self.optimizer.param_groups[0]["lr"]
            raise KdxError(
                f"{self.name}: {what} is {loss} in epoch {epoch}, step {step} (lr {rate:.2e}); "
                "lower optimizer.lr or set amp=off; the checkpoints of earlier epochs are sound"
            )


def lesson_of(part: Batch, batch: Batch, progress: float, counts: Callable[..., Tensor | None]) -> Lesson:
    """What losses may know of a part of a batch; one part may hold all labels that are known, or that weigh much."""
    share: Tensor | float = 1.0
    own, all_of_them = (counts(some.targets, some.known) for some in (part, batch))
    if own is not None and all_of_them is not None:
        share = own.mean() / all_of_them.mean().clamp(min=LEAST)
    return Lesson(part.targets, part.indices, progress, part.known, share)
