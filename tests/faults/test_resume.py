"""A stage that stops anywhere and goes on ends with the same bits; every piece of saved state is needed for that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.errors import KdxError
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.models.features import Outputs
from kdx.training.stopping import Stopped, StopRequest
from tests import tiny
from tests.faults.toy import digest
from tests.test_trainer import rows_of
from tests.training import Training, make_training

STEPS = 4  # an epoch of the tiny trainer


class StopAfter(StopRequest):
    """Asks to stop once `left` training steps are done."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def step_done(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.number = 15


def train(folder: Path, stop_after: int | None = None, **options: Any) -> Training:
    """Resume in `folder`, and train until the end or for some steps only."""
    stop = StopAfter(stop_after or 0)
    training = make_training(folder, stop=stop, **options)
    training.resume(folder)
    if stop_after is None:
        training.fit()
        return training
    training.network.register_forward_hook(lambda module, *_: stop.step_done() if module.training else None)
    with pytest.raises(Stopped, match="SIGTERM"):
        training.fit()
    return training


def outcome(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder / "latest.pth")
    rows = [{k: v for k, v in row.items() if k != "epoch_time_sec"} for row in rows_of(folder / "log.csv")]
    (best,) = folder.glob("best_*.pth")
    kept = {name: digest(state[name]) for name in STATE if name != "progress"}
    return kept | {"rows": rows, "best": (best.name, digest(load_checkpoint(best)["model"]))}


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("stop_after", range(1, 3 * STEPS))
def test_stopped_after_any_step_it_ends_with_the_same_bits(tmp_path: Path, stop_after: int, amp: str) -> None:
    train(tmp_path / "whole", amp=amp)
    train(tmp_path / "parts", stop_after, amp=amp)
    torch.rand(7)
    train(tmp_path / "parts", amp=amp)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_stopped_at_every_single_step_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    for _ in range(3 * STEPS):
        train(tmp_path / "parts", 1)
    train(tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


AUGMENT = ("resized_crop", "rotate", "trivial", "jitter", "erase", "mixup", "cutmix")


@pytest.mark.parametrize("balance", [False, True])
def test_with_every_augmentation_it_ends_with_the_same_bits_too(tmp_path: Path, balance: bool) -> None:
    """Views, partners and shares are those of the epoch, wherever it is resumed."""
    how: dict[str, Any] = {"augment": AUGMENT, "balance": balance, "micro_batches": 2}
    train(tmp_path / "whole", **how)
    for _ in range(3 * STEPS):
        train(tmp_path / "parts", 1, **how)
    train(tmp_path / "parts", **how)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def forget(state: dict[str, Any], item: str) -> None:
    """Put what a training that never saved it would have in the place of one piece of saved state."""
    whole, _, piece = item.partition(".")
    fresh = make_training(Path("unused"), **everything()).trainer.state[whole].state_dict()
    if whole == "random":
        state[whole]["torch"] = torch.Generator().manual_seed(99).get_state()
    elif not piece:
        state[whole] = fresh
    elif piece == "best":
        state[whole][piece] = state[whole][piece] | {"scores": {"accuracy": 101.0, "loss": 0.0}}
    elif piece in ("history", "epoch_under_way"):
        state[whole][piece] = fresh[piece]
    else:
        under_way = {"step": 0, "count": 0, "learning_rate": 0.0, "sums": {}, "predictions": [], "labels": []}
        state[whole]["epoch_under_way"][piece] = under_way[piece]


class Centre(Objective):
    """An adapter that is trained on a hooked layer, a buffer that moves, dropout, and noise from the global generator."""

    layers = ("norm",)

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        ours, theirs = (next(iter(outputs.features.values()))[0] for outputs in (facts.student, facts.teacher))
        self.adapter = nn.Conv2d(ours.shape[1], theirs.shape[1], 1)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(theirs.shape[1]))

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        (ours,), (theirs,) = self.maps_of(student, teacher)
        difference = self.adapter(ours) - theirs + self.centre.view(1, -1, 1, 1) + 0.01 * torch.randn(())
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * theirs.mean(dim=(0, 2, 3))
        return {"loss": difference.square().mean()}


def everything() -> dict[str, Any]:
    """Two teachers, an adapter with a buffer, fp16's scaler, clipping, an average of the weights, two micro-batches."""
    teachers = {"teacher": tiny.wide(3, 1), "assistant": tiny.wide(3, 1)}
    more = {"clip_norm": 0.5, "ema": 0.8, "micro_batches": 2}
    return {"amp": "fp16", "teachers": teachers, "objective": Centre(), "several": "each", **more}


