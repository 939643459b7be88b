"""The key dataset.augment as a mapping, {name: {option: value}}: its names, options and values. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdx.augmentations import BY_NAME, MIXING, Augmentation, options_of
from kdx.config.checks import Problems, unquoted
from kdx.config.schema import StageSettings
from kdx.errors import suggest
from kdx.ranges import Choice, Group, Nullable

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
                near = suggest(str(option), rules)
                problems.add(f"{KEY}.{name}", option, f"no such option; choose {', '.join(rules)}{near}")


def check_mixed_logits(augment: Iterable[Augmentation], stages: Iterable[StageSettings], problems: Problems) -> None:
    """No logits are kept of images that are mixed: they belong to pairs."""
    mixing = [options.name for options in augment if isinstance(options, MIXING)]
    for stage in stages:
        if stage.distilled and stage.cache_logits and mixing and "kd.cache_logits" not in problems.keys:
            needed = f"logits of mixed images are not kept; choose false, or leave {' and '.join(mixing)} out of {KEY}"
            problems.add("kd.cache_logits", "true", needed)
