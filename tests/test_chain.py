"""The three stages together, on tiny networks."""

import csv
import json
import shutil
import traceback
import weakref
from pathlib import Path

import pytest
import torch

from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.index import StageIndex
from kdx.chain.plan import make_plan
from kdx.chain.stage import FinishedTeacher, train_stage
from kdx.checkpoint import save_checkpoint
from kdx.config.schema import Settings
from kdx.errors import KdxError
from kdx.losses.hinton import Hinton
from kdx.models.networks import build_network
from tests.conftest import TinyRun, same_weights, settings_of


def fingerprints(*overrides: str) -> dict[str, str]:
    return {step.role: step.fingerprint for step in plan_of(settings_of(*overrides))}


def plan_of(settings: Settings, outputs: Path = Path("nowhere")) -> list:
    return make_plan(make_run_context(settings, load_dataset(settings)), StageIndex(outputs))


def test_a_run_leaves_the_files_of_the_contract(tiny_run) -> None:
    """pitfall(7): test is evaluated, once, on the chosen checkpoint."""
    run: TinyRun = tiny_run("visualize.samples=2")
    for role in ("teacher", "assistant", "student"):
        folder = run.folder / role
        name = run.summary[role]["network"].replace(":", "-")
        assert (folder / "logs" / f"{name}_{role}_log.csv").exists()
        config = json.loads((folder / "logs" / f"{name}_{role}_config.json").read_text())
        assert config["config"]["epochs"] == 2 and config["fingerprint"] == run.summary[role]["fingerprint"]
        (best,) = (folder / "checkpoints").glob("best_acc_*.pth")
        content = torch.load(best, weights_only=True)
        assert {"model", "epoch", "validation", "meta"} <= set(content)
        assert content["meta"]["role"] == role and content["meta"]["versions"]["torch"] == torch.__version__
        test = json.loads((folder / "test_metrics.json").read_text())
        needed = {
            "loss",
            "accuracy",
            "precision",
            "recall",
            "f1_score",
            "auc",
            "confusion_matrix",
            "epoch",
            "num_samples",
        }
        assert needed <= set(test) and test["num_samples"] == 30 and test["epoch"] == content["epoch"]
        assert run.checkpoint(role) == best and run.summary[role]["test"] == test
        assert (folder / "checkpoints" / "latest.pth").exists()
        assert len(list((folder / "visualizations").glob("feature_maps_*.png"))) == 2
    assert run.summary["status"] == "finished"
    assert [entry["what"] for entry in run.summary["lineage"]] == ["data", "teacher", "assistant", "student"]
    assert run.summary["student"]["guide_fingerprint"] == run.summary["assistant"]["fingerprint"]


def test_nothing_written_holds_an_absolute_path(tiny_run, tmp_path: Path) -> None:
    run = tiny_run()
    texts = [p for p in (tmp_path / "outputs").rglob("*") if p.suffix in (".json", ".csv", ".sha256")]
    assert len(texts) > 10
    for path in texts:
        if not path.name.endswith("_config.json"):  # that one tells the overrides as given
            assert str(tmp_path) not in path.read_text(), path
    for role in run.roles():
        assert str(tmp_path).encode() not in run.checkpoint(role).read_bytes()


def test_second_run_reuses_everything_also_after_a_move(tiny_run, tmp_path: Path) -> None:
    tiny_run()
    assert set(tiny_run().statuses().values()) == {"reused"}
    (tmp_path / "outputs").rename(tmp_path / "moved")
    plan = plan_of(settings_of(), tmp_path / "moved")
    assert [step.action for step in plan] == ["reuse"] * 3


def test_sweep_over_temperature_trains_one_teacher(tiny_run) -> None:
    """pitfall(2): every value that changes weights makes another stage; nothing is overwritten or taken for another."""
    first = tiny_run("kd.temperature=2")
    second = tiny_run("kd.temperature=4")
    assert second.statuses() == {"teacher": "reused", "assistant": "trained", "student": "trained"}
    assert first.checkpoint("teacher").resolve() == second.checkpoint("teacher").resolve()
    assert first.checkpoint("student").exists() and not same_weights(
        first.checkpoint("student"), second.checkpoint("student")
    )


