"""The grammar of the small commands, and what they print of names that others chose."""

import csv
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

import kdx.data.__main__ as data
import kdx.report.__main__ as report
import kdx.visualize.__main__ as visualize
from kdx import cli, export, methods, predict, search
from kdx.command import Choice, Command, Count, Flag, Names, Text, run_command
from kdx.compose import compose_line
from kdx.config.schema import SearchSchema
from kdx.config.settings import read_settings
from kdx.data import from_arrays
from kdx.data.description import log_description
from kdx.errors import KdxError
from kdx.explain import explain
from kdx.text import csv_text, harmless, markdown_text
from tests import tiny
from tests.conftest import CONF

COMMANDS = {
    "export": export.COMMAND,
    "predict": predict.COMMAND,
    "visualize": visualize.COMMAND,
    "visualize augment": visualize.AUGMENT_COMMAND,
    "report": report.COMMAND,
    "data": data.COMMAND,
    "methods": methods.COMMAND,
}
TOY = Command(
    "python -m toy FOLDER [key=value]\n\nmore",
    lambda words, **keys: f"{words} {keys}",
    {
        "role": Text("student"),
        "data_dir": Text(),
        "samples": Count(4, most=100),
        "batch": Count(None, most=8),
        "format": Choice("onnx", ("onnx", "other")),
        "cam": Flag(),
        "prepare": Names(),
    },
    words=("FOLDER",),
)


@pytest.mark.parametrize(
    "line",
    [
        "F role=teacher data_dir=d cam=true samples=5",
        "--role teacher --data-dir d --cam --samples 5 F",
        "--role=teacher F --data_dir=d --cam=true --samples=5",
        "role=teacher data-dir=d --cam true samples=5 -- F",
        "--cam F --samples=5 --role teacher data_dir=d batch=null",
    ],
)
def test_three_spellings_mean_the_same(line: str) -> None:
    words, keys = TOY.read(line.split())
    assert words == ["F"]
    assert keys == TOY.defaults() | {"role": "teacher", "data_dir": "d", "cam": True, "samples": 5}


@pytest.mark.parametrize(
    "line", ["F prepare=a,b", "F prepare=[a,b]", "F --prepare a b", "F --prepare=a b", "F prepare=a b"]
)
def test_names_stand_with_commas_or_as_words(line: str) -> None:
    assert TOY.read(line.split()) == (["F"], TOY.defaults() | {"prepare": ("a", "b")})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "FOLDER is missing; usage: python -m toy FOLDER [key=value]"),
        ("F G", "G: a word too many; the command takes FOLDER"),
        ("F rolle=x", "rolle: no such key; did you mean 'role'? keys: role, data_dir"),
        ("F --rolle x", "rolle: no such key; did you mean 'role'?"),
        ("F --data-dri=x", "data-dri: no such key; did you mean 'data_dir'?"),
        ("F -cam", "-cam: no such key; did you mean 'cam'?"),
        ("F -x", "-x: no such key"),
        ("F ---cam", "-cam: no such key"),
        ("F --role", "role: a value is missing, write role=VALUE"),
        ("F --role --cam", "role: a value is missing"),
        ("F --role cam=true", "role: a value is missing"),
        ("F role=", "role=: a value is needed"),
        ("F role=null", "role=null: a value is needed"),
        ("F role=a role=b", "role: given twice"),
        ("F cam=yes", "cam=yes: choose true, false"),
        ("F format=onx", "format=onx: choose onnx, other; did you mean 'onnx'?"),
        ("F format=null", "format=null: choose onnx, other"),
        ("F samples=0", "samples=0: a whole number of at least 1 is needed"),
        ("F samples=-1", "samples=-1: a whole number of at least 1 is needed"),
        ("F --samples -1", "samples=-1: a whole number of at least 1 is needed"),
        ("F samples=1.5", "samples=1.5: a whole number of at least 1 is needed"),
        ("F samples=\u00b2", "samples=\u00b2: a whole number of at least 1 is needed"),
        ("F samples=\u0664", "a whole number of at least 1 is needed"),
        ("F samples=nan", "samples=nan: a whole number of at least 1 is needed"),
        ("F samples=null", "samples=null: a whole number of at least 1 is needed"),
        ("F samples=101", "samples=101: a whole number of at most 100 is needed"),
        ("F samples=" + 5000 * "9", "999...: a whole number of at most 100 is needed"),
        ("F batch=9", "batch=9: a whole number of at most 8 is needed"),
        ("F prepare=a,,b", "prepare=a,,b: names are needed"),
        ("F --prepare", "prepare: a value is missing"),
    ],
)
def test_what_the_grammar_does_not_know_is_one_line(line: str, message: str) -> None:
    with pytest.raises(KdxError) as error:
        TOY.read(line.split())
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_an_empty_argument_is_not_the_working_folder() -> None:
    with pytest.raises(KdxError, match="an argument is empty"):
        TOY.read([""])


