"""dataset.balance: every class equally often an epoch."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from kdx.data.balance import balanced_order, balanced_size
from kdx.data.batches import Batches, Preprocessing
from kdx.data.dataset import Split
from kdx.errors import KdxError
from kdx.reproducibility import generator
from tests.conftest import TinyRun, same_weights, settings_of

CPU = torch.device("cpu")
PLAIN = Preprocessing((0.0,), (1 / 255,))


def long_tail(*counts: int) -> torch.Tensor:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def make(labels: torch.Tensor, **how: object) -> Batches:
    images = torch.randint(
        0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    options = {"batch_size": 8, "device": CPU, "shuffle": True, "balance": True, "seed": 3, "name": "student"} | how
    return Batches(Split(images, labels), PLAIN, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(70, 20, 10), (97, 1, 2), (5, 5, 5), (10, 11), (40, 0, 3)], ids=str)
def test_every_class_comes_equally_often_and_its_images_nearly_so(counts: tuple[int, ...]) -> None:
    labels = long_tail(*counts)
    there = [count for count in counts if count]
    for epoch in (1, 2):
        order = balanced_order(labels, generator(0, "order", epoch))
        assert len(order) == balanced_size(labels) == len(labels) // len(there) * len(there)
        shown = Counter(labels[order].tolist())
        assert set(shown.values()) == {len(labels) // len(there)}
        times = Counter(order.tolist())
        for label, count in enumerate(counts):
            each = [times[number] for number in torch.nonzero(labels == label).flatten().tolist()]
            assert not each or max(each) - min(each) <= 1, (label, count)
    first, second = (balanced_order(labels, generator(0, "order", epoch)) for epoch in (1, 2))
    assert not torch.equal(first, second) and not torch.equal(first, first.sort().values)


def test_all_images_of_a_frequent_class_come_in_time() -> None:
    labels = long_tail(90, 10)
    seen = {int(number) for epoch in range(1, 12) for number in balanced_order(labels, generator(0, "o", epoch))}
    assert seen == set(range(100))


def test_an_epoch_is_a_function_of_seed_role_and_epoch_and_can_be_resumed() -> None:
    labels = long_tail(30, 7, 3)
    whole = list(make(labels, augment=["crop", "mixup"], num_classes=3).epoch(2))
    torch.rand(3)
    rest = list(make(labels, augment=["crop", "mixup"], num_classes=3).epoch(2, start=2))
    assert len(whole) == len(make(labels)) == 5 and [len(batch.labels) for batch in whole] == [8, 8, 8, 8, 7]
    for one, two in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
    for other in (make(labels, seed=4), make(labels, name="teacher")):
        assert not torch.equal(next(other.epoch(2)).indices, whole[0].indices)


def test_an_image_that_comes_again_has_another_view() -> None:
    batches = make(long_tail(60, 1), augment=["crop", "erase"], batch_size=60)
    (batch,) = batches.epoch(1)
    again = batch.images[batch.labels == 1]
    assert len(again) == 30 and len(batch.indices[batch.labels == 1].unique()) == 1
    assert len({image.numpy().tobytes() for image in again}) > 10


def test_only_training_is_balanced() -> None:
    labels = long_tail(30, 7, 3)
    for batches in (make(labels, shuffle=False), make(labels).unshuffled()):
        seen = torch.cat([batch.indices for batch in batches.epoch(0)])
        assert torch.equal(seen, torch.arange(40)) and len(batches) == 5


def test_a_chain_trains_balanced_with_other_weights(tiny_run: Callable[..., TinyRun]) -> None:
    plain, one = tiny_run("stage.student.guide=teacher"), tiny_run("dataset.balance=true")
    assert one.statuses() == {"teacher": "trained", "assistant": "trained", "student": "trained"}
    assert not same_weights(plain.checkpoint("teacher"), one.checkpoint("teacher"))


def test_what_cannot_be_balanced_is_one_line() -> None:
    from kdx.chain.context import load_dataset, make_run_context

    settings = settings_of("dataset.balance=true", "+dataset.source.task=multi-label")
    with pytest.raises(KdxError, match=r"dataset.balance=true: an image of tiny has labels, not one class; choose"):
        make_run_context(settings, load_dataset(settings))
    with pytest.raises(KdxError, match=r"kd.cache_logits=true: dataset.balance=true shows an image in several views"):
        settings_of("dataset.balance=true", "kd.cache_logits=true")
    assert settings_of("dataset.balance=true", "kd.cache_logits=true", "dataset.augment=none").balance
    with pytest.raises(KdxError, match=r"dataset.balance=5: choose true, false"):
        settings_of("dataset.balance=5")
