"""Several ranks train as one: the weights after an epoch, the log, what is kept."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kdx.losses.crd import CRD
from kdx.losses.ctkd import CTKD
from kdx.losses.hinton import KnowledgeDistillationLoss
from kdx.losses.reviewkd import ReviewKD
from kdx.thin import resnet8
from kdx.training.distributed import Ranks
from tests.training import make_training

METHODS: dict[str, Callable[[], Any]] = {
    "hinton": lambda: KnowledgeDistillationLoss(4.0, 0.5),
    "ctkd": lambda: CTKD(),
    "reviewkd": lambda: ReviewKD(),
    "crd": lambda: CRD(dim=8, negatives=6),
}


def train(folder: Path, method: str, ranks: Ranks, **recipe: Any) -> None:
    """An epoch of a network without dropout under a teacher; rank 0 leaves the learner's state in a file."""
    torch.manual_seed(0)
    networks = [resnet8(3, 1) for _ in range(2)]
    training = make_training(
        folder / str(ranks.rank),
        epochs=2,
        network=networks[0],
        teachers={"teacher": networks[1]},
        objective=METHODS[method](),
        ranks=ranks,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),  # Adam makes steps of what is zero but for rounding
        **recipe,
    )
    training.fit(1)
    torch.save(
        {"learner": training.trainer.learner.state_dict(), "rows": training.history}, folder / f"{ranks.rank}.pt"
    )


def _rank(folder: Path, method: str, ranks: Ranks, recipe: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks.world)
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.world)
    train(folder, method, ranks, **recipe)
    dist.destroy_process_group()


def trained(folder: Path, method: str, world: int, synchronised: bool = True, **recipe: Any) -> list[dict[str, Any]]:
    """What each rank has after an epoch."""
    folder.mkdir()
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
    first, _ = trained(tmp_path / "two", "hinton", 2, synchronised=False)
    for name, weight in one["learner"].items():
        assert "running" in name or "num_batches" in name or torch.equal(weight, first["learner"][name]), name
