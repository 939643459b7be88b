"""What every method must stand: logits far apart, one image, hidden and mixed labels, tasks that it is not made for."""

from collections.abc import Callable

import pytest
import torch

from kdx import losses
from kdx.errors import KdxError
from kdx.losses.dkd import decoupled_losses
from kdx.losses.draws import draw_others
from kdx.losses.hinton import soft_loss
from kdx.losses.objective import Facts, Lesson, Objective
from kdx.losses.pairs import averaged
from kdx.losses.pskd import partial_softmax_loss
from kdx.losses.standardisation import standardise
from kdx.models.features import Outputs
from kdx.tasks import TASKS
from tests.losses.examples import (
    FEATURES,
    MULTI,
    SINGLE,
    STAGES,
    lesson,
    loss_and_gradients,
    outputs,
    prepared,
    tracked,
)

Make = Callable[[], Objective]
BY_LOGITS = [(name, make, "multi-class") for name, make in SINGLE.items()]
BY_LOGITS += [(name, make, "multi-label") for name, make in MULTI.items()]
ALL = [*BY_LOGITS, *((name, make, "multi-class") for name, make in FEATURES.items())]
each_logits_method = pytest.mark.parametrize(
    "name, make, task", BY_LOGITS, ids=[f"{name}-{task}" for name, _, task in BY_LOGITS]
)
each_method = pytest.mark.parametrize("name, make, task", ALL, ids=[f"{name}-{task}" for name, _, task in ALL])
each_feature_method = pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES)


