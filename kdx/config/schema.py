"""The types of a run's configuration: as composed (Schema), and as checked (Settings). Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

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
    source: Any = MISSING  # returns a kdx.data.dataset.Dataset
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
    every: int = 0


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
    channels_last: bool | None = MISSING
    compile: str = MISSING
    accumulate: int = MISSING
    activation_checkpointing: bool = MISSING
    num_workers: int = MISSING
    log_interval: int = MISSING
    save_interval: int = MISSING
    checkpoint_every_steps: int = MISSING
    seed: int = MISSING
    deterministic: bool = MISSING
    threads: int | None = MISSING
    plan: bool = MISSING
    resume: bool = MISSING
    report: bool = MISSING
    logger: str = MISSING
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
    cache_logits: bool
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
    channels_last: bool | None
    compile: str
    accumulate: int
    activation_checkpointing: bool
    num_workers: int
    log_interval: int
    save_interval: int
    checkpoint_every_steps: int
    seed: int
    deterministic: bool
    threads: int | None
    plan: bool
    resume: bool
    report: bool
    logger: str
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
