"""A two-stage chain that runs in well under a second, and what of its results must not depend on its deaths."""

import csv
import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kdx.chain.chain import run_chain
from kdx.config.schema import Settings
from tests.conftest import settings_of

CHAIN = ["stage.student.guide=teacher", "stage.deliver=student", "resume=true"]


def run_toy(folder: Path, *overrides: str) -> None:
    """Run the chain in a folder; a run that died there before is gone on with."""
    settings = replace(composed(*overrides), output_dir=str(folder / "outputs"))
    run_chain(settings, folder / "run", overrides)


@cache
def composed(*overrides: str) -> Settings:
    """The chain's settings; composing them takes longer than all the training."""
    return settings_of(*CHAIN, *overrides)


def result_of(folder: Path) -> dict[str, Any]:
    """Hashes of weights, optimizer, epochs and test metrics of every stage, without times."""
    result: dict[str, Any] = {}
    for role in ("teacher", "student"):
        stage = folder / "run" / role
        latest = torch.load(stage / "checkpoints" / "latest.pth", weights_only=True)
        (best,) = (stage / "checkpoints").glob("best_acc_*.pth")
        chosen = torch.load(best, weights_only=True)
        (log,) = (stage / "logs").glob("*_log.csv")
        with open(log) as file:
            rows = [{k: v for k, v in row.items() if k != "epoch_time_sec"} for row in csv.DictReader(file)]
        test = json.loads((stage / "test_metrics.json").read_text())
        result[role] = {
            "latest": digest(latest["model"]),
            "optimizer": digest(latest["optimizer"]),
            "random": digest(latest["random"]["torch"]),
            "best": (best.name, chosen["epoch"], digest(chosen["model"])),
            "rows": rows,
            "test": test,
        }
    return result


def leftovers(folder: Path) -> list[Path]:
    """Files that no finished run may leave: temporary ones, and marks of attempts at stages that are not finished."""
    attempts = [path for path in folder.rglob("*.attempt") if not path.with_suffix(".json").exists()]
    return [*folder.rglob(".tmp-kdx-*"), *attempts]


def digest(value: Any) -> str:
    """Hash of tensors and plain values, however nested."""
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            sha.update(repr((item.dtype, tuple(item.shape))).encode())
            sha.update(item.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if item.numel() else b"")
        elif isinstance(item, dict):
            for key in item:
                sha.update(repr(key).encode())
                feed(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                feed(part)
        else:
            sha.update(repr(item).encode())

    feed(value)
    return sha.hexdigest()
