"""Each augmentation against torchvision, or against a computation image by image; and against what it was before."""

import hashlib
import math
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as tvf
from torch import Tensor
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from kdx.augmentations import (
    Augmentation,
    Crop,
    Erase,
    Flip,
    Jitter,
    ResizedCrop,
    Rotate,
    Trivial,
    plain_augment,
    read_augment,
)
from kdx.data.augment.boxes import centred_box, draw_boxes
from kdx.data.augment.frame import Frame, Rows
from kdx.data.augment.geometry import crop, flip
from kdx.data.augment.trivial import OPERATIONS, STRENGTHS, numbers_of, trivial
from kdx.data.augment.views import Views
from kdx.data.batches import Batches, Preprocessing
from tests import tiny

CPU = torch.device("cpu")
SIZES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 17, 24), (1, 2, 2)]
BEFORE = {  # sha256 of two epochs by the code before augmentations had options; crop and flip compute no fractions
    ("crop",): ("775ddab7ed15ee9b", "03d8cd98d2c9f3c9"),
    ("flip",): ("8e15c944e3a741cb", "c4c0d0ac37d0ab90"),
    ("flip", "crop"): ("c20eecef0f791071", "e10c588eb3507f98"),
}
SUMS_BEFORE = {  # the same with jitter, whose last bits are the processor's: pixels times their place, summed
    ("jitter",): (21090110.967479706, 47445948558.55774),
    ("jitter", "flip"): (20979116.87092209, 47136526531.28464),
    ("crop", "flip", "jitter"): (17311045.508468628, 40585493250.55678),
}


def frame(size: tuple[int, int], seen: tuple[int, int] | None = None, colour: float = 100.0) -> Frame:
    return Frame(size, seen or size, torch.full((1, 1, 1), colour))


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Noise; one image of a single value, one nearly so, one with a black edge."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    images[1], images[2] = 7, images[2] // 8 + 100
    images[3, :, :1] = 0
    return images


def rows(numbers: Tensor) -> Rows:
    return Rows(numbers, numbers)


def views_of(augment: Augmentation, images: Tensor, epoch: int = 1, **options: Any) -> tuple[Tensor, Tensor]:
    """The numbers of an epoch, and the images with them."""
    height, width = images.shape[2:]
    views = Views([augment], options.get("frame", frame((height, width))), options.get("seed", 0), "student")
    (numbers,) = views.draw(epoch, len(images))
    return numbers, views.apply(images, [rows(numbers)])


@pytest.mark.parametrize("names", [*BEFORE, *SUMS_BEFORE], ids="+".join)
@pytest.mark.parametrize("as_mapping", [False, True])
def test_lists_of_before_give_the_bits_of_before(names: tuple[str, ...], as_mapping: bool) -> None:
    kinds = {"crop": Crop(), "flip": Flip(), "jitter": Jitter()}
    for which, (channels, size) in enumerate(((1, 8), (3, 32))):
        split = tiny.dataset(channels=channels, size=size, count=50).train
        plain = Preprocessing((0.0,) * channels, (1 / 255,) * channels)
        augment = [kinds[name] if as_mapping else name for name in names]
        batches = Batches(
            split, plain, batch_size=16, device=CPU, seed=7, name="student", augment=augment, shuffle=True
        )
        digest, total = hashlib.sha256(), 0.0
        for batch in (batch for epoch in (1, 2) for batch in batches.epoch(epoch)):
            digest.update(batch.images.numpy().tobytes())
            digest.update(batch.indices.numpy().tobytes())
            weights = torch.arange(batch.images[0].numel()).view(batch.images[0].shape)
            total += float((batch.images.double() * weights).sum())
        if names in BEFORE:
            assert digest.hexdigest()[:16] == BEFORE[names][which]
        else:
            assert total == pytest.approx(SUMS_BEFORE[names][which], rel=1e-7)


