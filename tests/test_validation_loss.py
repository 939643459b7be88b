"""Validation's loss: one quantity in all epochs of a training, by which the best of them can be chosen."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kdx.chain.context import make_run_context
from kdx.chain.fingerprints import stage_fingerprint
from kdx.chain.objective import build_objective
from kdx.checkpoint import load_checkpoint
from kdx.errors import KdxError
from kdx.losses import PKT, AttentionTransfer, Hinton
from kdx.losses.distillation import Term, Weight
from kdx.losses.hard import HardLoss
from kdx.training.evaluation import logits_of
from tests import tiny
from tests.conftest import settings_of
from tests.training import Training, make_training

RAMP = {"from": 0, "to": 2, "until": 0.8}
RAMPS = {  # hard, and each term's method with its weight
    "of a term": (0.5, {"kd": (Hinton(2.0), RAMP)}),
    "of one of two terms": (0.5, {"a": (Hinton(2.0), 0.3), "b": (Hinton(5.0), RAMP)}),
    "of the labels": ({"from": 3, "to": 0.5, "until": 0.8}, {"kd": (Hinton(2.0), 0.7)}),
    "of the labels alone": ({"from": 3, "to": 0.5, "until": 0.8}, {}),
    "of both, crossing": ({"from": 1, "to": 0, "until": 0.8}, {"kd": (Hinton(2.0), RAMP)}),
}


def ramping(folder: Path, name: str, **recipe: Any) -> tuple[Training, float, dict[str, float]]:
    """A training with weights that ramp, and the weights at its end: of the labels and of each term."""
    hard, given = RAMPS[name]
    terms = {key: Term(copy.deepcopy(method), Weight.of(weight)) for key, (method, weight) in given.items()}
    teachers = {"teacher": tiny.wide(3, 1)} if terms else {}
    training = make_training(folder, teachers=teachers, terms=terms, hard=Weight.of(hard), **recipe)
    return training, Weight.of(hard).end, {key: term.weight.end for key, term in terms.items()}


@pytest.mark.parametrize("name", RAMPS)
def test_validation_compares_all_epochs_by_the_weights_of_the_end(tmp_path: Path, name: str) -> None:
    """A ramp moves the training's loss from epoch to epoch, but not what chooses among the epochs."""
    training, hard, weights = ramping(tmp_path, name, epochs=5, select="loss")
    val, precision, by_labels = training.trainer.val, training.trainer.precision, []

    def ask(epoch: int) -> None:
        logits = logits_of(training.network, val, precision)
        by_labels.append(float(torch.nn.functional.cross_entropy(logits, val.labels)))

    best = training.trainer.fit(training.keeper, ask)
    for row, alone in zip(training.history, by_labels, strict=True):
        names = [f"val_{key}_soft_loss" if len(weights) > 1 else "val_soft_loss" for key in weights]
        soft = sum(weight * row[name] for weight, name in zip(weights.values(), names, strict=True))
        assert row["val_loss"] == pytest.approx(hard * alone + soft, rel=1e-5)
    losses = [row["val_loss"] for row in training.history]
    assert best.epoch == 1 + losses.index(min(losses))


def test_a_ramp_neither_ends_a_training_nor_lowers_its_rate(tmp_path: Path) -> None:
    training = make_training(
        tmp_path,
        epochs=10,
        hard=Weight.of({"from": 0.1, "to": 3, "until": 0.9}),
        select="loss",
        patience=2,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.005),
        schedule=lambda optimizer: ReduceLROnPlateau(optimizer, patience=1),
    )
    assert training.fit().epoch > 5
    assert training.history[-1]["learning_rate"] == training.history[0]["learning_rate"]


