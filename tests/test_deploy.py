"""A finished run on real digits, looked at and shipped with the commands beside kdx."""

import csv
import io
import json
import logging
import os
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
from kdx.command import run_command
from kdx.config.schema import Settings
from kdx.config.settings import read_settings
from kdx.data.catalogue import prepare
from kdx.data.sources import load_digits
from kdx.deploy.efficiency import measure_network
from kdx.deploy.load import answers, load_model
from kdx.errors import KdxError
from kdx.models import vit
from kdx.report.run import write_run_report
from tests import tiny
from tests.conftest import compose_config

EXPORT = export.COMMAND.defaults() | {"samples": 64}
ASK = predict.COMMAND.defaults() | {"top": 2}
DRAW = visualize.COMMAND.defaults() | {"samples": 1}


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
    told = export.export([str(run_dir)], **EXPORT | options)
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


def two_heads(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> torch.nn.Module:
    """A ViT of one block, with DeiT's second head."""
    return vit._distilled(32, 1, 2, num_classes, in_channels, image_size)


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_every_format_of_a_distilled_vit_answers_as_its_checkpoint_does(tiny_run, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    own = {"network": "tests.test_deploy:two_heads"}
    taught = ["stage=student", "stage.student.guide=teacher", "kd=hard", "+kd.layers=head_dist", "epochs=1"]
    run = tiny_run(*taught, f"model.student={own['network']}")
    rows = tiny.arrays()["test"][0]
    for number, pixels in enumerate(rows[:3]):
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / f"{number}.png")
    pictures = sorted(tmp_path.glob("*.png"))
    first = ask(run.checkpoint("student"), *pictures, **own)
    images = load_model(run.folder, **own), torch.from_numpy(rows).permute(0, 3, 1, 2)
    for kind, largest in (("torch_export", 1e-5), ("safetensors", 0), ("int8", 0.1)):
        wanted = {"format": "onnx", "quantize": "int8"} if kind == "int8" else {"format": kind}
        told = export.export([str(run.folder)], **EXPORT | own | {"data": "tests.tiny:dataset"} | wanted)
        assert re.search(r"accuracy \S+ %, in PyTorch \S+ %", told)
        path = Path(told.split(" (")[0].removeprefix("wrote "))
        (plain, plain_card), pixels = images
        expected, given = answers(plain, plain_card, pixels), answers(*load_model(path, trust=True, **own), pixels)
        assert (expected.softmax(1) - given.softmax(1)).abs().max() <= largest
        if kind != "int8":
            assert ask(path, *pictures, trust=True, **own) == first


def test_network_alone_is_shipped(run_dir: Path) -> None:
    from safetensors import safe_open

    export.export([str(run_dir)], **EXPORT | {"format": "safetensors"})
    path = run_dir / "student" / "export" / "student.safetensors"
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(
            load_checkpoint(next(run_dir.glob("student/checkpoints/best_acc_*.pth")))["model"]
        )
    assert path.stat().st_size < 0.5 * (run_dir / "student/checkpoints/latest.pth").stat().st_size


def draw_digits(folder: Path, *digits: int) -> list[str]:
    """Pictures of digits, larger than the networks take them; their files' names."""
    known = sklearn.datasets.load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    for digit in digits:
        pixels = (known.images[digit] * 255 / 16).round().astype(np.uint8)
        picture = Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST)
        picture.convert("RGB").save(folder / f"{digit}.png")
    return [str(folder / f"{digit}.png") for digit in digits]


def ask(*words: object, **keys: object) -> list[str]:
    """What kdx.predict says, errors as `error: ...`."""
    said = predict.predict([str(word) for word in words], **{**ASK, **keys})
    return [f"error: {line}" if isinstance(line, KdxError) else line for line in said]


def test_pictures_are_named(run_dir: Path, tmp_path: Path) -> None:
    wanted = [0, 1, 6]
    lines = ask(run_dir, *draw_digits(tmp_path, *wanted))
    likeliest = [re.search(r"\.png: (\S+) ([0-9.]+) %", line) for line in lines]
    assert sum(found[1] == str(digit) for found, digit in zip(likeliest, wanted, strict=True)) >= 2  # type: ignore[index]
    assert all(line.count("%") == 2 for line in lines)
    assert [line.count("%") for line in ask(run_dir, tmp_path / "0.png", top=1000)] == [10]  # at most all classes


def test_what_is_no_picture_does_not_keep_the_others_from_being_named(run_dir: Path, tmp_path: Path) -> None:
    first, last = draw_digits(tmp_path, 0, 1)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = [first, *(tmp_path / name for name in ("none.png", "text.png", "pipe.png", "empty")), last]
    lines = ask(run_dir, *names)
    assert [line.split(":")[0] for line in lines] == [first, *4 * ["error"], last]
    assert lines[1].endswith("none.png: no such file") and "text.png: not a readable image" in lines[2]
    assert "a regular file is needed" in lines[3] and "empty: no picture in this folder" in lines[4]