def far_apart(margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in every relation to each other: agreeing, opposed, flat, and each on one side only."""
    row = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.99]) * margin
    flat = torch.zeros(5)
    student = torch.stack([row, row, -row, flat, row, row.roll(1)])
    teacher = torch.stack([row, -row, row, row, flat, row])
    return student, teacher


@pytest.mark.parametrize("margin", [100.0, 220.0, 1000.0, 10000.0])
@each_logits_method
def test_logits_far_apart_stay_finite_in_float32(name: str, make: Make, task: str, margin: float) -> None:
    student, teacher = far_apart(margin)
    method = prepared(make(), task)
    of = lesson(multi_label=task == "multi-label")
    loss, (gradient, *_) = loss_and_gradients(method, Outputs(student), Outputs(teacher), of)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0 or name in ("dist",)  # DIST's probabilities no longer move


@pytest.mark.parametrize("margin", [30.0, 220.0, 1000.0])
@each_logits_method
def test_float32_agrees_with_float64_where_softmax_underflows(name: str, make: Make, task: str, margin: float) -> None:
    student, teacher = far_apart(margin)
    of = lesson(multi_label=task == "multi-label")
    found, gradients = loss_and_gradients(prepared(make(), task), Outputs(student), Outputs(teacher), of)
    doubles = Outputs(student.double()), Outputs(teacher.double())
    exact, exact_gradients = loss_and_gradients(prepared(make(), task).double(), *doubles, of)
    assert float(found) == pytest.approx(float(exact), rel=1e-4, abs=1e-5)
    assert torch.allclose(
        gradients[0].double(), exact_gradients[0], rtol=1e-3, atol=1e-5 + 1e-4 * float(exact_gradients[0].abs().max())
    )


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
@each_feature_method
def test_features_of_any_size_stay_finite_in_float32(make: Make, scale: float) -> None:
    method = prepared(make())
    student, teacher = outputs("student", scale=scale), outputs("teacher", scale=scale)
    loss, gradients = loss_and_gradients(method, student, teacher, lesson())
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)


@each_feature_method
def test_collapsed_students_stay_finite(make: Make) -> None:
    """All images have the same features: distances are 0."""
    student = outputs("student")
    same = {word: [maps[:1].expand_as(maps) for maps in tensors] for word, tensors in student.features.items()}
    loss, gradients = loss_and_gradients(
        prepared(make()), student._replace(features=same), outputs("teacher"), lesson()
    )
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)


@each_method
def test_one_image_is_safe(name: str, make: Make, task: str) -> None:
    method = prepared(make(), task)
    student, leaves = tracked(outputs("student", 1))
    loss = method(student, outputs("teacher", 1), lesson(1, multi_label=task == "multi-label"))["loss"]
    loss.backward()  # there is a graph
    assert torch.isfinite(loss)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)
    if name in ("sp", "rkd", "pkt", "cc"):  # one image has no relation to others
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


@each_method
def test_the_teacher_has_no_gradient_and_a_student_learns(name: str, make: Make, task: str) -> None:
    method = prepared(make(), task)
    teacher, untouched = tracked(outputs("teacher"))
    student, leaves = tracked(outputs("student"))
    terms = method(student, teacher, lesson(multi_label=task == "multi-label"))
    assert all(term.ndim == 0 for term in terms.values())
    terms["loss"].backward()
    assert all(leaf.grad is None for leaf in untouched)
    assert any(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(parameter.grad is not None for parameter in method.parameters())


OTHERWISE = ("hard", "nkd", "ttm", "wttm", "fitnet", "cc", "vid", "crd", "reviewkd")  # compare with another thing


@pytest.mark.parametrize("name, make, task", [each for each in ALL if each[0] not in OTHERWISE])
def test_a_student_like_its_teacher_has_nothing_to_learn(name: str, make: Make, task: str) -> None:
    """The gradient to the student's logits is 0 where both say the same (and for features without adapters)."""
    teacher = outputs("teacher")
    method, of = prepared(make(), task), lesson(multi_label=task == "multi-label")
    if name == "rld":  # it corrects a wrong teacher: here the teacher is right
        of = of._replace(targets=teacher.logits.argmax(dim=1))
    loss, gradients = loss_and_gradients(method, teacher, teacher, of)
    assert all(gradient.abs().max() < 1e-4 for gradient in gradients)
    if name != "wsld":  # a cross-entropy
        assert float(loss) == pytest.approx(0, abs=1e-4)


# Labels


@pytest.mark.parametrize("make", [*SINGLE.values(), *FEATURES.values()], ids=[*SINGLE, *FEATURES])
def test_mixed_targets_are_used_by_their_largest_share(make: Make) -> None:
    method, plain = prepared(make()).eval(), lesson()
    shares = 0.7 * torch.nn.functional.one_hot(plain.targets, 5).float() + 0.3 * torch.eye(5)[0]
    pair = outputs("student"), outputs("teacher")
    mixed = method(*pair, plain._replace(targets=shares))["loss"]
    assert torch.equal(mixed, method(*pair, plain)["loss"])


@each_method
def test_hidden_labels_are_not_used(name: str, make: Make, task: str) -> None:
    """Whatever stands where a label is hidden, the loss is the same; what stands elsewhere is used."""
    method = prepared(make(), task).eval()
    pair = outputs("student"), outputs("teacher")
    known = torch.tensor([True, False, True, False, True, True])
    of = lesson(multi_label=task == "multi-label")._replace(known=known)
    one_label = of.targets.ndim == 1
    other = (of.targets + 1) % 5 if one_label else 1 - of.targets
    where = known if one_label else known[:, None]
    hidden_changed, shown_changed = of.targets.where(where, other), other.where(where, of.targets)
    loss = method(*pair, of)["loss"]
    assert torch.equal(loss, method(*pair, of._replace(targets=hidden_changed))["loss"])
    if name in ("dkd", "dkd_std", "nkd", "wsld", "rld", "pskd"):
        assert not torch.equal(loss, method(*pair, of._replace(targets=shown_changed))["loss"])
        all_hidden = of._replace(known=torch.zeros(6, dtype=torch.bool))
        chosen = pair[1].logits.argmax(dim=1) if one_label else (pair[1].logits > 0).long()
        assert torch.equal(
            method(*pair, all_hidden)["loss"], method(*pair, of._replace(targets=chosen, known=None))["loss"]
        )


def test_mixed_labels_of_a_multi_label_set_count_from_one_half() -> None:
    method, plain = prepared(losses.PSKD(), "multi-label"), lesson(multi_label=True)
    pair = outputs("student"), outputs("teacher")
    mixed = 0.6 * plain.targets + 0.4 * (1 - plain.targets)
    assert torch.equal(method(*pair, plain._replace(targets=mixed))["loss"], method(*pair, plain)["loss"])


# Tasks and classes

NOT_MULTI_LABEL = ["hard", "dkd", "nkd", "dist", "mlld", "wsld", "rld", "logit_std", "dkd_std", "ctkd_std"]
NOT_TWO_CLASSES = ["dkd", "nkd", "dist", "rld", "logit_std", "dkd_std", "ctkd_std"]


@pytest.mark.parametrize("name", SINGLE)
def test_refusals_say_what_to_choose(name: str) -> None:
    method = SINGLE[name]()
    assert method.refusal("multi-class", 3) is None and method.refusal("ordinal-regression", 5) is None
    refused = method.refusal("multi-label", 14)
    assert (refused is not None) == (name in NOT_MULTI_LABEL)
    assert refused is None or ("multi-label" in refused and "choose" in refused)
    refused = method.refusal("binary-class", 2)
    assert (refused is not None) == (name in NOT_TWO_CLASSES)
    assert refused is None or ("2 classes" in refused and "choose" in refused)


@pytest.mark.parametrize("name", ["mld", "pskd"])
def test_methods_of_labels_refuse_classes(name: str) -> None:
    assert MULTI[name]().refusal("multi-label", 14) is None
    for task in TASKS[:3]:
        assert "choose" in (MULTI[name]().refusal(task, 5) or "")


@each_feature_method
def test_feature_methods_are_defined_for_every_task(make: Make) -> None:
    assert [make().refusal(task, 2) for task in TASKS] == [None] * 4


@pytest.mark.parametrize("make", [losses.DKD, losses.DIST, losses.RLD])
def test_without_the_part_that_teaches_nothing_two_classes_are_served(make: type[Objective]) -> None:
    assert make(beta=0.0).refusal("binary-class", 2) is None


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in NOT_TWO_CLASSES])
def test_two_classes_teach(name: str) -> None:
    method = prepared(SINGLE[name](), "binary-class", 2)
    pair = outputs("student", classes=2), outputs("teacher", classes=2)
    _, (gradient, *_) = loss_and_gradients(method, *pair, lesson(classes=2))
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("name", ["logit_std", "ctkd_std"])
def test_what_is_refused_on_two_classes_would_teach_nothing(name: str) -> None:
    method = prepared(SINGLE[name](), "binary-class", 2)
    pair = outputs("student", classes=2), outputs("teacher", classes=2)
    _, (gradient, *_) = loss_and_gradients(method, *pair, lesson(classes=2))
    assert gradient.norm() < 1e-4


