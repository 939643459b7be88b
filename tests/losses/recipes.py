"""The inputs of a golden case, made by the recipes that its file tells; sizes, seeds and numbers come from the case."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdx.losses.objective import Lesson
from kdx.models.features import Outputs

OFFSETS = {"logits": 0, "maps": 1000, "pooled": 2000, "multilabel": 3000, "weights": 6000, "bank": 7000}
Case = dict[str, Any]


def draw(case: Case, recipe: str) -> np.random.Generator:
    return np.random.default_rng(case["inputs"]["seed"] + OFFSETS[recipe])


def networks(case: Case) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student (with gradient), teacher and labels of a case."""
    told, recipe = case["inputs"], case["inputs"]["recipe"]
    rng, labels = draw(case, recipe), None
    if recipe == "maps":
        student, teacher = rng.normal(size=told["student"]), rng.normal(size=told["teacher"])
    elif recipe == "pooled":
        student, teacher = rng.normal(size=(told["N"], told["Ds"])), rng.normal(size=(told["N"], told["Dt"]))
    else:
        shape = (told["N"], told["C"] if recipe == "logits" else told["L"])
        student, teacher = rng.normal(size=shape) * 3, rng.normal(size=shape) * 3
        drawn = rng.integers(0, shape[1], size=shape[0]) if recipe == "logits" else rng.integers(0, 2, size=shape)
        labels = torch.from_numpy(drawn)
    return torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher), labels


def seen(features: Tensor) -> Outputs:
    """Features as a network's, under the word `layer`."""
    return Outputs(torch.zeros(len(features), 2, dtype=features.dtype), {"layer": (features,)})


def lesson(labels: Tensor | None, count: int, progress: float = 0.0) -> Lesson:
    return Lesson(torch.zeros(count, dtype=torch.long) if labels is None else labels, torch.arange(count), progress)


def set_weights(case: Case, parameters: list[nn.Parameter]) -> None:
    """Draw a module's parameters, in the order in which the case lists them."""
    rng = draw(case, "weights")
    for (name, shape), parameter in zip(case["module_parameters"], parameters, strict=True):
        assert list(parameter.shape) == shape, name
        parameter.data = torch.from_numpy(rng.normal(size=shape) * 0.1)


def bank(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The student's and the teacher's bank, and the rows to compare with, the images' own first."""
    rng, numbers, images = draw(case, "bank"), case["params"], case["inputs"]["N"]
    size = (numbers["n_data"], numbers["dim"])
    banks = [rng.normal(size=size) for _ in range(2)]
    index = rng.choice(numbers["n_data"], size=images, replace=False)
    rows = rng.integers(0, numbers["n_data"], size=(images, numbers["K"] + 1))
    rows[:, 0] = index
    first, second = (torch.from_numpy(b / np.linalg.norm(b, axis=1, keepdims=True)) for b in banks)
    return first, second, torch.from_numpy(rows)


def gradient_figures(gradient: Tensor) -> dict[str, Any]:
    return {
        "sum": float(gradient.sum()),
        "l2": float(gradient.norm()),
        "first": gradient[0].flatten()[:16].tolist(),
    }
