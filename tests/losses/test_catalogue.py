"""What `python -m kdx.methods` tells: it comes from the files of conf/kd and from the classes, measured and published."""

import json
from pathlib import Path

import pytest

from kdx import methods
from kdx.chain.methods import Method, read_method
from kdx.command import run_command
from tests.conftest import CONF, REPO

NAMES = sorted(path.stem for path in (CONF / "kd").glob("*.yaml"))
OWN = """# Mine: what nobody has tried.
# kdx kd=mine --config-dir my_conf
# Me and You, 2601.00001.
# Never.
_target_: kdx.losses.CorrelationCongruence
dim: 3       # of the embeddings
weight: 2.0  # it matters
"""


def option(name: str) -> Method:
    return read_method(CONF / "kd" / f"{name}.yaml")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    run_command(methods.COMMAND, arguments)
    return capsys.readouterr().out


def test_every_option_that_teaches_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: line for line in told(capsys).splitlines() if line}
    assert set(NAMES) - {"none"} <= set(lines) and "none" not in lines
    for name in set(NAMES) - {"none"}:
        assert option(name).paper in lines[name] and len(option(name).paper) > 10
    assert "71.97" in lines["dkd"] and "72.34" in lines["teacher"]


@pytest.mark.parametrize(
    ("name", "sees", "trained", "tasks"),
    [
        ("hinton", ["logits"], "-", "all"),
        ("dkd", ["logits", "labels"], "-", "single label, from 3 classes on"),
        ("hard", ["logits"], "-", "single label"),
        ("ctkd", ["logits"], "1", "all"),
        ("mld", ["logits"], "-", "multi-label"),
        ("pskd", ["logits", "labels"], "-", "multi-label"),
        ("at", ["stages"], "-", "all"),
        ("cc", ["pooled"], "16.6k", "all"),  # two embeddings of 64 features in 128 dimensions, with their offsets
        ("crd", ["pooled"], "16.6k + bank of 256 an image", "all"),
        ("combined", ["logits", "stages"], "-", "all"),
    ],
)
def test_what_a_method_needs_is_asked_of_its_class(name: str, sees: list[str], trained: str, tasks: str) -> None:
    method = option(name)
    assert (method.sees, method.trained, method.for_tasks) == (sees, trained, tasks)


def test_numbers_of_the_file_count(tmp_path: Path) -> None:
    """beta=0 leaves what is defined for two classes; a term that is refused refuses the whole."""
    path = tmp_path / "dkd.yaml"
    path.write_text((CONF / "kd" / "dkd.yaml").read_text().replace("beta: 8.0", "beta: 0.0"))
    assert read_method(path).for_tasks == "single label"
    path.write_text(
        "_target_: kdx.losses.Combined\nterms: {a: {_target_: kdx.losses.NKD}, b: {_target_: kdx.losses.AttentionTransfer}}\n"
    )
    assert read_method(path).for_tasks == "single label, from 3 classes on" and read_method(path).what == ""


def test_a_method_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "dkd", "none")
    assert "kdx kd=dkd" in text and "2203.08679" in text and "when: Try it first after hinton" in text
    assert "beta: 8.0                               # weight of the other classes" in text
    assert "not for multi-label: is not defined for multi-label sets; choose hinton, wttm or ctkd" in text
    assert "kdx.losses.DKD: alpha times the true class's loss plus beta times" in text
    assert "times hinton's time" in text and "megvii-research/mdistiller" in text
    assert "none: No distillation" in text


def test_a_new_file_appears_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "mine.yaml").write_text(OWN)
    line = next(line for line in told(capsys, f"config_dir={tmp_path}").splitlines() if line.startswith("mine"))
    assert line.split()[1:6] == ["pooled", "390", "all", "-", "-"] and line.endswith("Me and You, 2601.00001")
    text = told(capsys, "mine", f"config_dir={tmp_path}")
    assert "mine: Mine: what nobody has tried." in text and "dim: 3       # of the embeddings" in text
    assert "when: Never." in text and "a step:" not in text and "published:" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dkdd"], "dkdd: no such method; did you mean 'dkd'? choose at, cc,"),
        (["dkd", "config_dir=nowhere"], "config_dir=nowhere: no such folder"),
        (["bad", "config_dir=."], "bad.yaml: is no option of kd"),
        (["list", "config_dir=."], "list.yaml: is no option of kd"),
        (["wrong", "config_dir=."], "wrong.yaml: kd.temperatur: kdx.losses.Hinton has no such key; did you mean 'temp"),
        (["terms", "config_dir=."], "terms.yaml: kd.terms=5: a mapping"),
        (["config_dir=."], "bad.yaml: is no option of kd"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd").mkdir()
    files = {"bad": "_target_: [", "list": "[1, 2]", "wrong": "_target_: kdx.losses.Hinton\ntemperatur: 3\n"}
    files["terms"] = "_target_: kdx.losses.Combined\nterms: 5\n"
    for name, text in files.items():
        (tmp_path / "kd" / f"{name}.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        run_command(methods.COMMAND, arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1


def test_figures_are_of_methods_that_there_are() -> None:
    measured, published = (
        json.loads((REPO / "kdx" / "losses" / name).read_text()) for name in (methods.MEASURED, methods.PUBLISHED)
    )
    assert set(published["methods"]) < set(NAMES)
    assert set(measured["step"]) >= set(NAMES) - {"none"} and measured["step"]["hinton"] == 1
    assert measured["step"].keys() == measured["memory"].keys()
    for found in published["methods"].values():
        assert set(found) <= {*published["pairs"], "from", "note"} and set(found["from"]) <= set(published["sources"])