CHANGES = {  # override -> roles whose weights it changes
    "seed=1": "tas",
    "batch_size=16": "tas",
    "epochs=3": "tas",
    "optimizer.lr=0.02": "tas",
    "optimizer=sgd": "tas",
    "optimizer.weight_decay=0": "tas",
    "scheduler=none": "tas",
    "amp=bf16": "tas",
    "micro_batches=2": "tas",
    "dataset.augment=[none]": "tas",
    "dataset.augment={crop:{padding:0.125}}": "",
    "dataset.augment={crop:{padding:0.25}}": "tas",
    "dataset.augment=[crop,mixup]": "tas",
    "dataset.balance=true": "tas",
    "dataset.balance=false": "",
    "dataset.resize=12": "tas",
    "dataset.normalize={mean:[0.5],std:[0.5]}": "tas",
    "+dataset.source.seed=5": "tas",
    "model.freeze_backbone=true": "tas",
    "kd.temperature=2": "as",
    "kd.alpha=0.1": "as",
    "kd=none": "as",
    "model.teacher=tests.tiny:network": "tas",
    "model.assistant=tests.tiny:wide": "as",
    "model.student=tests.tiny:wide": "s",
    "stage.student.epochs=5": "s",
    "stage.student.freeze_backbone=true": "s",
    "stage.student.freeze_backbone=false": "",
    "stage.student.lr=0.5": "s",
    "stage.assistant.batch_size=4": "as",
    "stage.student.guide=teacher": "s",
    "log_interval=1": "",
    "save_interval=1": "",
    "checkpoint_every_steps=1": "",
    "num_workers=2": "",
    "visualize.samples=0": "",
    "threads=2": "",
    "deterministic=false": "",
    "plan=true": "",
    "resume=true": "",
    "download=false": "",
    "data_dir=elsewhere": "",
    "output_dir=elsewhere": "",
    "stage.reuse=never": "",
    "stage.missing=error stage.deliver=all": "",
    "device=cpu": "",
    "devices=2": "",
    "devices=2 sync_batchnorm=false": "tas",
    "sync_batchnorm=false": "",
    "report=true": "",
    "logger=tensorboard": "",
    "channels_last=true": "",
    "compile=default": "",
    "activation_checkpointing=true model=thin": "",
    "kd.cache_logits=true": "",
}


@pytest.mark.parametrize("override", CHANGES)
def test_fingerprints_change_with_what_changes_weights_only(override: str) -> None:
    before, after = fingerprints(*override.split(" ")[1:]), fingerprints(*override.split(" "))
    changed = "".join(role[0] for role in ("teacher", "assistant", "student") if before[role] != after[role])
    assert changed == CHANGES[override]


def test_every_key_is_classified_above() -> None:
    """A new setting must say whether it changes weights."""
    words = " ".join(CHANGES)
    known = {"stages", "deliver", "reuse", "missing", "dataset_name", "source", "stem", "torchrun"}
    known.add("unlabelled")  # needs a folder: tests/test_unlabelled.py
    for name in Settings.__dataclass_fields__:
        assert name in known or name.rstrip("s") in words, name


def test_seeds_give_other_weights_and_the_same_seed_the_same(tiny_run) -> None:
    """pitfall(13): the seed that the user sets is the one that counts."""
    one, again = tiny_run("stage.reuse=never"), tiny_run("stage.reuse=never")
    other = tiny_run("seed=1")
    for role in one.roles():
        assert same_weights(one.checkpoint(role), again.checkpoint(role))
        assert not same_weights(one.checkpoint(role), other.checkpoint(role))


def test_a_stage_alone_is_the_stage_in_a_chain(tiny_run) -> None:
    whole = tiny_run()
    alone = tiny_run("stage.deliver=teacher", "stage.reuse=never")
    assert alone.roles() == ["teacher"]
    assert same_weights(whole.checkpoint("teacher"), alone.checkpoint("teacher"))


def test_missing_upstream_is_trained_or_refused(tiny_run, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="no finished (assistant|teacher) .*run stage=(assistant|teacher)"):
        tiny_run("stage.deliver=student", "stage.missing=error")
    assert not list(tmp_path.rglob("*.pth"))
    run = tiny_run("stage.deliver=student")
    assert run.statuses() == {"teacher": "trained", "assistant": "trained", "student": "trained"}
    again = tiny_run("stage.deliver=student", "stage.missing=error", "kd.temperature=4.0", "stage.student.lr=0.02")
    assert again.statuses() == {"assistant": "reused", "student": "trained"}


