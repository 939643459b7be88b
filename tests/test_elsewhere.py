"""Training on a device that is not the CPU: nothing is made on one and used on the other."""

import os
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, weights_of
from tests.forks import kdx

BOTH = ["stage.student.guide=[teacher,assistant]"]
TAUGHT = ["stage=student", "stage.student.guide=teacher"]
RUNS = {
    "chain": ["optimizer=sgd", "scheduler.warmup=1", "visualize.samples=1"],
    "crd": [*TAUGHT, "kd=crd", "micro_batches=2", "ema=0.9", "clip_norm=1", "select=auc", "patience=1"],
    "reviewkd": [
        *TAUGHT,
        "kd=reviewkd",
        "optimizer=sgd",
        "class_weights=balanced",
        "label_smoothing=0.1",
        "dataset.augment=trivial",
    ],
    "ctkd": [*TAUGHT, "kd=ctkd", "dataset.augment=[jitter,rotate,resized_crop,erase,cutmix]", "dataset.balance=true"],
    "cached": [*TAUGHT, "kd=dist", "kd.cache_logits=true", "labelled=0.5", "dataset.augment=none"],
    "two teachers": [*BOTH, "kd=rkd", "kd.teachers=each", "dataset.augment=[crop,flip,mixup]"],
}


def trained(folder: Path, module: str, overrides: list[str]) -> dict[str, Path]:
    folder.mkdir()
    told = kdx(folder, os.environ, *TINY, "channels_last=false", *overrides, "hydra.run.dir=run", module=module)
    assert told.returncode == 0, told.stderr
    return {path.parent.parent.name: path for path in (folder / "run").glob("*/checkpoints/best_*.pth")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_on_another_device(name: str, tmp_path: Path) -> None:
    here = trained(tmp_path / "here", "kdx.run", RUNS[name])
    there = trained(tmp_path / "there", "tests.elsewhere", RUNS[name])
    assert here.keys() == there.keys() and here
    for role in here:
        one, two = weights_of(here[role]), weights_of(there[role])
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-6) for name in one)  # other kernels, other bits


OWN = """
import torch
from tests.tiny import TinyNet

class Net(TinyNet):
    def forward(self, images):
        return super().forward({images})

def network(num_classes, in_channels):
    return Net(num_classes, in_channels, 4)
"""


@pytest.mark.parametrize("images", ["images + torch.ones(8)", "torch.ones(9, 1, 8, 8)[images[:, 0, 0, 0].long()]"])
def test_the_other_device_refuses_what_a_gpu_refuses(images: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{images}", images))
    only = [*TINY, "stage=teacher", "model.teacher=own:network"]
    told = kdx(tmp_path, os.environ, *only, module="tests.elsewhere")
    assert told.returncode == 2 and "tensors on elsewhere and on the CPU" in told.stderr
    assert "model.teacher=own:network" in told.stderr
