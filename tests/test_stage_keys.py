"""Keys of a group for one stage, typed as they stand; and several teachers of a stage."""

from pathlib import Path

import pytest
import torch

from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.index import StageIndex
from kdx.chain.plan import describe_plan, make_plan
from kdx.config.stage_overrides import from_hydra, to_hydra
from kdx.errors import KdxError
from kdx.losses.distillation import averaged
from kdx.models.features import Outputs
from kdx.results import load
from tests.conftest import TINY, settings_of, write_experiment
from tests.forks import kdx


def plan_of(tmp_path: Path, *overrides: str) -> dict[str, str]:
    settings = settings_of(f"output_dir={tmp_path}", *overrides)
    return {
        p.role: p.fingerprint
        for p in make_plan(make_run_context(settings, load_dataset(settings)), StageIndex(tmp_path))
    }


@pytest.mark.parametrize(
    ("typed", "hydra"),
    [
        ("stage.student.kd.alpha=0.5", "++stage.student.kd.alpha=0.5"),
        ("stage.student.kd=dkd", "+kd@stage.student.kd=dkd"),
        ("stage.student.kd=dkd,dist", "+kd@stage.student.kd=dkd,dist"),
        ("stage.student.kd=[dkd,dist],at", "+kd@stage.student.kd=[dkd,dist],at"),
        ("stage.student.kd=null", "++stage.student.kd=null"),
        ("stage.student.kd={alpha:0.5}", "++stage.student.kd={alpha:0.5}"),
        ("stage.student.ema=0.9", "++stage.student.ema=0.9"),
        ("stage.student.guide=[teacher,assistant]", "++stage.student.guide=[teacher,assistant]"),
    ],
)
def test_hydras_words_and_back(typed: str, hydra: str) -> None:
    assert to_hydra(typed) == hydra and from_hydra(hydra) == typed and to_hydra(hydra) == hydra


@pytest.mark.parametrize(
    "other", ["stage=student", "kd.alpha=1", "+kd.mine=1", "~kd", "stage.deliver=all", "a=stage.b.kd.c=1"]
)
def test_all_else_stays(other: str) -> None:
    assert to_hydra(other) == other and from_hydra(other) == other


def test_a_stages_keys_stand_in_the_place_of_the_runs() -> None:
    settings = settings_of(
        *("stage.student.kd.alpha=0.5", "stage.teacher.optimizer=sgd", "stage.teacher.optimizer.momentum=0.5"),
        *("stage.student.scheduler=none", "scheduler.warmup=1", "stage.assistant.kd=dkd", "kd.temperature=3"),
        *("ema=0.9", "stage.student.ema=0.5", "stage.assistant.clip_norm=2", "kd.cache_logits=true"),
    )
    teacher, assistant, student = (settings.stage(role) for role in ("teacher", "assistant", "student"))
    assert student.kd["alpha"] == 0.5 and student.kd["temperature"] == 3
    assert assistant.kd["_target_"] == "kdx.losses.DKD" and "alpha" in assistant.kd and assistant.cache_logits is False
    assert student.cache_logits is True
    assert teacher.optimizer["_target_"] == "torch.optim.SGD" and teacher.optimizer["momentum"] == 0.5
    assert student.optimizer["_target_"] == "torch.optim.AdamW"
    assert student.scheduler == {"_target_": None, "warmup": 1, "every": None}
    assert (teacher.recipe.ema, student.recipe.ema, assistant.recipe.clip_norm) == (0.9, 0.5, 2.0)
    assert student.config["kd"]["alpha"] == 0.5 and teacher.config["kd"]["alpha"] == 0.7


def test_a_stages_kd_can_be_none() -> None:
    settings = settings_of("stage.assistant.kd=none")
    assert not settings.stage("assistant").distilled and settings.stage("student").distilled


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.student.kd.alhpa=0.5", "stage.student.kd.alhpa: no such key; did you mean 'alpha'?"),
        ("stage.student.kd.temperature=-1", "stage.student.kd.temperature=-1: a finite number above 0"),
        ("stage.student.optimiser.lr=1", "stage.student.optimiser: no such key; did you mean 'optimizer'?"),
        ("stage.studnet.kd.alpha=1", "stage.studnet: no such role; did you mean 'student'?"),
        ("stage.student.ema=1", "stage.student.ema=1: a number from 0 to below 1"),
        ("stage.student.labelled=0", "stage.student.labelled=0"),
        ("stage.student.select=best", "stage.student.select=best: choose auto, accuracy, auc, f1, loss"),
        ("stage.student.class_weights=balancd", "or null; did you mean 'balanced'?"),
        ("stage.student.scheduler.warmup=-1", "stage.student.scheduler.warmup=-1: a finite number of at least 0"),
        ("stage.student.optimizer.decay=norms", "stage.student.optimizer.decay=norms: choose all, weights"),
        ("kd.teachers=median", "kd.teachers=median: choose mean, each"),
    ],
)
def test_a_wrong_key_or_value_of_a_stage_is_one_line(override: str, message: str) -> None:
    with pytest.raises(KdxError) as error:
        settings_of(override)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "key", "message"),
    [
        ("kd=combined", "kd.terms.at.power=0", "stage.student.kd.terms.at.power=0: a finite number above 0"),
        ("kd=combined", "kd.tems={}", "stage.student.kd.tems: no such key; did you mean 'terms'?"),
        ("optimizer=sgd", "optimizer._target_=null", "stage.student.optimizer._target_=None: the dotted name"),
    ],
)
def test_another_option_of_a_stage_is_checked_as_that_of_a_run_is(option: str, key: str, message: str) -> None:
    with pytest.raises(KdxError) as error:
        settings_of(f"stage.student.{option}", f"stage.student.{key}")
    assert message in str(error.value)


