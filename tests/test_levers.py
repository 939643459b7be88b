"""What makes training cheaper must not make it another: same bits, or the same up to rounding."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdx.chain.chain import run_chain
from kdx.errors import KdxError
from kdx.losses.hinton import KnowledgeDistillationLoss
from kdx.models.activation_checkpointing import recompute_blocks
from kdx.models.networks import NetworkSpec, build_network
from kdx.models.thin import ThinResNet, resnet8
from kdx.training.runtime import Precision, choose_compile, choose_precision, compile_networks
from kdx.training.teachers import LogitsCache
from tests import tiny
from tests.conftest import settings_of
from tests.training import CPU, Training, make_training


def weights(trainer: Training) -> dict[str, Tensor]:
    trainer.fit()
    return trainer.network.state_dict()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def near(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[key].double(), two[key].double(), rtol=1e-2, atol=1e-3) for key in one)


def thin(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = resnet8(3, 1)
    network.stage2.add_module("drop", nn.Dropout(0.3))
    return network


def without_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, parts: int) -> None:
    """Also of the last, smaller batch; mean losses and predictions are the whole batch's as well."""
    whole = make_training(tmp_path / "whole", network=without_norm())
    split = make_training(tmp_path / "split", network=without_norm(), micro_batches=parts)
    calls = []
    split.network.register_forward_hook(lambda module, *_: calls.append(module.training))
    assert near(weights(whole), weights(split))
    assert sum(calls) == 3 * (3 * parts + min(parts, 3))  # three batches of 8, one of 6, an epoch
    for one, two in zip(whole.history, split.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
        assert one["train_accuracy"] == two["train_accuracy"]


def test_micro_batches_that_leaves_single_images_is_refused() -> None:
    with pytest.raises(KdxError, match="micro_batches=5: parts of at least two images .* teacher's batch_size is 8"):
        settings_of("micro_batches=5")
    with pytest.raises(KdxError, match="micro_batches=0"):
        settings_of("micro_batches=0")


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_recomputed_activations_give_the_same_bits(tmp_path: Path, amp: str) -> None:
    """Weights, running statistics of batch-norm, its counters, and what dropout drew."""
    kept, recomputed = thin(), thin()
    recompute_blocks(recomputed)
    calls = []
    block: Any = recomputed.stage1[0]
    block.conv1.register_forward_hook(lambda *_: calls.append(1))
    one = weights(make_training(tmp_path / "one", network=kept, amp=amp))
    two = weights(make_training(tmp_path / "two", network=recomputed, amp=amp))
    assert one.keys() == two.keys() and same(one, two)
    assert len(calls) == 3 * (2 * 4 + 2)  # twice a training step, once a validation batch


def test_recomputing_needs_blocks() -> None:
    with pytest.raises(KdxError, match="activation_checkpointing=true: TinyNet has no nn.Sequential of blocks"):
        recompute_blocks(tiny.network(3, 1))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vgg11"]
)
def test_which_torchvision_networks_can_recompute(name: str) -> None:
    with torch.device("meta") if name == "vgg11" else nullcontext():
        network = build_network(NetworkSpec(name, 2))
    if name == "vgg11":
        with pytest.raises(KdxError, match="no nn.Sequential of blocks"):
            recompute_blocks(network)
        return
    recompute_blocks(network)
    network.train()
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def placed(folder: Path, channels_last: bool, seed: int = 0) -> Training:
    network = Precision(CPU, None, channels_last).place(build_network(NetworkSpec("resnet18", 3, 1, stem="small")))
    fused = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    more = {"seed": seed, "epochs": 2, "count": 12, "optimizer": fused, "schedule": lambda optimizer: None}
    return make_training(folder, network=network, **more)


def test_a_state_goes_on_under_the_other_memory_format(tmp_path: Path) -> None:
    """Fused kernels read moments by address: a state saved in another layout would be mixed up without an error."""
    torch.manual_seed(0)
    first = placed(tmp_path / "first", channels_last=False)
    first.fit(1)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    moments = []
    for folder, channels_last in (("first", False), ("second", True)):
        again = placed(tmp_path / folder, channels_last)
        assert again.resume(tmp_path / folder)
        again.fit()
        weight = again.network.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        moments.append(again.trainer.optimizer.state[weight]["exp_avg"])
    assert torch.nn.functional.cosine_similarity(moments[0].flatten(), moments[1].flatten(), dim=0) > 0.99


