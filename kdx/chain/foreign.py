"""A stage whose weights kdx did not train: tried on the validation split before anything is trained, then filed."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kdx.chain.batches import stage_batches
from kdx.chain.context import RunContext, metadata, network_spec
from kdx.chain.drawing import draw_feature_maps
from kdx.chain.fingerprints import average_of, network_code
from kdx.chain.headless import weights_as_built
from kdx.chain.index import fingerprint
from kdx.chain.loaded import LoadedStage, blank_network
from kdx.chain.stage import Outcome, file_stem, scores_on_test
from kdx.checkpoint import save_checkpoint, versions
from kdx.config.schema import StageSettings
from kdx.data.batches import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, mean_and_std
from kdx.data.dataset import Dataset, Split
from kdx.errors import KdxError, errors_of
from kdx.files import from_here, hash_file, write_json
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Lesson
from kdx.metrics.auc import auc_of_logits
from kdx.metrics.classification import epoch_scores
from kdx.metrics.counts import count, per_class
from kdx.metrics.doubts import CLEARLY, are_probabilities, chance, other_order
from kdx.metrics.logits import predict, require_numbers
from kdx.metrics.selection import Selection
from kdx.models.features import eval_mode
from kdx.models.foreign import load_foreign, read_weights, stem_of
from kdx.models.networks import check_network
from kdx.models.stem import FINER, IMAGENET, has_resnet_stem
from kdx.recipe import AUC
from kdx.training.evaluation import logits_of

log = logging.getLogger(__name__)

FILE = "imported.pth"  # the weights as a checkpoint of kdx's, which every command reads
TRIED = 256  # images of the validation split on which other preprocessing is tried
SHOWN = 10  # classes whose scores are told


def as_imported(context: RunContext, stage: StageSettings, path: Path) -> StageSettings:
    """The stage with the stem that a ResNet's weights in a file have, as far as `model.stem` leaves it open."""
    if context.settings.stem == IMAGENET or not has_resnet_stem(stage.network):
        return stage
    stem = stem_of(_weights(stage, path))
    if context.settings.stem != "auto":
        stem = FINER if stem == IMAGENET else None
    return stage if stem in (None, network_spec(context, stage).stem) else replace(stage, stem=stem)


def import_fingerprint(context: RunContext, stage: StageSettings, path: Path | None) -> str:
    """Stands for the weights, of a file or as built, the network that takes them, and the data on which it is tried."""
    weights = weights_as_built(context, stage) if path is None else hash_file(path)
    facts = metadata(context, stage) | {"imported": weights, "key": stage.checkpoint_key}
    with errors_of(f"stage.{stage.role}.checkpoint"):
        facts |= {} if path is None else average_of(path)
    return f"import-{fingerprint(facts | {'code': network_code(context, stage)})}"


def import_network(context: RunContext, stage: StageSettings, path: Path) -> LoadedStage:
    """The stage's network with the weights of a file from anywhere, and its scores on the validation split.

    What speaks against it is told. `KdxError` where the weights do not fit, or where it answers at chance unless
    `stage.<role>.checkpoint_check` is false.
    """
    key, spec = f"stage.{stage.role}.checkpoint", network_spec(context, stage)
    called = f"model.{stage.role}={stage.network}"
    weights, network = _weights(stage, path), blank_network(context, stage)
    with errors_of(key):
        load_foreign(network, weights, path, called)
    check_network(network.eval(), spec, context.input_size, called=f"{called}:", trained=False)
    network = context.precision.place(network)
    data, batches = context.dataset, stage_batches(context, stage, "val")
    logits = logits_of(network, batches, context.precision).cpu()
    require_numbers(logits, f"{path}: the network")
    scores = _scores(context, stage, logits)
    reached, guessed, at_chance = chance(logits, data.val.labels, data.task)
    log.info("%s: %s", stage.role, tell_scores(path, scores, logits, data))
    doubts = _doubts(context, stage, network, logits)
    if at_chance and stage.checkpoint_check:
        why = "; ".join(doubts) or "its weights may be for other classes or images"
        raise KdxError(
            f"{key}={path}: answers at chance on the validation split ({reached:.1%} of each class, "
            f"guessing {guessed:.1%}): {why}; stage.{stage.role}.checkpoint_check=false takes it all the same"
        )
    for doubt in doubts:
        log.warning("%s=%s: %s", key, from_here(path), doubt)
    return LoadedStage(network.eval(), hash_file(path), 0, scores, None, sound=not at_chance)


