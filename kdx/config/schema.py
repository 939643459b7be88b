"""The types of a run's configuration: as composed (Schema), and as checked (Settings). Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Any, get_type_hints

from kdx.augmentations import BY_NAME, Augmentation
from kdx.ranges import Anything, Choice, Either, Flag, Folder, Group, ListOf, Real, Text, Whole, Words, key
from kdx.recipe import Recipe
from kdx.torchrun import World

# A key is declared once: its type, its rule, its default where conf has none. `| None` allows null. Swap points (kd,
# optimizer, scheduler, dataset.source) are mappings, whose keys kdx.config.swap_points knows: a user's own _target_
# may take anything that is finite.
LEARNING_RATE = Real(above=0, most=1e38)  # what float32 holds: a training that diverges tells so itself
PIXELS = Whole(1, 4096)
LAYER = Text(r"\w+(\.\w+)*", "the dotted name of a layer is needed")
NAME = Text(r"(?!\.)[^/\\]+", "a plain name is needed: it becomes a folder", 100)
NETWORK = Text(
    r"(timm/)?[A-Za-z][\w.\-]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
    "a network, e.g. resnet18, or package.module:callable",
    200,
)
AUGMENT = Either((Words((*BY_NAME, "none")), Group(words="a mapping {name: {option: value}}")))
DEVICES = Either((Whole(1, 1024), ListOf(Whole(0, 1023), fewest=1, most=1024)))
CACHE = ("auto", "memory", "disk", "none")
NORMALIZE = ("auto", "imagenet", "dataset")
DASK = "dask"  # jobs on the workers of a cluster


RULES = {field.name: field.metadata["rule"] for field in fields(Recipe)}


@dataclass
class RoleKeys:
    guide: Any = key(Anything(), None)  # the role that teaches this one, or a list of them
    checkpoint: str | None = key(Folder(), None)  # a file that stands in for training, of kdx or of anybody
    checkpoint_key: str | None = key(Text(), None)  # where in somebody else's file the weights lie; null = as usual
    checkpoint_check: bool = key(Flag(), True)  # false: such weights are taken also where they answer at chance
    head: bool = key(Flag(), True)  # false: a network without a classifier; it is not trained and teaches features only
    start: str | None = key(Folder(), None)  # a role, or a file, whose weights the stage starts from, all that fit
    pretrained: bool | None = key(Flag(), None)  # null = the global value, here and below
    freeze_backbone: bool | None = key(Flag(), None)
    lr: float | None = key(LEARNING_RATE, None)
    kd: dict[str, Any] | None = key(Group(), None)  # keys in the place of the global ones, or a whole option of conf
    optimizer: dict[str, Any] | None = key(Group(), None)
    scheduler: dict[str, Any] | None = key(Group(), None)


# ... and every number of its training, null = the global value
RoleSchema = make_dataclass(
    "RoleSchema",
    [(name, hint | None, key(RULES[name], None)) for name, hint in get_type_hints(Recipe).items()],
    bases=(RoleKeys,),
)


@dataclass
class StageSchema:
    """Beside these keys, each mapping under `stage` is a role."""

    deliver: str = key(Anything())  # a role, or all
    reuse: str = key(Choice(("exact", "latest", "never")))
    missing: str = key(Choice(("train", "error")))


@dataclass
class ModelSchema:
    """Beside these keys, each role has its network."""

    pretrained: bool = key(Flag())
    freeze_backbone: bool = key(Flag())
    stem: str = key(Choice(("auto", "small", "imagenet")))


@dataclass
class DatasetSchema:
    name: str = key(NAME)
    source: Any = key(Group())  # returns a kdx.data.dataset.Dataset
    path: str | None = key(Folder(), None)  # of imagefolder's source, as white
    size: int | None = key(PIXELS, None)
    resize: int | None = key(PIXELS, None)
    augment: Any = key(AUGMENT, "none")  # kdx.augmentations says what the options may be
    balance: bool = key(Flag(), False)
    unlabelled: str | None = key(Folder(), None)
    normalize: Any = key(Either((Choice(NORMALIZE), Group(words="{mean: [...], std: [...]}"))), "auto")
    cache: str = key(Choice(CACHE), "auto")  # of picture files: imagefolder, unlabelled; as the next two
    cache_dir: str | None = key(Folder(), None)
    in_memory_gb: float = key(Real(least=0, most=100_000), 2.0)
    white: float | None = key(Real(above=0, most=2**32), None)


@dataclass
class VisualizeSchema:
    samples: int = key(Whole(0, 256), 2)  # a picture takes up to a second
    layer: str | None = key(LAYER, None)
    every: int = key(Whole(0, 100_000), 0)


@dataclass
class SearchSchema:
    name: str = key(NAME)
    trials: int = key(Whole(1, 100_000), 20)
    n_jobs: int = key(Whole(1, 1024), 1)
    prune: bool = key(Flag(), True)
    backend: str | None = key(Choice((DASK,)), None)  # trials on the workers of a cluster
    space: dict[str, dict[str, Any]] = key(Group())  # key: {low, high, log} or {choices: [...]}


@dataclass
class RunKeys:
    """The keys of a whole run that its settings hold as they are."""

    amp: str = key(Choice(("auto", "bf16", "fp16", "off")))
    device: str = key(Text(r"auto|cpu|mps|cuda(:\d{1,3})?", "choose auto, cpu, cuda, cuda:<number> or mps"))
    devices: Any = key(DEVICES, 1)  # so many, or their numbers
    sync_batchnorm: bool = key(Flag(), True)
    channels_last: bool | None = key(Flag())
    compile: str = key(Choice(("auto", "off", "default", "reduce-overhead")))
    activation_checkpointing: bool = key(Flag())
    num_workers: int = key(Whole(0, 256))
    log_interval: int = key(Whole(1, 1_000_000))
    save_interval: int = key(Whole(0, 100_000))
    checkpoint_every_steps: int = key(Whole(0, 1_000_000_000))
    seed: int = key(Whole(0, 2**32 - 1))  # what numpy and optuna take
    deterministic: bool = key(Flag())
    threads: int | None = key(Whole(1, 512))
    plan: bool = key(Flag())
    resume: bool = key(Flag())
    report: bool = key(Flag())
    logger: str = key(Choice(("none", "tensorboard", "mlflow", "wandb")))
    visualize: VisualizeSchema = key(Group(VisualizeSchema), VisualizeSchema)
    download: bool = key(Flag())
    output_dir: str = key(Folder(own=True))


@dataclass
class Schema(RunKeys, Recipe):
    """Every key of a composed config."""

    dataset: DatasetSchema = key(Group(DatasetSchema), DatasetSchema)
    model: dict[str, Any] = key(Group())
    stage: dict[str, Any] = key(Group())
    kd: dict[str, Any] = key(Group())
    optimizer: dict[str, Any] = key(Group())
    scheduler: dict[str, Any] = key(Group())
    experiment: Any = key(Anything(), None)
    search: dict[str, Any] | None = key(Group(SearchSchema), None)
    data_dir: str = key(Folder())


def world_of(devices: int | Sequence[int]) -> int:
    """The number of devices where the key is that number, or lists theirs."""
    return devices if isinstance(devices, int) else len(devices)


@dataclass(frozen=True)
class StageSettings:
    """One stage as configured; `config` is its whole config with the per-stage values in place, as plain data."""

    role: str
    network: str
    teachers: tuple[str, ...]  # the roles that teach it
    several: str  # how more than one of them is used: mean or each
    recipe: Recipe
    pretrained: bool
    freeze_backbone: bool
    checkpoint: str | None
    checkpoint_key: str | None
    checkpoint_check: bool
    cache_logits: bool | str  # or auto
    kd: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    config: dict[str, Any]
    start: str | None = None  # a file whose weights it starts from
    start_role: str | None = None  # ... or another stage
    head: bool = True  # False: it has no classifier
    headless: tuple[str, ...] = ()  # those of its teachers that have none
    stem: str | None = None  # that of weights from elsewhere, in the place of model.stem

    @property
    def distilled(self) -> bool:
        return bool(self.teachers)

    def key_of(self, key: str) -> str:
        """The key that gave the stage a value or a part: its own one, or that of the run."""
        group, _, name = key.partition(".")
        own = self.config["stage"][self.role].get(group)
        if isinstance(own, Mapping) and "_target_" not in own:  # single keys in the place of the run's
            own = own.get(name.partition(".")[0])
        return key if own is None else f"stage.{self.role}.{key}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The roles that must be done before it: who teaches it, and whose weights it starts from."""
        return self.teachers if self.start_role is None else (*self.teachers, self.start_role)


