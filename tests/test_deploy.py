"""A finished run on real digits, looked at and shipped with the commands beside kdx."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

import kdx.data.__main__ as data
import kdx.visualize.__main__ as visualize
from kdx import export, predict
from kdx.chain.chain import run_chain
from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.config.schema import Settings
from kdx.config.settings import read_settings
from kdx.data.sources import load_digits
from kdx.deploy.efficiency import measure_network
from kdx.deploy.load import answers, load_model
from kdx.errors import KdxError
from kdx.report.run import write_run_report
from tests.conftest import compose_config

EXPORT = export.DEFAULTS | {"samples": 64}
ASK = predict.DEFAULTS | {"top": 2}
DRAW = visualize.DEFAULTS | {"samples": 1}


def digits_settings(outputs: Path, *overrides: str) -> Settings:
    thin = [f"model.{role}=kdx.thin:resnet8" for role in ("teacher", "assistant", "student")]
    quick = ["epochs=2", "batch_size=64", "optimizer.lr=0.01", "amp=off", "device=cpu", "threads=1"]
    config = compose_config("dataset=digits", "model=thin", *thin, *quick, *overrides)
    return replace(read_settings(config), output_dir=str(outputs))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    run_chain(digits_settings(folder / "outputs"), folder / "outputs" / "run")
    return folder / "outputs" / "run"


@pytest.mark.parametrize(
    ("options", "name", "largest"),
    [
        ({"format": "onnx"}, "student.onnx", 1e-3),
        ({"format": "torch_export"}, "student.pt2", 1e-3),
        ({"format": "safetensors"}, "student.safetensors", 1e-6),
        ({"format": "onnx", "quantize": "int8"}, "student.int8.onnx", 3.0),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_exported_file_says_what_pytorch_says(
    run_dir: Path, tmp_path: Path, options, name: str, largest: float
) -> None:
    told = export.export_stage([str(run_dir)], **EXPORT | options)
    path = run_dir / "student" / "export" / name
    assert path.exists() and f"wrote {path}" in told
    difference = float(re.search(r"largest difference (\S+)", told)[1])  # type: ignore[index]
    assert difference < largest
    if options.get("quantize"):
        assert path.stat().st_size < 0.6 * (run_dir / "student/export/student.onnx").stat().st_size and difference > 0
    moved = tmp_path / f"moved{path.suffix}"
    shutil.copy(path, moved)  # the file alone, away from its run
    if path.suffix == ".pt2":
        with pytest.raises(KdxError, match="torch runs code that such a file holds: say trust=true"):
            load_model(moved)
    model, card = load_model(moved, trust=True)
    assert card.class_names == [str(digit) for digit in range(10)] and card.image_shape == [1, 8, 8]
    plain, plain_card = load_model(run_dir)
    images = load_digits().test.images[:50]
    for count in (1, 3, 50):  # a batch of any size
        given = answers(model, card, images[:count], batch_size=50)
        assert given.shape == (count, 10)
        assert torch.allclose(given, answers(plain, plain_card, images[:count]), atol=largest)


def test_network_alone_is_shipped(run_dir: Path) -> None:
    from safetensors import safe_open

    export.export_stage([str(run_dir)], **EXPORT | {"format": "safetensors"})
    path = run_dir / "student" / "export" / "student.safetensors"
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(
            load_checkpoint(next(run_dir.glob("student/checkpoints/best_acc_*.pth")))["model"]
        )
    assert path.stat().st_size < 0.5 * (run_dir / "student/checkpoints/latest.pth").stat().st_size


def test_pictures_are_named(run_dir: Path, tmp_path: Path) -> None:
    digits = sklearn.datasets.load_digits()
    wanted = [0, 1, 6]
    for digit in wanted:
        pixels = (digits.images[digit] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).convert("RGB").save(
            tmp_path / f"{digit}.png"
        )
    names = [str(tmp_path / f"{digit}.png") for digit in wanted]
    lines = predict.predict_pictures([str(run_dir), *names], **ASK).splitlines()
    likeliest = [re.search(r"\.png: (\S+) ([0-9.]+) %", line) for line in lines]
    assert sum(found[1] == str(digit) for found, digit in zip(likeliest, wanted, strict=True)) >= 2  # type: ignore[index]
    with pytest.raises(KdxError, match=r"none\.png: no such file$"):
        predict.predict_pictures([str(run_dir), str(tmp_path / "none.png")], **ASK)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(KdxError, match=r"text\.png: not a readable image"):
        predict.predict_pictures([str(run_dir), str(tmp_path / "text.png")], **ASK)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors", ".pth"])
@pytest.mark.filterwarnings("ignore")
def test_broken_model_file_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"not a model")
    with pytest.raises(KdxError, match="readable") as error:
        load_model(path, trust=True)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_code_that_a_file_names_is_not_run(run_dir: Path, tmp_path: Path) -> None:
    """A checkpoint may name any module: importing it would run it."""
    content = load_checkpoint(next(run_dir.glob("student/checkpoints/best_acc_*.pth")))
    content["meta"]["network"] = "this:s"  # the module prints when it is imported
    save_checkpoint(tmp_path / "evil.pth", content)
    with pytest.raises(KdxError, match="run only if you say so: network=this:s"):
        load_model(tmp_path / "evil.pth")
    assert "this" not in sys.modules


def test_other_images_than_the_trained_ones_are_noticed(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (config,) = (copy / "student/logs").glob("*_config.json")
    told = json.loads(config.read_text())
    told["config"]["dataset"]["source"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}"}
    config.write_text(json.dumps(told))
    with pytest.raises(KdxError, match="images come from os.system"):
        export.export_stage([str(copy)], **EXPORT)
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_a_finished_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = visualize.draw_run([str(run_dir)], **DRAW | {"layer": "stage2", "cam": True})
    folder = run_dir / "student/visualizations/stage2"
    drawn = sorted(path.name for path in folder.iterdir())
    assert [name.split("_label")[0] for name in drawn] == ["feature_maps_0", "side_by_side_0"]
    picture = Image.open(folder / drawn[1])
    assert (
        picture.width > 4 * 250 and "layer stage2 of student" in told
    )  # image, two of the teacher, two of the student
    assert "one pixel" not in told
    with pytest.raises(KdxError, match="layer=stage9: .*did you mean 'stage"):
        visualize.draw_run([str(run_dir)], **DRAW | {"layer": "stage9"})
    with pytest.raises(KdxError, match="role=studnt: choose teacher, assistant, student; did you mean 'student'"):
        visualize.draw_run([str(run_dir)], **DRAW | {"role": "studnt"})
    monkeypatch.setattr("kdx.visualize.__main__.features_of", lambda *_: torch.zeros(1, 4, 1, 1))
    assert "maps are of one pixel and show no place" in visualize.draw_run([str(run_dir)], **DRAW | {"layer": "stage3"})


def test_run_leaves_a_page_that_tells_all(run_dir: Path, browse: Callable[[Path], str]) -> None:
    told = json.loads((run_dir / "summary.json").read_text())
    html = (run_dir / "report.html").read_text()
    assert all(url.startswith(("#", "data:")) for url in re.findall(r"(?:src|href)=[\"']([^\"']+)", html))
    student = told["student"]
    assert student["efficiency"]["parameters"] == student["parameters"] and student["efficiency"]["multiply_adds"] > 1e5
    assert {"latency_ms_batch_1", "images_per_s_batch_64", "peak_memory_mb"} <= set(student["efficiency"]["cpu"])
    assert f"{student['test']['accuracy']:.2f} % on the test split" in html
    for heading in ("What each costs to use", "Epochs", "Classes of the student", "Calibration", "Feature maps"):
        assert f"<h2>{heading}" in html, heading
    assert html.count("<svg") == 5 and html.count('<img alt=""') == 6
    calibration = student["test"]["calibration"]
    assert sum(calibration["count"]) == 360 and 0 <= calibration["ece"] <= 100
    assert 0 < student["test"]["guide_agreement"] <= 100 and "guide_agreement" not in told["teacher"]["test"]
    assert "What each costs to use" in browse(run_dir / "report.html")


def test_page_can_be_made_again_later(run_dir: Path, tmp_path: Path) -> None:
    before = (run_dir / "report.html").read_text()
    command = [sys.executable, "-m", "kdx.report", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and "The student (kdx.thin:resnet8) reaches" in done.stdout, done.stderr
    assert (run_dir / "report.html").read_text() == before
    (tmp_path / "summary.json").write_text(json.dumps({"plan": []}))
    with pytest.raises(KdxError, match="no stage of this run is finished yet"):
        write_run_report(tmp_path)


def test_every_stage_gets_a_clean_script(run_dir: Path) -> None:
    for role in ("teacher", "assistant", "student"):
        done = subprocess.run([run_dir / role / "clean.sh", "--dry-run"], capture_output=True, text=True, check=True)
        assert "would be freed" in done.stdout


def test_a_measurement_that_is_disturbed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call but one is held up by a second: the costs are those of the one."""
    clock = iter(range(10**6))
    now = [0.0]

    def tick() -> float:
        call = next(clock)
        now[0] += 0.01 if call // 2 % 4 == 1 else 1.0
        return now[0]

    monkeypatch.setattr("kdx.deploy.efficiency.time.perf_counter", tick)
    costs = measure_network(torch.nn.Flatten(), (1, 2, 2), torch.device("cpu"))
    assert costs["cpu"]["latency_ms_batch_1"] == pytest.approx(10)


