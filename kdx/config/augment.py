"""The key dataset.augment as a mapping, {name: {option: value}}: its names, options and values. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdx.augmentations import BY_NAME, MIXING, Augmentation, options_of
from kdx.config.checks import unquoted
from kdx.config.problems import Problems
from kdx.config.schema import StageSettings
from kdx.errors import no_such
from kdx.ranges import Choice, Group, Nullable, shown

KEY = "dataset.augment"


def check_augment(config: Mapping[str, Any], problems: Problems) -> None:
    """Names, options and values of a mapping; whatever else the key holds is checked as any key is."""
    dataset = config.get("dataset")
    value = dataset.get("augment") if isinstance(dataset, Mapping) else None
    if not isinstance(value, Mapping):
        return
    for name, options in value.items():
        needed = Choice(tuple(BY_NAME)).problem(name)
        if needed is not None:
            problems.add(KEY, name, needed)
            continue
        problems.rule(f"{KEY}.{name}", options, Nullable(Group(words="a mapping {option: value}")))
        rules = options_of(BY_NAME[name])
        for option, given in options.items() if isinstance(options, Mapping) else ():
            if option in rules:
                problems.rule(f"{KEY}.{name}.{option}", unquoted(given, rules[option]), rules[option])
            else:
                key = f"{KEY}.{name}.{option}"
                problems.tell(key, f"{shown(key)}: {no_such('option', str(option), list(rules))}")


def check_kept_logits(
    augment: Sequence[Augmentation], balance: bool, stages: Iterable[StageSettings], problems: Problems
) -> None:
    """Whether logits can be kept where that is demanded."""
    needed = why_not_kept(augment, balance)
    if needed is not None and any(stage.distilled and stage.cache_logits is True for stage in stages):
        problems.add("kd.cache_logits", "true", needed)


def why_not_kept(augment: Sequence[Augmentation], balance: bool) -> str | None:
    """Logits are kept of images by number: of none that are mixed, nor of one that looks different twice an epoch."""
    mixing = [options.name for options in augment if isinstance(options, MIXING)]
    if mixing:
        return f"logits of mixed images are not kept; choose false, or leave {' and '.join(mixing)} out of {KEY}"
    if augment and balance:
        return "dataset.balance=true shows an image in several views an epoch; choose false, or dataset.augment=none"
    return None
