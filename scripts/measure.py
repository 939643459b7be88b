"""What the benchmarks share: networks and images made up for speed, interleaved timing, ratios."""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdx.chain.objective import build_terms
from kdx.data.batches import Batch, Batches, Preprocessing
from kdx.data.dataset import Split
from kdx.epoch_log import EpochLogger
from kdx.losses import KnowledgeDistillationLoss
from kdx.losses.distillation import Distillation, Weight
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Facts
from kdx.models.features import Layers, Outputs, Watched, eval_mode, resolve_layers
from kdx.models.networks import NetworkSpec, build_network
from kdx.recipe import Recipe
from kdx.run import CONF
from kdx.tasks import MULTI_LABEL
from kdx.training.keeper import Keeper
from kdx.training.learner import Learner
from kdx.training.runtime import Precision, compile_networks
from kdx.training.schedules import Schedule
from kdx.training.teachers import LogitsCache, Teacher
from kdx.training.trainer import Trainer

PIXELS = Preprocessing((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


@dataclass(frozen=True)
class Case:
    """A distillation step: who teaches whom, on how many images of which size, and how it is computed."""

    teacher: str | None = "kdx.thin:resnet20"
    student: str = "kdx.thin:resnet8"
    stem: str = "imagenet"
    images: int = 2048
    size: int = 32
    classes: int = 10
    batch_size: int = 128
    half: torch.dtype | None = None
    channels_last: bool = False
    device: str = "cpu"
    cached: bool = False
    compile_mode: str | None = None
    micro_batches: int = 1
    fused: bool = True
    method: str = "hinton"  # an option of conf/kd
    task: str = "multi-class"

    def precision(self) -> Precision:
        graphs = self.compile_mode == "reduce-overhead"
        return Precision(torch.device(self.device), self.half, self.channels_last, cuda_graphs=graphs)

    def network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        spec = NetworkSpec(name, self.classes, stem=self.stem, image_size=(self.size, self.size))
        return self.precision().place(build_network(spec))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), fused=self.fused)

    def split(self) -> Split:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (self.images, 3, self.size, self.size), dtype=torch.uint8, generator=draw)
        labels = torch.arange(self.images) % self.classes
        return Split(images, labels if self.task != MULTI_LABEL else torch.eye(self.classes, dtype=torch.long)[labels])

    def batches(self, **options: object) -> Batches:
        options = {"shuffle": True, "augment": () if self.cached else ("crop", "flip"), **options}
        device = torch.device(self.device)
        return Batches(self.split(), PIXELS, batch_size=self.batch_size, device=device, **options)  # type: ignore[arg-type]


