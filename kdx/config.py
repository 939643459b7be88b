"""From a composed config to plain, checked settings. Nothing behind this file sees a config; it imports no torch."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.errors import KdxError, suggest

AMP = ("auto", "bf16", "fp16", "off")
STEMS = ("auto", "small", "imagenet")
REUSE = ("exact", "latest", "never")
IF_MISSING = ("train", "error")
AUGMENT = ("crop", "flip", "jitter", "none")
NORMALIZE = ("auto", "imagenet", "dataset")
MEDMNIST_SIZES = (28, 64, 128, 224)
RESERVED_ROLES = ("plan", "status", "error", "lineage", "versions", "git_commit", "overrides", "surroundings")


# ${kdx.start:...} names the output folder's first level: how the networks start.
OmegaConf.register_new_resolver(
    "kdx.start",
    lambda pretrained: "imagenet_pretrained" if pretrained is True else "from_scratch",
    replace=True,
)

# The types of what is not a swap point. Swap points (kd, optimizer, scheduler, dataset.source) are dict: a user's
# own _target_ may take anything.


@dataclass
class RoleSchema:
    guide: str | None = None  # the role that teaches this one
    epochs: int | None = None  # null = the global value, here and below
    batch_size: int | None = None
    lr: float | None = None
    pretrained: bool | None = None
    checkpoint: str | None = None  # a file that stands in for training


@dataclass
class DatasetSchema:
    name: str = MISSING
    source: Any = MISSING  # returns a kdx.data.Dataset
    path: str | None = None  # imagefolder only
    size: int | None = None
    resize: int | None = None
    augment: list[str] = field(default_factory=list)
    normalize: Any = "auto"
    in_memory_gb: float = 2.0


@dataclass
class VisualizeSchema:
    samples: int = 2
    layer: str | None = None


@dataclass
class Schema:
    dataset: DatasetSchema = field(default_factory=DatasetSchema)
    model: dict[str, Any] = MISSING
    stage: dict[str, Any] = MISSING
    kd: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] = MISSING
    experiment: Any = None
    search: Any = None
    epochs: int = MISSING
    batch_size: int = MISSING
    amp: str = MISSING
    device: str = MISSING
    num_workers: int = MISSING
    log_interval: int = MISSING
    save_interval: int = MISSING
    checkpoint_every_steps: int = MISSING
    seed: int = MISSING
    deterministic: bool = MISSING
    threads: int | None = MISSING
    plan: bool = MISSING
    resume: bool = MISSING
    visualize: VisualizeSchema = field(default_factory=VisualizeSchema)
    data_dir: str = MISSING
    download: bool = MISSING
    output_dir: str = MISSING


@dataclass(frozen=True)
class StageSettings:
    """One stage as configured; `config` is its whole config with the per-stage values in place, as plain data."""

    role: str
    network: str
    guide: str | None
    epochs: int
    batch_size: int
    lr: float
    pretrained: bool
    checkpoint: str | None
    kd: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    config: dict[str, Any]

    @property
    def distilled(self) -> bool:
        return self.guide is not None


@dataclass(frozen=True)
class Settings:
    """A run as configured. `stages` come guides first."""

    stages: tuple[StageSettings, ...]
    deliver: tuple[str, ...]
    reuse: str
    missing: str
    dataset_name: str
    source: dict[str, Any]
    resize: int | None
    augment: tuple[str, ...]
    normalize: str | dict[str, Any]
    freeze_backbone: bool
    stem: str
    amp: str
    device: str
    num_workers: int
    log_interval: int
    save_interval: int
    checkpoint_every_steps: int
    seed: int
    deterministic: bool
    threads: int | None
    plan: bool
    resume: bool
    visualize: VisualizeSchema
    download: bool
    output_dir: str

    def stage(self, role: str) -> StageSettings:
        return next(stage for stage in self.stages if stage.role == role)

    def teachers(self) -> set[str]:
        """The roles that teach somebody on the way to what this run delivers."""
        ways = set(self.deliver)
        for stage in reversed(self.stages):
            if stage.role in ways and stage.guide:
                ways.add(stage.guide)
        return {stage.guide for stage in self.stages if stage.role in ways and stage.guide}


def read_settings(config: DictConfig) -> Settings:
    """Checked settings; `KdxError` lists every bad key with its value and the choices, in one line."""
    typed = _typed(config)
    problems = Problems()
    roles = _roles(config, problems)
    _check_run(typed, problems)
    _check_dataset(typed.dataset, problems)
    _check_loss_and_optimizer(config, problems)
    order = _guides_first(config, roles, problems)
    _check_roles(config, roles, problems)
    problems.raise_if_any()
    stages = tuple(_stage(config, role) for role in order)
    deliver = config.stage.deliver
    dataset = OmegaConf.to_container(config.dataset, resolve=True)
    assert isinstance(dataset, dict)
    return Settings(
        stages=stages,
        deliver=tuple(order) if deliver == "all" else (deliver,),
        reuse=config.stage.reuse,
        missing=config.stage.missing,
        dataset_name=typed.dataset.name,
        source=dataset["source"],
        resize=typed.dataset.resize,
        augment=tuple(typed.dataset.augment),
        normalize=dataset["normalize"],
        freeze_backbone=config.model.freeze_backbone,
        stem=config.model.stem,
        **{name: getattr(typed, name) for name in Settings.__dataclass_fields__ if name in Schema.__dataclass_fields__},
    )


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a config or of nested dicts."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [prefix + str(key), *flat_keys(value, f"{prefix}{key!s}.")]
    return keys


def build(node: dict[str, Any], key: str, *arguments: Any) -> Any:
    """The object that a swap point's `_target_` names, or None without one. The only place that instantiates.

    A `_partial_` target is called with `arguments`, which so stay what they are (parameters, an optimizer).
    """
    if node.get("_target_") is None:
        return None
    try:
        built = instantiate({**node, "_convert_": "all"})
        return built(*arguments) if arguments else built
    except (InstantiationException, TypeError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, KdxError):
            raise cause from None
        reason = " ".join(str(cause or error).split())
        raise KdxError(f"{key}: {node['_target_']} cannot be built: {reason}") from error


def keep_environment(node: Any) -> Any:
    """`node` with `${oc.env:...}` escaped, so that a dump never holds what the environment does."""
    if isinstance(node, dict):
        return {key: keep_environment(value) for key, value in node.items()}
    if isinstance(node, list):
        return [keep_environment(value) for value in node]
    if isinstance(node, str) and "${oc.env:" in node:
        return node.replace("${", "\\${")
    return node


def _typed(config: DictConfig) -> Schema:
    """The config with its types checked: unknown keys, also ones added with +, and wrong types are errors."""
    plain = OmegaConf.create(copy.deepcopy(config), flags={"struct": False})
    plain.pop("hydra", None)
    try:
        checked = OmegaConf.merge(OmegaConf.structured(Schema), plain)
        typed = OmegaConf.to_object(checked)
    except OmegaConfBaseException as error:
        raise KdxError(explain_key(error)) from error
    assert isinstance(typed, Schema)
    return typed


def explain_key(error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", "") or getattr(error, "key", ""))
    first = str(error).split("\n")[0]
    if "not in '" in first:
        name = key.rsplit(".", 1)[-1]
        schema = DatasetSchema if key.startswith("dataset.") else Schema
        return f"{key}: no such key{suggest(name, schema.__dataclass_fields__)}"
    return f"{key}: {first}" if key and key not in first else first


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


def _check_run(run: Schema, problems: Problems) -> None:
    problems.choice("amp", run.amp, AMP)
    if run.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        problems.add("device", run.device, "choose auto, cpu, cuda, cuda:<number> or mps")
    for key, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("num_workers", 0),
        ("log_interval", 1),
        ("save_interval", 0),
    ):
        problems.at_least(key, getattr(run, key), least)
    problems.at_least("seed", run.seed, 0)
    problems.at_least("checkpoint_every_steps", run.checkpoint_every_steps, 0)
    problems.at_least("visualize.samples", run.visualize.samples, 0)
    if run.threads is not None:
        problems.at_least("threads", run.threads, 1)


def _check_dataset(dataset: DatasetSchema, problems: Problems) -> None:
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
    if source == "kdx.sources.load_medmnist" and dataset.size not in MEDMNIST_SIZES:
        problems.add("dataset.size", dataset.size, f"choose {', '.join(map(str, MEDMNIST_SIZES))}")
    if source in ("kdx.sources.load_cifar", "kdx.sources.load_digits") and dataset.size is not None:
        problems.add("dataset.size", dataset.size, f"{dataset.name} has one size; dataset.resize scales it")


def _is_mean_and_std(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"mean", "std"}:
        return False
    mean, std = value["mean"], value["std"]
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != len(std):
        return False
    return all(isinstance(number, int | float) for number in (*mean, *std)) and all(number > 0 for number in std)


def _check_loss_and_optimizer(config: DictConfig, problems: Problems) -> None:
    if "temperature" in config.kd:
        problems.number("kd.temperature", config.kd.temperature, lambda t: t > 0, "a finite number above 0")
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


def _roles(config: DictConfig, problems: Problems) -> list[str]:
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


def _check_roles(config: DictConfig, roles: list[str], problems: Problems) -> None:
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


def _guides_first(config: DictConfig, roles: list[str], problems: Problems) -> list[str]:
    """The roles in an order in which every guide precedes whom it teaches."""
    guides = {role: config.stage[role].get("guide") for role in roles}
    for role, guide in guides.items():
        if guide is not None and guide not in roles:
            problems.choice(f"stage.{role}.guide", guide, ("null", *(r for r in roles if r != role)))
            return roles
    order: list[str] = []
    while len(order) < len(roles):
        ready = [r for r in roles if r not in order and (guides[r] is None or guides[r] in order)]
        if not ready:
            stuck = ", ".join(r for r in roles if r not in order)
            problems.add("stage.<role>.guide", stuck, "these roles guide each other in a circle")
            return roles
        order += ready
    return order


def _stage(config: DictConfig, role: str) -> StageSettings:
    """The config with the role's own values in the place of the global ones, resolved."""
    own = config.stage[role]
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)

    def staged(node: Any) -> Any:
        copied = OmegaConf.create(node)
        for key, target in (("epochs", "epochs"), ("batch_size", "batch_size"), ("lr", "optimizer.lr")):
            if own.get(key) is not None:
                OmegaConf.update(copied, target, own[key], force_add=True)
        if own.get("pretrained") is not None:
            copied.model.pretrained = own.pretrained
        return OmegaConf.to_container(copied, resolve=True)

    resolved, told = staged(plain), staged(keep_environment(plain))
    guide = own.get("guide") if resolved["kd"].get("_target_") is not None else None
    return StageSettings(
        role=role,
        network=config.model[role],
        guide=guide,
        epochs=resolved["epochs"],
        batch_size=resolved["batch_size"],
        lr=resolved["optimizer"].get("lr", 0.0),
        pretrained=resolved["model"]["pretrained"],
        checkpoint=own.get("checkpoint"),
        kd=resolved["kd"] if guide else {},
        optimizer=resolved["optimizer"],
        scheduler=resolved["scheduler"],
        config=told,
    )