def test_files_with_an_equals_sign_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b.png").touch()
    (tmp_path / "role=x").touch()
    monkeypatch.chdir(tmp_path)
    for word in ("a=b.png", "./c=d.png", "/a/b=c", "sub/a=b"):
        assert TOY.read([word])[0] == [word]
    assert TOY.read(["F", "role=x"])[1]["role"] == "x"  # a key first; the file is ./role=x, or stands behind --
    for behind in ("role=x", "--help", "-x"):
        assert TOY.read(["--", behind])[0] == [behind]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_grammar(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    for option in ("-h", "--help"):
        run_command(command, ["x", "unknown=1", option])
        assert capsys.readouterr().out.startswith(f"python -m kdx.{name} ")
    assert all(key in command.usage for key in command.keys), "the usage tells every key"
    for unknown in ("--unknown", "unknown=1", "--unknown=1", "-u"):
        with pytest.raises(SystemExit) as end:
            run_command(command, ["a", "b", unknown])
        assert end.value.code == 2
        assert "no such key" in capsys.readouterr().err


def test_a_second_run_is_not_dropped_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (export.COMMAND, visualize.COMMAND):
        with pytest.raises(SystemExit):
            run_command(command, ["RUN1", "RUN2"])
        assert capsys.readouterr().err == "error: RUN2: a word too many; the command takes RUN_DIR\n"


def test_errors_among_the_answers_are_told_and_end_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("usage", lambda words: iter(["one", KdxError("bad\x1b[2J"), "two"]), {}, words=())
    with pytest.raises(SystemExit) as end:
        run_command(command, [])
    assert end.value.code == 1
    assert capsys.readouterr() == ("one\ntwo\n", "error: bad\\x1b[2J\n")


@pytest.mark.parametrize(
    "line",
    [["list"], ["--list"], ["list=true"], ["--data-dir", "D", "--list"], ["list", "data_dir=D", "--size=64"]],
)
def test_data_sets_are_listed_in_either_way(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data.main(line)
    assert "CC BY 4.0 (UCI)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["verify digits", "--verify digits", "verify=digits", "prepare digits", "--prepare=digits size=28"],
)
def test_data_sets_are_checked_in_either_way(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    data.main(line.split())
    assert capsys.readouterr().out == "digits: sound; 1257/180/360 images of 1x8x8, 10 classes\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "choose one of list, prepare NAME..., verify NAME..."),
        ("list digits", "choose one of list"),
        ("prepare", "choose one of list"),
        ("--list --prepare digits", "choose one of list"),
        ("--list digits", "action=digits: choose list, prepare, verify"),
        ("lst", "action=lst: choose list, prepare, verify; did you mean 'list'?"),
        ("verify digits cifr10", "cifr10: no such data set; did you mean 'cifar10'?"),
        ("verify digits size=29", "size=29: choose 28, 64, 128, 224"),
    ],
)
def test_data_commands_that_mean_nothing_are_one_line(line: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        data.main(line.split())
    out, err = capsys.readouterr()
    assert end.value.code == 2 and message in err and err.count("\n") == 1 and not out


def test_control_and_direction_characters_are_shown_as_escapes() -> None:
    assert harmless("\x1b]0;owned\x07 a\nb\r\t\x9b2J\u202etxt\u2028") == (
        "\\x1b]0;owned\\x07 a\\nb\\r\\t\\x9b2J\\u202etxt\\u2028"
    )
    assert harmless("caf\udce9") == "caf\\xe9"  # a byte of a file's name that is not UTF-8
    for text in ("na\u00efve \u65e5\u672c", "\U0001f469\u200d\U0001f52c", "a\u00a0b", "$_{}<>"):
        assert harmless(text) == text


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "-", "=HYPERLINK(1)", "+1+1", "-1e5x"],
)
def test_no_cell_is_a_formula(cell: str) -> None:
    ((read,),) = csv.reader(io.StringIO(csv_text([[cell]]), newline=""))
    assert read == "'" + cell


@pytest.mark.parametrize("cell", ["-1", "+0.5", "-1e-05", "-.5", "3", "-inf", "a=b", "a-b", "", 'a"b', "a,b", "a;=1"])
def test_numbers_and_plain_text_stay_as_they_are(cell: str) -> None:
    text = csv_text([[cell, -0.5, None, 3]])
    assert next(csv.reader(io.StringIO(text, newline=""))) == [cell, "-0.5", "", "3"]
    assert not text.startswith("a;")  # where semicolons separate, a cell would end there


def test_markdown_holds_no_html_no_cells_and_no_lines_of_others() -> None:
    shown = markdown_text("<img src=x onerror=a>|b\n# c &lt; `d` [e](javascript:f) \x1b[2J")
    assert not any(bad in shown.replace("\\|", "").replace("\\`", "") for bad in ("<", "|", "\n", "`", "](", "\x1b"))
    assert "&lt;img" in shown and "&amp;lt;" in shown
    assert markdown_text("kd.temperature=2 batch_size=8") == "kd.temperature=2 batch_size=8"


