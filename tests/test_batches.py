import pytest
import torch

from kdx.data.batches import IMAGENET_MEAN, IMAGENET_STD, Batches, Preprocessing, fits, mean_and_std
from kdx.data.dataset import Split
from tests import tiny

CPU = torch.device("cpu")
PLAIN = Preprocessing((0.0,), (1 / 255,))  # leaves pixel values as they are


def numbered(count: int, size: int = 4) -> Split:
    """Image i is filled with the value i; its label is i."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size).contiguous()
    return Split(images, torch.arange(count))


def order_of(batches: Batches, epoch: int, start: int = 0) -> list[int]:
    return [int(label) for batch in batches.epoch(epoch, start) for label in batch.labels]


def test_an_epoch_sees_every_image_once_with_its_label() -> None:
    batches = Batches(numbered(10), PLAIN, batch_size=4, device=CPU, shuffle=True)
    seen = [(batch.images, batch.labels) for batch in batches.epoch(1)]
    assert [len(labels) for _, labels in seen] == [4, 4, 2] and len(batches) == 3
    assert sorted(order_of(batches, 1)) == list(range(10))
    for images, labels in seen:
        assert torch.equal(images[:, 0, 0, 0].round().long(), labels)


def test_order_depends_on_seed_stage_and_epoch_only() -> None:
    def make(seed: int = 0, name: str = "student", batch_size: int = 4) -> Batches:
        return Batches(numbered(50), PLAIN, batch_size=batch_size, device=CPU, shuffle=True, seed=seed, name=name)

    torch.manual_seed(1)
    first = order_of(make(), 1)
    torch.rand(5)
    assert order_of(make(), 1) == first
    assert order_of(make(batch_size=8), 1) == first
    assert order_of(make(), 2) != first
    assert order_of(make(seed=1), 1) != first
    assert order_of(make(name="teacher"), 1) != first


def test_augmentation_leaves_order_and_global_generator_alone() -> None:
    """pitfall(14): each purpose draws from a generator of its own."""
    plain = Batches(numbered(30), PLAIN, batch_size=8, device=CPU, shuffle=True)
    augmented = Batches(numbered(30), PLAIN, batch_size=8, device=CPU, shuffle=True, augment=["crop", "flip", "jitter"])
    before = torch.get_rng_state()
    assert order_of(plain, 3) == order_of(augmented, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_can_go_on_from_a_step() -> None:
    split = Split(tiny.dataset().train.images, torch.arange(30))
    batches = Batches(split, PLAIN, batch_size=4, device=CPU, shuffle=True, augment=["crop", "jitter"])
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=3))
    assert len(rest) == len(whole) - 3
    for (images, labels, *_), (again, labels_again, *_) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again) and torch.equal(labels, labels_again)


def test_images_that_a_card_has_no_room_for_come_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(10, 1, 5, 5, dtype=torch.uint8)
    for free, there in ((1000, True), (999, False)):  # 250 bytes, a quarter of the first
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, 10**6))
        assert fits(images, torch.device("cuda")) is there and fits(images, CPU)

    def make() -> Batches:
        options = {"batch_size": 4, "device": CPU, "shuffle": True, "augment": ["crop", "jitter"]}
        return Batches(Split(tiny.dataset().train.images, torch.arange(30)), PLAIN, **options)  # type: ignore[arg-type]

    on_device = list(make().epoch(2, start=1))
    monkeypatch.setattr("kdx.data.batches.fits", lambda images, device: False)
    from_host = list(make().epoch(2, start=1))
    assert len(on_device) == len(from_host) == 7
    for one, two in zip(on_device, from_host, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True)) and one.known is two.known is None


def test_a_last_batch_of_one_is_dropped_in_training_only() -> None:
    training = Batches(numbered(9), PLAIN, batch_size=4, device=CPU, shuffle=True)
    assert len(training) == 2 and len(order_of(training, 1)) == 8
    testing = Batches(numbered(9), PLAIN, batch_size=4, device=CPU)
    assert order_of(testing, 0) == list(range(9)) and len(testing) == 3


def test_preprocessing_normalises_spreads_grey_and_resizes() -> None:
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    seen = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, resize=16).on(torch.device("cpu"))(images)
    assert seen.shape == (2, 3, 16, 16) and seen.dtype == torch.float32
    for channel in range(3):
        assert float(seen[0, channel].mean()) == pytest.approx(
            (1 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel], abs=1e-4
        )


def test_mean_and_std_are_those_of_the_pixels() -> None:
    images = tiny.dataset(channels=3, count=60).train.images
    mean, std = mean_and_std(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-5)
    assert std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-5)


def test_constant_images_do_not_divide_by_zero() -> None:
    _, std = mean_and_std(torch.full((4, 1, 4, 4), 7, dtype=torch.uint8))
    assert std[0] > 0