def test_the_learning_rate_of_a_stage_is_given_once() -> None:
    with pytest.raises(KdxError, match=r"stage.student.lr=0.1: stage.student.optimizer.lr=0.2 says it, too"):
        settings_of("stage.student.lr=0.1", "stage.student.optimizer.lr=0.2")


@pytest.mark.parametrize(
    "override",
    [
        *("stage.student.kd.alpha=0.5", "stage.student.scheduler=none", "stage.student.optimizer.decay=weights"),
        *("stage.student.labelled=0.5", "stage.student.label_smoothing=0.1", "stage.student.class_weights=balanced"),
        *("stage.student.clip_norm=1", "stage.student.ema=0.9", "stage.student.select=loss"),
        *("stage.student.patience=1", "stage.student.micro_batches=2", "stage.student.scheduler.warmup=1"),
        "stage.student.guide=[teacher,assistant]",
    ],
)
def test_what_changes_a_stages_weights_changes_its_fingerprint_only(tmp_path: Path, override: str) -> None:
    before, after = plan_of(tmp_path), plan_of(tmp_path, override)
    assert {role for role in before if before[role] != after[role]} == {"student"}


@pytest.mark.parametrize(
    "override", ["select=accuracy", "stage.student.ema=0", "kd.teachers=each", "kd.cache_logits=true"]
)
def test_what_changes_no_weights_is_not_in_a_fingerprint(tmp_path: Path, override: str) -> None:
    assert plan_of(tmp_path) == plan_of(tmp_path, override)


def test_two_teachers_are_planned_trained_recorded_and_taken_up_again(tiny_run, tmp_path: Path) -> None:
    pair = "stage.student.guide=[teacher,assistant]"
    run = tiny_run(pair, "kd.cache_logits=true", "dataset.augment=[]")
    student = run.summary["student"]
    assert student["guide"] == ["teacher", "assistant"] and run.summary["assistant"]["guide"] == "teacher"
    assert student["guide_fingerprint"] == [run.summary[role]["fingerprint"] for role in ("teacher", "assistant")]
    assert set(student["test"]["guide_agreements"]) == {"teacher", "assistant"}
    assert 0 <= student["test"]["guide_agreement"] <= 100
    assert "guide_agreements" not in run.summary["assistant"]["test"]
    settings = settings_of(f"output_dir={tmp_path / 'outputs'}", pair, "dataset.augment=[]")
    plan = make_plan(make_run_context(settings, load_dataset(settings)), StageIndex(tmp_path / "outputs"))
    assert [planned.action for planned in plan] == ["reuse"] * 3
    assert tiny_run(pair, "dataset.augment=[]").statuses() == dict.fromkeys(
        ("teacher", "assistant", "student"), "reused"
    )
    each = tiny_run(pair, "dataset.augment=[]", "kd.teachers=each")
    assert each.statuses()["student"] == "trained"
    assert each.summary["student"]["fingerprint"] != student["fingerprint"]
    frame = load(tmp_path / "outputs")
    assert len(frame) == 3 and (frame["stage.student.guide"] == "[teacher,assistant]").all()


def test_the_plan_says_who_teaches(tmp_path: Path) -> None:
    settings = settings_of(f"output_dir={tmp_path}", "stage.student.guide=[teacher,assistant]", "stage.deliver=student")
    plan = make_plan(make_run_context(settings, load_dataset(settings)), StageIndex(tmp_path))
    assert "taught by the teacher and the assistant" in describe_plan(plan)[-1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_teacher_says_the_mean_of_the_probabilities(multi_label: bool) -> None:
    one, two = torch.randn(2, 5, 3, dtype=torch.float64)
    said = averaged([Outputs(one), Outputs(two)], multi_label).logits
    spread = torch.sigmoid if multi_label else lambda logits: logits.softmax(dim=1)
    torch.testing.assert_close(spread(said), (spread(one) + spread(two)) / 2, check_dtype=False, atol=1e-6, rtol=1e-6)


def test_layers_of_several_teachers_have_no_mean(tiny_run) -> None:
    with pytest.raises(
        KdxError, match="kd.teachers=mean: kdx.losses.FitNet looks at layers, which have no mean; choose each"
    ):
        tiny_run("stage.student.guide=[teacher,assistant]", "stage.student.kd=fitnet")
    run = tiny_run(
        "stage.student.guide=[teacher,assistant]",
        "stage.student.kd=fitnet",
        "stage.student.kd.hint=-1",
        "stage.student.kd.teachers=each",
    )
    assert run.summary["student"]["guide"] == ["teacher", "assistant"]


def test_a_key_of_a_stage_is_swept_from_a_file_and_the_command_line_and_shown_as_it_was_typed(
    tmp_path: Path, kdx_environment: dict[str, str]
) -> None:
    write_experiment(
        tmp_path / "conf", "mine", "hydra: {sweeper: {params: {stage.student.kd.alpha: '0.2,0.8', epochs: 7}}}"
    )
    swept = ["experiment=mine", "stage.student.scheduler=none", "stage.deliver=student", "hydra.sweep.dir=sweep"]
    swept.append("epochs=1")  # the command line's wins over the file's
    done = kdx(tmp_path, kdx_environment, "--config-dir", "conf", "--multirun", *TINY, *swept)
    assert done.returncode == 0, done.stdout + done.stderr
    frame = load(tmp_path / "sweep")
    assert frame["stage.student.kd.alpha"].tolist() == [0.2, 0.8]
    assert frame["epochs"].tolist() == [1, 1]
    assert frame["stage.student.scheduler"].tolist() == ["none", "none"]
    assert "stage.student.kd.alpha" in done.stdout and "++" not in done.stdout
