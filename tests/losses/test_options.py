"""Every option of conf/kd is built from its file and makes a training step, or is refused by name."""

import re

import pytest
import yaml

from kdx.chain.check import check_stage
from kdx.chain.context import load_dataset, make_run_context
from kdx.errors import KdxError
from tests import tiny
from tests.conftest import CONF, settings_of

NAMES = sorted(path.stem for path in (CONF / "kd").glob("*.yaml"))
MULTI_LABEL_ONLY = ("mld", "pskd")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [(), ("accumulate=2", "amp=bf16")], ids=["plain", "parts-bf16"])
def test_an_option_makes_a_step_or_is_refused(name: str, more: tuple[str, ...]) -> None:
    one_map = ["kd.hint=-1"] if name == "fitnet" else []  # the tiny network has one stage
    settings = settings_of(f"kd={name}", *one_map, *more)
    context = make_run_context(settings, load_dataset(settings))
    teachers = {"assistant": tiny.wide(3, 1)}
    stage = settings.stage("student")
    if name in MULTI_LABEL_ONLY:
        with pytest.raises(KdxError, match="kd: kdx.losses.* choose"):
            check_stage(context, stage, teachers)
    else:
        network = check_stage(context, stage, teachers if stage.distilled else {})
        assert sum(p.numel() for p in network.parameters()) > 0


def test_logits_cannot_stand_for_features() -> None:
    settings = settings_of("kd=reviewkd", "kd.cache_logits=true")
    context = make_run_context(settings, load_dataset(settings))
    with pytest.raises(KdxError, match="kd.cache_logits=true: kdx.losses.ReviewKD looks at layers"):
        check_stage(context, settings.stage("student"), {"assistant": tiny.wide(3, 1)})


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none"}))
def test_an_option_opens_with_its_command_and_its_paper(name: str) -> None:
    text = (CONF / "kd" / f"{name}.yaml").read_text()
    opening = text[: text.index("_target_")]
    assert f"kd={name}" in opening or name == "hinton"
    assert re.search(r"\d{4}\.\d{4,5}|CVPR 2023", opening)
    assert {"hard", "terms" if name == "combined" else "weight", "lr", "cache_logits"} <= set(yaml.safe_load(text))