@dataclass(frozen=True)
class UnlabelledSettings:
    """A folder of pictures without labels, and where they are kept once they are decoded."""

    path: str
    cache: str
    cache_dir: str
    in_memory_gb: float


@dataclass(kw_only=True)
class Settings(RunKeys):
    """A run as configured. `stages` come teachers first."""

    stages: tuple[StageSettings, ...]
    deliver: tuple[str, ...]
    reuse: str
    missing: str
    dataset_name: str
    source: dict[str, Any]
    resize: int | None
    augment: tuple[Augmentation, ...]
    balance: bool
    unlabelled: UnlabelledSettings | None
    normalize: str | dict[str, Any]
    stem: str
    torchrun: World | None = None  # this process among torchrun's, whose number is then that of devices

    @property
    def world(self) -> int:
        """How many ranks train as one."""
        return world_of(self.devices)

    def stage(self, role: str) -> StageSettings:
        return next(stage for stage in self.stages if stage.role == role)

    def teaching_roles(self) -> set[str]:
        """The roles that teach somebody on the way to what this run delivers."""
        ways = set(self.deliver)
        for stage in reversed(self.stages):
            if stage.role in ways:
                ways.update(stage.needs)
        return {role for stage in self.stages if stage.role in ways for role in stage.teachers}
