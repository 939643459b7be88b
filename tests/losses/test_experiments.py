"""The sweeps over all methods: each has every method that suits its sets, and trains the teacher once a seed."""

from pathlib import Path

import pytest
import yaml

from kdx.chain.context import make_run_context
from kdx.chain.index import StageIndex
from kdx.chain.methods import read_method
from kdx.chain.plan import make_plan
from kdx.config.settings import read_settings
from tests import tiny
from tests.conftest import CONF, TINY, compose_config

OPTIONS = {path.stem: read_method(path) for path in sorted((CONF / "kd").glob("*.yaml")) if path.stem != "combined"}
EXPERIMENTS = {
    "methods": ("multi-class", 3),
    "methods_binary": ("binary-class", 2),
    "methods_multi_label": ("multi-label", 3),
}
SUITED = {
    name: [
        option for option, method in OPTIONS.items() if not any(t.method.refusal(*kind) for t in method.terms.values())
    ]
    for name, kind in EXPERIMENTS.items()
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_sweep_has_every_method_that_suits_its_sets(name: str) -> None:
    """A method that is added to conf/kd is added here, too."""
    params = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert sorted(params["kd"].split(",")) == sorted(SUITED[name])
    assert params["kd"].startswith("none,hinton,")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_jobs_share_the_teacher_of_their_seed(name: str, tmp_path: Path) -> None:
    task, classes = EXPERIMENTS[name]
    data = tiny.dataset(task, classes)
    plans = {}
    for kd in SUITED[name]:
        for seed in (0, 1):
            config = compose_config(f"experiment={name}", *TINY, f"kd={kd}", f"seed={seed}")
            context = make_run_context(read_settings(config), data)
            plans[kd, seed] = make_plan(context, StageIndex(tmp_path / "index"))
    roles = {key: [planned.role for planned in plan] for key, plan in plans.items()}
    assert roles.pop(("none", 0)) == roles.pop(("none", 1)) == ["student"]
    assert set(map(tuple, roles.values())) == {("teacher", "student")}
    teachers = {key: plan[0].fingerprint for key, plan in plans.items() if key[0] != "none"}
    assert len(set(teachers.values())) == 2 and all(
        teachers[kd, seed] == teachers["hinton", seed] for kd, seed in teachers
    )
    assert len({plan[-1].fingerprint for plan in plans.values()}) == 2 * len(SUITED[name])
