"""mixup and cutmix against a computation pair by pair; what they do to labels, to training and to teachers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdx.augmentations import Augmentation, Mixup
from kdx.data.batches import Batch, Batches, Preprocessing
from kdx.data.dataset import Split
from kdx.data.mixing import Mixing, patches
from kdx.errors import KdxError
from kdx.losses.objective import Lesson, Objective
from kdx.models.features import Outputs
from tests import tiny
from tests.conftest import TinyRun, same_weights, settings_of
from tests.training import make_training

CPU = torch.device("cpu")
PLAIN = Preprocessing((0.0,), (1 / 255,))


def make(augment: Sequence[str | Augmentation], task: str = "multi-class", **how: Any) -> Batches:
    options = {"batch_size": 8, "seed": 1, "name": "student", "shuffle": True, "num_classes": 3} | how
    return Batches(tiny.dataset(task, count=30).train, PLAIN, device=CPU, augment=augment, **options)


def own_shares(batch: Batch, split: Split) -> Tensor:
    """The share of each image's own pixels, found again in a mixup of images that differ."""
    own, partner = split.images[batch.indices].double(), split.images[batch.indices.roll(1)].double()
    apart = own - partner
    return ((batch.images - partner) * apart).sum((1, 2, 3)) / apart.square().sum((1, 2, 3))


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_mixup_blends_each_image_and_label_with_the_one_before(task: str) -> None:
    split = tiny.dataset(task, count=30).train
    seen: list[float] = []
    for batch in make(["mixup"], task).epoch(1):
        shares = own_shares(batch, split)
        labels = split.labels if task == "multi-label" else torch.eye(3)[split.labels]
        for at, share in enumerate(shares.tolist()):
            one, other = batch.indices[at], batch.indices[at - 1]
            blend = share * split.images[one].double() + (1 - share) * split.images[other].double()
            torch.testing.assert_close(batch.images[at].double(), blend, rtol=0, atol=1e-3)
            target = share * labels[one].double() + (1 - share) * labels[other].double()
            torch.testing.assert_close(batch.targets[at].double(), target, rtol=0, atol=1e-5)
        assert torch.equal(batch.labels, split.labels[batch.indices]) and batch.known is None
        assert batch.targets.dtype == torch.float32
        seen += shares.tolist()
    assert len(seen) == 30 and min(seen) >= 0.5 - 1e-5 and max(seen) <= 1 + 1e-5


