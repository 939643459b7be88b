"""The whole of what a stage minimises: the loss by the labels, and methods with their weights under its teachers."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.models.features import Outputs

MEAN, EACH = "mean", "each"


@dataclass(frozen=True)
class Weight:
    """A loss's weight: `start` at first, then on a line to `end`, reached at the share `until` of all steps."""

    start: float
    end: float
    until: float = 0.0

    @classmethod
    def of(cls, value: float | Mapping[str, float]) -> "Weight":
        """From a number, or from {from, to, until}; `ValueError` for anything else."""
        ramp = {"from": value, "to": value, "until": 0.0} if isinstance(value, int | float) else value
        known = isinstance(ramp, Mapping) and set(ramp) == {"from", "to", "until"}
        if not known or not all(isinstance(n, int | float) and 0 <= n < math.inf for n in ramp.values()):
            raise ValueError("a number of at least 0 is needed, or {from, to, until}")
        if ramp["until"] > 1:
            raise ValueError("until is a share of all steps: a number from 0 to 1 is needed")
        return cls(float(ramp["from"]), float(ramp["to"]), float(ramp["until"]))

    def at(self, progress: float) -> float:
        if progress >= self.until:
            return self.end
        return self.start + (self.end - self.start) * progress / self.until


@dataclass(frozen=True)
class Term:
    """A method with its weight; `key` and `target` are what errors call it."""

    method: Objective
    weight: Weight
    key: str = "kd"
    target: str = ""


class PlainLoss(Objective):
    """A user's callable (student_logits, teacher_logits, labels) -> scalar: all of what is minimised.

    Labels are class numbers (B,), of mixed images that with the largest share, or 0 and 1 (B, L) of a multi-label set;
    where a label must not be used they are what the teacher says. Where it also has a method `terms`, that is asked
    instead, and its parts are logged. As an nn.Module it is trained and saved like any method.
    """

    whole = True

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        labels = (lesson.labels if self.multi_label else lesson.classes)(teacher.logits)
        if hasattr(self.loss, "terms"):
            return self.loss.terms(student.logits, teacher.logits, labels)
        return {"loss": self.loss(student.logits, teacher.logits, labels)}