STATE = tuple(make_training(Path("unused")).trainer.state)
PIECES = [name for name in STATE if name != "progress"]
PIECES += [f"progress.{piece}" for piece in ("history", "best", "epoch_under_way")]
PIECES += [f"progress.{piece}" for piece in ("step", "count", "learning_rate", "sums", "predictions", "labels")]


def with_everything(folder: Path, stop_after: int | None = None) -> Training:
    torch.manual_seed(3)  # for the teachers
    return train(folder, stop_after, **everything())


def test_stopped_at_every_step_of_everything_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Each training of two micro-batches calls the network twice a step; a stop is seen when the step is done."""
    with_everything(tmp_path / "whole")
    for _ in range(3 * STEPS):
        with_everything(tmp_path / "parts", 1)
    with_everything(tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("item", PIECES)
def test_without_any_piece_of_the_state_the_result_is_another(tmp_path: Path, item: str) -> None:
    """The negative controls: each thing that is saved is needed, and the comparison above would notice its lack."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    best = with_everything(whole).trainer.progress.best
    assert best is not None and best.epoch > 1
    with_everything(parts, 2 * (2 * STEPS - 2))  # inside the second epoch
    state = load_checkpoint(parts / "latest.pth")
    forget(state, item)
    save_checkpoint(parts / "latest.pth", state)
    try:
        with_everything(parts)
    except (KeyError, RuntimeError, ValueError):
        return  # noticed even earlier
    assert outcome(parts) != outcome(whole)


def test_damaged_latest_is_set_aside_and_a_snapshot_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_training(tmp_path / "whole", epochs=4).fit()
    training = make_training(tmp_path / "parts", epochs=4, save_interval=2)
    training.fit(3)
    path = tmp_path / "parts" / "latest.pth"
    path.write_bytes(path.read_bytes()[:-1])
    again = make_training(tmp_path / "parts", epochs=4)
    assert again.resume(tmp_path / "parts") and len(again.history) == 2
    assert "latest.pth: damaged" in caplog.text and (tmp_path / "parts" / "latest.pth.damaged").exists()
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_without_its_best_checkpoint_a_state_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Going on would choose the best among the later epochs only, and say nothing of it."""
    make_training(tmp_path / "whole").fit()
    first = make_training(tmp_path / "parts")
    best = first.fit(2)
    (tmp_path / "parts" / best.file).unlink()
    again = make_training(tmp_path / "parts")
    assert not again.resume(tmp_path / "parts") and "cannot be resumed from" in caplog.text
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_with_nothing_sound_left_it_starts_anew(tmp_path: Path) -> None:
    make_training(tmp_path / "whole").fit()
    make_training(tmp_path / "parts", epochs=3).fit()
    (tmp_path / "parts" / "latest.pth").write_bytes(b"")
    again = make_training(tmp_path / "parts")
    assert not again.resume(tmp_path / "parts")
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files"), OSError(5, "Input/output error")])
def test_a_sound_checkpoint_that_cannot_be_read_just_now_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make_training(tmp_path).fit(2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(KdxError, match="latest.pth: cannot be read just now"):
        make_training(tmp_path).resume(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_a_newer_format_is_left_as_it_is(tmp_path: Path) -> None:
    make_training(tmp_path).fit(2)
    path = tmp_path / "latest.pth"
    content = torch.load(path, weights_only=True) | {"format": 99}
    torch.save(content, path)
    (tmp_path / "latest.pth.sha256").unlink()
    with pytest.raises(KdxError, match="latest.pth: checkpoint format 99 is of a newer kdx"):
        make_training(tmp_path).resume(tmp_path)
    assert path.exists()


@pytest.mark.parametrize("broken", ["latest.pth", "best"])
def test_a_snapshot_is_resumed_from_by_itself(tmp_path: Path, broken: str) -> None:
    """The best checkpoint of the snapshot's day is gone by then: the snapshot holds it."""
    options = {"epochs": 6, "save_interval": 2}
    make_training(tmp_path / "whole", **options).fit()
    folder = tmp_path / "parts"
    best = make_training(folder, **options).fit(5)
    path = folder / (best.file if broken == "best" else broken)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = make_training(folder, **options)
    assert again.resume(folder) and len(again.history) == 4
    again.fit()
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_copy_of_the_best_checkpoint_is_no_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = make_training(tmp_path).fit(2)
    (tmp_path / "latest.pth").write_bytes((tmp_path / best.file).read_bytes())
    (tmp_path / "latest.pth.sha256").unlink()
    assert not make_training(tmp_path).resume(tmp_path)
    assert "latest.pth: holds no state of a training" in caplog.text
