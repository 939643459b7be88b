"""Every option of conf/kd is built from its file and makes a training step, or is refused by name."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kdx.chain.chain import run_chain
from kdx.chain.check import check_stage
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.objective import build_objective, build_terms
from kdx.errors import KdxError
from kdx.losses.hard import HardLoss
from kdx.training.teachers import Teacher
from tests import tiny
from tests.conftest import CONF, TinyRun, same_weights, settings_of

NAMES = sorted(path.stem for path in (CONF / "kd").glob("*.yaml"))
MULTI_LABEL_ONLY = ("mld", "pskd")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all runs find each other's teacher."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("name", NAMES)
def test_an_option_trains_an_epoch_of_thin_networks(name: str, outputs: Path) -> None:
    """From its file, through plan, trial step, training and test; its parts are columns of the log."""
    task = "multi-label" if name in MULTI_LABEL_ONLY else "multi-class"
    thin = [f"model.{role}=kdx.thin:resnet{depth}" for role, depth in (("teacher", 20), ("student", 8))]
    chain = ["stage=student", "stage.student.guide=teacher", f"+dataset.source.task={task}", *thin]
    settings = settings_of(*chain, f"output_dir={outputs}", f"kd={name}", "epochs=1")
    folder = outputs / name
    folder.mkdir()
    run_chain(settings, folder, [])
    (row,) = csv.DictReader(next((folder / "student" / "logs").glob("*_log.csv")).read_text().splitlines())
    assert math.isfinite(float(row["train_loss"])) and math.isfinite(float(row["val_loss"]))
    parts = [key for key in row if key.startswith("train_") and key.endswith(("soft_loss", "feature_loss"))]
    assert len(parts) == {"none": 0, "combined": 2}.get(name, 1)


@pytest.mark.parametrize("name", NAMES)
def test_an_option_makes_a_step_in_parts_and_bf16_or_is_refused(name: str) -> None:
    one_map = ["kd.hint=-1"] if name == "fitnet" else []  # the tiny network has one stage
    settings = settings_of(f"kd={name}", *one_map, "micro_batches=2", "amp=bf16")
    context = make_run_context(settings, load_dataset(settings))
    teachers = {"assistant": tiny.wide(3, 1)}
    stage = settings.stage("student")
    if name in MULTI_LABEL_ONLY:
        with pytest.raises(KdxError, match="kd: kdx.losses.* choose"):
            check_stage(context, stage, teachers)
    else:
        network = check_stage(context, stage, teachers if stage.distilled else {})
        assert sum(p.numel() for p in network.parameters()) > 0


def test_a_target_of_ones_own_takes_the_place_of_an_options() -> None:
    """What hinton's file leaves unset is not passed on; its standardise is a switch."""
    for target in ("kdx.losses.KnowledgeDistillationLoss", "tests.tiny.OneArgument"):
        kd = settings_of(f"kd._target_={target}", "+kd.more=1" if target.endswith("Argument") else "kd.alpha=0.5")
        stage = kd.stage("student")
        if target.endswith("Argument"):
            with pytest.raises(KdxError, match="is no loss of three arguments"):
                build_terms(stage.kd)
        else:
            assert build_terms(stage.kd)[1]["kd"].method.loss.alpha == 0.5
    switched = build_terms(settings_of("kd.standardise=true").stage("student").kd)[1]["kd"].method
    assert switched.standardise and not build_terms(settings_of().stage("student").kd)[1]["kd"].method.standardise


BY_FEATURES = {"at", "cc", "combined", "crd", "fitnet", "pkt", "reviewkd", "rkd", "sp", "vid"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none", *MULTI_LABEL_ONLY}))
def test_logits_cannot_stand_for_features(name: str) -> None:
    stage = settings_of(f"kd={name}", "kd.cache_logits=true").stage("student")
    hard = HardLoss("multi-class")
    if name not in BY_FEATURES:
        assert not build_objective(stage, hard, tiny.dataset()).layers
        return
    build_objective(settings_of(f"kd={name}", "kd.cache_logits=auto").stage("student"), hard, tiny.dataset())
    with pytest.raises(KdxError, match="^kd.cache_logits=true: .*looks at layers of the teacher") as caught:
        build_objective(stage, hard, tiny.dataset())
    assert "\n" not in str(caught.value)


def test_a_sweep_over_methods_asks_the_teacher_once_a_view(
    tiny_run: Callable[..., TinyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job of kd=hinton,dkd,dist,wttm leaves, the next one reads, and ends as it would have without."""
    asked: list[int] = []
    ask = Teacher.ask
    monkeypatch.setattr(Teacher, "ask", lambda self, images: asked.append(len(images)) or ask(self, images))
    student = ["stage=student", "stage.student.guide=teacher"]
    counts, ends = [], {}
    for name, keep in {"hinton": "auto", "dkd": "true", "dist": "auto", "wttm": "auto"}.items():
        before = sum(asked)
        ends[name] = tiny_run(*student, f"kd={name}", f"kd.cache_logits={keep}")
        counts.append(sum(asked) - before)
    trial_steps = 2  # the images of the step that tries a stage
    assert counts == [2 * 30 + trial_steps, *[trial_steps] * 3]  # two epochs of 30 images
    for name, more in {"at": [], "hinton": ["dataset.augment=[mixup]"]}.items():  # of these nothing can be kept
        before = sum(asked)
        tiny_run(*student, f"kd={name}", "kd.cache_logits=auto", *more)
        counts.append(sum(asked) - before)
    assert min(counts[-2:]) >= 2 * 30 + trial_steps
    alone = tiny_run(
        *student, "kd=dist", "stage.reuse=never", "stage.teacher.checkpoint=" + str(ends["dist"].checkpoint("teacher"))
    )
    assert same_weights(alone.checkpoint("student"), ends["dist"].checkpoint("student"))
    assert sum(asked) - sum(counts) > 2 * 30


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none"}))
def test_an_option_opens_with_its_command_and_its_paper(name: str) -> None:
    text = (CONF / "kd" / f"{name}.yaml").read_text()
    opening = text[: text.index("_target_")]
    assert f"kd={name}" in opening or name == "hinton"
    assert re.search(r"\d{4}\.\d{4,5}|CVPR 2023", opening)
    assert {"hard", "terms" if name == "combined" else "weight", "lr", "cache_logits"} <= set(yaml.safe_load(text))
