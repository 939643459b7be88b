"""Every method trains a network: stopped inside an epoch it goes on with the same bits, in parts and in half precision."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdx import losses
from kdx.losses.distillation import Weight
from kdx.losses.objective import Objective
from kdx.models.thin import resnet8
from tests import tiny
from tests.faults.test_resume import outcome, train
from tests.losses.examples import FEATURES, Option, options
from tests.training import make_training

BATCHES = 4  # an epoch of 30 images in batches of 8
EACH = [*options("multi-class"), Option("hinton", "binary-class"), Option("mlld", "binary-class")]
EACH += [option for option in options("multi-label") if option.name not in FEATURES]  # which never ask for the task
SHALLOW = {option.name for option in EACH} - {"combined", "fitnet", "mld", "pskd"}  # fitnet needs two stages


def pair(classes: int = 3) -> dict[str, object]:
    """Two thin networks of three stages, the same in every call."""
    torch.manual_seed(3)
    return {"network": resnet8(classes, 1), "teachers": {"teacher": resnet8(classes, 1)}}


def parts(option: Option) -> dict[str, object]:
    """What an option trains, the same in every call."""
    networks = pair(option.classes)
    hard, terms = option.terms()
    return {"hard": hard, "terms": terms, **networks, "task": option.task, "epochs": 2}


@pytest.mark.parametrize("amp, micro_batches", [("off", 1), ("bf16", 2)])
@pytest.mark.parametrize("option", EACH, ids=lambda option: f"{option.name}-{option.task}")
def test_stopped_inside_an_epoch_it_ends_with_the_same_bits(
    tmp_path: Path, option: Option, amp: str, micro_batches: int
) -> None:
    """Every option of conf/kd with its own numbers: losses are finite, in parts and in half precision too."""
    how = {"amp": amp, "micro_batches": micro_batches}
    whole = train(tmp_path / "whole", **parts(option), **how)
    train(tmp_path / "parts", micro_batches * (BATCHES + 2) - 1, **parts(option), **how)
    torch.rand(7)
    train(tmp_path / "parts", **parts(option), **how)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    rows = whole.history
    assert all(
        torch.isfinite(torch.tensor(value)) for row in rows for value in row.values() if isinstance(value, float)
    )


@pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES)
def test_a_method_of_features_changes_what_is_trained(tmp_path: Path, make: Callable[[], Objective]) -> None:
    """Its gradient arrives in the network through the hooks, and its own parameters are trained."""
    with_it = make_training(tmp_path / "with", **pair(), objective=make(), hard=0.0, select="loss")
    before = {name: value.clone() for name, value in with_it.network.named_parameters() if "classifier" not in name}
    own = {name: value.clone() for name, value in with_it.trainer.learner.objective.named_parameters()}
    with_it.fit(epochs=1)
    assert all(
        not torch.equal(value, before[name])
        for name, value in with_it.network.named_parameters()
        if name in before and "stage1.0.conv1" in name
    )
    assert all(
        not torch.equal(value, own[name]) for name, value in with_it.trainer.learner.objective.named_parameters()
    )


def test_two_teachers_have_an_adapter_each(tmp_path: Path) -> None:
    how = {**pair(), "teachers": {"teacher": resnet8(3, 1), "assistant": resnet8(3, 1)}}
    training = make_training(tmp_path, **how, objective=losses.FitNet(), several="each")
    names = {name.split("regressor")[0] for name, _ in training.trainer.learner.objective.named_parameters()}
    assert len(names) == 2
    training.fit()
    first, second = (
        training.trainer.learner.objective.state_dict()[f"{name}regressor.conv.weight"] for name in sorted(names)
    )
    assert not torch.equal(first, second)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_every_method_sees_in_compiled_networks_what_it_sees_in_others(tmp_path: Path) -> None:
    """All options as terms of one loss, of which reviewkd and hinton are trained: adapters, maps, pooled features."""
    found = {}
    for mode in (None, "default"):
        torch.manual_seed(3)
        terms = {option.name: option.terms()[1]["kd"] for option in options("multi-class") if option.name in SHALLOW}
        terms |= {
            name: replace(term, weight=Weight.of(0))
            for name, term in terms.items()
            if name not in ("reviewkd", "hinton")
        }
        how = {"teachers": {"teacher": tiny.wide(3, 1)}, "terms": terms, "compile_mode": mode}
        training = make_training(tmp_path / str(mode), epochs=1, network=tiny.network(3, 1), augment=(), **how)
        training.network.drop.p = 0.0  # compiled code draws other numbers
        training.fit()
        found[mode] = {key: value for key, value in training.history[0].items() if key.startswith("train_")}
    assert {f"train_{name}_feature_loss" for name in SHALLOW & set(FEATURES)} < set(found[None])
    assert found[None] == pytest.approx(found["default"], rel=1e-3)
