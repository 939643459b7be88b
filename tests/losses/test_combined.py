"""Several methods at once: named terms with weights, from yaml and the command line, refused by the name of the term."""

import csv
import re
from collections.abc import Callable

import pytest
import torch

from kdx import losses
from kdx.chain.check import check_stage
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.fingerprints import stage_fingerprint
from kdx.chain.objective import build_objective, build_terms
from kdx.errors import KdxError
from kdx.losses.distillation import Distillation, Term, Weight
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.models.features import Outputs
from tests import tiny
from tests.conftest import TinyRun, settings_of
from tests.losses.examples import lesson, outputs

DKD = "+kd.terms.dkd={_target_: kdx.losses.DKD, weight: {from: 0, to: 2, until: 0.5}}"


class Lonely(Objective):
    """A user's own method that fails in its first step."""

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, torch.Tensor]:
        raise RuntimeError("it is cold")


def own_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (student - teacher).square().mean()


class OwnLoss:
    """A user's own loss with a number called weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.weight * own_loss(student, teacher, labels)


def checked(*overrides: str) -> None:
    settings = settings_of("kd=combined", *overrides)
    context = make_run_context(settings, load_dataset(settings))
    check_stage(context, settings.stage("student"), {"assistant": tiny.wide(3, 1)})


def objective_of(*overrides: str) -> Distillation:
    stage = settings_of("kd=combined", *overrides).stage("student")
    return build_objective(stage, HardLoss("multi-class"), tiny.dataset())


def test_the_loss_is_the_sum_of_the_terms() -> None:
    objective = objective_of(DKD, "kd.hard=0.5", "kd.terms.at.weight=500")
    student, teacher = outputs("student"), outputs("teacher")
    objective.prepare([Facts("multi-class", 5, 20, student, teacher)])
    parts = objective(student, [teacher], lesson(progress=0.25))
    assert [key for key in parts if key.endswith("_loss")] == [
        "hard_loss",
        "hinton_soft_loss",
        "at_feature_loss",
        "dkd_soft_loss",
        "dkd_target_loss",
        "dkd_others_loss",
    ]
    expected = 0.5 * parts["hard_loss"] + 0.7 * parts["hinton_soft_loss"] + 500 * parts["at_feature_loss"]
    expected = expected + 2 * 0.5 * parts["dkd_soft_loss"]  # half of the way to 2
    assert float(parts["loss"]) == pytest.approx(float(expected), rel=1e-6)
    alone = losses.AttentionTransfer()(student, teacher, lesson())["loss"]
    assert float(parts["at_feature_loss"]) == pytest.approx(float(alone))


def test_terms_are_columns_of_the_log(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run("kd=combined", "stage=student", "stage.student.guide=teacher", DKD, "epochs=1")
    (path,) = (run.folder / "student" / "logs").glob("*_log.csv")
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert {"train_hinton_soft_loss", "val_hinton_soft_loss", "train_at_feature_loss", "train_dkd_target_loss"} <= {
        *row
    }
    assert "val_at_feature_loss" not in row  # validation asks no teacher for its layers


@pytest.mark.parametrize(
    "overrides",
    [
        ["+kd@kd.terms.crd=crd", "kd.terms.crd.hard=null"],  # an option of conf/kd as a term
        ["~kd.terms.at"],
        ["~kd.terms.at", "kd.cache_logits=true"],
        ["+kd.terms.x={_target_: tests.losses.test_combined.own_loss, _partial_: true, weight: 3}"],
        ["+kd.terms.x={_target_: tests.losses.test_combined.OwnLoss, weight: 3}"],
        ["+kd.terms.theta={_target_: kdx.losses.CTKD}", "kd.lr=0.1"],
    ],
)
def test_terms_are_added_and_taken_away_on_the_command_line(overrides: list[str]) -> None:
    checked(*overrides)


def test_a_number_called_weight_of_ones_own_loss_is_the_losss() -> None:
    kd = {"x": {"_target_": "tests.losses.test_combined.OwnLoss", "weight": 3.0}}
    _, terms = build_terms({"_target_": "kdx.losses.Combined", "terms": kd})
    assert terms["x"].weight == Weight.of(1) and terms["x"].method.loss.weight == 3.0


RIGHT = "a number of at least 0 is needed, or {from"
REFUSED = [
    (["kd.terms.at.weight=-1"], f"kd.terms.at.weight=-1: {RIGHT}"),
    (["kd.terms.at.weight={from: 0, to: 1, until: 20}"], "kd.terms.at.weight={'from': 0, 'to': 1, 'until': 20}: "),
    (["kd.hard=abc"], f"kd.hard=abc: {RIGHT}"),
    (["kd.terms.hinton.temperature=nan"], "kd.terms.hinton.temperature=nan: a finite number above 0"),
    (
        ["+kd.terms.at.weigth=1"],
        "kd.terms.at.weigth: kdx.losses.AttentionTransfer has no such key; did you mean 'weight'",
    ),
    (["+kd.terms.at.powr=1"], "kd.terms.at.powr: .*did you mean 'power'. its keys: layers"),
    (["kd.terms.at.layers=stage"], "kd.terms.at.layers: .*did you mean 'stages'"),
    (["+kd.terms.at.teacher_layers=stags"], "kd.terms.at.teacher_layers: .*did you mean 'stages'.*in the assistant"),
    (["kd.terms.at.layers=pooled"], r"kd.terms.at.layers: maps \(B, C, H, W\) are needed"),
    (["+kd.terms.x={_target_: kdx.losses.FitNet}"], "kd.terms.x.hint=-2: layers gives 1 map"),
    (["+kd.terms.hinton.alpha=0.5"], "kd.terms.hinton.alpha=0.5: a term has a weight of its own"),
    (["+kd.terms.hinton.lr=0.5"], "kd.terms.hinton.lr=0.5: kd.lr says it for all terms"),
    (["+kd@kd.terms.crd=crd"], "kd.terms.crd.hard=1.0: kd.hard says it for all terms"),
    (["+kd.temperature=3"], "kd.temperature: no such key"),
    (["+kd.term={a: 1}"], "kd.term: no such key; did you mean 'terms'"),
    (["~kd.terms"], "kd.terms=None: a mapping"),
    (["~kd.terms.at", "~kd.terms.hinton"], "kd.terms={}: a mapping"),
    (["kd.terms=5"], "kd.terms=5: a mapping"),
    (["kd.terms.at=5"], "kd.terms.at._target_=None: the dotted name of one method is needed"),
    (["+kd.terms.x={weight: 3}"], "kd.terms.x._target_=None: the dotted name of one method is needed"),
    (["+kd.terms.x={_target_: kdx.losses.Combined}"], "kd.terms.x._target_=kdx.losses.Combined: "),
    (["+kd.terms.x={_target_: kdx.losses.Nope}"], "kd.terms.x: kdx.losses.Nope cannot be built: "),
    (["+kd.terms.x={_target_: kdx.losses.MLD}"], "kd.terms.x: kdx.losses.MLD is not defined for multi-class sets"),
    (["+kd.terms.x={_target_: tests.tiny.OneArgument}"], "kd.terms.x: tests.tiny.OneArgument is no loss of three"),
    (["+kd.terms.x={_target_: tests.losses.test_combined.Lonely}"], "kd.terms.x: tests.*Lonely fails in a training"),
    (["+kd.terms.train={_target_: kdx.losses.DKD}"], "kd.terms.train: this word cannot name a term"),
    (["+kd.terms.3={_target_: kdx.losses.DKD}"], "kd.terms=3: a word that names a term is needed"),
    (["kd.cache_logits=true"], "kd.cache_logits=true: kd.terms.at, kdx.losses.AttentionTransfer, looks at layers"),
    (["kd.hard=0", "kd.terms.at.weight=0", "kd.terms.hinton.weight=0"], "all are 0, so that nothing"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_is_wrong_with_a_term_is_one_line_with_its_key(overrides: list[str], message: str) -> None:
    with pytest.raises(KdxError, match=f"^{message}" if message.startswith("kd") else message) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hinton", "dkd"])
def test_what_would_teach_nothing_is_refused_of_one_method_too(name: str) -> None:
    stage = settings_of(f"kd={name}", "kd.hard=0", "kd.weight=0").stage("student")
    with pytest.raises(KdxError, match=re.escape("kd.hard, kd.weight: all are 0")):
        build_objective(stage, HardLoss("multi-class"), tiny.dataset())


def test_every_number_and_version_of_a_term_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(*overrides: str) -> str:
        settings = settings_of("kd=combined", *overrides)
        return stage_fingerprint(make_run_context(settings, tiny.dataset()), settings.stage("student"), "guide")

    plain = mark()
    assert plain == mark() == mark("kd.cache_logits=false")
    changes = (["kd.terms.at.weight=2"], ["kd.terms.hinton.temperature=3"], ["~kd.terms.at"], [DKD], ["kd.hard=1"])
    assert len({plain, *(mark(*change) for change in changes)}) == 6
    monkeypatch.setattr(losses.AttentionTransfer, "version", 2)
    assert mark() != plain and mark("~kd.terms.at") != plain


def test_each_of_two_teachers_has_its_own_copy_of_every_term() -> None:
    terms = {"a": Term(losses.FitNet(), Weight.of(1)), "b": Term(losses.CTKD(), Weight.of(1))}
    objective = losses.Combined(HardLoss("multi-class"), Weight.of(1), terms, teachers="each")
    student, teachers = outputs("student"), [outputs("teacher"), outputs("teacher", seed=5)]
    objective.prepare([Facts("multi-class", 5, 20, student, teacher) for teacher in teachers])
    assert {name.split(".")[1] + name.split(".")[2] for name, _ in objective.named_parameters()} == {
        "a0", "a1", "b0", "b1",
    }  # fmt: skip
    parts = objective(student, teachers, lesson())
    parts["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert objective.term_of(objective.methods["a"][1]) is objective.terms["a"]
