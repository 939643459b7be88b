"""A network that ships: pixels in, logits out, with a card that says what it is; and reading such files again."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from kdx.checkpoint import Preparation, load_checkpoint, load_weights
from kdx.data.batches import Preprocessing, resized
from kdx.data.pictures import fitted, read_picture
from kdx.deploy.formats import MOST_IMAGES
from kdx.deploy.run_loader import StoredStage, load_stage, network_of
from kdx.errors import KdxError
from kdx.files import as_record, parse_json
from kdx.metrics.logits import probabilities
from kdx.tasks import TASKS

CARD = "kdx_card"  # the key under which every format carries the card
MOST_CHARACTERS = 16 * 2**20  # of a card
MOST_VALUES = 2**26  # of an image: as float32, 268 MB
SUFFIXES = (".onnx", ".pt2", ".safetensors", ".pth")

NO_CLASSES = "has learnt no classifier, since no label entered its loss: it says nothing of a picture"

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Card:
    """What a user of the network must know. `image_shape` is (C, H, W) of the pixels it takes, 0-255."""

    network: Annotated[str, Meta(min_length=1, max_length=1000)]
    stem: str
    in_channels: Annotated[int, Meta(ge=1, le=1024)]
    num_classes: Annotated[int, Meta(ge=1)]
    class_names: Annotated[list[str], Meta(min_length=1, max_length=100_000)]
    task: str
    dataset: str
    image_shape: Annotated[list[Annotated[int, Meta(ge=1, le=16384)]], Meta(min_length=3, max_length=3)]
    preprocessing: Preparation
    role: str
    fingerprint: str
    classifies: bool = True  # False: no label entered its loss, and the classes are only those of its images

    @classmethod
    def of(cls, meta: Any, where: Path) -> "Card":
        """A checkpoint's or a file's description, checked; `KdxError` for what describes no network of kdx."""
        try:
            card = as_record(meta, cls, where)
        except KdxError as error:
            raise KdxError(f"{error}: it has no card of a kdx network") from error
        card._check(where)
        return card

    @classmethod
    def of_stage(cls, stage: StoredStage) -> "Card":
        return replace(cls.of(stage.meta, stage.checkpoint), classifies=stage.classifies)

    @classmethod
    def read(cls, text: str | None, where: Path) -> "Card":
        try:
            if text is None or len(text) > MOST_CHARACTERS:
                raise KdxError(f"{where}: {'no card' if text is None else 'a card of more characters than are read'}")
            return cls.of(parse_json(text, where), where)
        except KdxError as error:
            raise KdxError(f"{error} (has no card of a kdx network: was it written by kdx.export?)") from error

    def _check(self, where: Path) -> None:
        """`KdxError` where values that belong together do not, or stand for pictures too large to be held."""
        if len(self.class_names) != self.num_classes:
            raise KdxError(f"{where}: class_names: {len(self.class_names)} names for num_classes={self.num_classes}")
        if self.task not in TASKS:
            raise KdxError(f"{where}: task={self.task}: choose {', '.join(TASKS)}")
        lengths = {self.in_channels, *(len(self.preprocessing[key]) for key in ("mean", "std"))}
        if len(lengths) > 1:
            raise KdxError(
                f"{where}: preprocessing: mean and std of in_channels={self.in_channels} channels are needed"
            )
        values = max(math.prod(self.image_shape), self.in_channels * math.prod(self.input_size))
        if values > MOST_VALUES:
            raise KdxError(f"{where}: image_shape={self.image_shape}: an image has at most {MOST_VALUES} values")

    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def prepared(self) -> Preprocessing:
        kept = self.preprocessing
        return Preprocessing(tuple(kept["mean"]), tuple(kept["std"]), kept["resize"])

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the network takes."""
        resize = self.preprocessing["resize"]
        return (resize, resize) if resize else (self.image_shape[1], self.image_shape[2])


class Deployed(nn.Module):
    """Normalisation and network in one: float pixels 0-255 (N, C, H, W) of the input size -> logits (N, classes)."""

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__()
        self.network = network
        self.offset: Tensor
        self.scale: Tensor
        mean, std = card.preprocessing["mean"], card.preprocessing["std"]
        self.register_buffer("offset", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.offset) / self.scale)


@dataclass(frozen=True)
class FixedBatch:
    """A model that takes exactly `size` images at a time, asked about any number: the last batch is filled up."""

    run: Model
    size: int

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.run(filled(part, self.size))[: len(part)] for part in pixels.split(self.size)])


def filled(pixels: Tensor, size: int) -> Tensor:
    """A batch of `size` images: the last one is repeated where they are fewer."""
    missing = size - len(pixels)
    return torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels


def pixels_of(images: Tensor, card: Card) -> Tensor:
    """uint8 images (N, C, H, W) as the float pixels that a deployed network takes."""
    return resized(images.float(), card.preprocessing["resize"])


def picture_for(path: Path, card: Card) -> Tensor:
    """A picture file as uint8 (1, C, H, W), read as the training images were and cropped to their shape."""
    channels, height, width = card.image_shape
    return fitted(read_picture(path, channels, card.preprocessing.get("white")), height, width)[None]