def test_channels_last_is_used_where_it_is_faster() -> None:
    cuda = torch.device("cuda")
    assert choose_precision("off", CPU).channels_last and choose_precision("fp16", cuda).channels_last
    assert not choose_precision("off", cuda).channels_last and not choose_precision("bf16", CPU, False).channels_last


class Counting(nn.Module):
    """A guide that counts the images that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.network, self.asked = tiny.wide(3, 1), 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.network(images)


def distilled(folder: Path, cache: Path | None, **options: Any) -> Training:
    loss = KnowledgeDistillationLoss(options.pop("temperature", 2.0), 0.5)
    options["cache"] = None if cache is None else LogitsCache(cache, 3)
    return make_training(folder, teachers={"teacher": Counting()}, objective=loss, **options)


@pytest.mark.parametrize("augment", [(), ("crop",)])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_cached_logits_give_the_same_bits_and_are_computed_once(
    tmp_path: Path, augment: tuple[str, ...], amp: str
) -> None:
    asked, ends = [], []
    for folder, cache in (("plain", None), ("first", tmp_path / "cache"), ("second", tmp_path / "cache")):
        trainer = distilled(tmp_path / folder, cache, augment=augment, amp=amp)
        ends.append(weights(trainer))
        asked.append(trainer.teacher.network.asked)  # type: ignore[union-attr]
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])
    once = 3 * 30 if augment else 30  # views of three epochs
    assert asked == [3 * 30 + 30, once + 30, 0]  # 30 more of the validation split
    other = distilled(tmp_path / "other", tmp_path / "cache", augment=augment, amp=amp, temperature=9.0)
    assert not same(ends[0], weights(other)) and other.teacher.network.asked == 0  # type: ignore[union-attr]


def test_damaged_cache_is_noticed_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = weights(distilled(tmp_path / "first", tmp_path / "cache"))
    path = tmp_path / "cache" / "epoch_0002.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = distilled(tmp_path / "second", tmp_path / "cache")
    assert same(expected, weights(again)) and again.teacher.network.asked == 30  # type: ignore[union-attr]
    assert "epoch_0002.npy: damaged" in caplog.text


def test_sweep_asks_a_guide_once(tiny_run, tmp_path: Path) -> None:
    chain = ["stage.deliver=student", "stage.student.guide=teacher"]
    plain = tiny_run(*chain, "kd.temperature=8")
    shutil.rmtree(tmp_path / "outputs" / "index")
    tiny_run(*chain, "kd.cache_logits=true")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/index/logits").rglob("*.npy")}
    assert {path.stem for path in files} == {"val", "test", "epoch_0001", "epoch_0002"}
    cached = tiny_run(*chain, "kd.cache_logits=true", "kd.temperature=8")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list((tmp_path / "outputs/index/logits").iterdir())) == 1
    assert cached.summary["student"]["test"] == plain.summary["student"]["test"]
    assert cached.summary["student"]["fingerprint"] == plain.summary["student"]["fingerprint"]


@pytest.mark.parametrize("when", ["always", "asked", "trained", "rest"])
def test_what_cannot_be_compiled_is_found_before_training(
    when: str, tiny_run: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether that is of training, of validation, or of a last batch that is smaller."""
    from torch._inductor import compile_fx

    def broken(graph: torch.fx.GraphModule, example_inputs: list[object], **options: object) -> object:
        sizes = [len(one) for one in example_inputs if isinstance(one, torch.Tensor) and one.ndim == 4]
        rest = not sizes or any(not isinstance(size, int) for size in sizes) or 6 in sizes
        training = torch.is_grad_enabled()
        if when == "always" or (when == "rest" and rest) or {"asked": not training, "trained": training}.get(when):
            raise RuntimeError("the compiler\ncrashed")
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", broken)
    with pytest.raises(
        KdxError, match=r"^compile=default: the teacher, tests.tiny:wide, .*compiler crashed.*; choose off$"
    ):
        tiny_run("compile=default", "stage=teacher")
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("teacher"))


