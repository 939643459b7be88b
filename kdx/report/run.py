"""A run's page, report.html, made from the files that the run left. Imports no torch."""

import base64
from pathlib import Path

from kdx.files import from_here, write_atomic
from kdx.recipe import AUC, F1, SCORES
from kdx.report import html as page
from kdx.report.html import REPORT
from kdx.report.plots import bars_and_line, curves, heat_map
from kdx.report.statistics import wilson
from kdx.report.tables import STAGE_HEADER, aligned, stage_cells
from kdx.results import FINISHED, Run, ScoresOnTest, Stage, read_log, read_run, read_stages
from kdx.results.groups import first_teacher
from kdx.text import harmless

MOST_CLASSES = 30  # a larger confusion matrix is not drawn
PICTURES = 2  # feature maps shown a stage

Stages = dict[str, Stage]


def write_run_report(run_dir: Path) -> str:
    """Write report.html into a run's folder; the outcome in words for a terminal."""
    run, stages = read_run(run_dir), read_stages(run_dir)
    lines = [*_unfinished(run), *conclusions(stages)]
    parts = [page.lead(line) for line in lines]
    rows = [stage_cells(role, stage) for role, stage in stages.items()]
    parts += [page.heading("Stages"), page.table("stages", STAGE_HEADER, rows)]
    measured = {role: stage for role, stage in stages.items() if stage.timings}
    if measured:
        parts += [page.heading("What each costs to use"), page.table("efficiency", *efficiency_table(measured))]
    parts += _curves(run_dir, stages)
    role, last = next(reversed(stages.items()))
    parts += _classes(role, last.test, run.class_names)
    parts += _calibration({role: stage.test for role, stage in stages.items()})
    parts += _pictures(run_dir, stages)
    parts += [page.heading("How it was made"), page.table("made", ["what", "value"], _made(run))]
    write_atomic(run_dir / REPORT, page.page(f"Run {run_dir.resolve().name}", parts).encode())
    if measured:
        lines += ["", aligned(*efficiency_table(measured))]
    lines += ["", f"report: {from_here(run_dir / REPORT)}"]
    return "\n".join(harmless(line, keep="\n") for line in lines)


def _unfinished(run: Run) -> list[str]:
    """That a run did not finish, and why: what its stages reach is not what it was started for."""
    if run.status == FINISHED:
        return []
    return [f"This run is not finished: {run.status}{f', {run.error}' if run.error else ''}."]


def conclusions(stages: Stages) -> list[str]:
    """What the last stage reaches, keeps of its first teacher and saves, in sentences."""
    role, last = next(reversed(stages.items()))
    if not last.classifies:
        return [f"The {role} ({last.network}) has learnt no classifier: no label entered its loss. It has no accuracy."]
    lines = [f"The {role} ({last.network}) reaches {last.test['accuracy']:.2f} % on the test split.{_interval(last)}"]
    first_role = _first_teacher(stages, role)
    if first_role is not None and stages[first_role].classifies:
        first = stages[first_role]
        share = 100 * last.test["accuracy"] / max(first.test["accuracy"], 1e-9)
        weights = _compared(last.parameters, first.parameters)
        lines.append(f"That is {share:.1f} % of the {first_role}'s {first.test['accuracy']:.2f} % with {weights}.")
    return lines


def _compared(own: int, others: int) -> str:
    """How many weights a network has beside another, in words."""
    times = others / max(own, 1)
    if f"{times:.1f}" == "1.0":
        return "as many weights"
    return f"{times:.1f} times fewer weights" if times > 1 else f"{1 / times:.1f} times as many weights"


def _first_teacher(stages: Stages, role: str) -> str | None:
    guides = {name: [one.guide] if isinstance(one.guide, str) else one.guide or [] for name, one in stages.items()}
    return first_teacher(guides, role)


def _interval(stage: Stage) -> str:
    """What so many test images allow to say; of images with several labels, whose answers hang together, nothing."""
    images = stage.test.get("num_samples")
    if not images or stage.several_labels:
        return ""
    low, high = wilson(stage.test["accuracy"], images)
    return f" Over its {images:,} images the 95 % interval is {low:.2f} to {high:.2f}; it knows of one seed only."


def efficiency_table(stages: Stages) -> tuple[list[str], list[list[str]]]:
    """Costs by stage, what each keeps of its first teacher's accuracy, and what it saves against the first stage."""
    devices = [name for name in stages[next(iter(stages))].timings if all(name in s.timings for s in stages.values())]
    header = ["stage", "network", "test acc", "keeps %", "weights", "saves x weights", "file MB", "M multiply-adds"]
    header.append("saves x time")
    for device in devices:  # last: with a GPU's they are wider than many a screen
        header += [f"{device} ms, 1 image", f"{device} images/s, 64", f"{device} peak MB, 64"]
    first_role, first = next(iter(stages.items()))
    rows = []
    for role, stage in stages.items():
        size = "-" if stage.checkpoint_mb is None else f"{stage.checkpoint_mb:.2f}"
        teacher = _first_teacher(stages, role)
        compared = stage if role == first_role else None if teacher is None else stages.get(teacher)
        row = [role, stage.network, f"{stage.test['accuracy']:.2f}" if stage.classifies else "-"]
        row += [_kept(stage, compared), f"{stage.parameters:,}", f"{first.parameters / max(stage.parameters, 1):.1f}"]
        row += [size, f"{stage.multiply_adds / 1e6:,.1f}"]
        speeds = [s.timings[devices[0]]["latency_ms_batch_64"] if devices else 1.0 for s in (first, stage)]
        row.append(f"{speeds[0] / speeds[1]:.1f}" if devices else "-")
        for device in devices:
            timing = stage.timings[device]
            row += [f"{timing['latency_ms_batch_1']:.2f}", f"{timing['images_per_s_batch_64']:,.0f}"]
            row.append(f"{timing['peak_memory_mb']:.1f}")
        rows.append(row)
    return header, rows


