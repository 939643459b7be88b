"""Whatever value a key is given: a run, or one line and exit 2, and nothing left behind. Never a traceback or a hang."""

import dataclasses
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from kdx.augmentations import BY_NAME, options_of
from kdx.config.hydra_keys import HYDRA_KEYS
from kdx.config.schema import ModelSchema, RoleSchema, Schema, StageSchema
from kdx.config.settings import flat_keys
from kdx.config.swap_points import SWAP_POINTS
from kdx.ranges import Choice, Flag, Group, Nullable, Real, Rule, Whole
from tests.conftest import TINY, compose_config
from tests.forks import Forks

EXAMPLES = int(os.environ.get("KDX_FUZZ", "40"))
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # what starts a line or commands a terminal
ROLES = ("teacher", "assistant", "student")
OPTIONS = [  # the groups' choices, one of each row
    ["optimizer=adamw", "optimizer=adam", "optimizer=sgd"],
    ["scheduler=cosine", "scheduler=step", "scheduler=none"],
    ["kd=hinton", "kd=none", "kd=combined"],
]
SOURCES = [[], ["dataset=digits"], ["dataset=imagefolder"], ["dataset=pathmnist"], ["dataset=cifar10"]]
NUMBERS = (
    "nan inf -inf .inf 1e400 -1e400 0x10 1_000 -0.0 0 -0 -1 1 2 3 0.5 1.0 1.5 1e-300 5e-324 1e38 1e308 007 0b1 1e3"
)
NUMBERS += " 1024 4294967296 9223372036854775807 9223372036854775808 18446744073709551616 1000000000000 " + 60 * "9"
WORDS = "true false null True None yes off '' '5' 'nan' 'true' abc a.b a:b a/b ../x . .. - '~' .mynet:small all none"
WORDS += (
    " ??? ${epochs} ${nope} ${seed} ${output_dir} ${now:%Y} ${oc.env:NOT_THERE_AT_ALL} ${ $ @ 'a\\tb' ä 图 '\U0001f600'"
)
WORDS += (
    " torch.optim.SGD builtins.dict math.sqrt nothing.here tests.tiny.OneArgument tests.tiny:network resnet18 vit_b_16"
)
WORDS += " torch.optim.LBFGS torch.optim.SparseAdam torch.optim.lr_scheduler.ReduceLROnPlateau cuda cuda:7 mps meta"
WORDS += (
    " torch.optim.lr_scheduler.OneCycleLR crop flip small imagenet bf16 fp16 default tensorboard latest never error"
)
SHAPES = (
    "[] {} [1] [nan] [1,2,3] [[]] [null] [crop,nan] {a:1} {a:nan} {a:{b:[inf]}} {mean:[0.5],std:[0.5]} {guide:null}"
)
SHAPES += (
    " {mixup:{}} {mixup:{alpha:nan}} {mixup:{alpha:1}} {trivial:null,erase:{scale:[0.1,0.2]}} {crop:{flip:{}}} [mixup]"
)
SHAPES += (
    " {mean:[nan],std:[1]} {_target_:5} {_target_:null} [0.5,0.75] [-1] [0.9,0.999] [1,1] 1,2 a,b range(3) int(5) x=y"
)
LONG = ["x" * 300, "x/" * 600, "x" * 5000, "[" * 50 + "]" * 50, "'\x1b[31m'", "a\x00b", "'\u2028'", "\udcff", "'\n'"]


def _rules() -> dict[str, Rule]:
    """The rule of every key that has a range, so that its bounds can be tried."""
    rules: dict[str, Rule] = {f"hydra.{key}": rule for key, rule in HYDRA_KEYS.items()}
    for point, table in SWAP_POINTS.items():
        rules |= {f"{point}.{key}": rule for key, rule in table.items()}
    for name, kind in BY_NAME.items():
        rules |= {f"dataset.augment.{name}.{option}": rule for option, rule in options_of(kind).items()}
    schemas: list[tuple[str, type]] = [("", Schema), ("stage.", StageSchema), ("model.", ModelSchema)]
    schemas += [(f"stage.{role}.", RoleSchema) for role in ROLES]
    for prefix, schema in schemas:
        for field in dataclasses.fields(schema):
            rule = rules[prefix + field.name] = field.metadata["rule"]
            if isinstance(rule, Group) and rule.schema is not None:
                schemas.append((f"{prefix}{field.name}.", rule.schema))
    return rules


def _bounds(rule: Rule | None) -> list[str]:
    rule = rule.rule if isinstance(rule, Nullable) else rule
    if isinstance(rule, Flag):
        return ["true", "false", "1", "0"]
    if isinstance(rule, Choice):
        return [str(choice) for choice in rule.choices]
    if isinstance(rule, Whole):
        return [str(number) for number in (rule.least - 1, rule.least, rule.most, rule.most + 1)]
    if isinstance(rule, Real):
        bounds = [bound for bound in (rule.least, rule.most, rule.above, rule.below) if bound is not None]
        return [repr(bound * share) for bound in bounds for share in (0.999, 1, 1.001)]
    return []