def test_decoupled_losses_are_hintons() -> None:
    """2203.08679, equation 7, image by image; with two classes only the first part is left."""
    student, teacher = outputs("student", 1).logits.double(), outputs("teacher", 1).logits.double()
    classes = torch.tensor([2])
    target, others = decoupled_losses(student, teacher, classes, 4.0)
    p = (teacher / 4).softmax(dim=1)[0, 2]
    assert float(target + (1 - p) * others) == pytest.approx(float(soft_loss(student, teacher, 4.0)), abs=1e-12)
    student, teacher, classes = student[:, :2], teacher[:, :2], torch.tensor([1])
    target, others = decoupled_losses(student, teacher, classes, 4.0)
    assert float(target) == pytest.approx(float(soft_loss(student, teacher, 4.0)), abs=1e-12)
    assert float(others) == 0


def test_partial_softmax_is_what_its_definition_says() -> None:
    """Against a loop over labels, with images that have none and all of them."""
    student, teacher = (outputs(of).logits.double() for of in ("student", "teacher"))
    present = lesson(multi_label=True).targets.bool()
    present[0], present[1] = False, True
    expected = 0.0
    for z_s, z_t, has in zip(student, teacher, present, strict=True):
        for label in has.nonzero()[:, 0].tolist():
            rows = [label, *(~has).nonzero()[:, 0].tolist()]
            p_s, p_t = z_s[rows].softmax(dim=0), z_t[rows].softmax(dim=0)
            expected += float((p_t * (p_t / p_s).log()).sum()) / len(student)
    student.requires_grad_()
    loss = partial_softmax_loss(student, teacher, present)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_standardised_logits_know_no_scale_and_no_offset() -> None:
    logits = outputs("student").logits.double()
    assert torch.allclose(standardise(5 * logits + 3), standardise(logits), atol=1e-6)


# Adapters and memories


@each_feature_method
@pytest.mark.parametrize(
    "teacher",
    [[(4, 8), (6, 4), (10, 2)], [(3, 4), (5, 2), (7, 1)], [(8, 16), (16, 8), (32, 4)], [(9, 7), (9, 3), (9, 1)]],
)
def test_adapters_fit_any_channels_and_sizes(
    make: Make, teacher: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STAGES, "teacher", teacher)
    method = prepared(make())
    terms = method(outputs("student"), outputs("teacher"), lesson())
    assert torch.isfinite(terms["loss"])