class Distillation(nn.Module):
    """`hard` times the loss by the labels, plus each term's weight times its method, under every teacher.

    `kdx.losses.Combined` is its name in a config, where `terms` are mappings of a method's keys and `weight`.
    `teachers` says how several are used: `mean` averages their probabilities to those of one teacher, `each` adds up
    the losses under each of them. Without terms the labels alone teach.
    """

    def __init__(
        self, hard_loss: HardLoss, hard: Weight, terms: Mapping[str, Term] | None = None, teachers: str = MEAN
    ) -> None:
        super().__init__()
        self.hard_loss, self.hard, self.teachers = hard_loss, hard, teachers
        self.terms = dict(terms or {})
        self.methods = nn.ModuleDict({name: nn.ModuleList([term.method]) for name, term in self.terms.items()})

    def prepare(self, facts: Sequence[Facts]) -> None:
        """Let every method build its adapters, with facts under each teacher (one of them where they are averaged).

        A `KdxError` of a method's begins with the key of its term.
        """
        for name, (first, *_) in self._copies():
            copies = [first, *(copy.deepcopy(first) for _ in facts[1:])]
            try:
                for method, known in zip(copies, facts, strict=True):
                    method.prepare(replace(known, key=self.terms[name].key))
            except KdxError as error:
                raise KdxError(f"{self.terms[name].key}.{error}") from error
            self.methods[name] = nn.ModuleList(copies)

    @property
    def layers(self) -> list[str]:
        """The words for the student's layers that the methods look at."""
        return list(dict.fromkeys(word for term in self.terms.values() for word in term.method.layers))

    @property
    def teacher_layers(self) -> list[str]:
        """The words for the teachers' layers that the methods look at."""
        return list(dict.fromkeys(word for term in self.terms.values() for word in term.method.words_of_teacher))

    @property
    def by_features_alone(self) -> bool:
        """Whether neither labels nor a teacher's logits weigh anything in the loss, see `by_features_alone`."""
        return by_features_alone(self.hard, self.terms)

    @property
    def teaches_classes(self) -> bool:
        """Whether the classifier learns, from labels or from what a method compares; else its answers mean nothing."""
        return teaches_classes(self.hard, self.terms)

    def term_of(self, method: nn.Module) -> Term | None:
        """The term whose method, or whose copy of it for one of the teachers, this is."""
        found = [self.terms[name] for name, copies in self._copies() if any(method is copied for copied in copies)]
        return found[0] if found else None

    def forward(self, student: Outputs, teachers: Sequence[Outputs], lesson: Lesson) -> dict[str, Tensor]:
        """`loss` and the unweighted parts, as named scalars. Methods that look at layers need features to be there."""
        hard = self.hard_loss(student.logits, lesson)
        if not self.methods:
            return {"loss": self.hard.at(lesson.progress) * hard if self.hard != Weight(1, 1) else hard}
        if len(teachers) > 1 and self.teachers == MEAN:
            teachers = [averaged(teachers, self.hard_loss.multi_label)]
        parts: dict[str, Tensor] = {"hard_loss": hard} if self.teaches_classes else {}
        total: Tensor | None = None
        for name, copies in self._copies():
            if copies[0].layers and not student.features:  # on validation
                continue
            terms = _merged([m(*_shown_to(m, student, t, lesson)) for m, t in zip(copies, teachers, strict=True)])
            weighted = self.terms[name].weight.at(lesson.progress) * terms["loss"]
            total = weighted if total is None else total + weighted
            parts |= self._named(name, copies[0], terms)
        by_labels = self.hard.at(lesson.progress)
        if by_labels:
            total = by_labels * hard if total is None else total + by_labels * hard
        return {"loss": hard * 0 if total is None else total, **parts}

    def _named(self, name: str, method: Objective, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A term's parts as the log calls them; the term's name comes before them where there are several."""
        kind = "feature_loss" if method.layers else "soft_loss"
        parts = {kind if key == "loss" else key: v for key, v in terms.items() if key != "loss" or not method.whole}
        before = f"{name}_" if len(self.methods) > 1 else ""
        return {before + key: value for key, value in parts.items()}

    def _copies(self) -> list[tuple[str, list[Objective]]]:
        """Each term's name and its method, a copy for every teacher."""
        return [(name, list(copies)) for name, copies in self.methods.items()]  # type: ignore[call-overload]


def teaches_classes(hard: Weight, terms: Mapping[str, Term]) -> bool:
    """Whether a loss of these parts trains a classifier, at any time."""
    if hard.start or hard.end:
        return True
    return any(term.method.teaches_classes and (term.weight.start or term.weight.end) for term in terms.values())


def by_features_alone(hard: Weight, terms: Mapping[str, Term]) -> bool:
    """Whether features are all that a loss of these parts compares at the end of training, whose weights validate."""
    weighed = [term.method for term in terms.values() if term.weight.end]
    return bool(weighed) and not hard.end and all(method.layers for method in weighed)


def _shown_to(method: Objective, student: Outputs, teacher: Outputs, lesson: Lesson) -> tuple[Outputs, Outputs, Lesson]:
    """What a method sees: these images, or those of all ranks where several train as one and it relates images."""
    gather = method.gather
    if gather is None or not method.relates or not method.training:
        return student, teacher, lesson
    known = None if lesson.known is None else gather(lesson.known)
    everyone = Lesson(gather(lesson.targets), gather(lesson.indices), lesson.progress, known)
    return student.gathered(gather), teacher.gathered(gather), everyone


def averaged(teachers: Sequence[Outputs], multi_label: bool) -> Outputs:
    """One teacher whose probabilities are the mean of theirs, as logits (B, C); a single one as it is."""
    if len(teachers) == 1:
        return teachers[0]
    logits = torch.stack([teacher.logits for teacher in teachers])
    count = torch.log(torch.tensor(float(len(teachers)), device=logits.device))
    if multi_label:  # log(p / (1 - p)) of the mean p, both sums in log space
        present, absent = (torch.nn.functional.logsigmoid(sign * logits).logsumexp(dim=0) for sign in (1, -1))
        return Outputs(present - absent)
    return Outputs(logits.log_softmax(dim=2).logsumexp(dim=0) - count)


def as_objective(loss: Callable[..., Tensor]) -> Objective:
    """A method as it is; any other callable (student_logits, teacher_logits, labels) as a `PlainLoss`.

    Raises `TypeError` where it does not take three arguments.
    """
    if isinstance(loss, Objective):
        return loss
    inspect.signature(loss).bind(None, None, None)
    return PlainLoss(loss)


def _merged(under_each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One method's parts under several teachers: losses are added up, anything else is averaged."""
    if len(under_each) == 1:
        return under_each[0]
    merged = {}
    for key in under_each[0]:
        values = torch.stack([parts[key] for parts in under_each])
        merged[key] = values.sum() if key.endswith("loss") else values.mean()
    return merged
