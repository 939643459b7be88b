"""What a stage minimises, built from its `kd`: one method, or several, the terms of `kdx.losses.Combined`."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from kdx.config.build import arguments_of, build
from kdx.config.schema import StageSettings
from kdx.config.swap_points import COMBINED, HINTON, OF_STAGE, TERMS
from kdx.data.dataset import Dataset
from kdx.errors import KdxError
from kdx.losses.distillation import (
    EACH,
    MEAN,
    Distillation,
    Term,
    Weight,
    as_objective,
    by_features_alone,
    teaches_classes,
)
from kdx.losses.hard import HardLoss
from kdx.recipe import LOSS, SCORES

OURS = ("weight", *OF_STAGE)  # of any method; what else its file holds is its own
# How validation's loss is made: raise it when that changes, and no stage is reused in which it may change the best
# epoch. 2: weights are those of the end, and features those of the average of the weights; crd compares an image of
# validation with itself, not with an image of the training split.
VALIDATION_VERSION = 2


def build_objective(stage: StageSettings, hard_loss: HardLoss, dataset: Dataset) -> Distillation:
    """The whole of what a distilled stage minimises; `KdxError` names the term that a data set cannot use.

    With cached logits no method can look at the teacher's layers, and the layers of several have no mean.
    """
    hard, terms = build_terms(stage.kd)
    weights = [hard, *(term.weight for term in terms.values())]
    keys = ", ".join(["kd.hard", *(f"{term.key}.weight" for term in terms.values())])
    if not any(weight.start or weight.end for weight in weights):
        raise KdxError(f"{keys}: all are 0, so that nothing would be minimised; a number above 0 is needed")
    if stage.recipe.select == LOSS and not any(weight.end for weight in weights):
        others = ", ".join(name for name in SCORES if name != LOSS)
        raise KdxError(f"select={LOSS}: {keys} end at 0, and with them the loss of every epoch; choose {others}")
    for term in terms.values():
        refused = term.method.refusal(dataset.task, dataset.num_classes)
        if refused is not None:
            raise KdxError(f"{term.key}: {term.target} {refused} (dataset {dataset.name})")
        name = term.target if term.key == "kd" else f"{term.key}, {term.target},"
        if len(stage.teachers) > 1 and stage.several == MEAN and term.method.layers:
            raise KdxError(f"kd.teachers={MEAN}: {name} looks at layers, which have no mean; choose {EACH}")
        if stage.headless and not term.method.words_of_teacher:
            told = f"by stage.{stage.headless[0]}.head=false none; choose a method of features, e.g. pkt, crd, fitnet"
            raise KdxError(f"{term.key}: {name} compares logits, and the {stage.headless[0]} has {told}")
        if stage.cache_logits is True and term.method.layers:
            told = f"{name} looks at layers of the teacher, and logits only are kept; choose false, or auto"
            raise KdxError(f"kd.cache_logits=true: {told}")
    if stage.headless and len(stage.teachers) > 1:
        raise KdxError(f"stage.{stage.role}.guide: the {stage.headless[0]} has no classifier and teaches alone")
    distillation = Distillation(hard_loss, hard, terms, stage.several)
    if not distillation.teaches_classes and stage.recipe.select != LOSS:
        why = f"no label enters the loss, so that no classifier learns; set stage.{stage.role}.select={LOSS}"
        raise KdxError(f"select={stage.recipe.select}: {why}")
    return distillation


def learns_classes(stage: StageSettings) -> bool:
    """Whether a stage's classifier learns anything; where it does not, the stage has no accuracy."""
    return not stage.distilled or teaches_classes(*build_terms(stage.kd))


def is_validated_anew(stage: StageSettings) -> bool:
    """Whether a distilled stage's loss on validation was another quantity in version 1 of how it is made."""
    kd = stage.kd
    nodes = [kd, *(kd["terms"].values() if kd["_target_"] == COMBINED else ())]
    ramps = any(isinstance(node.get(key), Mapping) for node in nodes for key in ("hard", "weight"))
    if not ramps and kd.get("hard") != 0:
        return False
    hard, terms = build_terms(kd)
    after_one_epoch = 1 / stage.recipe.epochs
    if any(weight.at(after_one_epoch) != weight.end for weight in (hard, *(term.weight for term in terms.values()))):
        return True
    methods = [term.method for term in terms.values()]
    as_before = hard.start == 0 and not stage.recipe.ema and all(m.layers and not m.remembers for m in methods)
    return by_features_alone(hard, terms) and not as_before


def check_teachers(stage: StageSettings, unlearnt: Collection[str]) -> None:
    """`KdxError` where a method compares the student's logits with those of a role that has learnt no classifier."""
    found = [role for role in stage.teachers if role in unlearnt]
    for term in build_terms(stage.kd)[1].values() if found else ():
        if not term.method.words_of_teacher:
            told = "has learnt no classifier: no label entered its loss; choose a method of features, e.g. pkt, crd"
            raise KdxError(f"{term.key}: {term.target} compares logits, and the {found[0]} {told}")


def build_terms(kd: Mapping[str, Any]) -> tuple[Weight, dict[str, Term]]:
    """The weight of the loss by the labels, and every term by its name, of a `kd` that names a `_target_`."""
    if kd["_target_"] == COMBINED:
        terms = {name: _named_term(name, node) for name, node in kd["terms"].items()}
        return _weight(kd.get("hard"), 1.0, "kd.hard"), terms
    own, given = dict(kd), {}
    if kd["_target_"] == HINTON:
        share = own.pop("alpha", None)  # weighs both parts, where they have no weights of their own
        given = {} if share is None else {"hard": 1 - share, "weight": share}
    for key in given:
        own[key] = given[key] if own.get(key) is None else own[key]
    term, rest = _term(own, "kd")
    usual = 0.0 if term.method.whole else 1.0
    return _weight(rest.get("hard"), usual, "kd.hard"), {"kd": term}


def _named_term(name: str, node: Mapping[str, Any]) -> Term:
    """A term of several; what its method's own file says once for a stage must not be said of a term."""
    key = f"{TERMS}.{name}"
    if hasattr(nn.ModuleDict, name):
        raise KdxError(f"{key}: this word cannot name a term; choose another")
    if node["_target_"] == HINTON and "alpha" in node:
        raise KdxError(
            f"{key}.alpha={node['alpha']}: a term has a weight of its own; ~{key}.alpha and {key}.weight=..."
        )
    term, rest = _term(node, key)
    for one in sorted(rest.keys() - {"weight"}):
        if rest[one] not in (None, False):
            raise KdxError(f"{key}.{one}={rest[one]}: kd.{one} says it for all terms; write {key}.{one}=null")
    return term


def _term(node: Mapping[str, Any], key: str) -> tuple[Term, dict[str, Any]]:
    """A method with its weight, and the values of kdx's own keys beside it."""
    target = node["_target_"]
    taken = arguments_of(target)
    ours = set(OURS) - taken  # a user's own loss may have a number of such a name
    unset = {name for name, value in node.items() if value is None} - taken  # of an option whose _target_ was replaced
    built = build({name: value for name, value in node.items() if name not in ours | unset}, key)
    try:
        method = as_objective(built)
    except TypeError as error:
        raise KdxError(f"{key}: {target} is no loss of three arguments ({error})") from error
    rest = {name: value for name, value in node.items() if name in ours}
    return Term(method, _weight(rest.get("weight"), 1.0, f"{key}.weight"), key, target), rest


def _weight(value: Any, usual: float, key: str) -> Weight:
    try:
        return Weight.of(usual if value is None else value)
    except ValueError as error:
        raise KdxError(f"{key}={value}: {error}") from error
