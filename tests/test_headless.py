"""Teachers without a classifier: they teach features, without labels, and whoever learns so is fine-tuned with few."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kdx import export
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.finished import configured_fingerprints
from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.deploy.load import CARD, load_model
from kdx.errors import KdxError
from kdx.models.features import Watched, resolve_layers
from kdx.models.networks import NetworkSpec, build_network
from kdx.report.run import efficiency_table, write_run_report
from kdx.report.sweep import write_report as write_sweep_report
from kdx.report.tables import stage_cells
from kdx.results import grouped, load, read_log, read_run
from kdx.sweeps.jobs import Program
from kdx.sweeps.scout import _fingerprints
from tests import tiny
from tests.conftest import CONF, settings_of, weights_of

BASE = ["stage.deliver=student", "stage.student.guide=teacher", "stage.teacher.head=false"]
ALONE = [*BASE, "kd=pkt", "kd.weight=100", "kd.hard=0", "stage.student.select=loss"]


class Foundation(tiny.TinyNet):
    def __init__(self, in_channels: int) -> None:
        super().__init__(1, in_channels, width=8)
        self.head = nn.Identity()


def foundation(num_classes: int, in_channels: int) -> nn.Module:
    """A user's own, which brings its weights; it is asked for no classes."""
    assert num_classes == 0
    torch.manual_seed(5)
    return Foundation(in_channels)


def wrong(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, 4, 1)


OWN = ["model.teacher=tests.test_headless:foundation"]


def brings(num_classes: int, in_channels: int) -> nn.Module:
    """A user's own, which reads its weights from a file beside the run."""
    made = Foundation(in_channels)
    made.load_state_dict(torch.load("backbone.pth", weights_only=True))
    return made


def draws(num_classes: int, in_channels: int) -> nn.Module:
    """A user's own with random weights, by torch's generator and by numpy's."""
    made = Foundation(in_channels)
    made.register_buffer("table", nn.init.orthogonal_(torch.empty(600, 600)))  # of many threads in other last bits
    made.stem.bias.data += float(np.random.random())
    return made


def test_distilled_without_labels_then_fine_tuned_with_few(tiny_run, caplog) -> None:
    caplog.set_level("INFO")
    roles = ["+stage.tuned={guide: null, start: student}", "+model.tuned=tests.tiny:network", "stage.tuned.labelled=6"]
    line = [*ALONE, *OWN, *roles, "stage.deliver=tuned"]
    run = tiny_run(*line)
    assert run.roles() == ["teacher", "student", "tuned"]
    assert "import, features only: it has no accuracy" in caplog.text
    assert "foundation as it is built: " in caplog.text and "8 features; it has no accuracy" in caplog.text
    assert "teacher" not in run.summary and run.summary["student"]["selected_by"] == "loss"
    assert [origin["what"] for origin in run.summary["lineage"]] == ["data", "teacher", "student", "tuned"]
    assert run.summary["student"]["test"] == {"epoch": run.summary["student"]["epoch"]}
    assert set(run.summary["student"]["validation"]) == {"loss", "feature_loss"}
    assert "student: no label enters its loss: it learns no classifier and has no accuracy" in caplog.text
    (line_of_student,) = [line for line in caplog.text.splitlines() if "student epoch 1/2" in line]
    assert " acc " not in line_of_student and " f1 " not in line_of_student
    assert run.summary["student"]["validation"]["loss"] > 0  # of features: no label enters it
    kept = weights_of(run.folder / "teacher/checkpoints/imported.pth")
    torch.manual_seed(5)
    assert all(torch.equal(kept[key], value) for key, value in Foundation(1).state_dict().items())
    assert "That is " not in write_run_report(run.folder)  # of what: the student's classifier has learnt nothing
    frame = load(run.folder)
    (tuned,) = grouped(frame)
    assert tuned.teacher is None
    assert frame["student_test_accuracy"].isna().all() and frame["tuned_test_accuracy"].notna().all()
    again = tiny_run(*line, "stage.tuned.lr=0.5")
    assert (again.summary["student"]["status"], again.summary["tuned"]["status"]) == ("reused", "trained")
    other = tiny_run(*ALONE, *OWN, "epochs=1")
    assert other.summary["student"]["status"] == "trained"


