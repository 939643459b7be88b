"""A stage that stops anywhere and goes on ends with the same bits; every piece of saved state is needed for that."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.training.stopping import Stopped, StopRequest
from kdx.training.trainer import Trainer
from tests.faults.toy import digest
from tests.test_trainer import make_trainer, rows_of

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


def train(folder: Path, stop_after: int | None = None, amp: str = "off") -> Trainer:
    """Go on in `folder`, until the end or for some steps only."""
    trainer = make_trainer(folder, amp=amp)
    trainer.restore(folder)
    if stop_after is None:
        trainer.fit()
        return trainer
    trainer.stop = stop = StopAfter(stop_after)
    trainer.network.register_forward_hook(lambda module, *_: stop.step_done() if module.training else None)
    with pytest.raises(Stopped, match="SIGTERM"):
        trainer.fit()
    return trainer


def outcome(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder / "latest.pth")
    rows = [{k: v for k, v in row.items() if k != "epoch_time_sec"} for row in rows_of(folder / "log.csv")]
    (best,) = folder.glob("best_acc_*.pth")
    kept = {name: digest(state[name]) for name in ("model", "optimizer", "scheduler", "scaler", "random")}
    return kept | {"rows": rows, "best": (best.name, digest(load_checkpoint(best)["model"]))}


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("stop_after", range(1, 3 * STEPS))
def test_stopped_after_any_step_it_ends_with_the_same_bits(tmp_path: Path, stop_after: int, amp: str) -> None:
    train(tmp_path / "whole", amp=amp)
    train(tmp_path / "parts", stop_after, amp)
    torch.rand(7)
    train(tmp_path / "parts", amp=amp)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_stopped_at_every_single_step_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    for _ in range(3 * STEPS):
        train(tmp_path / "parts", 1)
    train(tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def forget(state: dict[str, Any], item: str) -> None:
    """Put what a trainer that never saved it would have in the place of one piece of saved state."""
    fresh = make_trainer(Path("unused"), amp="fp16")
    if item == "model":
        state[item] = fresh.network.state_dict()
    elif item in ("optimizer", "scheduler", "scaler"):
        state[item] = getattr(fresh, item).state_dict()
    elif item == "random":
        state[item]["torch"] = torch.Generator().manual_seed(99).get_state()
    elif item == "history":
        state[item] = []
    elif item == "best":
        state[item] = state[item] | {"accuracy": 101.0}
    elif item == "partial":
        state[item] = None
    else:
        state["partial"][item] = {"step": 0, "count": 0, "sums": {}, "predictions": [], "labels": []}[item]


PIECES = ["model", "optimizer", "scheduler", "scaler", "random", "history", "best", "partial"]
PIECES += ["step", "count", "sums", "predictions", "labels"]


@pytest.mark.parametrize("item", PIECES)
def test_without_any_piece_of_the_state_the_result_is_another(tmp_path: Path, item: str) -> None:
    """The negative controls: each thing that is saved is needed, and the comparison above would notice its lack."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, amp="fp16").best.epoch > 1  # type: ignore[union-attr]
    train(parts, 2 * STEPS - 2, amp="fp16")  # inside the second epoch
    state = load_checkpoint(parts / "latest.pth")
    forget(state, item)
    save_checkpoint(parts / "latest.pth", state)
    try:
        train(parts, amp="fp16")
    except (KeyError, RuntimeError, ValueError):
        return  # noticed even earlier
    assert outcome(parts) != outcome(whole)


def test_damaged_latest_is_set_aside_and_a_snapshot_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path / "whole", epochs=4).fit()
    trainer = make_trainer(tmp_path / "parts", epochs=4, save_interval=2)
    trainer.epochs = 3
    trainer.fit()
    path = tmp_path / "parts" / "latest.pth"
    path.write_bytes(path.read_bytes()[:-1])
    again = make_trainer(tmp_path / "parts", epochs=4)
    assert again.restore(tmp_path / "parts") and len(again.history) == 2
    assert "latest.pth: damaged" in caplog.text and (tmp_path / "parts" / "latest.pth.damaged").exists()
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_without_its_best_checkpoint_a_state_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Going on would choose the best among the later epochs only, and say nothing of it."""
    make_trainer(tmp_path / "whole").fit()
    first = make_trainer(tmp_path / "parts")
    first.epochs = 2
    best = first.fit()
    (tmp_path / "parts" / best.file).unlink()
    again = make_trainer(tmp_path / "parts")
    assert not again.restore(tmp_path / "parts") and "cannot be gone on from" in caplog.text
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_with_nothing_sound_left_it_starts_anew(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole").fit()
    make_trainer(tmp_path / "parts", epochs=3).fit()
    (tmp_path / "parts" / "latest.pth").write_bytes(b"")
    again = make_trainer(tmp_path / "parts")
    assert not again.restore(tmp_path / "parts")
    again.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