def test_latest_takes_the_newest_whatever_its_settings(tiny_run) -> None:
    tiny_run("stage.deliver=teacher", "seed=5")
    newest = tiny_run("stage.deliver=teacher", "epochs=1")
    run = tiny_run("stage.deliver=assistant", "stage.reuse=latest", "epochs=3")
    assert run.statuses() == {"teacher": "reused", "assistant": "trained"}
    assert run.checkpoint("teacher").resolve() == newest.checkpoint("teacher").resolve()
    other_net = tiny_run(
        "stage.deliver=assistant", "stage.reuse=latest", "epochs=3", "model.teacher=tests.tiny:network"
    )
    assert other_net.statuses()["teacher"] == "trained"


def test_latest_passes_over_what_does_not_fit(tiny_run) -> None:
    fitting = tiny_run("stage.deliver=teacher", "dataset.resize=12", "epochs=1")
    tiny_run("stage.deliver=teacher", "epochs=1")  # newer, but for another size
    run = tiny_run("stage.deliver=assistant", "stage.reuse=latest", "dataset.resize=12")
    assert run.checkpoint("teacher").resolve() == fitting.checkpoint("teacher").resolve()


def test_index_knows_its_checkpoints_hash(tiny_run) -> None:
    """Also where both the file and the checksum beside it were replaced."""
    first, other = tiny_run("stage.deliver=teacher"), tiny_run("stage.deliver=teacher", "seed=7")
    path, wrong = first.checkpoint("teacher"), other.checkpoint("teacher")
    path.write_bytes(wrong.read_bytes())
    path.with_name(path.name + ".sha256").unlink()
    assert tiny_run("stage.deliver=teacher").statuses() == {"teacher": "trained"}


def test_direct_distillation_skips_the_assistant(tiny_run) -> None:
    run = tiny_run("stage.deliver=student", "stage.student.guide=teacher")
    assert run.roles() == ["teacher", "student"]
    assert run.summary["student"]["guide_fingerprint"] == run.summary["teacher"]["fingerprint"]


def test_without_distillation_a_student_needs_nobody(tiny_run) -> None:
    run = tiny_run("stage.deliver=student", "kd=none")
    assert run.roles() == ["student"] and run.summary["student"]["guide"] is None
    with open(next(run.folder.rglob("*_log.csv"))) as file:
        assert "train_soft_loss" not in next(csv.reader(file))


def test_longer_chain_by_adding_a_role(tiny_run) -> None:
    extra = ["+stage.professor={guide: null}", "+model.professor=tests.tiny:wide", "stage.teacher.guide=professor"]
    run = tiny_run(*extra)
    assert run.roles() == ["professor", "teacher", "assistant", "student"]
    assert run.summary["teacher"]["guide_fingerprint"] == run.summary["professor"]["fingerprint"]


def test_named_checkpoint_stands_in_for_training(tiny_run) -> None:
    first = tiny_run("stage.deliver=teacher")
    run = tiny_run(
        "stage.deliver=assistant", f"stage.teacher.checkpoint='{first.checkpoint('teacher')}'", "stage.reuse=never"
    )
    assert run.statuses() == {"teacher": "loaded", "assistant": "trained"}
    assert run.summary["teacher"]["test"]["accuracy"] == first.summary["teacher"]["test"]["accuracy"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+dataset.source.seed=9", "data_digest is"),
        ("dataset.normalize={mean:[0.5],std:[0.5]}", "preprocessing is"),
        ("dataset.resize=16", "preprocessing is"),
        ("model.teacher=tests.tiny:network", "network is 'tests.tiny:wide', needed 'tests.tiny:network'"),
        ("+dataset.source.classes=4", "num_classes is 3, needed 4"),
    ],
)
def test_guide_that_does_not_fit_is_refused_before_training(
    tiny_run, tmp_path: Path, override: str, message: str
) -> None:
    """pitfall(3): also where all shapes match."""
    first = tiny_run("stage.deliver=teacher")
    before = sorted(tmp_path.rglob("*.pth"))
    with pytest.raises(KdxError, match="does not fit: .*" + message):
        tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{first.checkpoint('teacher')}'", override)
    assert sorted(tmp_path.rglob("*.pth")) == before


