"""The code of what a user plugs in is part of what a stage is: edited, it is trained again; untouched, it is reused."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdx.chain.code import Sources
from kdx.chain.context import make_run_context
from kdx.chain.fingerprints import stage_fingerprint
from kdx.errors import KdxError
from kdx.losses import Hinton
from kdx.losses.objective import Objective
from tests import tiny
from tests.conftest import TinyRun, settings_of

MINE = {
    "__init__.py": "",
    "nets.py": """
        from torch import nn
        from .helper import ACTIVATION
        class Wide(nn.Module):
            def __init__(self, num_classes, in_channels):
                super().__init__()
                self.conv, self.head = nn.Conv2d(in_channels, 8, 3, padding=1), nn.Linear(8, num_classes)
            def forward(self, images):
                return self.head(ACTIVATION(self.conv(images)).mean(dim=(2, 3)))
        """,
    "helper.py": """
        import mine.deeper as deeper
        def ACTIVATION(values):
            return deeper.activation(values)
        """,
    "deeper.py": """
        import torch
        def activation(values):
            return torch.relu(values)
        """,
    "loss.py": """
        from kdx.losses import KnowledgeDistillationLoss
        class Loss(KnowledgeDistillationLoss):
            pass
        """,
    "schedule.py": """
        from torch.optim.lr_scheduler import LambdaLR
        def constant(optimizer):
            return LambdaLR(optimizer, factor)
        def factor(step):
            return 1.0
        """,
    "optim.py": """
        import torch
        class Mine(torch.optim.SGD):
            pass
        """,
    "data.py": """
        def dataset():
            from tests.tiny import dataset
            return dataset()
        """,
    "unused.py": "UNUSED = 1",
}
PLUGGED = [
    "model.teacher=mine.nets:Wide",
    "model.student=tests.tiny:network",
    "stage.deliver=student",
    "stage.student.guide=teacher",
    "kd._target_=mine.loss.Loss",
    "scheduler=none",
    "scheduler._target_=mine.schedule.constant",
    "+scheduler._partial_=true",
    "optimizer=sgd",
    "optimizer._target_=mine.optim.Mine",
    "dataset.source._target_=mine.data.dataset",
    "epochs=1",
]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")


def forget(*packages: str) -> None:
    """As a new process: none of the user's modules is loaded."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's package on the path; no bytecode, since an edit within the same second keeps the file's time."""
    folder = tmp_path / "code"
    write(folder / "mine", MINE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget("mine", "own", "other")
    yield folder
    forget("mine", "own", "other")


EDITS = {  # file, old, new -> what is trained again
    ("nets.py", "self.conv(images)", "2 * self.conv(images)"): {"teacher", "student"},
    ("helper.py", "deeper.activation(values)", "-deeper.activation(values)"): {"teacher", "student"},
    ("deeper.py", "torch.relu", "torch.tanh"): {"teacher", "student"},
    ("loss.py", "pass", "version = 7"): {"student"},
    ("schedule.py", "return 1.0", "return 0.5"): {"teacher", "student"},
    ("optim.py", "pass", "mine = True"): {"teacher", "student"},
    ("data.py", "return dataset()", "return dataset(seed=3)"): {"teacher", "student"},
    ("data.py", "return dataset(seed=3)", "return dataset(task='multi-class', seed=3)"): {"teacher", "student"},
    ("unused.py", "1", "2"): set(),
    ("nets.py", "class Wide", "# as in the paper\n\nclass  Wide"): set(),
}


def test_what_is_edited_is_trained_again_and_nothing_else(tiny_run: Callable[..., TinyRun], mine: Path) -> None:
    assert set(tiny_run(*PLUGGED).statuses().values()) == {"trained"}
    for (name, old, new), again in EDITS.items():
        path = mine / "mine" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        forget("mine")
        run = tiny_run(*PLUGGED)
        trained = {role for role, status in run.statuses().items() if status == "trained"}
        assert trained == again, (name, new)
        forget("mine")
        assert set(tiny_run(*PLUGGED).statuses().values()) == {"reused"}, (name, new)


def test_stage_that_was_stopped_is_not_resumed_with_edited_code(tiny_run, mine: Path, tmp_path: Path) -> None:
    only = [*PLUGGED, "stage.deliver=teacher"]
    first = tiny_run(*only)
    for entry in (tmp_path / "outputs" / "index").glob("*.json"):
        entry.unlink()  # as if it had died before it was filed
    (first.folder / "summary.json").unlink()
    path = mine / "mine" / "nets.py"
    path.write_text(path.read_text().replace("self.conv(images)", "2 * self.conv(images)"))
    forget("mine")
    from kdx.chain.chain import run_chain
    from tests.conftest import settings_of

    with pytest.raises(KdxError, match=r"latest.pth: belongs to another stage"):
        run_chain(settings_of(f"output_dir={tmp_path / 'outputs'}", *only, "resume=true"), first.folder)


def test_named_checkpoint_and_latest_mean_another_teacher_once_its_code_is_edited(tiny_run, mine: Path) -> None:
    """The same weights under another forward say something else; also what was kept of its logits is not used."""
    cached = [*PLUGGED, "kd.cache_logits=true"]
    first = tiny_run(*cached)
    named = [*cached, f"stage.teacher.checkpoint='{first.checkpoint('teacher')}'"]
    assert tiny_run(*named).statuses() == {"teacher": "loaded", "student": "trained"}
    assert tiny_run(*named).statuses() == {"student": "reused"}
    logits = len(list((first.folder.parent / "index" / "logits").iterdir()))
    path = mine / "mine" / "nets.py"
    path.write_text(path.read_text().replace("self.conv(images)", "-self.conv(images)"))
    forget("mine")
    assert tiny_run(*named).statuses() == {"teacher": "loaded", "student": "trained"}
    assert len(list((first.folder.parent / "index" / "logits").iterdir())) == logits + 1
    forget("mine")
    assert tiny_run(*cached, "stage.reuse=latest").statuses() == {"teacher": "trained", "student": "trained"}


def test_formula_of_ours_has_a_version(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = ["epochs=1", "stage.deliver=student", "stage.student.guide=teacher", "model.teacher=kdx.thin:resnet8"]
    tiny_run(*chain)
    monkeypatch.setattr(Hinton, "version", 2)
    assert tiny_run(*chain).statuses() == {"teacher": "reused", "student": "trained"}
    monkeypatch.setattr(sys.modules["kdx.models.thin"], "VERSION", 2, raising=False)
    assert tiny_run(*chain).statuses() == {"teacher": "trained", "student": "trained"}


class Silent(Objective):
    """Its words for layers stand in no config."""

    layers = ("pooled",)
    teacher_layers = ("last_map",)

    def __init__(self, temperature: float) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("student", "method", "counts"),
    [
        ("vit_b_16", "fitnet", True),
        ("tests.tiny:network", "reviewkd", True),
        ("tests.tiny:network", "hinton", False),
        ("resnet18", "fitnet", False),
        ("kdx.vit:mini", "fitnet", False),
        ("vit_b_16", "hinton", False),
        ("vit_b_16", "own", True),
        ("vit_b_16", "sp", False),
    ],
)
def test_what_words_for_layers_mean_in_a_network_has_a_version(
    student: str, method: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kdx itself has to find the layers of what may be a transformer."""
    only = ["model.teacher=resnet18", "model.assistant=resnet18", f"model.student={student}"]
    kinds = {
        "own": ["kd=hinton", "kd._target_=tests.test_code.Silent", "~kd.alpha"],
        "sp": ["kd=sp", "kd.layers=pooled"],
    }
    settings = settings_of(*only, *kinds.get(method, [f"kd={method}"]))
    context = make_run_context(settings, tiny.dataset())
    before = stage_fingerprint(context, settings.stage("student"), "guide")
    monkeypatch.setattr(sys.modules["kdx.chain.fingerprints"], "FOUND_LAYERS_VERSION", 3)
    assert (stage_fingerprint(context, settings.stage("student"), "guide") != before) == counts


FORMS = {  # how a module takes in `thing` of own/parts/thing.py: files, target
    "from a module": ({"own/a.py": "from own.parts.thing import thing as net"}, "own.a:net"),
    "import as": ({"own/a.py": "import own.parts.thing as t\nnet = t.thing"}, "own.a:net"),
    "import dotted": ({"own/a.py": "import own.parts.thing\nnet = own.parts.thing.thing"}, "own.a:net"),
    "from package import module": ({"own/a.py": "from own.parts import thing\nnet = thing.thing"}, "own.a:net"),
    "relative": ({"own/a.py": "from .parts import thing\nnet = thing.thing"}, "own.a:net"),
    "relative above": ({"own/b/__init__.py": "", "own/b/a.py": "from ..parts.thing import thing"}, "own.b.a:thing"),
    "in a function": ({"own/a.py": "def net():\n    from .parts import thing\n    return thing.thing()"}, "own.a:net"),
    "partial": (
        {"own/a.py": "import functools\nfrom .parts.thing import thing\nnet = functools.partial(thing, 3)"},
        "own.a:net",
    ),
    "nested attribute": ({"own/a.py": "from .parts.thing import thing\nclass A:\n    net = thing"}, "own.a:A.net"),
    "re-exported": ({"own/__init__.py": "from .parts.thing import thing"}, "own:thing"),
    "re-exported twice": (
        {"own/__init__.py": "from .parts import thing", "own/parts/__init__.py": "from .thing import thing"},
        "own.thing",
    ),
    "star": ({"own/a.py": "from own.parts.thing import *"}, "own.a:thing"),
    "star of a package": (
        {"own/a.py": "from own.parts import *\nnet = thing.thing", "own/parts/__init__.py": "__all__ = ['thing']"},
        "own.a:net",
    ),
    "cycle": (
        {"own/a.py": "from . import b\nnet = 1", "own/b.py": "from . import a\nfrom .parts import thing"},
        "own.a:net",
    ),
    "by name": ({"own/a.py": "import importlib\nnet = importlib.import_module('.parts.thing', 'own')"}, "own.a:net"),
    "by a computed name": (
        {"own/a.py": "from importlib import import_module\ndef net(n):\n    return import_module(f'own.parts.{n}')"},
        "own.a:net",
    ),
    "beside": ({"other.py": "from own.parts.thing import thing\ndef net():\n    return thing()"}, "other:net"),
    "made in __init__": (
        {"own/__init__.py": "from .parts.thing import thing\nnet = thing"},
        "own.net",
    ),
    "wrapped in __init__": (
        {
            "own/__init__.py": "from .a import net\nfrom .parts.thing import thing\nnet = thing(net)",
            "own/a.py": "net=1",
        },
        "own:net",
    ),
    "namespace": ({"own/ns/deep/a.py": "from own.parts.thing import thing"}, "own.ns.deep.a:thing"),
}


@pytest.mark.parametrize("form", FORMS)
def test_imports_of_every_form_are_followed(mine: Path, form: str) -> None:
    files, target = FORMS[form]
    common = {"own/__init__.py": "", "own/parts/__init__.py": "", "own/parts/thing.py": "def thing():\n    return 1"}
    write(mine, common | files)
    before = Sources().of(target)
    assert "own.parts.thing" in before
    (mine / "own/parts/thing.py").write_text("def thing():\n    return 2\n")
    after = Sources().of(target)
    assert {name for name in before if before[name] != after[name]} == {"own.parts.thing"}
    assert not {"own", "other"} & set(sys.modules)  # nothing of it was run


def test_package_that_re_exports_much_stands_for_what_is_wanted_of_it(mine: Path) -> None:
    init = "from .nets import Net\nfrom .loss import Loss\nfrom . import data"
    write(
        mine, {"own/__init__.py": init, "own/nets.py": "Net = 1", "own/loss.py": "Loss = 1", "own/data.py": "data = 1"}
    )
    assert set(Sources().of("own:Net")) == {"own", "own.nets"}
    assert set(Sources().of("own.loss:Loss")) == {"own", "own.loss"}
    assert set(Sources().of("own.data.data")) == {"own", "own.data"}
    write(mine, {"other.py": "from own import Loss"})
    assert set(Sources().of("other.Loss")) == {"other", "own", "own.loss"}


FILLS = {  # how own/blocks.py fills the registry of own/registry.py
    "decorator": "@REGISTRY.register\nclass Block:\n    pass",
    "decorator of a function": "@REGISTRY.register('b')\ndef block():\n    pass",
    "item": "def block():\n    pass\nREGISTRY['b'] = block",
    "call": "REGISTRY.update(b=1)",
    "call whose result is kept": "block = REGISTRY.register(lambda: 1)",
    "subclass": "class Block(REGISTRY.Base):\n    pass",
    "subclass of a subclass": "class Own(REGISTRY.Base):\n    pass\nclass Block(Own):\n    pass",
    "metaclass": "class Block(metaclass=REGISTRY.Meta):\n    pass",
    "loop": "for name in 'ab':\n    REGISTRY[name] = 1",
    "builtin": "setattr(REGISTRY, 'b', 1)",
    "builtin that calls": "done = list(map(REGISTRY.add, 'ab'))",
    "in place": "REGISTRY |= {'b': 1}",
    "in a try": "try:\n    REGISTRY['b'] = 1\nexcept TypeError:\n    pass",
    "in a condition": "import sys\nif sys.version_info > (3,):\n    REGISTRY['b'] = 1",
    "in a class": "class Block:\n    REGISTRY['b'] = 1",
    "in a comprehension": "done = [REGISTRY.add(name) for name in 'ab']",
    "in a default": "def block(done=REGISTRY.add('b')):\n    pass",
    "by a function of its own": "def fill():\n    REGISTRY['b'] = 1\nfill()",
    "of torch": "import torch.nn as nn\nnn.Linear.extra = REGISTRY",
    "code in a string": "exec('import own.registry; own.registry.REGISTRY[1] = 1')",
    "under its own name": "REGISTRY = REGISTRY.add('b')",
    "no Python that kdx can read": "def (:",
}
TAKES = {  # how the package comes to import own/blocks.py
    "module": {"own/__init__.py": "from . import blocks"},
    "dotted": {"own/__init__.py": "import own.blocks"},
    "star": {"own/__init__.py": "from .blocks import *"},
    "name": {"own/__init__.py": "from .blocks import Block"},
    "all of a folder": {
        "own/__init__.py": "import importlib, pkgutil\nfor each in pkgutil.iter_modules(__path__):\n"
        "    importlib.import_module(f'own.{each.name}')"
    },
    "by way of a module": {"own/__init__.py": "from .zoo import zoo", "own/zoo.py": "from . import blocks\nzoo = 1"},
    "by way of a package": {
        "own/__init__.py": "from . import sub",
        "own/sub/__init__.py": "from ..blocks import Block",
    },
    "package around": {
        "own/__init__.py": "from .sub.thing import thing",
        "own/sub/__init__.py": "import own.blocks",
        "own/sub/thing.py": "thing = 1",
    },
}


@pytest.mark.parametrize(("take", "fill"), [("module", fill) for fill in FILLS] + [(take, "item") for take in TAKES])
def test_module_that_fills_a_registry_counts_however_the_package_imports_it(mine: Path, take: str, fill: str) -> None:
    common = {
        "own/registry.py": "REGISTRY = {}",
        "own/net.py": "from .registry import REGISTRY\ndef net():\n    return REGISTRY['b']()",
        "own/helper.py": "HELP = 1",
        "other.py": "from own.net import net",
        "own/blocks.py": "from .registry import REGISTRY\nfrom .helper import HELP\n" + FILLS[fill],
    }
    write(mine, common | TAKES[take])
    for target in ("own.net:net", "other:net"):
        counted = Sources().of(target)
        expected = {"own", "own.net", "own.registry", "own.blocks", "own.helper"}
        assert expected - ({"own.helper"} if fill.startswith("no Python") else set()) <= set(counted), target
        assert "own.zoo" not in counted and "own.sub.thing" not in counted
    assert not {"own", "other"} & set(sys.modules)


def test_package_counts_what_it_calls_when_it_is_imported(mine: Path) -> None:
    init = """
        from importlib.metadata import version
        from .setup import prepare
        from .nets import Net
        from .loss import Loss
        prepare()
        __version__ = version("torch")
    """
    write(mine, {"own/__init__.py": init, "own/nets.py": "Net = 1", "own/loss.py": "Loss = 1"})
    write(mine, {"own/setup.py": "def prepare():\n    pass"})
    assert set(Sources().of("own.nets:Net")) == {"own", "own.nets", "own.setup"}


def test_modules_that_only_define_do_not_count_because_a_package_names_them(mine: Path) -> None:
    module = """
        \"\"\"Common things.\"\"\"
        import functools, logging, os
        from abc import ABC, abstractmethod
        from dataclasses import dataclass, field
        from enum import Enum, auto
        from pathlib import Path
        from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
        import torch
        import torch.nn as nn
        from kdx.losses.objective import Objective
        if TYPE_CHECKING:
            from torch import Tensor
        try:
            import missing
        except ImportError:
            missing = None
        __all__ = ["Net"]
        __all__ += ["Wide"]
        T = TypeVar("T")
        log = logging.getLogger(__name__)
        HERE = Path(__file__).resolve().parent / "x"
        NAMES: list[str] = "a b".split()
        MEAN = torch.tensor([0.5, 0.5])
        table = {name: (lambda: print(name)) for name in sorted.__name__}
        class Kind(Enum):
            ONE = auto()
        @dataclass(frozen=True)
        class Facts(Generic[T]):
            numbers: list[int] = field(default_factory=list)
        class Base(nn.Module, ABC):
            def __init__(self):
                print("built")
            @property
            def width(self):
                return 1
            @width.setter
            def width(self, value):
                pass
            @abstractmethod
            def other(self): ...
            @staticmethod
            def third(): ...
        class Net(Base):
            @torch.no_grad()
            def forward(self, images):
                return images
        class Method(Objective):
            pass
        class Broken(ValueError):
            pass
        @functools.lru_cache(maxsize=None)
        def load(path=Path("a"), *, more=None):
            return [print(each) for each in os.listdir(path)]
        if __name__ == "__main__":
            print(load())
    """
    write(
        mine, {"own/__init__.py": "from . import a, b\nfrom .c import *\nfrom .d import Net", "own/net.py": "net = 1"}
    )
    write(mine, {f"own/{name}.py": module for name in "abcd"})
    assert set(Sources().of("own.net")) == {"own", "own.net"}


HACK = """
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).parent / "lib"))
    {taken}
    from mine.nets import Wide
    def net(num_classes, in_channels):
        {late}
        return Wide(num_classes, in_channels)
