"""What the values of a configuration must be; each problem names the key, the value and the choices."""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.config.schema import DatasetSchema, RoleSchema, Schema
from kdx.errors import KdxError, suggest

AMP = ("auto", "bf16", "fp16", "off")
LOGGER = ("none", "tensorboard", "mlflow", "wandb")
COMPILE = ("auto", "off", "default", "reduce-overhead")
STEMS = ("auto", "small", "imagenet")
REUSE = ("exact", "latest", "never")
IF_MISSING = ("train", "error")
AUGMENT = ("crop", "flip", "jitter", "none")
NORMALIZE = ("auto", "imagenet", "dataset")
MEDMNIST_SIZES = (28, 64, 128, 224)
RESERVED_ROLES = (
    "plan",
    "status",
    "error",
    "lineage",
    "versions",
    "git_commit",
    "overrides",
    "surroundings",
    "class_names",
)


class Problems:
    """Collects what is wrong, so that one run tells all of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, value: Any, needed: str) -> None:
        self.lines.append(f"{key}={value}: {needed}")

    def choice(self, key: str, value: Any, choices: tuple[str, ...]) -> None:
        if value not in choices:
            self.add(key, value, f"choose {', '.join(choices)}{suggest(str(value), choices)}")

    def at_least(self, key: str, value: Any, least: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.add(key, value, f"a whole number of at least {least} is needed")

    def number(self, key: str, value: Any, test: Callable[[float], bool], needed: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not test(value):
            self.add(key, value, f"{needed} is needed")

    def raise_if_any(self) -> None:
        if self.lines:
            raise KdxError("; ".join(self.lines))


def check_run(run: Schema, problems: Problems) -> None:
    problems.choice("amp", run.amp, AMP)
    problems.choice("compile", run.compile, COMPILE)
    if run.activation_checkpointing and run.compile not in ("auto", "off"):
        problems.add("compile", run.compile, "does not go together with activation_checkpointing=true; choose off")
    # of gradients summed over parts, only one part may arrive (PyTorch issue 96693)
    if run.accumulate > 1 and run.compile == "reduce-overhead":
        problems.add("compile", run.compile, "CUDA graphs spoil gradients summed by accumulate; choose default")
    if run.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        problems.add("device", run.device, "choose auto, cpu, cuda, cuda:<number> or mps")
    for key, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("num_workers", 0),
        ("log_interval", 1),
        ("save_interval", 0),
        ("accumulate", 1),
    ):
        problems.at_least(key, getattr(run, key), least)
    problems.at_least("seed", run.seed, 0)
    problems.at_least("checkpoint_every_steps", run.checkpoint_every_steps, 0)
    problems.at_least("visualize.samples", run.visualize.samples, 0)
    problems.at_least("visualize.every", run.visualize.every, 0)
    problems.choice("logger", run.logger, LOGGER)
    if run.threads is not None:
        problems.at_least("threads", run.threads, 1)


def check_dataset(dataset: DatasetSchema, problems: Problems) -> None:
    if dataset.name in ("", ".", "..") or "/" in dataset.name or "\\" in dataset.name:
        problems.add("dataset.name", dataset.name, "a plain name is needed: it becomes a folder")
    for choice in dataset.augment:
        problems.choice("dataset.augment", choice, AUGMENT)
    if isinstance(dataset.normalize, str):
        problems.choice("dataset.normalize", dataset.normalize, NORMALIZE)
    elif not _is_mean_and_std(dataset.normalize):
        needed = f"{', '.join(NORMALIZE)} or {{mean: [...], std: [...]}} of equal lengths with std above 0 is needed"
        problems.add("dataset.normalize", dataset.normalize, needed)
    for key in ("size", "resize"):
        if getattr(dataset, key) is not None:
            problems.at_least(f"dataset.{key}", getattr(dataset, key), 1)
    source = str(dataset.source.get("_target_")) if isinstance(dataset.source, dict) else ""
    if source == "kdx.data.sources.load_medmnist" and dataset.size not in MEDMNIST_SIZES:
        problems.add("dataset.size", dataset.size, f"choose {', '.join(map(str, MEDMNIST_SIZES))}")
    if source in ("kdx.data.sources.load_cifar", "kdx.data.sources.load_digits") and dataset.size is not None:
        problems.add("dataset.size", dataset.size, f"{dataset.name} has one size; dataset.resize scales it")


def _is_mean_and_std(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"mean", "std"}:
        return False
    mean, std = value["mean"], value["std"]
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != len(std):
        return False
    return all(isinstance(number, int | float) for number in (*mean, *std)) and all(number > 0 for number in std)


def check_loss_and_optimizer(config: DictConfig, problems: Problems) -> None:
    if "temperature" in config.kd:
        problems.number("kd.temperature", config.kd.temperature, lambda t: t > 0, "a finite number above 0")
    if not isinstance(config.kd.get("cache_logits", False), bool):
        problems.add("kd.cache_logits", config.kd.cache_logits, "choose true, false")
    if "alpha" in config.kd:
        problems.number("kd.alpha", config.kd.alpha, lambda a: 0 <= a <= 1, "a number from 0 to 1")
    for key, test, needed in (
        ("lr", lambda v: v > 0, "a finite number above 0"),
        ("weight_decay", lambda v: v >= 0, "a finite number of at least 0"),
        ("momentum", lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    ):
        if key in config.optimizer:
            problems.number(f"optimizer.{key}", config.optimizer[key], test, needed)
    if "gamma" in config.scheduler:
        problems.number("scheduler.gamma", config.scheduler.gamma, lambda g: g > 0, "a finite number above 0")
    if config.optimizer.get("_target_") is None:
        problems.add("optimizer._target_", None, "an optimizer is needed: choose adamw, adam, sgd or your own")


def check_role_names(config: DictConfig, problems: Problems) -> list[str]:
    """The roles: every mapping under `stage`."""
    roles = [str(key) for key in config.stage if isinstance(config.stage[key], DictConfig)]
    for key in config.stage:
        if key not in roles and key not in ("deliver", "reuse", "missing"):
            problems.add(f"stage.{key}", config.stage[key], "no such key; a role is a mapping {guide: ...}")
    for role in roles:
        if role in RESERVED_ROLES or role in ("deliver", "reuse", "missing") or not role.isidentifier():
            problems.add("stage", role, "this word cannot name a role")
    problems.choice("stage.deliver", config.stage.deliver, ("all", *roles))
    problems.choice("stage.reuse", config.stage.reuse, REUSE)
    problems.choice("stage.missing", config.stage.missing, IF_MISSING)
    return roles


def check_roles(config: DictConfig, roles: list[str], problems: Problems) -> None:
    for role in roles:
        node = config.stage[role]
        try:
            OmegaConf.merge(OmegaConf.structured(RoleSchema), node)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", "")
            hint = (
                suggest(str(key), RoleSchema.__dataclass_fields__) if key not in RoleSchema.__dataclass_fields__ else ""
            )
            problems.lines.append(f"stage.{role}.{key}: {str(error).splitlines()[0]}{hint}")
            continue
        for key in ("epochs", "batch_size"):
            if node.get(key) is not None:
                problems.at_least(f"stage.{role}.{key}", node[key], 1)
        if node.get("lr") is not None:
            problems.number(f"stage.{role}.lr", node.lr, lambda v: v > 0, "a finite number above 0")
        if not isinstance(config.model.get(role), str):
            problems.add(f"model.{role}", config.model.get(role), f"stage.{role} needs a network, e.g. resnet18")
    problems.choice("model.stem", config.model.stem, STEMS)
    for key in ("pretrained", "freeze_backbone"):
        if not isinstance(config.model[key], bool):
            problems.add(f"model.{key}", config.model[key], "choose true, false")
    for key in config.model:
        if key not in (*roles, "pretrained", "freeze_backbone", "stem"):
            problems.add(
                f"model.{key}",
                config.model[key],
                f"no role of this name under stage{suggest(str(key), roles)}",
            )