def test_folders_are_asked_about_in_order_and_in_batches(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    draw_digits(folder, 2, 1)
    draw_digits(folder / "b" / "deeper", 4, 3)
    draw_digits(folder / ".hidden", 5)
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not asked about")
    (folder / "b" / "circle").symlink_to(folder)
    expected = ["1.png", "2.png", "b/broken.png", "b/deeper/3.png", "b/deeper/4.png"]
    sizes = []

    def counted(model, card, images):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        return answers(model, card, images)

    monkeypatch.setattr("kdx.deploy.asking.answers", counted)
    lines = ask(run_dir, folder)
    assert sizes == [4]
    assert capsys.readouterr().err == f"{folder}: not read: 1 .txt\n"
    assert [line.removeprefix("error: ").split(":")[0] for line in lines] == [str(folder / name) for name in expected]
    monkeypatch.setattr("kdx.deploy.asking.BATCH", 2)
    assert ask(run_dir, folder) == lines and sizes == [4, 2, 1, 1]
    single = [line for name in expected for line in ask(run_dir, folder / name)]
    assert single == lines


def test_answers_as_a_table_are_whole_and_hold_no_formula(run_dir: Path, tmp_path: Path) -> None:
    (plain,) = draw_digits(tmp_path / "p", 3)
    odd = ["=1+1.png", "-2.png", "a,b.png", "\x1b[2J.png", "a\nb.png", "caf\udce9.png"]
    for name in odd:
        shutil.copy(plain, tmp_path / "p" / name)
    (tmp_path / "p" / "broken.png").write_bytes(b"")
    table = tmp_path / "out" / "answers.csv"
    lines = ask(run_dir, tmp_path / "p", output=str(table))
    assert lines[-1] == f"wrote {table} (7 pictures)"
    assert "\x1b" not in "".join(lines) and not any("\n" in line for line in lines)
    rows = list(csv.reader(io.StringIO(table.read_text(), newline="")))
    assert rows[0] == ["picture", "class1", "share1", "class2", "share2"] and len(rows) == 8
    assert all(0 <= float(row[4]) <= float(row[2]) <= 1 for row in rows[1:])
    assert {name for name, *_ in rows[1:]} >= {str(tmp_path / "p" / "a,b.png"), str(tmp_path / "p" / "=1+1.png")}
    with pytest.raises(KdxError, match=r"output=x.txt: must end in \.csv"):
        ask(run_dir, plain, output="x.txt")
    os.chdir(tmp_path / "p")
    try:
        ask(run_dir, "=1+1.png", output=str(table))
    finally:
        os.chdir(Path(__file__).parent.parent)
    assert table.read_text().splitlines()[1].startswith("'=1+1.png,")


def test_class_names_of_others_are_shown_harmlessly(run_dir: Path, tmp_path: Path) -> None:
    content = load_checkpoint(next(run_dir.glob("student/checkpoints/best_acc_*.pth")))
    content["meta"]["class_names"] = ["\x1b]0;owned\x07", "=cmd", *"23456789"]
    save_checkpoint(tmp_path / "evil.pth", content)
    (line,) = ask(tmp_path / "evil.pth", *draw_digits(tmp_path, 0), top=10)
    assert "\x1b" not in line and "\\x1b]0;owned\\x07 " in line
    ask(tmp_path / "evil.pth", tmp_path / "0.png", top=10, output=str(tmp_path / "o.csv"))
    assert "'=cmd" in (tmp_path / "o.csv").read_text() and "\x1b" not in (tmp_path / "o.csv").read_text()


def test_a_network_that_answers_nan_is_told(run_dir: Path, tmp_path: Path) -> None:
    content = load_checkpoint(next(run_dir.glob("student/checkpoints/best_acc_*.pth")))
    key = next(name for name in content["model"] if name.endswith("bias"))
    content["model"][key] = torch.full_like(content["model"][key], float("nan"))
    save_checkpoint(tmp_path / "nan.pth", content)
    (name,) = draw_digits(tmp_path, 0)
    assert "nan" in refused(lambda: ask(tmp_path / "nan.pth", name))


def test_finite_weights_that_give_nan_are_neither_answered_nor_shipped(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    path = next(run.glob("student/checkpoints/best_acc_*.pth"))
    content = load_checkpoint(path)
    key = next(name for name in content["model"] if name.endswith("running_var"))
    content["model"][key] = torch.full_like(content["model"][key], -1)
    save_checkpoint(path, content)
    (picture,) = draw_digits(tmp_path, 0)
    assert "its network answers with numbers that are not finite" in refused(lambda: ask(run, picture))
    output = tmp_path / "net.safetensors"
    with pytest.raises(KdxError, match="^the student gives no numbers .* for 64 of 64 images"):
        export.export([str(run)], **EXPORT | {"format": "safetensors", "output": str(output)})
    assert not output.exists()


def refused(work: Callable[[], list[str]]) -> str:
    """The one error, wherever it is told."""
    try:
        (line,) = work()
    except KdxError as error:
        return str(error)
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"batch": 3}, "onnx, opset 18, float32, batches of 3"),
        ({"batch": 3, "opset": 20, "quantize": "int8"}, "onnx, opset 20, int8, batches of 3"),
        ({"opset": 21}, "onnx, opset 21, float32, batches of any size"),
        ({"format": "torch_export", "batch": 1}, "torch_export, float32, batches of 1"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_opset_and_batch_are_those_that_were_asked_for(run_dir: Path, tmp_path: Path, options, form: str) -> None:
    path = tmp_path / ("net.onnx" if "onnx" in form else "net.pt2")
    told = export.export([str(run_dir)], **EXPORT | options | {"output": str(path)})
    assert told.startswith(f"wrote {path} ({form}; ")
    if path.suffix == ".onnx":
        import onnx

        proto = onnx.load(path)
        (opset,) = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
        first = proto.graph.input[0].type.tensor_type.shape.dim[0]
        assert opset == options.get("opset", 18) and (first.dim_value or None) == options.get("batch")
        assert any("Quantize" in node.op_type for node in proto.graph.node) == ("quantize" in options)
    model, card = load_model(path, trust=True)
    plain, _ = load_model(run_dir)
    images = load_digits().test.images[:7]  # whatever the file's batch is, any number is answered
    given, expected = answers(model, card, images), answers(plain, card, images)
    assert torch.allclose(given, expected, atol=3.0 if "quantize" in options else 1e-3)
    assert len(ask(path, *draw_digits(tmp_path / "some", 0, 1), trust=True)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "safetensors", "batch": 1}, "batch=1: not with format=safetensors"),
        ({"format": "torch_export", "opset": 18}, "opset=18: only with format=onnx"),
        ({"format": "torch_export", "quantize": "int8"}, "quantize=int8: only with format=onnx"),
        ({"opset": 900}, "opset=900: a whole number of at most [0-9]+ is needed"),
        ({"output": "net.onx"}, r"output=net.onx: must end in \.onnx"),
    ],
)
def test_exports_that_cannot_be_are_refused(run_dir: Path, options, message: str) -> None:
    with pytest.raises(KdxError, match=message):
        export.export([str(run_dir)], **EXPORT | options)