"""
LATE = {  # how it is taken in -> the file, and what of it has to be on the path
    "module": ("from parts import act", "pass", "parts.py"),
    "plain": ("import parts", "pass", "parts.py"),
    "of a package": ("from parts.acts import act", "pass", "parts/acts.py"),
    "of a folder": ("from parts import acts", "pass", "parts/acts.py"),
    "when it is called": ("", "from parts import act", "parts.py"),
    "by name": ("import importlib\n    importlib.import_module('parts')", "pass", "parts.py"),
}


@pytest.mark.parametrize("form", LATE)
def test_code_that_is_found_only_by_a_changed_path_is_refused(mine: Path, form: str, tiny_run, monkeypatch) -> None:
    """Its edits would go unnoticed. Once its folder is on the path for every process, it counts."""
    taken, late, file = LATE[form]
    write(mine, {"other.py": HACK.format(taken=taken, late=late), f"lib/{file}": "act = 1"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    line = ["model.teacher=other:net", "stage.deliver=teacher", "epochs=1"]
    before = list(sys.path)
    told = rf"{file}: parts\S* was found only once .* put {mine / 'lib'} on PYTHONPATH$"
    try:
        with pytest.raises(KdxError, match=told) as error:
            tiny_run(*line)
        assert "\n" not in str(error.value)
        forget("mine", "other", "parts")
        sys.path[:] = [*before, str(mine / "lib")]
        assert tiny_run(*line).statuses() == {"teacher": "trained"}
        forget("mine", "other", "parts")
        write(mine, {f"lib/{file}": "act = 2"})
        assert tiny_run(*line).statuses() == {"teacher": "trained"}
        assert tiny_run(*line).statuses() == {"teacher": "reused"}
    finally:
        forget("parts")


def test_module_that_is_loaded_from_elsewhere_than_it_was_found_is_refused(mine: Path, monkeypatch) -> None:
    write(mine, {"other.py": HACK.format(taken="import own", late="pass"), "own.py": "", "lib/own.py": "a = 1"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    sources = Sources()
    assert set(sources.of("other:net")) == {"other", "own", "mine", "mine.nets", "mine.helper", "mine.deeper"}
    importlib.import_module("other")
    with pytest.raises(KdxError, match=r"lib/own.py: own was found only once"):
        sources.confirm()


def test_target_that_is_found_only_by_a_changed_path_is_refused(mine: Path, monkeypatch) -> None:
    write(mine, {"other.py": HACK.format(taken="", late="pass"), "lib/own.py": "class Loss:\n    pass"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    sources = Sources()
    sources.of("other:net")
    assert sources.of("own.Loss") == {}
    sources.confirm()
    importlib.import_module("other")
    importlib.import_module("own")
    with pytest.raises(KdxError, match=r"own.py: own was found only once"):
        sources.confirm()


def test_only_code_of_the_users_own_counts(mine: Path) -> None:
    write(mine, {"other.py": "import os, json, torch, numpy, kdx.losses\nfrom torch import nn\nnet = nn.Linear"})
    assert set(Sources().of("other:net")) == {"other"}
    for target in ("torch.optim.AdamW", "resnet18", "kdx.thin:resnet8", "json.loads", "nothing.such", "", "a b", "."):
        assert Sources().of(target) == {}


def test_every_target_of_a_node_counts(mine: Path) -> None:
    inner = {"_target_": "hydra.utils.get_method", "path": "mine.schedule.factor"}
    node = {
        "_target_": "torch.optim.lr_scheduler.LambdaLR",
        "lr_lambda": [inner],
        "more": {"_target_": "mine.loss.Loss"},
    }
    assert set(Sources().of_node(node)) == {"mine", "mine.schedule", "mine.loss"}
    assert Sources().of_node({"_target_": None}) == {}


def test_installed_package_that_is_plugged_in_counts_with_all_its_files(mine: Path, monkeypatch) -> None:
    """As after `pip install .` of another state under the same version."""
    installed = mine / "site-packages"
    write(installed, {"own/__init__.py": "from .deep.net import net", "own/deep/net.py": "net = 1"})
    monkeypatch.syspath_prepend(str(installed))
    before = Sources().of("own:net")
    assert list(before) == ["own"]
    (installed / "own/deep/net.py").write_text("net = 2")
    assert Sources().of("own:net") != before
    write(mine, {"other.py": "import own\nnet = own.net"})
    assert set(Sources().of("other:net")) == {"other"}


def test_file_that_is_no_python_counts_by_its_bytes(mine: Path) -> None:
    write(mine, {"other.py": "def net(:"})
    before = Sources().of("other:net")
    write(mine, {"other.py": "def net(:  # still"})
    assert before["other"] != Sources().of("other:net")["other"]


def test_code_that_is_edited_while_it_is_taken_in_is_refused(mine: Path) -> None:
    path = mine / "mine" / "deeper.py"
    sources = Sources()
    sources.of("mine.nets:Wide")
    path.write_text(path.read_text().replace("relu", "tanh"))
    with pytest.raises(KdxError, match=r"deeper.py: was edited while the run started"):
        sources.confirm()


def test_process_that_still_runs_the_old_code_is_refused(mine: Path) -> None:
    """A worker of a launcher lives on from job to job."""
    path = mine / "mine" / "deeper.py"
    sources = Sources()
    before = sources.of("mine.nets:Wide")
    importlib.import_module("mine.nets")
    sources.confirm()
    assert Sources().of("mine.nets:Wide") == before
    path.write_text(path.read_text().replace("relu", "tanh"))
    with pytest.raises(KdxError, match=r"deeper.py: was edited since this process loaded mine.deeper"):
        Sources().of("mine.nets:Wide")
    importlib.reload(sys.modules["mine.deeper"])
    assert Sources().of("mine.nets:Wide") != before