def test_crop_shifts_and_pads_with_zero() -> None:
    images = torch.full((64, 1, 8, 8), 9, dtype=torch.uint8)
    _, shifted = views_of(Crop(), images)
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    assert set(shifted.unique().tolist()) == {0, 9}
    centre = crop(images, rows(torch.full((64, 2), 0.5)), Crop(), frame((8, 8)))
    assert torch.equal(centre, images)


def test_crop_reaches_every_offset_and_keeps_channels_together() -> None:
    images = torch.arange(2 * 64, dtype=torch.uint8).view(1, 2, 8, 8).expand(3, -1, -1, -1)
    places = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999999, 0.999999]])
    shifted = crop(images, rows(places), Crop(), frame((8, 8)))
    assert torch.equal(shifted[0, :, 1:, 1:], images[0, :, :-1, :-1])
    assert torch.equal(shifted[2, :, :-1, :-1], images[0, :, 1:, 1:])
    further = crop(images, rows(places), Crop(padding=0.5), frame((8, 8)))
    assert torch.equal(further[0, :, 4:, 4:], images[0, :, :4, :4]) and not further[0, :, :4].any()


def test_flip_mirrors_by_its_chance() -> None:
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(2, -1, -1, -1)
    numbers = rows(torch.tensor([[0.1], [0.9]]))
    for chance, mirrored in ((0.5, [True, False]), (0.0, [False, False]), (1.0, [True, True])):
        flipped = flip(images, numbers, Flip(chance), frame((4, 4)))
        assert [torch.equal(one, images[0].flip(-1)) for one in flipped] == mirrored


def test_jitter_is_brightness_then_contrast_of_each_image() -> None:
    images = pictures(6, (3, 9, 9))
    numbers, changed = views_of(Jitter(brightness=0.5, contrast=0.9), images)
    for image, (first, second), found in zip(images.double(), (2 * numbers - 1).tolist(), changed, strict=True):
        brighter = image * (1 + 0.5 * first)
        expected = ((brighter - brighter.mean()) * (1 + 0.9 * second) + brighter.mean()).clamp(0, 255)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", SIZES[:-1], ids=str)
def test_rotation_is_torchvisions(shape: tuple[int, int, int]) -> None:
    images = pictures(40, shape)
    maps, turned = views_of(Rotate(degrees=90), images)
    angles = [math.degrees(math.atan2(row[3], row[0])) for row in maps.tolist()]
    assert max(angles) > 60 and min(angles) < -60 and max(map(abs, angles)) <= 90
    for image, angle, found in zip(images, angles, turned, strict=True):
        expected = tvf.rotate(image, angle, InterpolationMode.BILINEAR)
        assert (expected.int() - found.int()).abs().max() <= 1  # the angle came back through float32


@pytest.mark.parametrize("shape", SIZES[:-1], ids=str)
@pytest.mark.parametrize("seen", [None, (24, 24), (7, 9), (50, 40)], ids=str)
def test_resized_crop_is_torchvisions(shape: tuple[int, int, int], seen: tuple[int, int] | None) -> None:
    images = pictures(40, shape)
    there = frame((shape[1], shape[2]), seen)
    boxes, made = views_of(ResizedCrop(scale=(0.1, 1.0)), images, frame=there)
    assert made.shape == (40, shape[0], *there.seen) and made.dtype == torch.uint8
    for image, box, found in zip(images, boxes.tolist(), made, strict=True):
        expected = tvf.resized_crop(image.float(), *box, list(there.seen), antialias=True).round().clamp(0, 255)
        different = (expected - found).abs()
        assert different.max() <= 1 and (different > 0).float().mean() < 0.02  # ties of rounding


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (40, 30)], ids=str)
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.3), (0.2, 0.5))], ids=str)
def test_boxes_have_the_area_and_shape_that_were_asked_for(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    boxes, fits = draw_boxes(4000, size, scale, ratio, torch.Generator().manual_seed(0))
    top, left, tall, broad = boxes[fits].unbind(1)
    assert fits.float().mean() > 0.5
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= size[0]).all() and (left + broad <= size[1]).all()
    # rounding moves a side by up to half a pixel
    least, most = (tall - 0.5) * (broad - 0.5), (tall + 0.5) * (broad + 0.5)
    assert (most >= scale[0] * size[0] * size[1] - 1e-6).all() and (least <= scale[1] * size[0] * size[1] + 1e-6).all()
    assert ((broad + 0.5) / (tall - 0.5) >= ratio[0]).all() and ((broad - 0.5) / (tall + 0.5) <= ratio[1]).all()
    if scale[0] < scale[1] and size[0] == size[1]:  # uniform in area, but for the shapes that did not fit
        assert float((tall * broad).float().mean()) / (size[0] * size[1]) == pytest.approx(0.5, abs=0.06)


