"""What the numbers of a method of distillation may be: for a configuration and for its class. Imports no torch."""

from typing import Any

from kdx.ranges import Choice, Either, Flag, ListOf, Nullable, Ramp, Real, Rule, Text, Whole

MAYBE_FLAG = Nullable(Flag())
NOT_NEGATIVE = Real(least=0, most=1000)
FACTOR = Real(above=0, most=1000)
LAYERS = Either((Text(needed="the name of a layer, or stages, last_map, pooled is needed"), ListOf(Text(), fewest=1)))
KD: dict[str, Rule] = {
    "hard": Nullable(Ramp()),
    "weight": Nullable(Ramp()),
    "temperature": Real(above=0, most=10_000),
    "alpha": Real(least=0, most=1),
    "standardise": MAYBE_FLAG,
}
METHOD: dict[str, Rule] = {  # of one in kdx.losses, whose alpha is a weight like any other
    **KD,
    "alpha": NOT_NEGATIVE,
    "beta": NOT_NEGATIVE,
    "gamma": NOT_NEGATIVE,
    "alpha_temperature": KD["temperature"],
    "temperatures": ListOf(KD["temperature"], fewest=1),
    "power": Real(above=0, most=100),
    "start": KD["temperature"],
    "span": KD["temperature"],
    "theta": Real(least=-100, most=100),
    "ramp": Real(least=0, most=1),
    "reduction": Choice(("mean", "batchmean")),
    "layers": LAYERS,
    "teacher_layers": Nullable(LAYERS),
    "hint": Whole(-1000, 1000),
    "distance": NOT_NEGATIVE,
    "angle": NOT_NEGATIVE,
    "dim": Whole(1, 65_536),
    "hidden": Whole(1, 65_536),
    "variance": FACTOR,
    "negatives": Whole(1, 1_000_000),
    "momentum": Real(least=0, most=1),
}


def check_numbers(**numbers: Any) -> None:
    """`ValueError` that names the number of a method, its value, and what METHOD says is needed."""
    for name, value in numbers.items():
        needed = METHOD[name].problem(value)
        if needed is not None:
            raise ValueError(f"{name}={value}: {needed}")