def file_import(
    context: RunContext, stage: StageSettings, folder: Path, loaded: LoadedStage, own: str, source: Path | None
) -> Outcome:
    """Keep imported weights in `folder` as a checkpoint of kdx's, bit by bit, and test them once."""
    checkpoint = folder / "checkpoints" / FILE
    meta = {"role": stage.role, "fingerprint": own, "guide_fingerprint": None}
    described = metadata(context, stage) | meta | {"versions": versions(), "surroundings": context.surroundings()}
    described["imported"] = {"file": "as built" if source is None else source.name, "sha256": loaded.sha256}
    weights = {name: value.cpu() for name, value in loaded.network.state_dict().items()}
    save_checkpoint(checkpoint, {"model": weights, "epoch": 0, "validation": loaded.validation, "meta": described})
    write_json(folder / "logs" / f"{file_stem(stage)}_config.json", meta | {"config": stage.config})
    test = scores_on_test(context, stage, loaded.network) | {"epoch": 0} if stage.head else {}
    if test:
        write_json(folder / "test_metrics.json", test)
    draw_feature_maps(context, stage, loaded.network, folder / "visualizations")
    return Outcome.of(replace(loaded, sha256=hash_file(checkpoint)), checkpoint, test)


def tell_scores(path: Path, scores: dict[str, float], logits: Tensor, data: Dataset) -> str:
    """The accuracy of a file's weights, and for how many images of each class they say that class, the worst first."""
    recalls = per_class(count(predict(logits, data.task), data.val.labels, data.task, data.num_classes))["recall"]
    order = sorted(range(data.num_classes), key=lambda number: recalls[number])[:SHOWN]
    each = ", ".join(f"{data.class_names[number]} {recalls[number]:.0f}" for number in order)
    more = " (the worst)" if data.num_classes > SHOWN else ""
    told = f"{from_here(path)} reaches {scores['accuracy']:.2f} % on the validation split"
    return f"{told}; of each class, %{more}: {each}"


def _scores(context: RunContext, stage: StageSettings, logits: Tensor) -> dict[str, float]:
    data = context.dataset
    labels = data.val.labels
    loss = float(HardLoss(data.task)(logits, Lesson(labels, torch.arange(len(labels)))))
    scores = {"loss": loss, **epoch_scores(predict(logits, data.task), labels, data.task, data.num_classes)}
    if Selection.resolve(stage.recipe.select, data.task).name == AUC:
        area = auc_of_logits(logits, labels, data.task)
        scores |= {} if area is None else {"auc": area}
    return scores


def _doubts(context: RunContext, stage: StageSettings, network: nn.Module, logits: Tensor) -> list[str]:
    """What the answers say against the weights, a sentence each."""
    data, doubts = context.dataset, []
    if are_probabilities(logits, data.task):
        doubts.append("it answers with probabilities instead of logits: leave its softmax or sigmoid out")
    order = other_order(logits, data.val.labels, data.task, data.class_names)
    found = [order, _other_preprocessing(context, stage, network) if order is None else None]
    return doubts + [doubt for doubt in found if doubt is not None]


def _other_preprocessing(context: RunContext, stage: StageSettings, network: nn.Module) -> str | None:
    """Under which `dataset.normalize` the answers would be clearly better, on a part of the validation split."""
    few = Split(*context.dataset.val.spread(TRIED))
    reached: dict[str, float] = {}
    for words, preprocessing in {"as it is": context.preprocessing, **_others(context)}.items():
        other = replace(context, preprocessing=preprocessing)
        batches = stage_batches(other, stage, "val", replace(context.dataset, val=few))
        with eval_mode(network):
            logits = logits_of(network, batches, context.precision).cpu()
        reached[words] = chance(logits.nan_to_num(), few.labels, context.dataset.task)[0]
    best = max(reached, key=lambda words: reached[words])
    here, there = reached["as it is"], reached[best]
    if there - here <= max(CLEARLY, 2 * (here * (1 - here) / len(few)) ** 0.5):
        return None
    return f"its images were prepared otherwise ({here:.1%} of each class as it is, {there:.1%} with {best})"


def _others(context: RunContext) -> dict[str, Preprocessing]:
    """Other ways in which images are usually prepared, by the key that chooses each."""
    now, channels = context.preprocessing, context.preprocessing.channels
    mean, std = mean_and_std(context.dataset.train.images)
    made = {"dataset.normalize=dataset": Preprocessing(mean, std, now.resize)}
    for centre, scale in ((0.5, 0.5), (0.0, 1.0), (0.0, round(1 / 255, 6))):
        each = [",".join([str(number)] * channels) for number in (centre, scale)]
        words = f"dataset.normalize={{mean:[{each[0]}],std:[{each[1]}]}}"
        made[words] = Preprocessing((centre,) * channels, (scale,) * channels, now.resize)
    if channels == 3:
        made["dataset.normalize=imagenet"] = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, now.resize)
    return {words: other for words, other in made.items() if other != now and other.channels == channels}


def _weights(stage: StageSettings, path: Path) -> dict[str, Tensor]:
    with errors_of(f"stage.{stage.role}.checkpoint"):
        return read_weights(path, stage.checkpoint_key)