def card_of(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()[CARD]


def test_who_learnt_no_classifier_has_no_accuracy_anywhere(tiny_run, tmp_path: Path, caplog) -> None:
    """Whether its teacher has one or not; pages, frames and the run's result tell the loss that chose instead."""
    for other in (OWN, ["stage.teacher.head=true"]):
        run = tiny_run(*ALONE, *other, "report=true", "stage.reuse=never")
        page = (run.folder / "report.html").read_text()
        assert "The student (tests.tiny:network) has learnt no classifier" in page and "Confusion matrix" not in page
        stages = read_run(run.folder).stages
        assert stage_cells("student", stages["student"])[5:9] == 4 * ["-"]
        header, rows = efficiency_table(stages)
        costs = dict(zip(header, rows[-1], strict=True))
        assert costs["stage"] == "student" and costs["test acc"] == costs["keeps %"] == "-"
        assert run.checkpoint("student").name.startswith("best_loss_")
        assert "accuracy" not in json.loads((run.folder / "student/test_metrics.json").read_text())
        assert all(
            not row.keys() & {"val_accuracy", "train_f1_score", "val_hard_loss"}
            for row in read_log(run.folder / "student")
        )
    own = {"role": "student", "network": "tests.tiny:network", "data": "tests.tiny:dataset"}
    shipped = []
    for name, suffix in (("torch_export", ".pt2"), ("safetensors", ".safetensors")):
        keys = export.COMMAND.defaults() | own | {"format": name}
        told = export.export([str(run.folder)], **keys)
        assert "learnt no classifier" in told and "accuracy 3" not in told
        shipped.append(run.folder / "student" / "export" / f"student{suffix}")
    for what in (run.folder, run.checkpoint("student"), run.folder / "student/checkpoints/latest.pth", *shipped):
        with pytest.raises(KdxError, match="has learnt no classifier, since no label entered its loss"):
            load_model(what, "student", "tests.tiny:network", trust=True)
    latest = run.folder / "student/checkpoints/latest.pth"
    save_checkpoint(latest, load_checkpoint(latest) | {"validation": {}})  # as it is within the first epoch
    with pytest.raises(KdxError, match="has learnt no classifier, since no label entered its loss"):
        load_model(latest, network="tests.tiny:network")
    weights = load_file(shipped[-1])
    card = {key: value for key, value in json.loads(card_of(shipped[-1])).items() if key != "classifies"}
    save_file(weights, shipped[-1], metadata={CARD: json.dumps(card)})  # as it was written before cards said so
    assert load_model(shipped[-1], network="tests.tiny:network")[1].classifies
    loaded = tiny_run(*ALONE, *OWN, f"stage.student.checkpoint='{run.checkpoint('student')}'")
    assert loaded.statuses()["student"] == "loaded" and loaded.summary["student"]["test"] == {}
    sweep = tmp_path / "sweep"
    for number, one in enumerate((run, tiny_run("stage=student", "kd=none"))):
        shutil.copytree(one.folder, sweep / str(number))
    text = write_sweep_report(sweep)
    assert "nan" not in (sweep / "sweep.md").read_text() + text and "with no accuracy" not in text
    pupil = ["+stage.pupil={guide: student}", "+model.pupil=tests.tiny:network", "stage.deliver=pupil"]
    with pytest.raises(
        KdxError, match="kd: kdx.losses.Hinton compares logits, and the student has learnt no classifier"
    ):
        tiny_run(*ALONE, *OWN, *pupil, "stage.pupil.kd=hinton")


def test_labels_do_not_reach_who_learns_from_features_alone(tiny_run) -> None:
    first = tiny_run(*ALONE, *OWN)
    hidden = tiny_run(*ALONE, *OWN, "stage.student.labelled=3", "stage.reuse=never")
    one, two = (
        weights_of(first.folder / "student/checkpoints/latest.pth"),
        weights_of(hidden.folder / "student/checkpoints/latest.pth"),
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_weights_of_files_without_their_classifier(tiny_run, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    torch.manual_seed(0)
    weights = tiny.wide(num_classes=7, in_channels=1).state_dict()
    torch.save({"model": weights}, tmp_path / "w.pth")
    named = [f"stage.teacher.checkpoint='{tmp_path / 'w.pth'}'"]
    run = tiny_run(*BASE, *OWN, *named, "kd=fitnet", "kd.layers=norm", "kd.hint=0", "epochs=1")
    assert "left out of" in caplog.text and "head.weight, head.bias" in caplog.text
    kept = weights_of(run.folder / "teacher/checkpoints/imported.pth")
    assert all(torch.equal(kept[key], weights[key]) for key in kept) and "head.weight" not in kept
    thin = tiny_run("stage.deliver=teacher", "model.teacher=kdx.thin:resnet8", "epochs=1").checkpoint("teacher")
    with pytest.raises(
        KdxError, match=r"does not fit model.teacher=tests.test_headless:foundation: stem.weight is missing"
    ):
        tiny_run(*BASE, *OWN, f"stage.teacher.checkpoint='{thin}'", "kd=pkt")


def as_planned(*overrides: str) -> dict[str, str]:
    """The fingerprints of all stages, by role, as a sweep tells them in advance."""
    settings = settings_of(*overrides)
    return configured_fingerprints(make_run_context(settings, load_dataset(settings)))


def test_file_that_a_network_reads_is_part_of_what_it_is(tiny_run, tmp_path: Path, monkeypatch) -> None:
    """Once it holds other weights, who was taught by the old ones is taught again."""
    monkeypatch.chdir(tmp_path)
    line, told = [*ALONE, "model.teacher=tests.test_headless:brings", "epochs=1"], []
    for seed, status in ((0, "trained"), (1, "trained"), (0, "reused")):
        torch.manual_seed(seed)
        weights = Foundation(1).state_dict()
        torch.save(weights, "backbone.pth")
        run = tiny_run(*line)
        assert run.summary["student"]["status"] == status
        told.append(as_planned(*line))
        assert {entry["role"]: entry["fingerprint"] for entry in run.summary["plan"]}.items() <= told[-1].items()
        if status == "trained":
            kept = weights_of(run.folder / "teacher/checkpoints/imported.pth")
            assert torch.equal(kept["stem.weight"], weights["stem.weight"])
    assert told[0] == told[2] and not set(told[0].values()) & set(told[1].values())


def test_each_seed_has_the_weights_that_it_draws(tiny_run) -> None:
    line = [*ALONE, "model.teacher=tests.test_headless:draws", "epochs=1", "threads=null"]
    runs = [tiny_run(*line, f"seed={seed}") for seed in (1, 2)]
    assert [run.summary["student"]["status"] for run in runs] == ["trained", "trained"]
    one, two = (weights_of(run.folder / "teacher/checkpoints/imported.pth") for run in runs)
    assert not torch.equal(one["stem.weight"], two["stem.weight"])
    assert not torch.equal(one["stem.bias"], two["stem.bias"])
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)  # as on another machine
    assert tiny_run(*line, "seed=1").statuses() == {"student": "reused"}
    assert as_planned(*line, "seed=1")["teacher"] == runs[0].summary["plan"][0]["fingerprint"]


def test_equal_weights_are_one_teacher_for_every_seed_and_role() -> None:
    """Their seed is the network's own."""
    first = as_planned(*ALONE, *OWN)
    assert as_planned(*ALONE, *OWN, "seed=7")["teacher"] == first["teacher"]
    other = [*ALONE, "stage.student.guide=assistant", "+stage.assistant={guide:null,head:false}"]
    other.append("model.assistant=tests.test_headless:foundation")
    assert as_planned(*other)["assistant"] == first["teacher"]


def test_network_is_built_once_in_a_run_and_once_for_jobs_of_a_sweep(tiny_run, monkeypatch) -> None:
    built = []

    def counted(*arguments) -> nn.Module:
        built.append(arguments)
        return build_network(*arguments)

    monkeypatch.setattr("kdx.chain.headless.build_network", counted)
    tiny_run(*ALONE, *OWN, "epochs=1")
    assert len(built) == 1
    built.clear()
    program = Program(lambda: None, CONF, (), lambda conf, base, jobs: [settings_of(*job) for job in jobs])
    jobs = [[*ALONE, *OWN, f"stage.student.lr={rate}"] for rate in (0.1, 0.2)]
    jobs.append([*ALONE, "model.teacher=tests.test_headless:wrong"])
    first, second, third = _fingerprints(program, jobs)
    assert len(built) == 2 and first["teacher"] == second["teacher"] and first["student"] != second["student"]
    assert "not features" in third["error"]


@pytest.mark.parametrize("name", ["kdx.thin:resnet8", "squeezenet1_1", "resnet18", "tests.tiny:network"])
def test_networks_lose_their_classifier(name: str) -> None:
    network = build_network(NetworkSpec(name, 5, head=False)).eval()
    layers = resolve_layers(network, ("pooled",), torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        seen = Watched(network, layers)(torch.zeros(2, 3, 64, 64))
    assert seen.features["pooled"][0].shape == seen.logits.shape and seen.logits.shape[1] in (4, 64, 512)


def test_timm_without_a_classifier(tiny_run, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_vit", num_classes=9, in_chans=1, img_size=16).state_dict(), tmp_path / "w.pth")
    named = ["model.teacher=timm/test_vit", f"stage.teacher.checkpoint='{tmp_path / 'w.pth'}'", "dataset.resize=16"]
    assert tiny_run(*ALONE, *named, "epochs=1").summary["student"]["status"] == "trained"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["kd=hinton", *OWN],
            "kd: kdx.losses.Hinton compares logits, and the teacher has by stage.teacher.head=false none",
        ),
        (["kd=pkt", "kd.hard=0", *OWN], "select=auto: no label enters the loss.*stage.student.select=loss"),
        (
            ["kd=pkt", "model.teacher=resnet18"],
            "head=false: stage.teacher.checkpoint=FILE or stage.teacher.pretrained=true is needed",
        ),
        (
            ["kd=pkt", "model.teacher=tests.test_headless:wrong"],
            r"head=false returns \(2, 4, 8, 8\) for 2 images, not features",
        ),
        (["kd=pkt", "stage.deliver=teacher", *OWN], "stage.teacher.head=false: has no classifier to deliver"),
        (
            ["kd=pkt", "stage.student.guide=[teacher,assistant]", "kd.teachers=each", *OWN],
            "the teacher has no classifier and teaches alone",
        ),
    ],
)
def test_errors_are_one_line(tiny_run, overrides: list[str], message: str) -> None:
    with pytest.raises(KdxError, match=message):
        tiny_run(*BASE, *overrides)
