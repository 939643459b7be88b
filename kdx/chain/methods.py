"""What an option of conf/kd says of a method, and what its class says when it is asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from kdx.chain.objective import build_terms
from kdx.config.checks import check_swap_point
from kdx.config.problems import Problems
from kdx.errors import KdxError
from kdx.losses.distillation import Term
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.models.features import LAST_MAP, POOLED, STAGES, Outputs
from kdx.tasks import BINARY, MULTI_LABEL, SINGLE_LABEL, TASKS

CLASSES = {BINARY: 2}  # of a task on which a method is tried; of all others
OTHERWISE = 10
IMAGES, TRAIN_SIZE = 6, 997  # of the batch; no other size of anything, so that a memory of all images is known by it
TEACHER, STUDENT = ((16, 32), (32, 16), (64, 8)), ((16, 32), (32, 16), (64, 8))  # thin networks' channels and sides
PAPER = re.compile(r"\d{4}\.\d{4,5}|[A-Z]{3,} ?\d{4}")


@dataclass(frozen=True)
class Method:
    """An option of conf/kd: what the head of its file says, and the terms that it builds (none of `none`)."""

    path: Path
    what: str
    commands: tuple[str, ...]
    paper: str
    when: str
    options: tuple[str, ...]
    terms: Mapping[str, Term]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def layers(self) -> list[str]:
        """The words for the layers that it looks at."""
        return list(dict.fromkeys(word for term in self.terms.values() for word in term.method.layers))

    @property
    def sees(self) -> list[str]:
        """What of a batch its loss depends on: the logits, layers, the labels."""
        by_logits = any(not term.method.layers for term in self.terms.values())
        by_labels = any(_needs_labels(term.method, self.task) for term in self.terms.values())
        return [*(["logits"] if by_logits else []), *self.layers, *(["labels"] if by_labels else [])]

    @cached_property
    def refusals(self) -> dict[str, str]:
        """For each task that it is not defined for, why not and what to choose."""
        found = {task: self._refusal(task, CLASSES.get(task, OTHERWISE)) for task in TASKS}
        return {task: reason for task, reason in found.items() if reason is not None}

    @property
    def task(self) -> str:
        """The first task that it is defined for."""
        return next((task for task in TASKS if task not in self.refusals), TASKS[0])

    @property
    def for_tasks(self) -> str:
        """The tasks that it is defined for, in a few words."""
        tasks = [task for task in TASKS if task not in self.refusals]
        if len(tasks) == len(TASKS):
            return "all"
        if not set(tasks) & set(SINGLE_LABEL):
            return ", ".join(tasks) or "none"
        few = self._refusal(TASKS[0], 2) is not None
        return "single label" + (", from 3 classes on" if few else "")

    @property
    def trained(self) -> str:
        """What it trains beside the student, between networks of the thin trio, and what it remembers of each image."""
        prepared = [_prepared(term.method, self.task) for term in self.terms.values()]
        count = sum(p.numel() for method in prepared for p in method.parameters())
        banks = [b for method in prepared for b in method.buffers() if b.ndim and len(b) == TRAIN_SIZE]
        floats = sum(bank[0].numel() for bank in banks)
        told = [f"{count / 1000:.1f}k" if count > 999 else str(count)] if count else []
        return " + ".join([*told, *([f"bank of {floats} an image"] if floats else [])]) or "-"

    def _refusal(self, task: str, classes: int) -> str | None:
        reasons = (term.method.refusal(task, classes) for term in self.terms.values())
        return next((reason for reason in reasons if reason is not None), None)


def read_method(path: Path) -> Method:
    """An option from its file; `KdxError` names the file where it cannot be read or built."""
    try:
        text = path.read_text()
        option = yaml.safe_load(text)
        target = option["_target_"]
    except (OSError, UnicodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise KdxError(f"{path}: is no option of kd ({' '.join(str(error).split())[:200]})") from error
    head, options = _split(text)
    lines = [line for line in head if not line.startswith("kdx ")]
    papers = [line for line in lines if PAPER.search(line)][:1]
    problems = Problems()
    try:
        check_swap_point("kd", {"kd": option}, problems)
        problems.raise_if_any()
        terms = {} if target is None else build_terms(option)[1]
    except KdxError as error:
        raise KdxError(f"{path}: {error}") from error
    return Method(
        path,
        what=lines[0] if lines else "",
        commands=tuple(line for line in head if line.startswith("kdx ")),
        paper=papers[0].rstrip(".") if papers else "",
        when=" ".join(line for line in lines[1:] if line not in papers),
        options=tuple(options),
        terms=terms,
    )


def _split(text: str) -> tuple[list[str], list[str]]:
    """The comments at a file's head, without their signs, and the lines after them."""
    lines = text.splitlines()
    length = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ").rstrip() for line in lines[:length]], lines[length:]


def _prepared(method: Objective, task: str) -> Objective:
    if not method.task:
        student, teacher = _outputs(method.layers, STUDENT, task), _outputs(method.words_of_teacher, TEACHER, task)
        method.prepare(Facts(task, CLASSES.get(task, OTHERWISE), TRAIN_SIZE, student, teacher))
    return method


def _needs_labels(method: Objective, task: str) -> bool:
    """Whether other labels give another loss."""
    _prepared(method, task).eval()
    student, teacher = _outputs(method.layers, STUDENT, task), _outputs(method.words_of_teacher, TEACHER, task, 1)
    classes = student.logits.shape[1]
    found = []
    for shift in (0, 1):
        labels = torch.arange(IMAGES) + shift
        several = (labels[:, None] + torch.arange(classes)) % 3 == 0  # of one label alone, any would be the same
        targets = several.long() if task == MULTI_LABEL else labels % classes
        with torch.no_grad():
            found.append(method(student, teacher, Lesson(targets, torch.arange(IMAGES), progress=0.5))["loss"])
    return not torch.equal(*found)


def _outputs(words: Sequence[str], shapes: Sequence[tuple[int, int]], task: str, seed: int = 0) -> Outputs:
    """What a network might say of some images: drawn, with maps of these channels and sides under each word."""
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.rand(IMAGES, channels, side, side, generator=draw) for channels, side in shapes]
    known: dict[str, Any] = {STAGES: maps, POOLED: [maps[-1].mean(dim=(2, 3))], LAST_MAP: maps[-1:]}
    logits = torch.randn(IMAGES, CLASSES.get(task, OTHERWISE), generator=draw)
    return Outputs(logits, {word: known.get(word, maps[-1:]) for word in words})
