import os
import pickle
import random

import numpy as np
import pytest
import torch

from kdx.data.batches import Batches, Preprocessing
from kdx.reproducibility import RandomState, derive_seed, generator, setup_reproducibility
from tests import tiny


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_state_goes_back_for_every_generator_and_is_plain_data() -> None:
    setup_reproducibility(3)
    state = RandomState().state_dict()
    first = draws()
    assert draws() != first
    RandomState().load_state_dict(state)
    assert draws() == first


@pytest.mark.parametrize("cards", [0, 1, 2, 4])
def test_a_state_of_two_cards_goes_back_where_there_are_fewer_or_more(
    cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: dict[int, str] = {}
    kept = RandomState().state_dict() | {"cuda": ["of the first", "of the second"]}
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, number: restored.update({number: state}))
    RandomState().load_state_dict(kept)
    assert restored == dict(list(enumerate(kept["cuda"]))[:cards])


def test_seeds_of_purposes_differ_and_never_change() -> None:
    purposes = [("student", "order", 1), ("student", "order", 2), ("student", "augment", 1), ("teacher", "order", 1)]
    seeds = {derive_seed(42, *purpose) for purpose in purposes} | {derive_seed(43, *purposes[0])}
    assert len(seeds) == 5
    assert derive_seed(42, "student", "init") == 4451266179047153223  # results of earlier versions stay repeatable
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_or_fast(deterministic: bool) -> None:
    """pitfall(15): not deterministic means that cudnn may choose; the hash seed of a started process is left alone."""
    before = os.environ.get("PYTHONHASHSEED")
    setup_reproducibility(0, deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.backends.cudnn.deterministic == deterministic
    assert os.environ.get("PYTHONHASHSEED") == before


@pytest.mark.parametrize("theirs", [None, ":16:8"])
def test_cublas_repeats_its_bits_where_nobody_chose_a_workspace(
    theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", theirs or "")
    if theirs is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    setup_reproducibility(0, deterministic=False)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == theirs
    setup_reproducibility(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (theirs or ":4096:8")


def test_threads_are_set() -> None:
    setup_reproducibility(0, threads=1)
    assert torch.get_num_threads() == 1


def test_data_pickles() -> None:
    """pitfall(19): jobs and workers get the data by pickling: no lambdas, no local classes."""
    data = tiny.dataset()
    batches = Batches(
        data.train, Preprocessing((0.5,), (0.5,)), batch_size=4, device=torch.device("cpu"), augment=["crop"]
    )
    again = pickle.loads(pickle.dumps(batches))
    for (images, labels, *_), (same, same_labels, *_) in zip(batches.epoch(1), again.epoch(1), strict=True):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)


def test_images_keep_their_size_unless_asked() -> None:
    """pitfall(20): a network for 8 px gets 8 px; scaling is one batched operation."""
    data = tiny.dataset()
    for resize, size in ((None, 8), (24, 24)):
        batches = Batches(data.val, Preprocessing((0.5,), (0.5,), resize), batch_size=4, device=torch.device("cpu"))
        assert next(batches.epoch(0))[0].shape == (4, 1, size, size)
