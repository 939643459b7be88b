"""What the keys of the shipped optimizers, schedulers, losses and data sources may be. Imports no torch."""

from kdx.config.schema import CACHE, LEARNING_RATE, NAME, PIXELS
from kdx.method_numbers import FACTOR, KD, MAYBE_FLAG, METHOD, NOT_NEGATIVE
from kdx.ranges import Choice, Flag, Folder, ListOf, Nullable, Real, Rule, Text, Whole
from kdx.recipe import AUTO

TARGET = Nullable(Text(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "the dotted name of a callable is needed", 300))
MANY = 1_000_000_000
SHARE = Real(least=0, below=1)
COUNT = Whole(1, MANY)
SMALL = Real(above=0, most=1)

# Of any _target_, a user's own included: what Hydra or kdx itself reads.
ANY: dict[str, Rule] = {"_target_": TARGET, "_partial_": Flag(), "_recursive_": Flag()}

SHARED_BY_ALPHA = (".Hinton", ".KnowledgeDistillationLoss")  # alpha of the soft loss, 1 - alpha of the hard one
OPTIMIZER: dict[str, Rule] = {
    "weight_decay": NOT_NEGATIVE,
    "momentum": SHARE,
    "dampening": SHARE,
    "nesterov": Flag(),
    "betas": ListOf(SHARE, fewest=2, most=2),
    "eps": SMALL,
    "amsgrad": Flag(),
    "fused": MAYBE_FLAG,
    "foreach": MAYBE_FLAG,
    "maximize": Flag(),
    "capturable": Flag(),
    "differentiable": Flag(),
    "decoupled_weight_decay": Flag(),
    "alpha": Real(least=0, most=1),
    "rho": Real(least=0, most=1),
    "lr_decay": NOT_NEGATIVE,
    "centered": Flag(),
}
SCHEDULER: dict[str, Rule] = {
    "T_max": COUNT,
    "T_0": COUNT,
    "T_mult": Whole(1, 1000),
    "milestones": ListOf(Real(above=0, most=MANY), fewest=1),
    "gamma": FACTOR,
    "step_size": COUNT,
    "eta_min": NOT_NEGATIVE,
    "min_lr": NOT_NEGATIVE,
    "max_lr": LEARNING_RATE,
    "base_lr": LEARNING_RATE,
    "total_steps": Nullable(COUNT),
    "steps_per_epoch": Nullable(COUNT),
    "total_iters": COUNT,
    "pct_start": Real(least=0, most=1),
    "div_factor": Real(above=0, most=MANY),
    "final_div_factor": Real(above=0, most=MANY),
    "anneal_strategy": Choice(("cos", "linear")),
    "factor": Real(above=0, most=1),
    "start_factor": Real(above=0, most=1),
    "end_factor": Real(least=0, most=1),
    "power": Real(least=0, most=100),
    "patience": Whole(0, MANY),
    "cooldown": Whole(0, MANY),
    "threshold": NOT_NEGATIVE,
    "threshold_mode": Choice(("rel", "abs")),
    "mode": Choice(("min", "max", "triangular", "triangular2", "exp_range")),
    "last_epoch": Whole(-1, -1),  # resuming keeps a schedule's place by itself
}
SOURCE: dict[str, Rule] = {
    "name": NAME,
    "root": Folder(),
    "path": Folder(),
    "size": Nullable(PIXELS),
    "download": Flag(),
    "cache": Choice(CACHE),
    "cache_dir": Nullable(Folder()),
    "in_memory_gb": Real(least=0, most=100_000),
    "white": Nullable(Real(above=0, most=2**32)),
    "num_workers": Whole(0, 256),
}
HINTON, COMBINED = "kdx.losses.Hinton", "kdx.losses.Combined"
TERMS = "kd.terms"  # of COMBINED: methods by names of the user's
TERM_NAME = Text(r"[A-Za-z]\w*", "a word that names a term is needed", 64)
# Said once beside a method or `terms`: kdx's own, not a method's numbers.
OF_STAGE = ("hard", "lr", "cache_logits", "teachers")
OF_COMBINED = ("_target_", "terms", *OF_STAGE)
GROUPS = ("kd", "optimizer", "scheduler")  # whose keys a stage may have of its own
KEYS_OF_KDX: dict[str, dict[str, Rule]] = {  # which kdx reads itself, whatever the _target_
    "kd": {"cache_logits": Flag((AUTO,)), "teachers": Choice(("mean", "each")), "lr": Nullable(LEARNING_RATE)},
    "optimizer": {"lr": LEARNING_RATE, "decay": Choice(("all", "weights"))},
    "scheduler": {"warmup": Real(least=0, most=100_000), "every": Nullable(Choice(("update", "epoch")))},
    "dataset.source": {},
}
SWAP_POINTS = {"kd": KD, "optimizer": OPTIMIZER, "scheduler": SCHEDULER, "dataset.source": SOURCE}
SHIPPED = ("kdx.", "torch.")  # the packages whose keys the tables mean


def is_shipped(target: object) -> bool:
    """Whether the tables above say what a `_target_` takes."""
    return target is None or str(target).startswith(SHIPPED)


def rules_of(swap_point: str, target: object) -> dict[str, Rule]:
    """The rules for the keys of a swap point, or of a term of `kd.terms`, that names this `_target_`."""
    swap_point = "kd" if swap_point.startswith(f"{TERMS}.") else swap_point
    method = str(target).startswith("kdx.losses.") and not str(target).endswith(SHARED_BY_ALPHA)
    table = METHOD if swap_point == "kd" and method else SWAP_POINTS[swap_point]
    return ANY | KEYS_OF_KDX[swap_point] | (table if is_shipped(target) else {})
