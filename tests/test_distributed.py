"""Several ranks train as one: the weights after an epoch, the log, what is kept."""

import copy
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kdx.chain import plan
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.fingerprints import stage_fingerprint
from kdx.errors import KdxError
from kdx.losses.cc import CorrelationCongruence
from kdx.losses.crd import CRD
from kdx.losses.ctkd import CTKD
from kdx.losses.dist import DIST
from kdx.losses.hinton import KnowledgeDistillationLoss
from kdx.losses.reviewkd import ReviewKD
from kdx.losses.rkd import RKD
from kdx.thin import resnet8
from kdx.training.distributed import Ranks
from kdx.training.evaluation import logits_by_ranks, logits_of
from kdx.training.keeper import Keeper
from tests.conftest import settings_of
from tests.training import make_training

METHODS: dict[str, Callable[[], Any]] = {
    "hinton": lambda: KnowledgeDistillationLoss(4.0, 0.5),
    "ctkd": lambda: CTKD(),
    "reviewkd": lambda: ReviewKD(),
    "crd": lambda: CRD(dim=8, negatives=6),
    "rkd": lambda: RKD(),
    "dist": lambda: DIST(),
    "cc": lambda: CorrelationCongruence(dim=4),
}


def train(folder: Path, method: str, ranks: Ranks, epochs: int = 1, **recipe: Any) -> None:
    """Train a network without dropout under a teacher up to an epoch; each rank leaves its state in a file.

    Rank 0 goes on with what it has saved in the folder before.
    """
    torch.manual_seed(0)
    networks = [resnet8(3, 1) for _ in range(2)]
    rate = 0.001 if method in ("rkd", "dist") else 0.05  # their large gradients make much of rounding
    training = make_training(
        folder / str(ranks.rank),
        epochs=2,
        network=networks[0],
        teachers={"teacher": networks[1]},
        objective=METHODS[method](),
        ranks=ranks,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),  # Adam makes steps of what is zero but for rounding
        **recipe,
    )
    if ranks.rank == 0:
        training.resume(folder / "0")
    training.fit(epochs)
    average = {f"average {name}": value for name, value in training.trainer.average.network.state_dict().items()}
    told = {"learner": training.trainer.learner.state_dict() | average, "rows": training.history}
    val, precision = copy.copy(training.trainer.val), training.trainer.precision
    for val.batch_size in (7, 30):  # five batches, and one, of which the second rank has none
        told[f"alone {val.batch_size}"] = logits_of(training.network, val, precision)
        told[f"in turn {val.batch_size}"] = logits_by_ranks(training.network, val, precision, ranks, 3)
    torch.save(told, folder / f"{ranks.rank}.pt")


def _rank(folder: Path, method: str, ranks: Ranks, recipe: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks.world)
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.world)
    train(folder, method, ranks, **recipe)
    dist.destroy_process_group()


