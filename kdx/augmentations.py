"""What each augmentation may be told: its numbers with their ranges. What it does is in kdx.data.augment.

A configuration names them in a list, `[crop, flip]`, or in a mapping with options, `{crop: {}, mixup: {alpha: 0.2}}`.
In conf they are a text, `crop, flip`: Hydra replaces a text by either, and no list by a mapping. Imports no torch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, get_args

from kdx.ranges import Interval, Real, Rule, Words, key

CHANCE = Real(least=0, most=1)
AREA = Interval(Real(above=0, most=1))
RATIO = Interval(Real(least=0.01, most=100))
ALPHA = Real(least=0.01, most=100)


@dataclasses.dataclass(frozen=True)
class Crop:
    """A frame of zeros around the image, and a cut of the image's size at a random place in it."""

    name: ClassVar[str] = "crop"
    padding: float = key(Real(above=0, most=1), 0.125)  # the frame's width as a share of the image's: 4 px at 32


@dataclasses.dataclass(frozen=True)
class Flip:
    """Left and right change places."""

    name: ClassVar[str] = "flip"
    chance: float = key(CHANCE, 0.5)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Brightness and contrast change by up to these shares."""

    name: ClassVar[str] = "jitter"
    brightness: float = key(CHANCE, 0.2)
    contrast: float = key(CHANCE, 0.2)


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Turned about the centre by up to so many degrees to either side; what comes in from outside is black."""

    name: ClassVar[str] = "rotate"
    degrees: float = key(Real(above=0, most=180), 15.0)


@dataclasses.dataclass(frozen=True)
class ResizedCrop:
    """A part of the image (share of its area, width : height), scaled to the size that networks see (1409.4842)."""

    name: ClassVar[str] = "resized_crop"
    scale: tuple[float, float] = key(AREA, (0.35, 1.0))  # 0.08 for ImageNet; small images keep more
    ratio: tuple[float, float] = key(RATIO, (3 / 4, 4 / 3))


@dataclasses.dataclass(frozen=True)
class Erase:
    """A rectangle (share of the area, width : height) takes the data's mean colour (1708.04896)."""

    name: ClassVar[str] = "erase"
    chance: float = key(CHANCE, 0.5)
    scale: tuple[float, float] = key(AREA, (0.02, 0.33))
    ratio: tuple[float, float] = key(RATIO, (0.3, 3.3))


@dataclasses.dataclass(frozen=True)
class Trivial:
    """TrivialAugmentWide (2103.10158): one of 14 operations an image, at one of 31 strengths."""

    name: ClassVar[str] = "trivial"
    translate: float = key(Real(least=0, most=4096), 32.0)  # pixels, as published; at most the image's size


@dataclasses.dataclass(frozen=True)
class Mixup:
    """Two images and their labels blended (1710.09412); the share is drawn from Beta(alpha, alpha)."""

    name: ClassVar[str] = "mixup"
    alpha: float = key(ALPHA, 0.2)


@dataclasses.dataclass(frozen=True)
class Cutmix:
    """A rectangle of another image, labels by area (1905.04899); the area is drawn from Beta(alpha, alpha)."""

    name: ClassVar[str] = "cutmix"
    alpha: float = key(ALPHA, 1.0)


Augmentation = Crop | Flip | Jitter | Rotate | ResizedCrop | Erase | Trivial | Mixup | Cutmix
BY_NAME: dict[str, type[Augmentation]] = {kind.name: kind for kind in get_args(Augmentation)}
MIXING = (Mixup, Cutmix)
SINCE_FIRST = (Crop, Flip, Jitter)  # fingerprints hold their names alone, and their numbers come from one generator


def options_of(kind: type[Augmentation]) -> dict[str, Rule]:
    """The options of an augmentation and the rule of each."""
    return {field.name: field.metadata["rule"] for field in dataclasses.fields(kind)}


def read_augment(
    value: str | Iterable[str | Augmentation] | Mapping[str, Mapping[str, Any] | None],
) -> tuple[Augmentation, ...]:
    """The augmentations of a checked text, list or mapping, by name; `none` stands for nothing."""
    if isinstance(value, Mapping):
        found = {name: _with_options(BY_NAME[name], options or {}) for name, options in value.items()}
    else:
        made = [BY_NAME[one]() if isinstance(one, str) else one for one in Words.read(value) if one != "none"]
        found = {one.name: one for one in made}
    return tuple(found[name] for name in sorted(found))


def plain_augment(augment: Iterable[Augmentation]) -> list[Any]:
    """The same for equal augmentations however they were written, and for plain lists what it always was."""
    return [
        one.name if one == type(one)() and isinstance(one, SINCE_FIRST) else {one.name: _numbers(one)}
        for one in augment
    ]


def told_augment(augment: Iterable[Augmentation]) -> str:
    """For people: names, with the options that are not the usual ones."""
    words = []
    for one in augment:
        usual = _numbers(type(one)())
        other = [f"{name}={value}" for name, value in _numbers(one).items() if value != usual[name]]
        words.append(f"{one.name} ({', '.join(other)})" if other else one.name)
    return ", ".join(words) or "no augmentation"


def _numbers(one: Augmentation) -> dict[str, Any]:
    """Each option and its number, or two of them in a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(one).items()}


def _with_options(kind: type[Augmentation], options: Mapping[str, Any]) -> Augmentation:
    """Numbers are what their defaults are: 1 and 1.0 are one option."""
    rules = options_of(kind)
    numbers: dict[str, Any] = {
        name: tuple(map(float, given)) if isinstance(rules[name], Interval) else float(given)
        for name, given in options.items()
    }
    return kind(**numbers)