def test_named_guide_that_says_nothing_of_its_scores_is_refused_before_training(tiny_run, tmp_path: Path) -> None:
    content = torch.load(tiny_run("stage.deliver=teacher").checkpoint("teacher"), weights_only=True)
    save_checkpoint(tmp_path / "bare.pth", {"model": content["model"], "meta": content["meta"]})
    before = sorted(tmp_path.rglob("*.pth"))
    with pytest.raises(KdxError, match="bare.pth: says nothing of its epoch and its scores"):
        tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{tmp_path / 'bare.pth'}'")
    assert sorted(tmp_path.rglob("*.pth")) == before


def test_named_guide_that_answers_nan_teaches_nobody(tiny_run, tmp_path: Path) -> None:
    content = torch.load(tiny_run("stage.deliver=teacher").checkpoint("teacher"), weights_only=True)
    content["model"]["norm.running_var"].fill_(-1)
    save_checkpoint(tmp_path / "nan.pth", content)
    before = sorted(tmp_path.rglob("*.pth"))
    with pytest.raises(KdxError, match=r"nan.pth: the network gives no numbers"):
        tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{tmp_path / 'nan.pth'}'")
    assert sorted(tmp_path.rglob("*.pth")) == before


def test_measuring_a_guide_for_the_report_leaves_it_as_it_was(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It teaches next, in the memory format of the run: what is measured is a copy."""
    layouts = []

    def spy(*given, teachers: dict[str, FinishedTeacher], **options):
        for weight in [weight for teacher in teachers.values() for weight in teacher.network.parameters()]:
            layouts.append(weight.is_contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else True)
        return train_stage(*given, teachers=teachers, **options)

    monkeypatch.setattr("kdx.chain.chain.train_stage", spy)
    tiny_run("stage.deliver=assistant", "model.teacher=kdx.thin:resnet8", "report=true", "channels_last=true")
    assert layouts and all(layouts)


def test_network_is_freed_when_nobody_needs_it_any_more(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = []

    def spy(*given, teachers: dict[str, FinishedTeacher], **options):
        assert all(teacher() is None for teacher in taught)
        taught.extend(weakref.ref(teacher.network) for teacher in teachers.values())
        return train_stage(*given, teachers=teachers, **options)

    monkeypatch.setattr("kdx.chain.chain.train_stage", spy)
    tiny_run("stage.deliver=teacher")
    tiny_run("stage.deliver=student", "report=true")
    assert len(taught) == 2


def test_reused_guide_is_read_from_its_file_once(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run("stage.deliver=assistant")
    read = []
    for module in ("loaded", "parts"):
        monkeypatch.setattr(
            f"kdx.chain.{module}.build_network", lambda *given: read.append(given) or build_network(*given)
        )
    run = tiny_run("stage.deliver=student")
    assert run.statuses() == {"assistant": "reused", "student": "trained"}
    assert len(read) == 1 + 3  # the guide; the student to check it, to train it and to test its best epoch


def test_damaged_named_guide_is_an_error_and_a_damaged_found_one_is_trained_again(tiny_run, caplog) -> None:
    first = tiny_run("stage.deliver=teacher")
    path = first.checkpoint("teacher")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(KdxError, match="damaged"):
        tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{path}'")
    assert tiny_run("stage.deliver=teacher").statuses() == {"teacher": "trained"}
    assert "damaged" in caplog.text


def test_deleted_checkpoint_is_not_reused(tiny_run) -> None:
    first = tiny_run("stage.deliver=teacher")
    shutil.rmtree(first.folder)
    assert tiny_run("stage.deliver=teacher").statuses() == {"teacher": "trained"}


def test_error_in_the_last_stage_comes_before_the_first_trains(tiny_run, tmp_path: Path) -> None:
    """A student's typo must not cost a teacher's training."""
    for override, message in (
        ("model.student=resnet19", "^model.student=resnet19: not a torchvision classifier .*; did you mean 'resnet18'"),
        ("model.student=tests.tiny:nothing", "tests.tiny:nothing"),
        ("stage.student.checkpoint=nowhere.pth", "stage.student.checkpoint=nowhere.pth"),
        ("+optimizer.speed=3", "^optimizer.speed: torch.optim.AdamW has no such key.* its keys: lr, betas"),
        (
            "stage.student.optimizer=sgd stage.student.optimizer.speed=3",
            "^stage.student.optimizer.speed: torch.optim.SGD",
        ),
        ("stage.student.kd=at stage.student.kd.temperature=2", "^stage.student.kd.temperature: .* its keys: layers, "),
        (
            "stage.student.kd=at stage.student.kd.layers=nope",
            "^stage.student.kd.layers: .* .in the student, tests.tiny:n",
        ),
        ("kd=at stage.student.kd.power=3 kd.layers=nope", "^kd.layers: .* .in the assistant, tests.tiny:network.$"),
        ("kd=at kd.teacher_layers=nope", "^kd.teacher_layers: .* .in the teacher, tests.tiny:wide.$"),
        ("stage.teacher.labelled=0.001", "^stage.teacher.labelled=0.001: "),
        ("labelled=0.001", "^labelled=0.001: "),
        ("stage.student.class_weights=[1,2]", r"^stage.student.class_weights=\[1, 2\]: 2 numbers for 3 classes"),
        (
            "dataset.source._target_=tests.tiny.datasett",
            "tests.tiny has no attribute datasett; did you mean 'dataset'.$",
        ),
        ("scheduler._target_=torch.optim.lr_scheduler.NoSuch", "scheduler: .*NoSuch"),
        ("kd._target_=kdx.losses.NoSuch", "kd: .*NoSuch"),
        ("kd={_target_: tests.tiny.OneArgument}", "kd: tests.tiny.OneArgument is no loss of three arguments"),
        ("visualize.samples=1 visualize.layer=layr4", "layer=layr4: the network has no such layer"),
        ("visualize.samples=1 visualize.layer=zzz", "layer=zzz: the network has no such layer; choose "),
        ("visualize.samples=1 visualize.layer=head", "visualize.layer=head: gives no maps in the teacher"),
        ("stage.student.batch_size=1 model.student=tests.tiny:flat", "fails on 8x8 images: .*; raise batch_size"),
    ):
        with pytest.raises(KdxError, match=message) as error:
            tiny_run(*(override.split(" ") if "{" not in override else [override]))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_flip_is_refused_where_it_changes_the_class() -> None:
    with pytest.raises(KdxError, match=r"dataset.augment=\['flip'\]: a flip changes the class of digits"):
        settings = settings_of(
            "dataset.name=digits", "dataset.source._target_=kdx.data.sources.load_digits", "dataset.augment=[flip]"
        )
        make_run_context(settings, load_dataset(settings))


def test_pretrained_reaches_the_stages_it_is_set_for() -> None:
    """pitfall(12): globally all stages, or one; never the teacher alone under a global name."""
    settings = settings_of("model.pretrained=true")
    assert [stage.pretrained for stage in settings.stages] == [True] * 3
    settings = settings_of("stage.student.pretrained=true")
    assert [(stage.role, stage.pretrained) for stage in settings.stages if stage.pretrained] == [("student", True)]


def test_failed_run_says_so_in_its_summary(tiny_run, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="teacher: .* in epoch 1"):
        tiny_run("optimizer=sgd", "optimizer.lr=1e30", "deterministic=false")
    summary = json.loads((tmp_path / "outputs" / "run1" / "summary.json").read_text())
    assert summary["status"] == "failed" and "in epoch 1" in summary["error"]
    assert not list((tmp_path / "outputs").glob("index/*.json"))


def test_the_loss_is_nine_calls_from_the_chain(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for what a command minimises has few doors to open."""
    ways = set()
    forward = Hinton.forward

    def watched(*args):
        calls = [frame.name for frame in traceback.extract_stack() if "/kdx/" in frame.filename]
        ways.add(tuple(name for name in calls if not name.startswith("<")))
        return forward(*args)

    monkeypatch.setattr(Hinton, "forward", watched)
    tiny_run("epochs=1", "stage.deliver=student")
    in_training = {way[way.index("run_chain") :] for way in ways if "fit" in way and "train_step" in way}
    assert in_training and all(len(way) < 9 for way in in_training), in_training  # the method's own call is the ninth


def test_multi_label_chain(tiny_run) -> None:
    run = tiny_run("+dataset.source.task=multi-label", "+dataset.source.count=60")
    assert run.summary["student"]["test"]["auc"] > 0.5
    assert len(run.summary["student"]["test"]["confusion_matrix"]) == 3