def _kept(stage: Stage, compared: Stage | None) -> str:
    """The share of another stage's accuracy that a stage has, in percent."""
    if compared is None or not (stage.classifies and compared.classifies):
        return "-"
    return f"{100 * stage.test['accuracy'] / max(compared.test['accuracy'], 1e-9):.1f}"


def _curves(run_dir: Path, stages: Stages) -> list[str]:
    """Validation accuracy and cross-entropy of all stages on common axes, and training beside validation."""
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {"accuracy": {}, "selected": {}, "loss": {}, "gap": {}}
    for role, stage in stages.items():
        place = (run_dir / stage.checkpoint).parent
        rows = read_log(place.parent) if place.name == "checkpoints" else []  # a named file has no log
        # a distilled stage's val_loss has the teacher in it: the part by the labels is what compares
        by_labels = "val_hard_loss" if any("val_hard_loss" in row for row in rows) else "val_loss"
        wanted = [("accuracy", role, "val_accuracy"), ("loss", role, by_labels)] if stage.classifies else []
        if stage.selected_by in (AUC, F1):
            wanted.append(("selected", f"{role}, {stage.selected_by}", f"val_{SCORES[stage.selected_by]}"))
        wanted += [("gap", f"{role}, {split}", f"{split}_loss") for split in ("train", "val")]
        for figure, line, column in wanted:
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            drawn[figure] |= {line: points} if points else {}
    axes = {
        "accuracy": ("accuracy, %", "Accuracy on the validation split."),
        "selected": ("score", "What chose the epoch on the validation split."),
        "loss": ("cross-entropy", "Loss by the labels on the validation split, comparable among stages."),
        "gap": (
            "loss",
            "What each stage minimised, on the training and the validation split; methods that look at layers are "
            "told of the training alone, unless nothing else weighs.",
        ),
    }
    pictures = [
        page.picture(curves(list(drawn[key].items()), "epoch", y), text)
        for key, (y, text) in axes.items()
        if drawn[key]
    ]
    return [page.heading("Epochs"), *pictures] if pictures else []


def _classes(role: str, test: ScoresOnTest, class_names: list[str]) -> list[str]:
    if "per_class" not in test:
        return []
    scores, matrix = test["per_class"], test.get("confusion_matrix", [])
    names = class_names or [str(number) for number in range(len(scores["support"]))]
    rows = [
        [name, *(f"{values[i]:.2f}" for values in (scores["precision"], scores["recall"], scores["f1_score"]))]
        + [str(scores["support"][i])]
        for i, name in enumerate(names)
    ]
    header = ["class", "precision", "recall", "F1", "images"]
    parts = [page.heading(f"Classes of the {role}, test split"), page.table("classes", header, rows)]
    if matrix and isinstance(matrix[0][0], int) and len(names) <= MOST_CLASSES:
        labels = [name if len(name) <= 18 else name[:17] + "…" for name in names]
        labels = [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
        cells = {
            (labels[y], labels[x]): float(count)
            for y, row in enumerate(matrix)
            for x, count in enumerate(row)
            if isinstance(count, int)
        }
        drawing = heat_map(labels, labels, cells, ("true class", "predicted class"), digits=0)
        parts.append(page.picture(drawing, f"Confusion matrix of the {role}: images of each class by what was said."))
    return parts


def _calibration(tests: dict[str, ScoresOnTest]) -> list[str]:
    """Reliability of the last stage's probabilities, ECE and agreement of all."""
    known = {role: test for role, test in tests.items() if "calibration" in test}
    if not known:
        return []
    rows = []
    for role, test in known.items():
        agreement = test.get("guide_agreement")
        rows.append([role, f"{test['calibration']['ece']:.2f}", "-" if agreement is None else f"{agreement:.2f}"])
    role, last = next(reversed(known.items()))
    bins = last["calibration"]
    drawing = bars_and_line(bins["confidence"], bins["accuracy"], bins["count"], ("confidence", "accuracy"))
    return [
        page.heading("Calibration and agreement, test split"),
        page.table("calibration", ["stage", "ECE, %", "agrees with its guide, %"], rows),
        page.picture(
            drawing, f"Reliability of the {role}: dots on the diagonal mean what they say; bars count images."
        ),
    ]


def _pictures(run_dir: Path, stages: Stages) -> list[str]:
    parts = []
    for role, stage in stages.items():
        folder = (run_dir / stage.checkpoint).parent.parent / "visualizations"
        for path in sorted([*folder.glob("feature_maps_*.png"), *folder.glob("attention_*.png")])[:PICTURES]:
            encoded = base64.b64encode(path.read_bytes()).decode()
            parts.append(page.picture(f'<img alt="" src="data:image/png;base64,{encoded}">', f"{role}: {path.stem}"))
    return [page.heading("Feature maps and attention"), *parts] if parts else []


def _made(run: Run) -> list[list[str]]:
    rows = [["status", run.status], ["seed", str(run.seed)], ["overrides", " ".join(run.overrides) or "none"]]
    rows += [[f"{origin.what} {origin.name}", origin.hash] for origin in run.lineage]
    rows += [[key, str(value)] for key, value in {**run.surroundings, **run.versions}.items()]
    rows += [["note on the data", note] for note in run.data_notes]
    return [*rows, ["git commit", str(run.git_commit)]]