@pytest.mark.parametrize("module", ["kdx.report", "kdx.search"])
def test_help_needs_nothing(module: str, tmp_path: Path) -> None:
    """kdx.search took --help for Hydra's and began to search."""
    done = subprocess.run([sys.executable, "-m", module, "x=1", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"python -m {module} ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "trials=3 n_jobs=2 prune=false name=x",
        "--trials 3 --n-jobs=2 --prune=false --name x",
        "--n_jobs 2 --trials=3 --prune false name=x",
        "search.trials=3 search.n_jobs=2 search.prune=false search.name=x",
    ],
)
def test_the_searchs_own_keys_have_the_same_grammar(line: str) -> None:
    config, base, overrides = compose_line(CONF, search.as_overrides(["experiment=search_kd", *line.split()]))
    wish = search.read_search(config)
    assert (wish.trials, wish.n_jobs, wish.prune, wish.name) == (3, 2, False, "x")
    assert overrides[0] == "experiment=search_kd" and "search.trials=3" in overrides


@pytest.mark.parametrize(
    ("line", "space", "refused"),
    [
        ("select=loss", "kd.alpha", True),
        ("select=loss", "kd.temperature", True),
        ("stage.student.select=loss", "label_smoothing", True),
        ("stage.student.select=loss", "stage.student.class_weights", True),
        ("select=loss", "stage.student.kd.alpha", True),
        ("select=loss", "stage.student.guide", True),
        ("select=loss", "kd", True),
        ("select=loss", "optimizer.lr", False),
        ("select=loss", "kd.lr", False),
        ("select=loss", "stage.teacher.label_smoothing", False),
        ("select=loss stage.deliver=teacher", "kd.alpha", False),
        ("select=loss stage.deliver=teacher", "label_smoothing", True),
        ("stage.teacher.select=loss", "kd.alpha", False),
        ("select=accuracy", "kd.alpha", False),
        ("select=accuracy", "select", True),
        ("select=accuracy", "stage.student.select", True),
        ("select=accuracy", "stage.teacher.select", False),
    ],
)
def test_a_search_compares_trials_by_one_quantity(line: str, space: str, refused: bool) -> None:
    settings = read_settings(compose_line(CONF, line.split())[0])
    requested = SearchSchema("x", space={space: {"choices": [1, 2]}})
    if not refused:
        search.refuse_what_moves_the_measure(requested, settings)
        return
    with pytest.raises(KdxError) as error:
        search.refuse_what_moves_the_measure(requested, settings)
    told = str(error.value)
    assert told.startswith(f"search.space.{space}: ") and "\n" not in told
    assert told.endswith("set select to one of auto, accuracy, auc, f1" if "loss" in line else "leave it out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--trails 3", "unknown option --trails"),
        ("--trials", "trials: a value is missing, write trials=VALUE"),
        ("--multirun", "--multirun: has no meaning here; choose --config-dir, --config-name"),
        ("--cfg job", "--cfg: has no meaning here"),
        ("--trials x", "search.trials"),
        ("trials=0", "search.trials=0"),
        ("trials", "trials: a value is missing"),
    ],
)
def test_what_a_search_does_not_know_is_one_line(line: str, message: str) -> None:
    with pytest.raises((KdxError, HydraException)) as error:
        config, _, _ = compose_line(CONF, search.as_overrides(["experiment=search_kd", *line.split()]))
        read_settings(config)
        search.read_search(config)
    assert message in explain(error.value, CONF)


def test_logs_show_names_of_others_harmlessly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    console = logging.StreamHandler()
    console.setFormatter(cli.HarmlessFormatter("%(message)s"))
    console.emit(logging.makeLogRecord({"msg": "class \x1b[2J\x9b1m\u202e\nnext\tline"}))
    assert capfd.readouterr().err == "class \\x1b[2J\\x9b1m\\u202e\nnext\tline\n"
    hydra = OmegaConf.load(CONF / "config.yaml").hydra
    for node in (OmegaConf.load(CONF / "hydra" / "job_logging" / "kdx.yaml"), hydra.hydra_logging):
        assert {entry["class"] for entry in node.formatters.values()} == {"kdx.cli.HarmlessFormatter"}


def test_numbers_of_classes_are_told_on_lines_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    names = ["\x1b[2J", "a\n[error] all is lost", "c"]
    data_set = from_arrays("tiny", tiny.arrays(), task="multi-class", class_names=names)
    with caplog.at_level(logging.INFO):
        log_description(data_set)
    assert all(line.isprintable() for line in caplog.messages) and "\\x1b[2J" in caplog.text
