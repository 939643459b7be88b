"""Sweeps of whole chains against the naive way, beside what their FLOPs allow; and several jobs at once."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import Case, Row, bare_loop, interleave
from torch.utils.flop_counter import FlopCounterMode

from kdx.data.dataset import Dataset, from_arrays
from kdx.models.networks import NetworkSpec, build_network
from kdx.training.runtime import choose_precision

AXES = ["kd.temperature=2,4,8", "kd.alpha=0.3,0.5,0.7"]
NETWORKS = {"teacher": "resnet50", "assistant": "resnet34", "student": "resnet18"}
SMALL = {"teacher": "kdx.thin:resnet56", "assistant": "kdx.thin:resnet20", "student": "kdx.thin:resnet8"}
STEM, EPOCHS, IMAGES, BATCH = "small", 2, 1024, 128
BASE = ["device=cpu", "dataset=digits", "dataset.name=made-up", "dataset.source._target_=bench_sweep.made_up"]
BASE += [f"epochs={EPOCHS}", f"batch_size={BATCH}", "dataset.augment=[none]"]
BASE += ["visualize.samples=0", "save_interval=0", "report=false"]
TRIO = [f"model.stem={STEM}", *(f"model.{role}={name}" for role, name in NETWORKS.items())]
THIN = ["model=thin", *(f"model.{role}={name}" for role, name in SMALL.items())]


def made_up() -> Dataset:
    """Random images of 32 px: only their number counts here."""
    draw = np.random.default_rng(0)
    counts = {"train": IMAGES, "val": 128, "test": 128}
    arrays = {s: (draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10) for s, n in counts.items()}
    return from_arrays("made-up", arrays, task="multi-class", class_names=[str(number) for number in range(10)])


def flops(name: str) -> int:
    """Multiply-adds and so on of one forward pass of one image."""
    network = build_network(NetworkSpec(name, 10, stem=STEM)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def gains(teacher: float, assistant: float, student: float, cached: float, first: float) -> dict[str, float]:
    """How many times cheaper than nine whole chains each way is, from what one epoch of each stage costs.

    `cached` is the student's with its teacher's logits known, `first` what it costs to ask for them, once a sweep.
    """
    chain = 9 * (teacher + assistant + student)
    return {
        "teacher shared": chain / (teacher + 9 * (assistant + student)),
        "student swept": chain / (teacher + assistant + 9 * student),
        "student swept, logits cached": chain / (teacher + assistant + 9 * cached + first / EPOCHS),
    }


def gains_by_flops() -> dict[str, float]:
    """A training step counted as three forward passes."""
    teacher, assistant, student = (flops(name) for name in NETWORKS.values())
    return gains(3 * teacher, 3 * assistant + teacher, 3 * student + assistant, 3 * student, assistant)


def gains_by_steps(rounds: int) -> dict[str, float]:
    """From the seconds of bare loops: a network's backward pass may use the processor less well than another's."""
    precision = choose_precision("auto", torch.device("cpu"))
    teacher, assistant, student = NETWORKS.values()
    case = Case(None, teacher, STEM, 4 * BATCH, half=precision.half, channels_last=precision.channels_last)
    cases = {"teacher": case, "assistant": replace(case, teacher=teacher, student=assistant)}
    cases["student"] = replace(case, teacher=assistant, student=student)
    cases["cached"] = replace(cases["student"], cached=True)
    seconds = interleave({name: bare_loop(case) for name, case in cases.items()}, rounds)
    cost = {name: statistics.median(times) for name, times in seconds.items()}
    return gains(**cost, first=cost["student"] - cost["cached"])


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
        return kdx(folder, "plan=true", *TRIO)


def sweep_rows(rounds: int) -> Iterator[Row]:
    """The naive way and the three others, in turn, each without the start-up of the processes that a user starts.

    A sweep's jobs prepare themselves within its time, while that of the naive chains is taken off nine times. The
    naive nine cost three times as much as the three of them that are measured: one of each temperature.
    """
    ways = {"nine chains, one by one (three measured)": nine_chains, "teacher shared": teacher_shared}
    ways |= {
        "student swept": student_swept,
        "student swept, logits cached": partial(student_swept, extra=["kd.cache_logits=true"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                once = start_up()
                seconds[name].append(way(folder, once))
                print(f"sweep: {name} {seconds[name][-1]:.0f} s", file=sys.stderr, flush=True)
    counted, timed = gains_by_flops(), gains_by_steps(rounds)
    naive = seconds[next(iter(ways))]
    for name, times in seconds.items():
        ratios = sorted(base / time for base, time in zip(naive, times, strict=True))
        gain = statistics.median(ratios)
        note = "".join(
            f"; {what} allow {limits[name]:.2f}: {100 * gain / limits[name]:.0f}% of it"
            for what, limits in (("FLOPs", counted), ("bare steps", timed))
            if name in limits
        )
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        yield Row("sweep 3x3", name, statistics.median(times), "s", gain, spread, note.removeprefix("; "))


def nine_chains(folder: str, once: float) -> float:
    """Seconds of nine chains that share nothing."""
    axes = [(2, 0.3), (4, 0.5), (8, 0.7)]
    own = ["stage.reuse=never", *TRIO]
    chains = [[f"kd.temperature={t}", f"kd.alpha={a}", f"output_dir=naive/{t}-{a}", *own] for t, a in axes]
    return 3 * sum(kdx(folder, *chain) - once for chain in chains)


def teacher_shared(folder: str, once: float) -> float:
    """Seconds of a sweep in which assistants and students differ."""
    return kdx(folder, "--multirun", *AXES, *TRIO) - once


def student_swept(folder: str, once: float, extra: Sequence[str] = ()) -> float:
    """Seconds of a chain up to the assistant, and a sweep of its students."""
    before = kdx(folder, "stage=assistant", "kd.alpha=0.5", *TRIO) - once
    return before + kdx(folder, "--multirun", *AXES, "stage=student", "stage.reuse=latest", *TRIO, *extra) - once


def job_rows(rounds: int) -> Iterator[Row]:
    """Four students, one or two at a time on the same processors."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        kdx(folder, "stage=assistant", *THIN)
        for number in range(rounds):
            for jobs in (1, 2):
                axes = ["kd.temperature=1,2,3,4", "stage=student", f"seed={number}", "stage.reuse=latest", *THIN]
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