def test_mixups_shares_are_those_of_beta() -> None:
    """Folded to the larger half; the variance of Beta(a, a) is 1 / (4 (2 a + 1)) about 1/2."""
    for alpha in (1.0, 0.2, 100.0):
        mixing = Mixing([Mixup(alpha)], (8, 8), 3, 0, "s")
        share = mixing._draw_one(Mixup(alpha), 1, 20_000)
        assert float(share.min()) >= 0.5 and float(share.max()) <= 1
        assert float((share - 0.5).square().mean()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert mixing._draw_one(Mixup(0.01), 1, 20_000).isfinite().all()


def test_cutmix_pastes_a_box_and_counts_its_area() -> None:
    split, left = tiny.dataset(count=30).train, []
    for batch in (batch for epoch in range(1, 8) for batch in make(["cutmix"]).epoch(epoch)):
        own, partner = split.images[batch.indices].float(), split.images[batch.indices.roll(1)].float()
        torch.testing.assert_close(torch.where(batch.images.round() == own, own, partner), batch.images.round())
        for at in range(len(batch.labels)):
            pasted = (batch.images[at].round() != own[at])[0]
            rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
            if len(rows):
                box = torch.zeros(8, 8, dtype=torch.bool)
                box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
                inside = (batch.images[at].round() == partner[at])[0][box]
                assert inside.all()
            target = batch.targets[at]
            assert float(target.sum()) == pytest.approx(1, abs=1e-6)
            if batch.labels[at] != batch.labels[at - 1]:
                share = float(target[batch.labels[at]])
                assert share * 64 == pytest.approx(round(share * 64), abs=1e-4)  # whole pixels
                assert 1 - share >= float(pasted.sum()) / 64 - 1e-6
                left.append(share)
    assert min(left) < 0.5 and max(left) > 0.9  # at 8 px the largest box is 6 wide


def test_patches_are_those_of_the_paper() -> None:
    """Its own code, image by image: sides sqrt(1 - share), a uniform centre, cut off at the edges."""
    draw = np.random.default_rng(0)
    share, centre = draw.random(300), draw.random((300, 2))
    for box, part, (y, x) in zip(patches(share, centre, (20, 30)), share, centre, strict=True):
        tall, wide = int(20 * np.sqrt(1 - part)), int(30 * np.sqrt(1 - part))
        middle_y, middle_x = int(y * 20), int(x * 30)
        top, bottom = max(middle_y - tall // 2, 0), min(middle_y + tall // 2, 20)
        left, right = max(middle_x - wide // 2, 0), min(middle_x + wide // 2, 30)
        assert box.tolist() == [top, left, bottom - top, right - left]


def test_one_of_both_is_drawn_for_every_batch() -> None:
    batches = make(["mixup", "cutmix"], batch_size=2)
    kinds = []
    for epoch in (1, 2):
        for batch in batches.epoch(epoch):
            fractions = (batch.images - batch.images.round()).abs().amax() > 0.01
            kinds.append(bool(fractions))
    assert len(kinds) == 30 and 8 <= sum(kinds) <= 22


@pytest.mark.parametrize("augment", [["mixup"], ["cutmix"], ["crop", "mixup", "cutmix"]], ids="+".join)
def test_an_epoch_that_is_resumed_mixes_the_same_pairs(augment: list[str]) -> None:
    whole, rest = list(make(augment).epoch(3)), list(make(augment).epoch(3, start=2))
    assert len(rest) == len(whole) - 2
    for one, two in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
    for other in (make(augment, seed=2), make(augment, name="teacher")):
        assert not torch.equal(next(other.epoch(3)).images, whole[0].images)
    assert not torch.equal(next(make(augment).epoch(4)).images, whole[0].images)


def test_a_label_is_known_where_both_are() -> None:
    mixing = Mixing([Mixup()], (8, 8), 3, 0, "s")
    mix = mixing.of_epoch(1, 6, 1, CPU)
    known = torch.tensor([True, True, False, True, True, True])
    mixture = mix(torch.zeros(6, 1, 8, 8), torch.arange(6) % 3, known, torch.arange(6), 0)
    assert mixture.known is not None and mixture.known.tolist() == [True, True, False, False, True, True]
    assert Lesson(mixture.targets, torch.arange(6)).classes(torch.zeros(6, 3)).tolist() == [0, 1, 2, 0, 1, 2]


def test_without_mixing_targets_are_the_labels() -> None:
    (batch, *_) = make(["crop"]).epoch(1)
    assert batch.targets is batch.labels
    (batch, *_) = make(["mixup"]).unshuffled().epoch(1)
    assert batch.targets is batch.labels and torch.equal(batch.indices, torch.arange(8))
    assert make(["mixup"]).still is False and make([]).still is True


class Recorder(nn.Module):
    """A teacher that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = tiny.network(3, 1), []  # type: ignore[var-annotated]

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.net(images)


def test_a_teacher_sees_the_mixed_images_and_the_loss_their_shares(tmp_path: Path) -> None:
    """2106.05237: teacher and student must be shown the same."""
    recorder, targets, shown = Recorder(), [], []

    class Method(Objective):
        def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
            if student.logits.requires_grad:
                targets.append(lesson.targets)
            return {"loss": (student.logits - teacher.logits).square().mean()}

    training = make_training(
        tmp_path, epochs=1, teachers={"teacher": recorder}, objective=Method(), augment=("crop", "mixup")
    )
    training.network.register_forward_pre_hook(
        lambda network, given: shown.append(given[0].clone()) if network.training else None
    )
    training.fit()
    assert len(shown) == len(targets) == 4
    for images in shown:
        assert any(images.shape == other.shape and torch.equal(images, other) for other in recorder.seen)
    expected = list(training.trainer.train.epoch(1))
    for batch, images, shares in zip(expected, shown, targets, strict=True):
        assert torch.equal(batch.images, images) and torch.equal(batch.targets, shares) and shares.shape[1] == 3


@pytest.mark.parametrize("augment", ["{crop:{},mixup:{alpha:1}}", "[mixup,cutmix]", "[cutmix,trivial,erase]"])
def test_a_chain_trains_with_mixed_images(tiny_run: Callable[..., TinyRun], augment: str) -> None:
    first = tiny_run(f"dataset.augment={augment}", "stage.reuse=never", "kd=dkd")
    second = tiny_run(f"dataset.augment={augment}", "stage.reuse=never", "kd=dkd")
    assert same_weights(first.checkpoint("student"), second.checkpoint("student"))


def test_kept_logits_of_mixed_images_are_refused() -> None:
    with pytest.raises(KdxError, match=r"kd.cache_logits=true: logits of mixed images .* choose false, or .* mixup"):
        settings_of("dataset.augment={mixup:{}}", "kd.cache_logits=true")
    assert settings_of("dataset.augment={trivial:{}}", "kd.cache_logits=true").stage("student").cache_logits
    assert settings_of("dataset.augment=[mixup]", "kd.cache_logits=auto").augment == (Mixup(),)
    assert settings_of("dataset.augment=[mixup]", "kd.cache_logits=true", "kd=none").augment == (Mixup(),)
