"""Sweeps of whole chains against the naive way, beside what their FLOPs allow; and several jobs at once."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure import Row
from torch.utils.flop_counter import FlopCounterMode

from kdx.dataset import Dataset, from_arrays
from kdx.models import NetworkSpec, build_network

AXES = ["kd.temperature=2,4,8", "kd.alpha=0.3,0.5,0.7"]
NETWORKS = {"teacher": "kdx.thin:resnet56", "assistant": "kdx.thin:resnet20", "student": "kdx.thin:resnet8"}
EPOCHS = 2
BASE = ["model=thin", "dataset=digits", "dataset.name=made-up", "dataset.source._target_=bench_sweep.made_up"]
BASE += [
    f"epochs={EPOCHS}",
    "batch_size=128",
    "visualize.samples=0",
    "save_interval=0",
    "dataset.augment=[none]",
    "report=false",
]
BASE += [f"model.{role}={name}" for role, name in NETWORKS.items()]
IMAGES = 1536


def made_up() -> Dataset:
    """Random images of 32 px: only their number counts here."""
    draw = np.random.default_rng(0)
    counts = {"train": IMAGES, "val": 128, "test": 128}
    arrays = {s: (draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10) for s, n in counts.items()}
    return from_arrays("made-up", arrays, task="multi-class", class_names=[str(number) for number in range(10)])


def flops(name: str) -> int:
    """Multiply-adds and so on of one forward pass of one image."""
    network = build_network(NetworkSpec(name, 10)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def allowed() -> dict[str, float]:
    """How many times cheaper than nine whole chains each way is, counted in FLOPs (a training step: three passes)."""
    teacher, assistant, student = (flops(name) for name in NETWORKS.values())
    first, second = 3 * assistant + teacher, 3 * student + assistant
    chain = 9 * (3 * teacher + first + second)
    cached = 3 * student + assistant / (9 * EPOCHS)  # no augmentation: each image is asked about once
    return {
        "teacher shared": chain / (3 * teacher + 9 * (first + second)),
        "student swept": chain / (3 * teacher + first + 9 * second),
        "student swept, logits cached": chain / (3 * teacher + first + 9 * cached),
    }


def kdx(folder: str, *arguments: str) -> float:
    """Seconds of a kdx process."""
    scripts = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    flags = [argument for argument in arguments if argument.startswith("--")]
    command = [sys.executable, "-m", "kdx.run", *flags, *BASE, *(a for a in arguments if a not in flags)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr or done.stdout}")
    return time.perf_counter() - began


def start_up() -> float:
    """Seconds of a process that imports everything and only plans: what each naive chain pays as well."""
    with tempfile.TemporaryDirectory() as folder:
        return kdx(folder, "plan=true")


def sweep_rows() -> Iterator[Row]:
    """The naive way, then the three others; start-up is taken off all, so that the training is compared.

    The naive nine chains cost three times as much as the three of them that are measured: one of each temperature.
    """
    limits, once = allowed(), start_up()
    with tempfile.TemporaryDirectory() as folder:
        axes = [(2, 0.3), (4, 0.5), (8, 0.7)]
        naive = 3 * sum(
            kdx(folder, "stage.reuse=never", f"kd.temperature={t}", f"kd.alpha={a}", f"output_dir=naive/{t}-{a}") - once
            for t, a in axes
        )
    yield Row("sweep 3x3", "nine chains, one by one (three measured)", naive, "s", 1.0)
    ways = {"teacher shared": ([], []), "student swept": (["kd.alpha=0.5"], [])}
    ways["student swept, logits cached"] = (["kd.alpha=0.5"], ["kd.cache_logits=true"])
    for name, (before, extra) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = kdx(folder, "stage=assistant", *before) - once if before else 0.0
            latest = ["stage=student", "stage.reuse=latest"] if before else []
            seconds += kdx(folder, "--multirun", *AXES, *latest, *extra) - once
        gain = naive / seconds
        share = f"{100 * gain / limits[name]:.0f}% of it"
        yield Row("sweep 3x3", name, seconds, "s", gain, share, f"FLOPs allow {limits[name]:.2f}")


def job_rows(rounds: int) -> Iterator[Row]:
    """Four students, one or two at a time on the same processors."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        kdx(folder, "stage=assistant")
        for number in range(rounds):
            for jobs in (1, 2):
                axes = ["kd.temperature=1,2,3,4", "stage=student", f"seed={number}", "stage.reuse=latest"]
                launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
                seconds[jobs].append(kdx(folder, "--multirun", *axes, *launcher, f"hydra.sweep.dir={number}-{jobs}"))
                for entry in Path(folder, "outputs", "index").glob("*.json"):
                    if '"role": "student"' in entry.read_text():
                        entry.unlink()
    for jobs, times in seconds.items():
        ratios = sorted(time / base for time, base in zip(times, seconds[1], strict=True))
        middle = sorted(times)[len(times) // 2]
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        yield Row("four jobs", f"n_jobs={jobs}", middle, "s", ratios[len(ratios) // 2], spread)