def trained(folder: Path, method: str, world: int, synchronised: bool = True, **recipe: Any) -> list[dict[str, Any]]:
    """What each rank has after an epoch."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    if world == 1:
        train(folder, method, Ranks(), **recipe)
    else:
        context = multiprocessing.get_context("fork")
        args = [(folder, method, Ranks(rank, world, synchronised), recipe) for rank in range(world)]
        processes = [context.Process(target=_rank, args=arg) for arg in args]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = [(one["learner"][name], other["learner"][name]) for name in one["learner"]]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_with_synchronised_batch_norm(method: str, tmp_path: Path) -> None:
    (one,) = trained(tmp_path / "one", method, 1)
    first, second = trained(tmp_path / "two", method, 2)
    assert difference(one, first) < 1e-5
    assert difference(first, second) == 0
    for key, value in one["rows"][0].items():
        if key not in ("epoch_time_sec", "gpu_memory_mb"):
            assert first["rows"][0][key] == pytest.approx(value, abs=1e-4), key


def test_two_ranks_are_two_micro_batches_where_each_rank_has_its_own_statistics(tmp_path: Path) -> None:
    (one,) = trained(tmp_path / "one", "hinton", 1, micro_batches=2)
    first, second = trained(tmp_path / "two", "hinton", 2, synchronised=False)
    for name, weight in one["learner"].items():
        if "running" in name:
            assert torch.allclose(weight, first["learner"][name], rtol=1e-5, atol=1e-6), name
        else:
            assert torch.equal(weight, first["learner"][name]), name
    assert difference(first, second) == 0
    for size in (7, 30):  # each validates its turn of the batches
        assert first[f"in turn {size}"].equal(second[f"in turn {size}"])
        assert first[f"in turn {size}"].equal(first[f"alone {size}"])


def test_what_a_recipe_adds_is_right_on_two_ranks_and_resumed(tmp_path: Path) -> None:
    """Averaged weights, clipping, parts of a batch, mixed images, balanced classes and a memory, all at once."""
    added = {"ema": 0.9, "clip_norm": 0.5, "micro_batches": 2, "augment": ("crop", "mixup"), "balance": True}
    (one,) = trained(tmp_path / "one", "crd", 1, **added)
    assert difference(one, trained(tmp_path / "part", "crd", 2, **added)[0]) < 1e-5
    whole = trained(tmp_path / "whole", "crd", 2, epochs=2, **added)
    resumed = trained(tmp_path / "part", "crd", 2, epochs=2, **added)
    assert [difference(*pair) for pair in zip(whole, resumed, strict=True)] == [0, 0]
    assert difference(one, whole[0]) > 0.01


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["devices=0"], "devices=0: a whole number of at least 1"),
        (["devices=null"], "devices=None: a whole number"),
        (["devices=[]"], "devices=[]: a whole number"),
        (["devices=[1,1]"], "devices=[1, 1]: each device can be named once"),
        (["devices=2", "batch_size=3"], "devices=2: two images for each are needed at least (batch_size=3"),
        (["devices=2", "batch_size=8", "stage.teacher.micro_batches=4"], "devices=2: two images for each"),
        (["devices=2", "compile=reduce-overhead"], "compile=reduce-overhead: does not go together with several"),
        (["devices=[0,1]"], "devices=[0, 1]: several of cpu have no numbers"),
        (["devices=2", "sync_batchnorm=false", "kd=crd"], "sync_batchnorm=false: kd of the assistant remembers"),
        (["devices=2", "model.teacher=tests.tiny:own_norm"], "sync_batchnorm=true: OwnNorm of the teacher cannot"),
    ],
)
def test_what_several_devices_cannot_do_is_told_in_one_line(
    line: list[str], told: str, tiny_run: Callable[..., Any]
) -> None:
    with pytest.raises(KdxError) as raised:
        tiny_run(*line)
    assert str(raised.value).startswith(told)


def test_devices_that_change_no_weights_leave_the_fingerprint(tmp_path: Path) -> None:
    def of(*line: str) -> str:
        settings = settings_of(f"output_dir={tmp_path}", *line)
        return stage_fingerprint(make_run_context(settings, load_dataset(settings)), settings.stages[0], None)

    assert of("devices=2") == of("devices=1", "sync_batchnorm=false") == of()
    assert of("devices=2", "sync_batchnorm=false") == of("micro_batches=2") != of()


def test_a_run_whose_rank_is_killed_resumes_on_another_number_of_devices(
    tiny_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["stage=teacher", "model.teacher=kdx.thin:resnet8", "epochs=3", "optimizer=sgd", "optimizer.lr=0.01"]
    whole = tiny_run(*line, "stage.reuse=never")
    after_epoch = Keeper.after_epoch

    def kill_after_two(keeper: Keeper, row: dict[str, Any], network: torch.nn.Module) -> None:
        after_epoch(keeper, row, network)
        if row["epoch"] == 2:
            keeper.saving.wait()
            for process in multiprocessing.active_children():
                process.kill()
                process.join()

    with monkeypatch.context() as patched, pytest.raises(KdxError) as raised:
        patched.setattr(Keeper, "after_epoch", kill_after_two)
        tiny_run(*line, "stage.reuse=never", "devices=2", "threads=2")
    assert str(raised.value).startswith("teacher: rank 1 was killed by SIGKILL (out of memory?); what was saved is")
    assert multiprocessing.active_children() == []
    resumed = tiny_run(*line, "stage.reuse=never", "resume=true")
    assert resumed.statuses() == {"teacher": "trained"}
    first, second = (
        torch.load(next(run.checkpoint("teacher").parent.glob("latest.pth")), weights_only=True)
        for run in (whole, resumed)
    )
    assert first["epoch"] == second["epoch"] == 3
    for name, weight in first["model"].items():
        assert torch.allclose(weight.float(), second["model"][name].float(), atol=1e-5), name


def test_a_stage_that_one_device_made_is_said_to_be_of_one(caplog: pytest.LogCaptureFixture) -> None:
    """Its record has no number, and the note said None."""
    with caplog.at_level("INFO"):
        plan._note_surroundings("teacher", {"devices": 2, "device": "cpu"}, {"device": "cpu"})
        plan._note_surroundings("teacher", {"device": "cpu"}, {"devices": 2, "device": "cpu"})
        plan._note_surroundings("teacher", {"device": "cpu"}, {"device": "cpu"})
    assert [message.split("with ")[1].split(":")[0] for message in caplog.messages] == [
        "devices 1 there, 2 here",
        "devices 2 there, 1 here",
    ]