@pytest.mark.filterwarnings("ignore")
def test_an_opset_that_the_exporter_gave_up_silently_is_an_error(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    """Below 18 torch writes 18, with a line in a log: the command line begins at 18, and what came out is compared."""
    with pytest.raises(KdxError, match="opset=17: a whole number of at least 18 is needed"):
        export.COMMAND.read(["RUN", "--opset", "17"])
    with pytest.raises(KdxError, match="opset=17: the network cannot be written with it, 18 came out"):
        export.export([str(run_dir)], **EXPORT | {"opset": 17, "output": str(tmp_path / "x.onnx")})
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.filterwarnings("ignore")
def test_options_after_two_dashes_are_done(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.onnx"
    line = [str(run_dir), "role=teacher", "--quantize", "int8", "--samples=64", "--output", str(path)]
    run_command(export.COMMAND, line)
    assert f"wrote {path} (onnx, opset 18, int8, " in capsys.readouterr().out
    assert b"QuantizeLinear" in path.read_bytes()


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
        export.export([str(copy)], **EXPORT)
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_a_finished_run(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = visualize.draw([str(run_dir)], **DRAW | {"layer": "stage2", "cam": True})
    folder = run_dir / "student/visualizations/stage2"
    drawn = sorted(path.name for path in folder.iterdir())
    assert [name.split("_label")[0] for name in drawn] == ["feature_maps_0", "side_by_side_0"]
    picture = Image.open(folder / drawn[1])
    assert (
        picture.width > 4 * 250 and "layer stage2 of student" in told
    )  # image, two of the teacher, two of the student
    assert "one pixel" not in told
    other = tmp_path / "other"  # a run that reused the stage
    other.mkdir()
    summary = json.loads((run_dir / "summary.json").read_text())
    for role in ("teacher", "assistant", "student"):
        summary[role]["checkpoint"] = os.path.relpath(run_dir / summary[role]["checkpoint"], other)
    (other / "summary.json").write_text(json.dumps(summary))
    assert f"wrote {other}/student/visualizations/stage2/" in visualize.draw([str(other)], **DRAW | {"layer": "stage2"})
    with pytest.raises(KdxError, match="layer=stage9: .*did you mean 'stage"):
        visualize.draw([str(run_dir)], **DRAW | {"layer": "stage9"})
    with pytest.raises(KdxError, match="role=studnt: choose teacher, assistant, student; did you mean 'student'"):
        visualize.draw([str(run_dir)], **DRAW | {"role": "studnt"})
    with pytest.raises(KdxError, match="compare=teachr: choose teacher, assistant, student; did you mean 'teacher'"):
        visualize.draw([str(run_dir)], **DRAW | {"compare": "teachr"})
    monkeypatch.setattr("kdx.visualize.run_pictures.features_of", lambda *_: torch.zeros(1, 4, 1, 1))
    assert "maps are of one pixel and show no place" in visualize.draw([str(run_dir)], **DRAW | {"layer": "stage3"})


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
    assert "PICTURE... is missing; usage: python -m kdx.predict MODEL PICTURE..." in run("kdx.predict", "model.onnx")
    assert "cifr10: no such data set; did you mean 'cifar10'?" in run("kdx.data", "--verify", "cifr10")


def listed_in(folder: Path) -> str:
    (table,) = data.handle_data_sets(["list"], data_dir=str(folder), size="28")
    return str(table)


def test_data_sets_are_listed_and_verified(tmp_path: Path) -> None:
    listed = listed_in(tmp_path)
    assert listed.count("\n") == 16 and "chestmnist" in listed and "CC BY" in listed
    assert prepare("digits", tmp_path, 28, download=False) == (
        "digits: sound; 1257/180/360 images of 1x8x8, 10 classes"
    )
    with pytest.raises(KdxError, match="pneumoniamnist.npz is not there and download=false"):
        prepare("pneumoniamnist", tmp_path, 28, download=False)


def test_the_list_tells_classes_and_imbalance_of_what_is_there(tmp_path: Path) -> None:
    def row(name: str) -> list[str]:
        (line,) = [line for line in listed_in(tmp_path).split("\n") if line.startswith(f"{name} ")]
        return re.split(" {2,}", line.strip())[4:6]

    assert row("digits") == ["10/10/10", "1.1/1.0/1.1"] and row("cifar10") == ["10/10/10", "1.0/1.0/1.0"]
    assert row("pneumoniamnist") == row("chestmnist") == ["-", "-"]
    splits = {"train": [0] * 6 + [1] * 2, "val": [0, 1], "test": [1, 1, 1]}
    labels = {f"{split}_labels": np.array(found)[:, None] for split, found in splits.items()}
    np.savez(tmp_path / "pneumoniamnist.npz", **labels)
    assert row("pneumoniamnist") == ["2/2/1", "3.0/1.0/1.0"]
    several = np.eye(14, dtype=np.uint8)
    several[:7, 0] = 1
    np.savez(tmp_path / "chestmnist.npz", train_labels=several, val_labels=several[:1], test_labels=several[7:])
    assert row("chestmnist") == ["14/1/7", "7.0/1.0/1.0"]
    labels["val_labels"] = np.array([[0], [2]])
    np.savez(tmp_path / "pneumoniamnist.npz", **labels)
    (tmp_path / "chestmnist.npz").write_bytes(b"half")
    assert row("pneumoniamnist") == row("chestmnist") == ["unreadable", "-"]


def test_class_names_with_dollars_are_drawn(tmp_path: Path) -> None:
    """matplotlib would take what stands between two of them for a formula, and fail on it."""
    from kdx.report.plots import curves, heat_map

    assert "a$_$b" in heat_map(["a$_$b"], ["a$_$b"], {("a$_$b", "a$_$b"): 1.0}, ("true", "said"))
    assert "<svg" in curves([("a$_$b", [(1, 2)]), ("c", [(1, 2)])], "x", "y")


def test_costs_that_cannot_be_measured_do_not_fail_a_run(tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kdx.chain.record.measure_network", fail)
    settings = digits_settings(tmp_path, "stage=teacher", "epochs=1", "visualize.samples=0")
    run_chain(settings, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["status"] == "finished" and told["teacher"]["efficiency"] is None
    assert "the costs of the teacher cannot be measured" in caplog.text
    assert "What each costs" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore")
def test_int8_says_nothing_of_weights_without_channels(run_dir: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    from onnxruntime import quantization

    real = quantization.quantize_static

    def as_for_a_layer_norm(*args: object, **options: object) -> None:
        logging.warning("Axis 1 is out-of-range for weight 'norm.weight' with rank 1")
        logging.warning("something else")
        real(*args, **options)

    monkeypatch.setattr(quantization, "quantize_static", as_for_a_layer_norm)
    export.export([str(run_dir)], **EXPORT | {"quantize": "int8", "output": str(tmp_path / "n.onnx")})
    assert [record.getMessage() for record in caplog.records if record.name == "root"] == ["something else"]