def test_command_errors_are_one_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and not done.stdout
        return done.stderr

    assert run("kdx.export", ".", "fromat=onnx").startswith("error: fromat: no such key; did you mean 'format'?")
    assert "samples=x: a whole number of at least 1 is needed" in run("kdx.export", ".", "samples=x")
    assert "samples=0: a whole number of at least 1 is needed" in run("kdx.visualize", ".", "samples=0")
    assert ".: no run: summary.json is missing" in run("kdx.export", ".")
    assert "cam=yes: choose true, false" in run("kdx.visualize", ".", "cam=yes")
    assert "too few arguments" in run("kdx.predict", "model.onnx")
    assert "cifr10: no such data set; did you mean 'cifar10'?" in run("kdx.data", "--verify", "cifr10")


def test_data_sets_are_listed_and_verified(tmp_path: Path) -> None:
    listed = data.list_all(tmp_path, 28)
    assert listed.count("\n") == 16 and "chestmnist" in listed and "CC BY" in listed
    assert data.prepare(["digits"], tmp_path, 28, download=False) == (
        "digits: sound; 1257/180/360 images of 1x8x8, 10 classes"
    )
    with pytest.raises(KdxError, match="pneumoniamnist.npz is not there and download=false"):
        data.prepare(["pneumoniamnist"], tmp_path, 28, download=False)


def test_class_names_with_dollars_are_drawn(tmp_path: Path) -> None:
    """matplotlib would take what stands between two of them for a formula, and fail on it."""
    from kdx.report.plots import curves, heat_map

    assert "a$_$b" in heat_map(["a$_$b"], ["a$_$b"], {("a$_$b", "a$_$b"): 1.0}, ("true", "said"))
    assert "<svg" in curves({"a$_$b": [(1, 2)], "c": [(1, 2)]}, "x", "y")


def test_costs_that_cannot_be_measured_do_not_fail_a_run(tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kdx.chain.chain.measure_network", fail)
    settings = digits_settings(tmp_path, "stage=teacher", "epochs=1", "visualize.samples=0")
    run_chain(settings, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["status"] == "finished" and told["teacher"]["efficiency"] is None
    assert "the costs of the teacher cannot be measured" in caplog.text
    assert "What each costs" not in (tmp_path / "run" / "report.html").read_text()