def test_a_plan_compiles_nothing_and_code_left_half_written_is_told(
    tiny_run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import compile_fx

    def broken(graph: torch.fx.GraphModule, example_inputs: list[object], **options: object) -> object:
        raise ImportError("main.so: file too short")

    monkeypatch.setattr(compile_fx, "compile_fx", broken)
    with pytest.raises(KdxError, match=r"file too short.*; choose off, or delete \S+, what torch has compiled before$"):
        tiny_run("compile=default", "stage=teacher")
    run_chain(settings_of("compile=default", "stage=teacher", "plan=true"), Path("nowhere"))


def test_compile_pays_in_long_trainings_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.training.runtime._can_compile", lambda: True)
    cuda = torch.device("cuda")
    assert choose_compile("auto", CPU, 10**6) is None and choose_compile("auto", cuda, 100) is None
    assert choose_compile("auto", cuda, 10**6) == "default" and choose_compile("off", cuda, 10**6) is None
    assert choose_compile("reduce-overhead", CPU, 1) == "reduce-overhead"
    monkeypatch.setattr("kdx.training.runtime._can_compile", lambda: False)
    assert choose_compile("auto", cuda, 10**6) is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_networks_learn_the_same(tmp_path: Path) -> None:
    plain = make_training(tmp_path / "plain", network=without_norm(), epochs=1)
    compiled = make_training(tmp_path / "compiled", network=without_norm(), epochs=1, compile_mode="default")
    one, two = weights(plain), weights(compiled)
    assert one.keys() == two.keys() and near(one, two)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_every_stage_is_compiled_not_only_the_first_two() -> None:
    """ResNets share the code of one forward; torch gives up on it after some variants, with a warning at most."""
    compiled = []

    def counting(module: Any, inputs: Any) -> Any:
        compiled.append(1)
        return module.forward

    for blocks in range(1, 6):
        compiled.clear()
        network = ThinResNet(blocks, 3, 1)
        compile_networks([network], "default")
        network.compile(backend=counting)
        for training, count in ((True, 4), (True, 3), (False, 4)):
            network.train(training)(torch.zeros(count, 1, 8, 8))
        assert len(compiled) >= 3, f"stage {blocks} is not compiled"


@pytest.mark.parametrize("graphs", [False, True])
def test_no_graph_is_captured_in_inference_mode(tmp_path: Path, graphs: bool) -> None:
    """Training graphs after such a one fail (PyTorch issue 135892). The bits are the same in either mode."""
    wish = "reduce-overhead" if graphs else "default"
    modes, trainers = set(), []
    for precision in (choose_precision("off", CPU), choose_precision("off", CPU, compile_mode=wish)):
        network, guide = thin(), thin()
        for asked in (network, guide):
            asked.register_forward_hook(
                lambda *_: modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            )
        loss = {"teachers": {"teacher": guide}, "objective": KnowledgeDistillationLoss()}
        trainer = make_training(tmp_path / str(len(trainers)), network=network, amp=precision, **loss)
        modes.clear()
        trainers.append(weights(trainer))
    assert modes == {(True, False), (False, not graphs)}
    assert same(*trainers)


def test_cuda_graphs_and_accumulating_do_not_go_together() -> None:
    """Of gradients summed over parts only one part may arrive (PyTorch issue 96693)."""
    with pytest.raises(KdxError, match="compile=reduce-overhead: CUDA graphs spoil gradients summed by micro_batches"):
        settings_of("compile=reduce-overhead", "micro_batches=2")
    assert settings_of("compile=default", "micro_batches=2").stage("student").recipe.micro_batches == 2


def test_compiling_and_recomputing_do_not_go_together() -> None:
    with pytest.raises(KdxError, match="compile=default: does not go together with activation_checkpointing=true"):
        settings_of("compile=default", "activation_checkpointing=true")
    assert settings_of("activation_checkpointing=true").compile == "auto"


def test_cache_that_cannot_be_written_does_not_end_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert distilled(tmp_path / "run", tmp_path / "cache").fit()
    assert "kd.cache_logits: cannot make the folder" in caplog.text