def test_boxes_reach_both_edges() -> None:
    boxes, _ = draw_boxes(2000, (8, 8), (0.25, 0.25), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert boxes[:, 0].unique().tolist() == boxes[:, 1].unique().tolist() == [0, 1, 2, 3, 4]


def test_where_no_box_fits_the_largest_about_the_centre_is_taken() -> None:
    _, fits = draw_boxes(20, (10, 100), (1.0, 1.0), (0.5, 2.0), torch.Generator().manual_seed(0))
    assert not fits.any()
    assert centred_box((10, 100), (0.5, 2.0)) == (0, 40, 10, 20)
    assert centred_box((100, 10), (0.5, 2.0)) == (40, 0, 20, 10)
    assert centred_box((10, 12), (0.5, 2.0)) == (0, 0, 10, 12)
    boxes, _ = views_of(ResizedCrop(scale=(1.0, 1.0), ratio=(0.5, 2.0)), pictures(20, (1, 10, 100)))
    assert boxes.tolist() == 20 * [[0, 40, 10, 20]]


@pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
def test_erase_fills_a_box_with_the_mean_colour(chance: float) -> None:
    images = pictures(400, (3, 16, 16)) // 2 + 128  # nothing of the colour 100
    boxes, erased = views_of(Erase(chance=chance, scale=(0.1, 0.2)), images)
    chosen = 0
    for image, (top, left, tall, broad), found in zip(images, boxes.tolist(), erased, strict=True):
        expected = image.clone()
        expected[:, top : top + tall, left : left + broad] = 100
        chosen += tall * broad > 0
        assert torch.equal(found, expected)
    assert chosen / 400 == pytest.approx(chance, abs=0.08)
    as_float = Views([Jitter(0.0, 0.0), Erase(1.0)], frame((16, 16), colour=99.5), 0, "")
    numbers = [rows(one) for one in as_float.draw(1, len(images))]
    assert (as_float.apply(images, numbers) == 99.5).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_every_operation_of_trivial_is_torchvisions_bit_for_bit(shape: tuple[int, int, int], number: int) -> None:
    name, (strengths, signed) = list(TrivialAugmentWide()._augmentation_space(STRENGTHS).items())[number]
    images = pictures(STRENGTHS, shape)
    for sign in (1, -1):
        operation, signs = torch.full((STRENGTHS,), number), torch.full((STRENGTHS,), sign)
        numbers = numbers_of(operation, torch.arange(STRENGTHS), signs, 32.0, (shape[1], shape[2])).float()
        changed = trivial(images, rows(numbers), Trivial(), frame((shape[1], shape[2])))
        for at, image in enumerate(images):
            strength = float(strengths[at]) * (sign if signed else 1) if strengths.ndim else 0.0
            expected = _apply_op(image, name, strength, InterpolationMode.NEAREST, None)
            assert torch.equal(changed[at], expected), (name, at)


def test_trivial_draws_every_operation_strength_and_sign_alike() -> None:
    images = pictures(20_000, (1, 4, 4))
    numbers, mixed = views_of(Trivial(translate=2.0), images)
    counts = torch.bincount(numbers[:, 0].long(), minlength=len(OPERATIONS))
    assert len(counts) == len(OPERATIONS) and counts.min() > 1250 and counts.max() < 1600
    brightness = numbers[numbers[:, 0] == OPERATIONS.index("brightness"), 1]
    assert len(brightness.unique()) == 2 * STRENGTHS - 1
    assert float((brightness < 1).float().mean()) == pytest.approx(30 / 62, abs=0.05)
    shifts = numbers[numbers[:, 0] == OPERATIONS.index("translate_x"), 3]
    assert sorted(shifts.unique().tolist()) == [-2, -1, 0, 1, 2]
    alone = [
        trivial(one[None], Rows(row[None], row[None]), Trivial(), frame((4, 4)))
        for one, row in zip(images[:200], numbers[:200], strict=True)
    ]
    assert torch.equal(torch.cat(alone), mixed[:200])


ALL = [ResizedCrop(), Crop(), Flip(), Rotate(), Trivial(), Jitter(), Erase()]


@pytest.mark.parametrize("augment", [*([one] for one in ALL), ALL], ids=lambda found: "+".join(o.name for o in found))
def test_a_view_is_a_function_of_seed_role_epoch_and_image(augment: list[Augmentation]) -> None:
    split = tiny.dataset(channels=3, size=16, count=40).train
    before = torch.get_rng_state()

    def seen(epoch: int = 2, batch_size: int = 8, **how: Any) -> Tensor:
        options = {"seed": 1, "name": "student", "shuffle": True} | how
        plain = Preprocessing((0.5,) * 3, (0.25,) * 3)
        batches = Batches(split, plain, batch_size=batch_size, device=CPU, augment=augment, **options)
        images = torch.zeros(40, 3, 16, 16)
        for batch in batches.epoch(epoch):
            images[batch.indices] = batch.images
        return images

    first = seen()
    torch.testing.assert_close(seen(batch_size=5), first, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen(shuffle=False), first, rtol=0, atol=1e-5)
    for other in (seen(epoch=3), seen(seed=2), seen(name="teacher")):
        assert not torch.equal(other, first)
    assert torch.equal(before, torch.get_rng_state())
    assert first.isfinite().all()


def test_other_augmentations_change_nothing_of_an_images_numbers() -> None:
    alone = {one.name: Views([one], frame((16, 16)), 0, "s").draw(1, 10)[0] for one in ALL}
    together = Views(reversed(ALL), frame((16, 16)), 0, "s")
    drawn = dict(zip((one.name for one in together.augment), together.draw(1, 10), strict=True))
    assert list(drawn) == [one.name for one in ALL]
    for name in ("resized_crop", "rotate", "trivial", "erase", "crop"):  # flip and jitter follow crop, as ever
        assert torch.equal(alone[name], drawn[name]), name


def test_resized_crop_makes_the_size_that_networks_see_and_what_follows_is_drawn_for_it() -> None:
    split = tiny.dataset(size=24, count=20).train
    plain = Preprocessing((0.0,), (1 / 255,), resize=12)
    augment = [ResizedCrop(), Erase(chance=1.0, scale=(0.3, 0.3), ratio=(1.0, 1.0))]
    batches = Batches(split, plain, batch_size=20, device=CPU, augment=augment, seed=3)
    (batch,) = batches.epoch(1)
    assert batch.images.shape == (20, 1, 12, 12)
    (_, boxes) = batches.views.draw(1, 20)
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 12 and boxes[:, 2].unique().tolist() == [7]


def test_equal_augmentations_are_written_alike_and_lists_of_before_as_they_were() -> None:
    """What fingerprints hold: names alone for the first three as they come, every number of all others."""
    assert plain_augment(read_augment(["jitter", "crop", "none", "crop"])) == ["crop", "jitter"]
    assert plain_augment(read_augment("flip, crop")) == plain_augment(read_augment({"flip": None, "crop": {}}))
    assert plain_augment(read_augment({"crop": {"padding": 0.125}})) == ["crop"]
    assert plain_augment(read_augment({"crop": {"padding": 1}})) == [{"crop": {"padding": 1.0}}]
    assert plain_augment(read_augment(["mixup"])) == [{"mixup": {"alpha": 0.2}}]
    assert (
        plain_augment(read_augment([])) == plain_augment(read_augment({})) == plain_augment(read_augment("none")) == []
    )