@pytest.mark.parametrize("name", ["fitnet", "at", "vid", "reviewkd", "sp"])
def test_layers_must_come_in_pairs(name: str) -> None:
    method = FEATURES[name]()
    method.layers, method.teacher_layers = ["stages"], ["last_map"]
    with pytest.raises(KdxError, match="^layers: 3 in the student, 1 in the teacher"):
        prepared(method)


@pytest.mark.parametrize("name", ["fitnet", "at", "vid"])
def test_methods_of_maps_refuse_vectors(name: str) -> None:
    method = FEATURES[name]()
    method.layers = ["pooled"]
    with pytest.raises(KdxError, match=r"^layers: maps \(B, C, H, W\) are needed"):
        prepared(method)


def test_one_hint_needs_to_be_there() -> None:
    with pytest.raises(KdxError, match="^hint=-2: layers gives 1 map"):
        prepared(losses.FitNet("last_map"))
    prepared(losses.FitNet("last_map", hint=-1))


def test_a_layer_of_ones_own_has_its_words() -> None:
    """Layers by name, of other names in the teacher."""
    maps = {
        of: Outputs(outputs(of).logits, {word: outputs(of).features["last_map"]})
        for of, word in (("student", "block3"), ("teacher", "layer4"))
    }
    method = losses.SimilarityPreserving("block3", "layer4")
    method.prepare(Facts("multi-class", 5, 20, maps["student"], maps["teacher"]))
    assert float(method(maps["student"], maps["teacher"], lesson())["loss"]) > 0


def steps(method: Objective, count: int, start: int = 0) -> list[float]:
    """Train a method's own parameters; its loss at every step."""
    found = []
    for step in range(start, start + count):
        pair = outputs("student", seed=10 * step), outputs("teacher", seed=10 * step)
        loss = method(*pair, lesson(progress=step / 10))["loss"]
        method.zero_grad()
        loss.backward()
        for parameter in method.parameters():
            parameter.data -= 0.1 * parameter.grad
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    "make", [losses.CTKD, FEATURES["crd"], FEATURES["cc"], FEATURES["vid"], FEATURES["reviewkd"], FEATURES["fitnet"]]
)
def test_a_methods_state_is_all_that_its_next_step_depends_on(make: Make) -> None:
    whole = prepared(make())
    expected = steps(whole, 2) + steps(whole, 3, start=2)
    first = prepared(make())
    steps(first, 2)
    torch.manual_seed(99)
    second = make()
    second.prepare(Facts("multi-class", 5, 20, outputs("student", 2), outputs("teacher", 2)))
    fresh = [key for key, value in second.state_dict().items() if not torch.equal(value, first.state_dict()[key])]
    assert fresh  # what a resume without the state would get wrong
    second.load_state_dict(first.state_dict())
    assert steps(second, 3, start=2) == expected[2:]
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in second.state_dict().items())


def test_the_temperature_is_learnt_against_the_student() -> None:
    method = prepared(losses.CTKD(ramp=0.5))
    pair = outputs("student"), outputs("teacher")

    def pull(progress: float) -> float:
        terms = method(*pair, lesson(progress=progress))
        return float(torch.autograd.grad(terms["loss"], method.theta)[0])

    assert pull(0.0) == 0
    assert pull(0.25) == pytest.approx(pull(0.5) / 2, rel=1e-5)
    assert pull(0.5) == pull(1.0)
    before = method(*pair, lesson())["loss"]
    method.theta.data -= 0.1 * (1 if pull(1.0) > 0 else -1)  # a step of an optimizer
    assert method(*pair, lesson())["loss"] > before


def test_negatives_are_other_images_drawn_evenly_and_anew() -> None:
    images, size = torch.arange(40), 50
    salt = torch.tensor(123456789)
    drawn = draw_others(images, 500, size, 0.125, salt)
    assert drawn.shape == (40, 500) and not (drawn == images[:, None]).any()
    counts = torch.bincount(drawn.flatten(), minlength=size)
    assert len(counts) == size and counts.min() > 300 and counts.max() < 500  # 400 expected, deviation 20
    assert torch.equal(drawn, draw_others(images, 500, size, 0.125, salt))
    assert torch.equal(drawn[7:9], draw_others(images[7:9], 500, size, 0.125, salt))  # in whatever part of a batch
    for other in (draw_others(images, 500, size, 0.126, salt), draw_others(images, 500, size, 0.125, salt + 1)):
        assert (drawn == other).float().mean() < 0.05


