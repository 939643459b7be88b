"""The commands of README.md and of the pages that it leads to, as they stand there."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from kdx import cli
from kdx.compose import compose_line
from kdx.config.build import build
from kdx.config.settings import read_settings
from kdx.search import as_overrides, read_search
from tests.conftest import CONF, REPO, compose_config

README = (REPO / "README.md").read_text()
LINKS = re.findall(r"\]\(([^)]+)\)", README)
COMMANDS = [
    line.split("#")[0].strip()
    for text in (README, *((REPO / link).read_text() for link in dict.fromkeys(LINKS)))
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
FLAGS = "dataset stage model-teacher pretrained epochs batch-size lr optimizer scheduler weight-decay temperature alpha device"
FLAGS += " mixed-precision seed no-deterministic log-interval save-interval num-workers"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_valid(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """.ci/run really runs `make run` and `make test`; the others train for hours and are composed and checked."""
    program, *arguments = shlex.split(command)
    if program == "make":
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "python" and arguments[0] == "-m":
        module = importlib.import_module(arguments[1])
        if arguments[1] == "kdx.search":
            compose_line(CONF, as_overrides(arguments[2:]))
        else:
            command = importlib.import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module
            command.COMMAND.read(arguments[2:])
    elif program in ("python", "bash"):
        assert (REPO / arguments[0]).exists(), command
    else:
        if program == "torchrun":
            at = arguments.index("-m")
            program, arguments = {"kdx.run": "kdx"}[arguments[at + 1]], arguments[at + 2 :]
        assert program == "kdx"
        (tmp_path / "more_pictures").mkdir()  # the folder that a command names has to be there
        monkeypatch.chdir(tmp_path)
        cli.check_jobs(CONF, arguments)


def test_every_page_is_led_to() -> None:
    assert {*LINKS} == {
        str(page.relative_to(REPO)) for place in ("conf", "scripts") for page in (REPO / place).rglob("*.md")
    }


def test_the_ci_runs_the_readmes_own_commands() -> None:
    script = (REPO / ".ci" / "run").read_text()
    assert "make run\n" in script and "make test\n" in script
    assert {"make run", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("flag", FLAGS.split())
def test_every_flag_of_old_scripts_is_mapped_to_a_key_that_works(flag: str) -> None:
    row = re.search(rf"`--{flag}` \| `([^`]+)`", README)
    assert row is not None
    key, _, value = row.group(1).partition("=")
    values = {
        "dataset": "digits",
        "stage": "student",
        "model.teacher": "resnet18",
        "optimizer": "sgd",
        "scheduler": "step",
    }
    values |= {"kd.alpha": "0.5", "device": "cpu"}
    cli.check_jobs(CONF, [f"{key}={value or values.get(key, '1')}"])


def test_files_that_the_readme_names_exist_in_a_run(tiny_run) -> None:
    run = tiny_run("visualize.samples=1", "report=true")
    for pattern in re.findall(r"^\| `([^|]+?)` \|", README, re.MULTILINE):
        for name in pattern.replace("`", "").split(", "):
            if not name.startswith("--") and "=" not in name:
                name = "student/checkpoints/latest.pth" if name == "latest.pth" else name.replace("<role>", "student")
                assert list(run.folder.glob(name)), name


def test_the_space_that_the_readme_shows_takes_the_place_of_the_experiments() -> None:
    (shown,) = re.findall(r"`'(search\.space=[^']+)'`", README)
    config, *_ = compose_line(CONF, as_overrides(["experiment=search_kd", shown]))
    assert {*read_search(config).space} == {"optimizer.lr", "kd.alpha"}


def test_files_that_the_readme_shows_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"`(my_conf/[a-z/]+\.yaml)`[^`]*(?:`kdx [^`]*`[^`]*)?```yaml\n(.*?)```", README, re.DOTALL)
    assert len(shown) == 4
    for name, text in shown:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "losses.py").write_text(
        "class Matching:\n"
        "    def __init__(self, weight):\n"
        "        self.weight = weight\n"
        "    def __call__(self, student_logits, guide_logits, labels):\n"
        "        return self.weight * (student_logits - guide_logits).pow(2).mean()\n"
    )
    (tmp_path / "my_package" / "data.py").write_text("def load():\n    return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    searched = f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]"
    mine = read_settings(compose_config("experiment=mine", searched, "dataset.path=pictures"))
    assert {stage.network for stage in mine.stages if stage.role == "student"} == {"my_package.nets:small"}
    assert build(mine.stages[-1].kd, "kd")(torch.ones(2), torch.zeros(2), None) == 0.5
    own = read_settings(compose_config("dataset=mine", searched))
    assert own.dataset_name == "mine" and build(own.source, "dataset.source") == 5
    four = read_settings(compose_config("stage=four", searched))
    assert [(stage.role, stage.teachers) for stage in four.stages][:2] == [
        ("professor", ()),
        ("teacher", ("professor",)),
    ]
