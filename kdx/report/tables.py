"""Tables as text."""

from collections.abc import Sequence
from typing import Any

STAGE_HEADER = [
    "stage",
    "network",
    "parameters",
    "status",
    "epoch",
    "val acc",
    "test acc",
    "test F1",
    "test AUC",
    "time",
]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def stage_table(stages: dict[str, dict[str, Any]]) -> str:
    """The stages of a summary, aligned."""
    return aligned(STAGE_HEADER, [stage_cells(role, stage) for role, stage in stages.items()])


def stage_cells(role: str, stage: dict[str, Any]) -> list[str]:
    """A stage of a summary as the cells of STAGE_HEADER."""
    test, auc = stage["test"], stage["test"]["auc"]
    return [
        role,
        stage["network"],
        f"{stage['parameters'] / 1e6:.2f} M",
        stage["status"],
        str(stage["epoch"]),
        f"{stage['validation']['accuracy']:.2f}",
        f"{test['accuracy']:.2f}",
        f"{test['f1_score']:.2f}",
        "-" if auc is None else f"{auc:.4f}",
        f"{stage['seconds']:.1f} s",
    ]
