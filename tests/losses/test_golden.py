"""Every method against the values and gradients that its author's own code gave.

The file is the one that KDX_GOLDEN names, else ../shared/golden-losses.json beside the repository, else the subset here.
A figure may differ by 1e-9 of itself (a gradient's elements and sum: of the gradient's norm) plus 1e-11: the file has 12
digits. Cases are found by the author's function (repository and symbol); a case of a method that kdx does not have is
skipped by name.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx import losses
from kdx.losses.ctkd import curriculum
from kdx.losses.objective import Facts, Objective
from kdx.losses.reviewkd import Fusion, pyramid_loss, reviewed
from kdx.losses.standardisation import standardise
from kdx.losses.vid import Predictor
from kdx.models.features import Outputs
from tests.conftest import REPO
from tests.losses.recipes import Case, bank, gradient_figures, lesson, networks, seen, set_weights

SUBSET = Path(__file__).parent / "golden-subset.json"
RELATIVE, ABSOLUTE = 1e-9, 1e-11


def golden_file() -> Path:
    if "KDX_GOLDEN" in os.environ:
        return Path(os.environ["KDX_GOLDEN"])
    shared = REPO.parent / "shared" / "golden-losses.json"
    return shared if shared.is_file() else SUBSET


GOLDEN = json.loads(golden_file().read_text())
Found = tuple[Tensor, dict[str, float]]  # the loss, and what else the case tells


def by_logits(objective: Objective, task: str = "multi-class", progress: float = 0.0) -> Callable[..., Tensor]:
    objective.task = task
    return lambda s, t, y: objective.double()(Outputs(s), Outputs(t), lesson(y, len(s), progress))["loss"]


def logits_method(make: Callable[[dict[str, Any]], Objective], task: str = "multi-class") -> Callable[..., Found]:
    return lambda case, s, t, y: (by_logits(make(case["params"]), task)(s, t, y), {})


def with_labels(make: Callable[[dict[str, Any]], tuple[Objective, float, float]]) -> Callable[..., Found]:
    """`hard` times cross-entropy plus `weight` times a method."""

    def total(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
        objective, hard, weight = make(case["params"])
        by_labels, soft = F.cross_entropy(s, y), by_logits(objective)(s, t, y)
        return hard * by_labels + weight * soft, {"hard": float(by_labels.detach()), "soft": float(soft.detach())}

    return total


def kd_of_alpha(p: dict[str, Any]) -> tuple[Objective, float, float]:
    return losses.Hinton(p["T"]), p["alpha_weights_CE"], 1 - p["alpha_weights_CE"]


def deit(make: Callable[[dict[str, Any]], Objective], divide: bool) -> Callable[..., Found]:
    """(1 - alpha) times cross-entropy plus alpha times the teacher's term, whose soft form divides by N C."""

    def found(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
        alpha, term = case["params"]["alpha"], by_logits(make(case["params"]))(s, t, y)
        return (1 - alpha) * F.cross_entropy(s, y) + alpha * term / (s.shape[1] if divide else 1), {}

    return found


def refined(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    p = case["params"]
    if p.get("logit_stand"):
        s, t = standardise(s), standardise(t)
    return by_logits(losses.RLD(p["alpha"], p["beta"], p["T"], p["alpha_T"]))(s, t, y), {}


def relations(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    p = case["params"]
    if p.get("squared"):
        pytest.skip("kdx has no RKD of squared distances")
    distance, angle = p.get("distance_weight", p.get("w_d")), p.get("angle_weight", p.get("w_a"))
    return by_features(prepared(losses.RKD("layer", distance=distance, angle=angle), s, t), s, t), {}


def mlld_part(part: str) -> Callable[..., Found]:
    def found(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
        objective = losses.MLLD([case["params"]["T"]])
        return objective(Outputs(s), Outputs(t), lesson(y, len(s)))[part], {}

    return found


def curriculum_temperature(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    p = case["params"]
    objective = losses.CTKD(p["t_start"], p["t_end"], p["theta"]).double()
    progress = objective.ramp * math.acos(1 + 2 * p["lambda"]) / math.pi
    terms = objective(Outputs(s), Outputs(t), lesson(y, len(s), progress))
    gradient = torch.autograd.grad(terms["loss"], objective.theta, retain_graph=True)[0]
    return terms["loss"], {"temperature": float(terms["temperature"]), "grad_theta": float(gradient)}


def prepared(objective: Objective, s: Tensor, t: Tensor) -> Objective:
    objective.prepare(Facts("multi-class", 2, 100, seen(s[:2].detach()), seen(t[:2])))
    return objective.double()


def by_features(objective: Objective, s: Tensor, t: Tensor) -> Tensor:
    return objective(seen(s), seen(t), lesson(None, len(s)))["loss"]


def feature_method(make: Callable[[dict[str, Any]], Objective]) -> Callable[..., Found]:
    return lambda case, s, t, y: (by_features(prepared(make(case["params"]), s, t), s, t), {})


def adapted_hint(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    objective = prepared(losses.FitNet("layer", hint=-1), s, t)
    set_weights(case, list(objective.regressor.parameters()))
    return by_features(objective, s, t), {}


def identity_hint(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    objective = prepared(losses.FitNet("layer", hint=-1), s, t)
    objective.regressor = nn.Identity()
    return by_features(objective, s, t), {}


def identity_congruence(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    objective = prepared(losses.CorrelationCongruence("layer"), s, t)
    objective.embed_student = objective.embed_teacher = nn.Identity()
    return by_features(objective, s, t), {}


def variational(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    objective = prepared(losses.VID("layer", variance=case["params"]["init_pred_var"]), s, t)
    hidden = case["module_parameters"][0][1][0]
    predictor = Predictor(s.shape[1], hidden, t.shape[1], case["params"]["init_pred_var"]).double()
    objective.predictors[0] = predictor
    set_weights(case, list(predictor.regressor.parameters()))
    start = math.log(math.expm1(case["params"]["init_pred_var"] - case["params"]["eps"]))
    assert float(predictor.log_scale.detach()[0]) == pytest.approx(start, rel=1e-6)  # it is drawn in float32
    predictor.log_scale.data.fill_(start)
    loss = by_features(objective, s, t)
    gradient = torch.autograd.grad(loss, predictor.log_scale, retain_graph=True)[0]
    return loss, {"log_scale_init": start, "grad_log_scale_sum": float(gradient.sum())}


def fused(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    shapes = dict(case["module_parameters"])
    sizes = [int(side) for side in re.findall(r"out_shape=(\d+)", case["note"])]  # deep first, as the note tells
    deep = F.adaptive_avg_pool2d(s, int(re.findall(r"adaptive_avg_pool2d\(student, (\d+)\)", case["note"])[0]))
    channels = [shapes["0.conv1.0.weight"][0], t.shape[1]]
    fusions = nn.ModuleList([Fusion(s.shape[1], *channels, fuse=fuse) for fuse in (False, True)]).double()
    set_weights(case, list(fusions.parameters()))
    results = reviewed(fusions, [deep, s], [[side, side] for side in sizes])
    targets = [F.adaptive_avg_pool2d(t, side) for side in sizes]
    return sum(pyramid_loss(*pair) for pair in zip(results, targets, strict=True)), {}


def contrast(case: Case, s: Tensor, t: Tensor, y: Tensor) -> Found:
    p = case["params"]
    objective = losses.CRD("layer", dim=p["dim"], negatives=p["K"], temperature=p["T"], momentum=p["momentum"])
    objective.prepare(Facts("multi-class", 2, p["n_data"], seen(s.detach().float()), seen(t.float())))
    objective.double()
    set_weights(case, [*objective.embed_student.parameters(), *objective.embed_teacher.parameters()])
    objective.bank_student, objective.bank_teacher, rows = bank(case)
    if "step1 left" in case["inputs"]["bank"]:
        objective.contrast(s, t, rows)
    loss = objective.contrast(s, t, rows)
    z, own = objective.log_z.exp(), int(rows[0, 0])
    return loss, {
        "Z_v1": float(z[0]),
        "Z_v2": float(z[1]),
        "memory_v1_sum_after": float(objective.bank_student.sum()),
        "memory_v2_sum_after": float(objective.bank_teacher.sum()),
        "memory_v1_row_index0_after": objective.bank_student[own].tolist(),
    }


dkd = logits_method(lambda p: losses.DKD(p["alpha"], p["beta"], p["T"]))
hinton = logits_method(lambda p: losses.Hinton(p["T"]))
METHODS: dict[tuple[str, str], Callable[..., Found]] = {
    ("mdistiller", "kd_loss"): hinton,
    ("RepDistiller", "DistillKL"): hinton,
    ("Multi-Level-Logit-Distillation", "kd_loss"): mlld_part("kd_loss"),
    ("Multi-Level-Logit-Distillation", "bc_loss"): mlld_part("images_loss"),
    ("Multi-Level-Logit-Distillation", "cc_loss"): mlld_part("classes_loss"),
    ("torchdistill", "KDLoss"): with_labels(kd_of_alpha),
    ("pytorch-image-models", "LogitDistillationTask.forward"): with_labels(
        lambda p: (losses.Hinton(p["T"]), p["task_loss_weight"], p["distill_loss_weight"])
    ),
    ("mdistiller", "dkd_loss"): dkd,
    ("mmrazor", "DKDLoss(reduction='batchmean')"): dkd,
    ("image_classification_sota", "DIST"): logits_method(lambda p: losses.DIST(p["beta"], p["gamma"], p["tau"])),
    ("cls_KD", "NKDLoss"): logits_method(lambda p: losses.NKD(p["gamma"], p["temp"])),
    ("logit-standardization-KD", "kd_loss(logit_stand=True)"): logits_method(
        lambda p: losses.Hinton(p["T"], standardise=True)
    ),
    ("logit-standardization-KD", "dkd_loss(logit_stand=True)"): logits_method(
        lambda p: losses.DKD(p["alpha"], p["beta"], p["T"], standardise=True)
    ),
    ("torchdistill", "LogitStdKDLoss"): with_labels(
        lambda p: (losses.Hinton(p["T"], standardise=True), p["alpha_weights_CE"], p["beta"])
    ),
    ("TTM", "TTM"): logits_method(lambda p: losses.TTM(p["l"])),
    ("TTM", "WTTM"): logits_method(lambda p: losses.WTTM(p["l"])),
    ("RLD", "rld_loss"): refined,
    ("deit", "DistillationLoss(hard)"): deit(lambda p: losses.HardLabel(), divide=False),
    ("deit", "DistillationLoss(soft)"): deit(lambda p: losses.Hinton(p["tau"]), divide=True),
    ("mmrazor", "WSLD"): logits_method(lambda p: losses.WSLD(p["tau"])),
    ("Weighted-Soft-Label-Distillation", "WSLDistiller.forward"): with_labels(
        lambda p: (losses.WSLD(p["T"]), 1.0, p["alpha"])
    ),
    ("CTKD", "Global_T, DistillKL"): curriculum_temperature,
    ("L2D", "MLD"): logits_method(lambda p: losses.MLD(p["reduction"]), "multi-label"),
    ("L2D", "PartialSoftmaxDistiller"): logits_method(lambda p: losses.PSKD(), "multi-label"),
    ("mdistiller", "single_stage_at_loss"): feature_method(lambda p: losses.AttentionTransfer("layer", power=p["p"])),
    ("RepDistiller", "Attention"): feature_method(lambda p: losses.AttentionTransfer("layer", power=p["p"])),
    ("mdistiller", "sp_loss"): feature_method(lambda p: losses.SimilarityPreserving("layer")),
    ("RepDistiller", "VIDLoss"): variational,
    ("mdistiller", "ConvReg, mse_loss"): adapted_hint,
    ("RepDistiller", "HintLoss"): identity_hint,
    ("mdistiller", "hcl_loss"): lambda case, s, t, y: (pyramid_loss(s, t), {}),
    ("mdistiller", "ABF, hcl_loss"): fused,
    ("mdistiller", "rkd_loss"): relations,
    ("RepDistiller", "RKDLoss"): relations,
    ("mdistiller", "pkt_loss"): feature_method(lambda p: losses.PKT("layer")),
    ("RepDistiller", "Correlation"): identity_congruence,
    ("RepDistiller", "CRDLoss"): contrast,
}


def method_of(case: Case) -> tuple[str, str]:
    return case["source"]["repo"].split("/")[-1], case["source"]["symbol"]


def assert_close(found: float, expected: float, scale: float, what: str) -> None:
    assert abs(found - expected) <= RELATIVE * scale + ABSOLUTE, f"{what}: {found} instead of {expected}"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_value_and_gradient_are_the_authors(case: Case) -> None:
    if method_of(case) not in METHODS:
        pytest.skip(f"kdx has no {case['source']['symbol']} of {case['source']['repo']}")
    student, teacher, labels = networks(case)
    loss, told = METHODS[method_of(case)](case, student, teacher, labels)
    assert_close(float(loss.detach()), case["value"], abs(case["value"]), "value")
    figures = gradient_figures(torch.autograd.grad(loss, student)[0])
    for key, expected in case["grads"]["student"].items():
        scale = max(abs(case["grads"]["student"]["l2"]), figures["l2"])
        pairs = zip(figures[key], expected, strict=True) if key == "first" else [(figures[key], expected)]
        for number, wanted in pairs:
            assert_close(number, wanted, max(scale, abs(wanted)), f"gradient's {key}")
    for key, expected in case.get("extra", {}).items():
        several = isinstance(expected, list)
        for number, wanted in zip(told[key], expected, strict=True) if several else [(told[key], expected)]:
            assert_close(number, wanted, abs(wanted), key)


def test_the_curriculum_is_the_authors() -> None:
    told = GOLDEN["ctkd_lambda_of_epoch"].split(":", 1)[1].split(" for ")[0]
    for epoch, expected in enumerate(told.split(","), start=1):
        assert curriculum(epoch / 240, 10 / 240) == pytest.approx(float(expected), abs=1e-11)


def test_every_method_has_a_case() -> None:
    """A table entry that no case reaches would be a proof of nothing."""
    cases = {method_of(case) for case in [*GOLDEN["cases"], *json.loads(SUBSET.read_text())["cases"]]}
    assert METHODS.keys() <= cases