def _keys() -> list[str]:
    """Every key of the composed config, whichever options are chosen, and those of Hydra that users set."""
    keys: dict[str, None] = dict.fromkeys(f"hydra.{key}" for key in HYDRA_KEYS)
    for options in (*([option] for row in OPTIONS for option in row), *SOURCES):
        keys |= dict.fromkeys(key for key in flat_keys(compose_config(*options)) if not key.startswith("hydra"))
    return sorted(keys)


RULES, KEYS = _rules(), _keys()
MORE = sorted(set(RULES) - set(KEYS)) + ["optimizer.mine", "kd.mine", "stage.mine", "stage.all", "model.mine", "epoch"]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="/~$\\"), max_size=20)
VALUES = st.one_of(
    st.sampled_from(NUMBERS.split()),
    st.sampled_from(WORDS.split()),
    st.sampled_from(SHAPES.split()),
    st.sampled_from(LONG),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-2, 40).map(str),
    st.floats().map(repr),
    TEXTS,
    TEXTS.map(lambda text: "'" + text.replace("'", "\\'") + "'"),
)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """One key, rarely three, that has any value; most keys are there, the others are added."""
    found = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3]))):
        added = draw(st.integers(0, 4)) == 0
        key = draw(st.sampled_from(MORE if added else KEYS))
        bounds = _bounds(RULES.get(key))
        value = draw(st.sampled_from(bounds) if bounds and draw(st.booleans()) else VALUES)
        how = draw(st.sampled_from(["+", "++"] if added else ["", "", "", "", "", "", "++", "+", "~"]))
        found.append(f"{how}{key}" if how == "~" else f"{how}{key}={value}")
    return found


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A valid, tiny, planned run, then what the case changes; nothing is fetched from anywhere."""
    chosen = [draw(st.sampled_from(row)) for row in OPTIONS]
    source = draw(st.sampled_from([[], [], [], *SOURCES]))
    base = [*TINY, "epochs=1", "download=false", "plan=true", *chosen]
    if source:
        base = [override for override in base if not override.startswith("dataset")] + source
    changes = draw(overrides())
    if any("plan" in change for change in changes):  # then the case trains, too: alone, so that it ends soon
        changes = changes[:1]
    if any("download" in change for change in changes):
        changes = [change for change in changes if "download" not in change or "true" not in change.lower()]
    return [*base, *changes]


def verdict(end: dict[str, Any]) -> str:
    """What became of a command line; `refused` and `runs` are as they should be."""
    if end["code"] == "hang":
        return "hang"
    if isinstance(end["code"], int) and end["code"] < 0:
        return f"crash {-end['code']}"
    if "Traceback" in end["errors"] + end["output"]:
        return "traceback"
    if end["code"] == 2:
        one_line = end["errors"].startswith("error: ") and end["errors"].count("\n") == 1
        printable = not any(unicodedata.category(letter) in CONTROL for letter in end["errors"].rstrip("\n"))
        return "left behind" if end["left"] else "refused" if one_line and printable else "not one line"
    if end["code"] == 0:
        trained = any(path.endswith("summary.json") for path in end["left"])
        return "runs" if trained or not end["left"] else "left behind"
    return f"exit {end['code']}"


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    process = Forks(tmp_path_factory.mktemp("forks"))
    yield process
    process.end()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 100,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)
@given(arguments=command_lines())
def test_any_value_of_any_key_is_a_run_or_one_line(forks: Forks, arguments: list[str]) -> None:
    """The same cases each time; the environment variable KDX_FUZZ=1000 tries as many others."""
    end = forks.run(arguments)
    note(f"{end}")
    assert verdict(end) in ("refused", "runs")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("hydra.job.name=mine", "runs"),  # another log file than run.log: the planned run's folder stayed
        ("output_dir=deep/er", "runs"),
        ("hydra.run.dir=.", "refused"),  # the folder that the command was started in went, too
        ("stage.teacher.checkpoint=5", "refused"),  # a number as a path
        ("model.student=5", "refused"),
        ("dataset.name=${oc.env:NOT_THERE} dataset.name=mine", "runs"),  # looked up in the overrides as typed
        ("dataset=imagefolder", "refused"),  # met when the data is read, after Hydra made the run's folder
    ],
)
def test_what_was_found_stays_mended(forks: Forks, change: str, expected: str) -> None:
    base = [o for o in TINY if not (o.startswith("dataset") and change.startswith("dataset="))]
    end = forks.run([*base, "download=false", "plan=true", *change.split()])
    assert verdict(end) == expected, end


def test_every_key_of_the_config_has_a_rule() -> None:
    """A key that is added to conf and to no schema is refused by every run; one without a rule is met here."""
    for key in KEYS:
        swapped = any(key.startswith(f"{point}.") for point in SWAP_POINTS)
        assert key in RULES or swapped or key in (f"stage.{role}" for role in ROLES) or key.split(".")[0] == "model"
