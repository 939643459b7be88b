"""Every method, and outputs of two networks to try it on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import yaml
from torch import Tensor

from kdx import losses
from kdx.chain.objective import build_terms
from kdx.losses.distillation import Term, Weight
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.models.features import Outputs
from tests.conftest import CONF

STAGES = {"student": [(4, 8), (6, 4), (10, 2)], "teacher": [(6, 8), (8, 4), (12, 2)]}  # channels and side of each map

SINGLE: dict[str, Callable[[], Objective]] = {  # by logits, of one class an image
    "hinton": losses.Hinton,
    "logit_std": lambda: losses.Hinton(2.0, standardise=True),
    "hard": losses.HardLabel,
    "dkd": losses.DKD,
    "dkd_std": lambda: losses.DKD(standardise=True),
    "nkd": losses.NKD,
    "dist": losses.DIST,
    "ttm": losses.TTM,
    "wttm": losses.WTTM,
    "ctkd": losses.CTKD,
    "ctkd_std": lambda: losses.CTKD(standardise=True),
    "mlld": losses.MLLD,
    "wsld": losses.WSLD,
    "rld": losses.RLD,
}
MULTI: dict[str, Callable[[], Objective]] = {  # by logits, of any number of labels an image
    "hinton": losses.Hinton,
    "ttm": losses.TTM,
    "wttm": losses.WTTM,
    "ctkd": losses.CTKD,
    "mld": losses.MLD,
    "pskd": losses.PSKD,
}
FEATURES: dict[str, Callable[[], Objective]] = {
    "fitnet": losses.FitNet,
    "at": losses.AttentionTransfer,
    "sp": losses.SimilarityPreserving,
    "rkd": losses.RKD,
    "pkt": losses.PKT,
    "cc": losses.CorrelationCongruence,
    "vid": losses.VID,
    "crd": lambda: losses.CRD(dim=8, negatives=6),
    "reviewkd": losses.ReviewKD,
}


@dataclass(frozen=True)
class Option:
    """A file of conf/kd, and a task that its methods are defined for."""

    name: str
    task: str

    def terms(self) -> tuple[Weight, dict[str, Term]]:
        """Built anew: the weight of the loss by the labels, and the methods with theirs."""
        return build_terms(yaml.safe_load((CONF / "kd" / f"{self.name}.yaml").read_text()))

    @property
    def classes(self) -> int:
        return 2 if self.task == "binary-class" else 3


def options(*tasks: str) -> list[Option]:
    """Every option that teaches, with each of these tasks that it is defined for."""
    names = sorted(path.stem for path in (CONF / "kd").glob("*.yaml"))
    pairs = [Option(name, task) for name in names if name != "none" for task in tasks]
    return [
        pair
        for pair in pairs
        if not any(term.method.refusal(pair.task, pair.classes) for term in pair.terms()[1].values())
    ]


def outputs(of: str, images: int = 6, classes: int = 5, scale: float = 1.0, seed: int = 0) -> Outputs:
    """A network's logits and features, drawn; positive as behind a ReLU."""
    draw = torch.Generator().manual_seed(seed + (of == "teacher"))
    maps = [scale * torch.randn(images, c, s, s, generator=draw).relu() for c, s in STAGES[of]]
    pooled = maps[-1].mean(dim=(2, 3))
    logits = 3 * torch.randn(images, classes, generator=draw)
    return Outputs(logits, {"stages": maps, "last_map": maps[-1:], "pooled": [pooled]})


def tracked(seen: Outputs) -> tuple[Outputs, list[Tensor]]:
    """The same outputs with gradients, and the leaves that take them."""
    leaves = [seen.logits.clone().requires_grad_()]
    features = {}
    for word, tensors in seen.features.items():
        features[word] = [tensor.clone().requires_grad_() for tensor in tensors]
        leaves += features[word]
    return Outputs(leaves[0], features), leaves


def prepared(method: Objective, task: str = "multi-class", classes: int = 5, train_size: int = 20) -> Objective:
    torch.manual_seed(1)
    student, teacher = outputs("student", 2, classes), outputs("teacher", 2, classes)
    method.prepare(Facts(task, classes, train_size, student, teacher))
    return method


def lesson(images: int = 6, classes: int = 5, multi_label: bool = False, progress: float = 0.25) -> Lesson:
    targets = torch.arange(images) % classes
    if multi_label:
        targets = (torch.arange(images)[:, None] + torch.arange(classes)) % 3 == 0
        targets = targets.long()
    return Lesson(targets, torch.arange(images) * 3, progress)


def loss_and_gradients(
    method: Objective, student: Outputs, teacher: Outputs, of: Lesson
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients to what the student gives: zeros where there is none."""
    student, leaves = tracked(student)
    loss = method(student, teacher, of)["loss"]
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(found)
