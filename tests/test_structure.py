"""The shape of the code: imports run downwards, few files know Hydra, dangerous calls do not occur."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import REPO

MODULES = sorted((REPO / "kdx").rglob("*.py"))
FOUNDATION = {"errors", "files", "checkpoint", "memory", "reproducibility", "epoch_log", "tasks", "text"}
FOUNDATION |= {"process", "signals", "streams", "users_code", "torchrun"}  # how a process ends, what it prints to
FOUNDATION |= {"ranges", "augmentations", "recipe", "method_numbers"}  # what a number may be, and those of a training
COMMANDS = {
    "run",
    "search",
    "export",
    "predict",
    "cli",
    "compose",
    "explain",
    "config_loader",
    "command",
    "methods",
    "run_folder",
    "experiment",
    "__init__",  # its one function is a command's
}  # and every room's __main__; nobody below imports them
ROOMS: dict[str, set[str]] = {  # what each may import beside the foundation and itself
    "config": set(),
    "results": set(),
    "data": set(),
    "metrics": set(),
    "models": set(),
    "trackers": set(),
    "losses": {"models"},
    "training": {"data", "models", "losses", "metrics", "trackers"},
    "deploy": {"data", "models", "metrics", "results"},
    "visualize": {"data", "models", "deploy"},
    "report": {"results"},
    "thin": {"models"},  # the public name of kdx.models.thin
    "vit": {"models"},
}
ROOMS["chain"] = {"config", "training", "deploy", "visualize", "report"} | ROOMS["training"] | ROOMS["deploy"]
ROOMS["sweeps"] = {"config", "chain", "report", "results"}
NO_TORCH_AT_IMPORT = (
    "run",
    "cli",
    "compose",
    "explain",
    "config_loader",
    "command",
    "errors",
    "files",
    "process",
    "signals",
    "streams",
    "torchrun",
    "augmentations",
    "results",
    "config",
    "sweeps",
    "report",
    "chain.index",
)


def place(path: Path) -> str:
    """The dotted name below kdx, e.g. `data.batches`; `data` for a room's __init__."""
    return ".".join(path.relative_to(REPO / "kdx").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_every_module_is_in_a_room() -> None:
    known = FOUNDATION | COMMANDS | ROOMS.keys() | {"__init__", "plugins"}
    assert {place(path).split(".")[0] for path in MODULES} == known


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_rooms_import_in_the_allowed_directions(path: Path) -> None:
    room = place(path).split(".")[0]
    if room in COMMANDS | {"plugins"} or path.stem == "__main__":
        return
    allowed = FOUNDATION if room in FOUNDATION else FOUNDATION | ROOMS.get(room, set()) | {room, "__version__"}
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("kdx.")}
    assert ours <= allowed, f"{place(path)} imports {ours - allowed}"


def test_only_the_border_knows_hydra() -> None:
    knowing = {place(path) for path in MODULES if any(name.split(".")[0] == "hydra" for name in imports_of(path))}
    plugins = {f"plugins.hydra_plugins.{name}" for name in ("kdx_launcher", "kdx_sweeper")}
    assert knowing == {"run", "cli", "compose", "explain", "config_loader", "config.build", *plugins}
    calling = [place(path) for path in MODULES if re.search(r"\binstantiate\(", path.read_text())]
    assert calling == ["config.build"]


def test_commands_start_before_torch() -> None:
    """Help, a wrong key and Ctrl-C must not wait for the seconds that torch takes to be imported."""
    rooms = [place(path) for path in MODULES if path.stem == "__main__"]
    names = ", ".join(f"kdx.{name}" for name in sorted({*COMMANDS, *rooms}))
    code = f"import {names}, sys; print(sorted({{'torch', 'matplotlib', 'pandas', 'sklearn'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=100)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", NO_TORCH_AT_IMPORT)
def test_start_up_modules_do_not_import_torch(name: str) -> None:
    heavy = {"torch", "torchvision", "torchmetrics", "matplotlib", "pandas", "sklearn", "medmnist"}
    found = [path for path in MODULES if place(path) == name or place(path).startswith(f"{name}.")]
    for path in found:
        assert not heavy & {module.split(".")[0] for module in imports_of(path, top_level_only=True)}, place(path)
    assert found


def test_torchmetrics_is_imported_where_an_epoch_ends_only() -> None:
    """It takes seconds, which would pass before the first training step."""
    for path in MODULES:
        assert not any(name.startswith("torchmetrics") for name in imports_of(path, top_level_only=True)), path


def test_every_torch_load_is_weights_only_and_nothing_is_unpickled() -> None:
    """pitfall(5)"""
    for path in [*MODULES, *(REPO / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                if call.startswith("torch.load("):
                    assert "weights_only=True" in call, path
                if call.startswith("np.load("):
                    assert "allow_pickle=False" in call, path
                assert not call.startswith(("pickle.", "joblib.load", "yaml.load(", "eval(", "exec(")), path


def test_warnings_are_not_silenced_for_the_process() -> None:
    """pitfall(24)"""
    for path in MODULES:
        text = path.read_text()
        for match in re.finditer(r"warnings\.(simplefilter|filterwarnings)\(", text):
            before = text[: match.start()].rsplit("\n", 2)[-2]
            assert "catch_warnings" in before, f"{path}: outside of catch_warnings"


def test_no_module_level_state() -> None:
    """pitfall(27)-like surprises in sweeps: a module holds constants, functions and classes only."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            assert not isinstance(node, ast.Global), path
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (ast.unparse(target) for target in targets):
                    constant = name.isupper() or name.strip("_").isupper() or name[0].isupper()
                    assert constant or name in ("log", "__version__"), f"{path}: {name}"


def test_files_and_functions_stay_small() -> None:
    for path in MODULES:
        text = path.read_text()
        assert text.count("\n") <= 460, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_features_are_called_by_the_product() -> None:
    """pitfall(28), pitfall(25): what a module offers is used somewhere else than in its test."""
    public = {
        "resnet8",
        "resnet20",
        "resnet56",
        "ProcessLauncher",
        "get_resnet_model",
        "get_gpu_memory_usage",
        "extract_and_visualize_features",
    }
    places = [*MODULES, *(REPO / "scripts").glob("*.py"), *(REPO / "conf").rglob("*.yaml")]
    uses = Counter(word for path in places for word in re.findall(r"\w+", path.read_text()))
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                used = uses[node.name] > 1 or node.name in public | {"main"}
                assert used, f"{place(path)}.{node.name} is used nowhere"


def test_top_level_is_the_agreed_one() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    allowed = {
        "conf",
        "kdx",
        "scripts",
        "tests",
        "outputs",
        "pyproject.toml",
        "README.md",
        "Makefile",
        "constraints.txt",
        "LICENSE",
    }
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed
    assert [line for line in listed.stdout.splitlines() if line.startswith("outputs/")] == ["outputs/.gitkeep"]


def test_every_pitfall_has_a_test() -> None:
    """The numbers are those of the list of mistakes that earlier systems made."""
    told = " ".join(path.read_text() for path in (REPO / "tests").rglob("*.py"))
    missing = [number for number in range(1, 29) if f"pitfall({number})" not in told]
    assert not missing