def load_model(
    path: Path, role: str = "student", network: str | None = None, trust: bool = False
) -> tuple[Model, Card]:
    """Anything that holds a network, as a function of pixels: a run's folder, a checkpoint or an exported file.

    torch.export's files are read by torch with code in them: `KdxError` unless `trust` says that this one may run it.
    `KdxError`, too, where it has learnt no classifier.
    """
    model, card = open_model(path, role, network, trust)
    if not card.classifies:
        raise KdxError(f"{f'role={card.role}' if path.is_dir() else path}: {NO_CLASSES}")
    return model, card


def open_model(path: Path, role: str, network: str | None, trust: bool) -> tuple[Model, Card]:
    """`load_model`, also of a network without a classifier that has learnt: its card says so."""
    if path.is_dir():
        stage = load_stage(path, role, network)
        return _in_torch(stage.network, Card.of_stage(stage), stage.checkpoint)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise KdxError(f"{path}: no run's folder, nor a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".pt2" and not trust:
        raise KdxError(f"{path}: torch runs code that such a file holds: say trust=true if you know where it is from")
    if path.suffix == ".pth":
        content = load_checkpoint(path)
        scores = content.get("validation")  # none in the first epoch; older files tell it by these only
        built = network_of(content.get("meta", {}), path, network)
        load_weights(built, content, path)
        card = Card.of(content["meta"], path)
        learnt = not scores or "accuracy" in scores
        return _in_torch(built, replace(card, classifies=card.classifies and learnt), path)
    return {".onnx": _from_onnx, ".pt2": _from_pt2, ".safetensors": _from_safetensors}[path.suffix](path, network)


def answers(model: Model, card: Card, images: Tensor, batch_size: int = 64) -> Tensor:
    """Logits of uint8 images (N, C, H, W)."""
    if isinstance(model, FixedBatch):
        batch_size = model.size
    with torch.no_grad():
        return torch.cat([model(pixels_of(part, card)) for part in images.split(batch_size)])


def ranking(logits: Tensor, card: Card) -> Sequence[tuple[str, float]]:
    """Class names with their probabilities for one image's logits (C,), the likeliest first."""
    shares = probabilities(logits[None], card.task)[0].tolist()
    return sorted(zip(card.class_names, shares, strict=True), key=lambda pair: -pair[1])


def needs(package: str, extra: str, what: str) -> KdxError:
    """The error for an optional package that is not there, with the line that installs it."""
    return KdxError(f'{what} needs the package {package}: pip install -e ".[{extra}]"')


def _in_torch(network: nn.Module, card: Card, path: Path) -> tuple[Model, Card]:
    return _checked(Deployed(network, card).eval(), card, path), card


def _checked(model: Model, card: Card, path: Path) -> Model:
    """The model, whose answers must be what the card of its file says: finite logits of the classes."""

    def run(pixels: Tensor) -> Tensor:
        try:
            logits = model(pixels)
        except Exception as error:  # each runtime raises classes of its own
            reason = " ".join(str(error).split())[:200]
            raise KdxError(f"{path}: its network does not take {tuple(pixels.shape)} pixels ({reason})") from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (len(pixels), card.num_classes):
            raise KdxError(f"{path}: its network answers {shape} for {card.num_classes} classes")
        if not torch.isfinite(logits).all():
            raise KdxError(f"{path}: its network answers with numbers that are not finite")
        return logits

    return run


def _from_onnx(path: Path, network: str | None) -> tuple[Model, Card]:
    try:
        import onnxruntime
    except ImportError:
        raise needs("onnxruntime", "export", f"{path}") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own without a common one
        raise KdxError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())[:200]})") from error
    card = Card.read(session.get_modelmeta().custom_metadata_map.get(CARD), path)

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    return _checked(_fixed(run, session.get_inputs()[0].shape[0], path), card, path), card


def _fixed(run: Model, batch: object, path: Path) -> Model:
    """`run` itself, or with batches of the size that its file fixes; a name stands for an open one."""
    if not isinstance(batch, int):
        return run
    if not 1 <= batch <= MOST_IMAGES:
        raise KdxError(f"{path}: takes batches of {batch} images; 1 to {MOST_IMAGES} are possible")
    return FixedBatch(run, batch)


def _from_pt2(path: Path, network: str | None) -> tuple[Model, Card]:
    extra = {CARD: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # damaged archives raise many classes
        raise KdxError(f"{path}: not a readable torch.export file ({' '.join(str(error).split())[:200]})") from error
    name = program.graph_signature.user_inputs[0]
    pixels = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    card = Card.read(extra[CARD], path)
    return _checked(_fixed(program.module(), pixels.shape[0], path), card, path), card


def _from_safetensors(path: Path, network: str | None) -> tuple[Model, Card]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise needs("safetensors", "export", f"{path}") from None
    try:
        with safe_open(path, framework="pt") as file:
            card = Card.read((file.metadata() or {}).get(CARD), path)
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no dict
    except SafetensorError as error:
        raise KdxError(f"{path}: not a readable safetensors file ({error})") from error
    built = network_of(asdict(card), path, network)
    load_weights(built, {"model": weights}, path)
    return _in_torch(built, card, path)
