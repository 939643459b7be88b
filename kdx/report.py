"""Results in words."""

from typing import Any

HEADER = (
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
)


def stage_table(stages: dict[str, dict[str, Any]]) -> str:
    """The stages of a summary as an aligned text table."""
    rows = [HEADER]
    for role, stage in stages.items():
        test, auc = stage["test"], stage["test"]["auc"]
        rows.append(
            (
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
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