def sync(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bare_step(case: Case) -> Callable[[], None]:
    """A step of nothing but the mathematics, on float tensors that are in place already; one batch after the other."""
    student, precision, scaler = case.network(case.student).train(), case.precision(), case.precision().scaler()
    teacher = None if case.teacher is None else case.network(case.teacher).eval()
    if case.compile_mode:
        compile_networks([student] if teacher is None else [student, teacher], case.compile_mode)
    optimizer = case.optimizer(student)
    objective = None if teacher is None else KnowledgeDistillationLoss(4.0, 0.7)
    plain = case.batches(shuffle=False, augment=())
    batches = [(batch.images, batch.labels) for batch in plain.epoch(0)]
    known: list[Tensor] = []
    if case.cached and teacher is not None:
        with precision.no_gradient(), precision.autocast():
            known = [teacher(images).float().clone() for images, _ in batches]
        known = [logits.clone() for logits in known]  # out of inference mode: plain tensors, which may enter a loss
    numbers = itertools.cycle(range(len(batches)))

    def step() -> None:
        number = next(numbers)
        images, labels = batches[number]
        taught = known[number] if known else None
        optimizer.zero_grad(
            set_to_none=True
        )  # this and the teacher before the activations come: needs the least memory
        with precision.autocast():
            if teacher is not None and not known:
                with torch.no_grad():
                    taught = teacher(images).float()
            logits = student(images).float()
        loss = cross_entropy(logits, labels) if objective is None else objective(logits, taught, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def bare_loop(case: Case) -> Callable[[], None]:
    """One epoch of bare steps."""
    step = bare_step(case)

    def epoch() -> None:
        for _ in range(math.ceil(case.images / case.batch_size)):
            step()
        sync(case.device)

    return epoch


def objective_of(case: Case) -> Distillation:
    """What an option of conf/kd minimises, with its own numbers; the labels alone without a teacher."""
    if case.teacher is None:
        return Distillation(HardLoss(case.task), Weight.of(1))
    option = yaml.safe_load((CONF / "kd" / f"{case.method}.yaml").read_text())
    return Distillation(HardLoss(case.task), *build_terms(option))


def seen_by(case: Case, name: str, words: Sequence[str]) -> tuple[nn.Module, Layers, Outputs]:
    """A network, the layers that words stand for in it, and what it says of two blank images."""
    network, images = case.network(name), torch.zeros(2, 3, case.size, case.size, device=case.device)
    layers = resolve_layers(network, words, images)
    watched = Watched(network, layers)
    with eval_mode(network), torch.no_grad():
        outputs = watched(images)
    watched.close()
    return network, layers, outputs


def kdx_trainer(case: Case, folder: Path) -> tuple[Trainer, Keeper]:
    """A trainer as a stage makes it, and its keeper."""
    precision, objective = case.precision(), objective_of(case)
    student, layers, facts = seen_by(case, case.student, objective.layers)
    cache = LogitsCache(folder / "cache", case.classes) if case.cached else None
    teachers = {}
    if case.teacher is not None:
        network, words, theirs = seen_by(case, case.teacher, objective.teacher_layers)
        teachers["teacher"] = Teacher(network, precision, words, cache)
        objective.prepare([Facts(case.task, case.classes, case.images, facts, theirs)])
    learner = Learner(student, objective.to(precision.device), precision, layers)
    optimizer = case.optimizer(learner)
    trainer = Trainer(
        learner,
        teachers,
        case.batches(),
        replace(case, images=min(case.images, 256)).batches(shuffle=False, augment=()),
        optimizer,
        Schedule(optimizer),
        Recipe(epochs=10**6, micro_batches=case.micro_batches),
        compile_mode=case.compile_mode,
        name="student",
        task=case.task,
        num_classes=case.classes,
    )
    logger = EpochLogger(folder / "log.csv", "student", 10**6)
    return trainer, Keeper(folder, {}, trainer.state, trainer.progress, logger)


def kdx_epoch(
    case: Case,
    before_step: Callable[[], None] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda learner: learner,
) -> Callable[[], None]:
    """One training epoch of kdx with its data pipeline, augmentation, metrics, CSV and progress bar.

    `wrap` is what is put around the learner.
    """
    folder = tempfile.TemporaryDirectory()
    trainer, keeper = kdx_trainer(case, Path(folder.name))
    trainer.model = wrap(trainer.learner)
    if before_step is not None:
        trainer.train = _Interrupted(trainer.train, before_step)  # type: ignore[assignment]
    if case.compile_mode:
        networks = [trainer.learner.network, *(teacher.network for teacher in trainer.teachers.values())]
        compile_networks(networks, case.compile_mode)

    def epoch() -> None:
        number = trainer.progress.epochs + 1
        scores = trainer._train_epoch(keeper)
        row = {"epoch": number} | {f"train_{key}": value for key, value in scores.items()}
        trainer.progress.close_epoch(row, None)
        keeper.logger.write(trainer.progress.history)
        sync(case.device)
        assert folder

    return epoch


class _Interrupted:
    """Batches that do something else before each."""

    def __init__(self, batches: Batches, before_step: Callable[[], None]) -> None:
        self.batches, self.before_step = batches, before_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.batches.epoch(number, start):
            self.before_step()
            yield batch


def step_about(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of a bare epoch and of one of kdx in each round, after one that warms up.

    A bare step is done before each step of kdx: what slows the machine for a second or a minute slows both. For a CPU.
    """
    step, bare = bare_step(case), [0.0]

    def timed_step() -> None:
        began = time.perf_counter()
        step()
        bare[0] += time.perf_counter() - began

    epoch = kdx_epoch(case, timed_step)
    seconds: dict[str, list[float]] = {"bare loop": [], "kdx": []}
    for number in range(rounds + 1):
        bare[0], began = 0.0, time.perf_counter()
        epoch()
        both = time.perf_counter() - began
        if number:
            seconds["bare loop"].append(bare[0])
            seconds["kdx"].append(both - bare[0])
    return seconds


def interleave(
    contestants: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one that warms up; a new order every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = clock()
            contestants[name]()
            if number:
                seconds[name].append(clock() - began)
    return seconds


@dataclass(frozen=True)
class Row:
    """A line of the table: what, in which unit, and how it compares with the baseline of its part, round by round."""

    part: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    spread: str = ""
    note: str = ""


def rows_of(
    part: str, seconds: dict[str, list[float]], baseline: str, images: int, *, slower_is_above_one: bool = True
) -> Iterator[Row]:
    """Medians in images/s; ratios are of the same round, so that a noisy minute touches both sides."""
    for name, times in seconds.items():
        pairs = zip(times, seconds[baseline], strict=True)
        ratios = sorted(own / base if slower_is_above_one else base / own for own, base in pairs)
        rate = images / statistics.median(times)
        yield Row(part, name, rate, "images/s", statistics.median(ratios), f"{ratios[0]:.3f} to {ratios[-1]:.3f}")
