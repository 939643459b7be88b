"""Vision transformers: the trio, teachers of the other kind, DeiT's distillation token."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from kdx.chain.context import RunContext, load_dataset, make_run_context
from kdx.chain.index import StageIndex
from kdx.chain.parts import build_parts
from kdx.chain.plan import check_plan, make_plan
from kdx.config.schema import StageSettings
from kdx.config.settings import read_settings
from kdx.deploy.run_loader import load_stage
from kdx.errors import KdxError
from kdx.losses.objective import Lesson
from kdx.models.features import Outputs, Watched
from kdx.models.networks import NetworkSpec, build_network, check_network, count_parameters
from tests.conftest import CONF, REPO, compose_config, settings_of

pytest.importorskip("timm")
VIT = [
    "model.student=kdx.vit:mini_distilled",
    "model.teacher=tests.tiny:wide",
    "stage.student.guide=teacher",
    "stage.deliver=student",
]


@pytest.mark.parametrize(("name", "millions"), [("small", 21.3), ("tiny", 4.0), ("mini", 0.7), ("mini_distilled", 0.7)])
def test_sizes(name: str, millions: float) -> None:
    spec = NetworkSpec(f"kdx.vit:{name}", 10, 1, image_size=(28, 28))
    network = build_network(spec)
    assert round(count_parameters(network) / 1e6, 1) == millions
    check_network(network, spec, (28, 28))


def test_cnn_teaches_vit_by_features_and_back(tiny_run) -> None:
    for teacher, student in (("kdx.thin:resnet8", "kdx.vit:mini"), ("kdx.vit:mini", "kdx.thin:resnet8")):
        line = [
            f"model.teacher={teacher}",
            f"model.student={student}",
            "stage.student.guide=teacher",
            "stage.deliver=student",
        ]
        run = tiny_run(
            *line,
            "kd=at",
            "kd.layers=last_map",
            "kd.weight=1",
            "epochs=1",
            "ema=0.9",
            "clip_norm=1",
            "optimizer.decay=weights",
            "scheduler.warmup=0.5",
        )
        assert run.statuses() == {"teacher": "trained", "student": "trained"}


METHODS = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "kd").glob("*.yaml")}
FAMILIES = {"CNN to ViT": ("kdx.thin:resnet8", "kdx.vit:mini"), "ViT to CNN": ("kdx.vit:mini", "kdx.thin:resnet8")}


@pytest.mark.parametrize("pair", FAMILIES)
def test_every_method_of_features_trains_across_families_or_says_with_which_keys_it_does(pair: str) -> None:
    teaches, learns = FAMILIES[pair]
    line = [f"model.student={learns}", "stage.student.guide=teacher", "stage.student.select=loss", "dataset.resize=16"]
    settings = settings_of(*line)
    context = make_run_context(settings, load_dataset(settings))
    teacher = build_network(NetworkSpec(teaches, 3, 1, image_size=(16, 16))).eval()
    told = {}
    for name, option in METHODS.items():
        if "layers" not in option:
            continue
        option = {key: value for key, value in option.items() if key != "cache_logits"} | {"hard": 0}
        try:
            _learns(context, replace(settings.stage("student"), kd=option), teacher)
        except KdxError as error:
            told[name] = str(error)
            (proposed,) = re.findall("student, . in the teacher; set (.+), or name as many of each", str(error))
            pairs = [word.removeprefix("kd.").split("=") for word in shlex.split(proposed)]
            option |= {key: yaml.safe_load(value) for key, value in pairs}
            _learns(context, replace(settings.stage("student"), kd=option), teacher)
    assert told.keys() == {"at", "fitnet", "reviewkd", "vid"}
    assert "; set kd.layers=last_map kd.hint=-1, or" in told["fitnet"]


def _learns(context: RunContext, stage: StageSettings, teacher: torch.nn.Module) -> None:
    """Let the student say something of some images under a method alone, and look at the gradient in its middle."""
    images = torch.randn(6, 1, 16, 16)
    parts = build_parts(context, stage, {"teacher": teacher})
    with torch.no_grad():
        said = Watched(teacher, parts.teacher_layers["teacher"])(images)
    loss = parts.learner.train()(images, [said], Lesson(torch.arange(6) % 3, torch.arange(6), progress=0.5))["loss"]
    loss.backward()
    inner = {"kdx.vit:mini": "blocks.2.attn.qkv.weight", "kdx.thin:resnet8": "stage2.0.conv1.weight"}[stage.network]
    gradient = parts.learner.network.get_parameter(inner).grad
    assert loss.isfinite() and gradient is not None and gradient.abs().sum() > 0


def test_distillation_token_learns_from_the_teacher_and_the_class_token_from_labels(tiny_run) -> None:
    settings = settings_of(*VIT, "kd=hard", "+kd.layers=head_dist")
    context = make_run_context(settings, load_dataset(settings))
    teacher = build_network(NetworkSpec("tests.tiny:wide", 3, 1))
    learner = build_parts(context, settings.stage("student"), {"teacher": teacher}).learner.train()
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    said = Outputs(torch.eye(3)[(labels + 1) % 3])  # the teacher chooses the class after
    seen: dict[str, torch.Tensor] = {}
    for name in ("head", "head_dist"):
        layer = learner.network.get_submodule(name)
        layer.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    terms = learner(images, [said], Lesson(labels, torch.arange(6)))
    own, other = seen["head"], seen["head_dist"]
    half = torch.nn.functional.cross_entropy
    torch.testing.assert_close(terms["loss"], 0.5 * half(own, labels) + 0.5 * half(other, (labels + 1) % 3))
    learner.eval()
    with torch.no_grad():
        both = learner.network(images)
    torch.testing.assert_close(both, (seen["head"] + seen["head_dist"]) / 2)
    plain = build_network(NetworkSpec("kdx.vit:mini_distilled", 3, 1, image_size=(8, 8))).train()
    plain(images).sum().backward()  # without a method that looks at it, both heads are trained together
    assert plain.head_dist.weight.grad is not None and plain.head_dist.weight.grad.abs().sum() > 0


def test_a_distilled_vit_is_trained_and_read_again(tiny_run) -> None:
    run = tiny_run(
        *VIT,
        "kd=hard",
        "+kd.layers=head_dist",
        "epochs=1",
        "activation_checkpointing=true",
        "model.teacher=kdx.thin:resnet8",
    )
    assert load_stage(run.folder, "student").network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+kd.layers=norm"], r"kd.layers=norm: gives \(2, 6, 96\), logits of 3 classes are needed"),
        (
            ["+kd.layers=head_dist", "model.student=kdx.vit:mini"],
            "kd.layers: layer head_dist: the network has no such layer.*in the student, kdx.vit:mini.$",
        ),
        (
            ["+kd.layers=head_dist", "stage.student.guide=assistant", "model.assistant=kdx.vit:mini"],
            "kd.layers: layer head_dist: .*in the assistant, kdx.vit:mini.$",
        ),
        (
            ["dataset.resize=10"],
            r"model.student=kdx.vit:mini_distilled: images of 10x10 px have no whole patches of 4 px; set dataset.resize",
        ),
    ],
)
def test_errors_are_one_line(tiny_run, overrides: list[str], message: str) -> None:
    with pytest.raises(KdxError, match=message):
        tiny_run(*VIT, "kd=hard", *overrides)


def test_the_commands_of_deit_that_are_told_can_be_planned(tmp_path: Path) -> None:
    """kd=hard +kd.layers=head_dist asked the assistant, too, for a head that it does not have."""
    own = "model.student=kdx.vit:mini_distilled stage.student.kd=hard stage.student.kd.layers=head_dist"
    for path in (REPO / "README.md", CONF / "experiment" / "vit.yaml"):
        assert own in " ".join(path.read_text().replace("\n#", " ").split()), path
    line = ["experiment=vit", "dataset=digits", "dataset.resize=28", *own.split(), "device=cpu", "amp=off"]
    settings = read_settings(compose_config(*line, f"output_dir={tmp_path}"))
    context = make_run_context(settings, load_dataset(settings))
    check_plan(context, make_plan(context, StageIndex(tmp_path)), tmp_path)