def test_the_bank_is_bounded_by_the_training_split() -> None:
    method = prepared(losses.CRD(negatives=1024), train_size=20)
    assert torch.isfinite(method(outputs("student"), outputs("teacher"), lesson())["loss"])
    assert method.bank_student.shape == (20, 128)
    with pytest.raises(KdxError, match="only one"):
        prepared(losses.CRD(), train_size=1)


def test_banks_move_in_training_only_and_only_the_images_own_rows() -> None:
    method = prepared(FEATURES["crd"]())
    pair, before = (outputs("student"), outputs("teacher")), method.bank_student.clone()
    method.eval()(*pair, lesson())
    assert torch.equal(method.bank_student, before) and torch.isinf(method.log_z).all()
    method.train()(*pair, lesson())
    changed = (method.bank_student != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == lesson().indices.tolist() and torch.isfinite(method.log_z).all()


@torch.no_grad()
def test_images_of_another_split_are_compared_with_themselves_and_not_with_rows_of_the_bank() -> None:
    """Validation's images have numbers of their own, which may be larger than any of the training split."""
    method = prepared(FEATURES["crd"]())
    pair, images = (outputs("student"), outputs("teacher")), lesson().indices
    method.train()(*pair, lesson())
    method.eval()
    method.bank_student.zero_(), method.bank_teacher.zero_()  # so that all negatives are alike
    told = [float(method(*pair, lesson()._replace(indices=images + more))["loss"]) for more in (0, 7, 5000)]
    assert told[1] == pytest.approx(told[0], rel=1e-6) and told[2] == pytest.approx(told[0], rel=1e-6)
    method.embed_teacher = method.embed_student
    assert float(method(pair[0], pair[0], lesson())["loss"]) < told[0]


@pytest.mark.parametrize("size", [(1, 1), (2, 4), (3, 5), (7, 6), (9, 12), (8, 12)])
def test_maps_are_averaged_as_by_adaptive_pooling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(averaged(maps, size), torch.nn.functional.adaptive_avg_pool2d(maps, size), atol=1e-12)


# Numbers

BAD = [
    (losses.Hinton, "temperature", 0.0),
    (losses.Hinton, "temperature", "warm"),
    (losses.DKD, "alpha", -1.0),
    (losses.DKD, "beta", float("nan")),
    (losses.DKD, "temperature", float("inf")),
    (losses.NKD, "gamma", -0.1),
    (losses.NKD, "temperature", -1),
    (losses.DIST, "beta", -1),
    (losses.DIST, "gamma", -1),
    (losses.DIST, "temperature", True),
    (losses.TTM, "power", 0),
    (losses.WTTM, "power", -0.1),
    (losses.CTKD, "start", 0),
    (losses.CTKD, "span", -20),
    (losses.CTKD, "ramp", 1.5),
    (losses.CTKD, "theta", float("nan")),
    (losses.MLLD, "temperatures", []),
    (losses.MLLD, "temperatures", [1, -2]),
    (losses.MLLD, "temperatures", 4.0),
    (losses.WSLD, "temperature", 0),
    (losses.RLD, "alpha_temperature", 0),
    (losses.RLD, "beta", -8),
    (losses.MLD, "reduction", "sum"),
    (losses.FitNet, "hint", "last"),
    (losses.FitNet, "layers", []),
    (losses.AttentionTransfer, "power", 0),
    (losses.SimilarityPreserving, "layers", [3]),
    (losses.RKD, "angle", -1),
    (losses.PKT, "layers", ""),
    (losses.CorrelationCongruence, "dim", 0),
    (losses.VID, "variance", 0),
    (losses.CRD, "negatives", 0),
    (losses.CRD, "negatives", 2.5),
    (losses.CRD, "momentum", 1.1),
    (losses.CRD, "temperature", 0),
    (losses.ReviewKD, "hidden", 0),
]


@pytest.mark.parametrize("make, key, value", BAD, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_numbers_are_named(make: type[Objective], key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}="):
        make(**{key: value})


def test_a_lesson_of_a_class_knows_what_is_hidden() -> None:
    of = Lesson(torch.tensor([0, 1]), torch.arange(2), known=torch.tensor([True, False]))
    assert of.classes(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist() == [0, 2]