def test_loss_does_not_choose_where_it_would_be_zero_in_every_epoch() -> None:
    ends = ["kd.hard={from: 1, to: 0, until: 0.5}", "kd.weight={from: 1, to: 0, until: 0.5}"]
    stage = settings_of("kd=dkd", *ends, "select=loss").stage("student")
    with pytest.raises(KdxError, match="^select=loss: kd.hard, kd.weight end at 0, .* choose accuracy, auc, f1$"):
        build_objective(stage, HardLoss("multi-class"), tiny.dataset())
    build_objective(settings_of("kd=dkd", *ends).stage("student"), HardLoss("multi-class"), tiny.dataset())


FALLING = {"from": 1, "to": 0, "until": 0.3}


@pytest.mark.parametrize(
    ("hard", "of_logits"), [(0, 0), (FALLING, 0), (0, FALLING), (FALLING, FALLING), (0, None)], ids=str
)
def test_where_features_alone_weigh_at_the_end_validation_compares_them(tmp_path: Path, hard, of_logits) -> None:
    """By terms that weigh nothing, or nothing in the end, a loss on validation would be 0 in every epoch."""
    terms = {"at": Term(AttentionTransfer(["norm"]), Weight.of(10))}
    terms |= {} if of_logits is None else {"hinton": Term(Hinton(2.0), Weight.of(of_logits))}
    teachers = {"teacher": tiny.wide(3, 1)}
    training = make_training(tmp_path, epochs=4, teachers=teachers, terms=terms, hard=Weight.of(hard), select="loss")
    best = training.fit()
    losses = [row["val_loss"] for row in training.history]
    assert min(losses) > 0 and best.epoch == 1 + losses.index(min(losses)) > 1
    name = "val_at_feature_loss" if len(terms) > 1 else "val_feature_loss"
    assert losses == pytest.approx([10 * row[name] for row in training.history], rel=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.6, 0.9999999])
def test_features_alone_are_validated_by_the_weights_that_are_shipped(tmp_path: Path, ema: float) -> None:
    terms = {"pkt": Term(PKT("pooled"), Weight.of(100))}
    teacher = {"teacher": tiny.wide(3, 1)}
    training = make_training(tmp_path, epochs=4, teachers=teacher, terms=terms, hard=0.0, select="loss", ema=ema)
    best = training.fit()
    trainer = training.trainer
    training.network.load_state_dict(load_checkpoint(tmp_path / best.file)["model"])
    trainer.validated = trainer.learner.eval()
    with torch.no_grad():
        assert trainer._compare_features()["loss"] == pytest.approx(best.value, rel=1e-5)
    losses = [row["val_loss"] for row in training.history]
    assert (max(losses) - min(losses) < 1e-3 * losses[0]) == (ema > 0.9)


@pytest.mark.parametrize(
    ("overrides", "anew"),
    [
        (["kd=hinton"], False),
        (["kd=dkd", "epochs=10"], False),  # the ramp ends within the first epoch
        (["kd=dkd", "epochs=120"], True),
        (["kd=at"], False),
        (["kd=pkt", "kd.hard=0", "select=loss"], False),
        (["kd=pkt", "kd.hard=0", "select=loss", "ema=0.9"], True),
        (["kd=pkt", "select=loss", "ema=0.9"], False),
        (["kd=crd", "kd.hard=0", "select=loss"], True),
        (["kd=crd"], False),
        (["kd=combined", "kd.hard=0"], False),
        (["kd=combined", "kd.hard=0", "kd.terms.hinton.weight=0", "select=loss"], True),
        (["kd=combined", "kd.hard={from: 1, to: 0, until: 0.5}", "epochs=4"], True),
    ],
)
def test_only_stages_whose_best_epoch_may_be_another_get_a_new_fingerprint(
    overrides: list[str], anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(*overrides)
    context = make_run_context(settings, tiny.dataset())
    now = stage_fingerprint(context, settings.stage("student"), "guide")
    monkeypatch.setattr("kdx.chain.fingerprints.VALIDATION_VERSION", 3)
    assert (stage_fingerprint(context, settings.stage("student"), "guide") != now) == anew
