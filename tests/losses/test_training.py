"""Every method trains a network: stopped inside an epoch it goes on with the same bits, in parts and in half precision."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdx import losses
from kdx.losses.objective import Objective
from kdx.models.thin import resnet8
from tests import tiny
from tests.faults.test_resume import outcome, train
from tests.losses.examples import FEATURES, MULTI, SINGLE
from tests.training import make_training

BATCHES = 4  # an epoch of 30 images in batches of 8
Make = Callable[[], Objective]
EACH = [(name, make, "multi-class") for name, make in (SINGLE | FEATURES).items()]
EACH += [(f"{name}-multi-label", make, "multi-label") for name, make in (MULTI | FEATURES).items()]
EACH += [("dist-binary", lambda: losses.DIST(beta=0.0), "binary-class")]
each_method = pytest.mark.parametrize("make, task", [each[1:] for each in EACH], ids=[each[0] for each in EACH])


def options(make: Make, task: str) -> dict[str, object]:
    """Two thin networks of three stages; the same in every call."""
    torch.manual_seed(3)
    classes = 2 if task == "binary-class" else 3
    return {
        "objective": make(),
        "network": resnet8(classes, 1),
        "teachers": {"teacher": resnet8(classes, 1)},
        "task": task,
        "epochs": 2,
    }


@pytest.mark.parametrize("amp, micro_batches", [("off", 1), ("bf16", 2)])
@each_method
def test_stopped_inside_an_epoch_it_ends_with_the_same_bits(
    tmp_path: Path, make: Make, task: str, amp: str, micro_batches: int
) -> None:
    how = {"amp": amp, "micro_batches": micro_batches}
    whole = train(tmp_path / "whole", **options(make, task), **how)
    train(tmp_path / "parts", micro_batches * (BATCHES + 2) - 1, **options(make, task), **how)
    torch.rand(7)
    train(tmp_path / "parts", **options(make, task), **how)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    rows = whole.history
    assert all(
        torch.isfinite(torch.tensor(value)) for row in rows for value in row.values() if isinstance(value, float)
    )


@pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES)
def test_a_method_of_features_changes_what_is_trained(tmp_path: Path, make: Make) -> None:
    """Its gradient arrives in the network through the hooks, and its own parameters are trained."""
    with_it = make_training(tmp_path / "with", **options(make, "multi-class"), hard=0.0)
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
    how = options(losses.FitNet, "multi-class")
    how["teachers"] = {"teacher": resnet8(3, 1), "assistant": resnet8(3, 1)}
    training = make_training(tmp_path, **how, several="each")
    names = {name.split("regressor")[0] for name, _ in training.trainer.learner.objective.named_parameters()}
    assert len(names) == 2
    training.fit()
    first, second = (
        training.trainer.learner.objective.state_dict()[f"{name}regressor.conv.weight"] for name in sorted(names)
    )
    assert not torch.equal(first, second)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_features_are_seen_in_compiled_networks(tmp_path: Path) -> None:
    """Adapters and buffers, maps of student and teacher, through hooks that were there before the compiler."""
    losses_of = {}
    for mode in (None, "default"):
        torch.manual_seed(3)
        how = {"teachers": {"teacher": tiny.wide(3, 1)}, "objective": losses.ReviewKD(), "compile_mode": mode}
        training = make_training(tmp_path / str(mode), epochs=1, network=tiny.network(3, 1), augment=(), **how)
        training.network.drop.p = 0.0  # compiled code draws other numbers
        losses_of[mode] = training.fit() and training.history[0]["train_feature_loss"]
    assert losses_of[None] == pytest.approx(losses_of["default"], rel=1e-3)
