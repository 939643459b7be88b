"""Tables as text."""

from collections.abc import Sequence

from kdx.results import Stage
from kdx.text import harmless, markdown_text

STAGE_HEADER = "stage,network,parameters,status,epoch,val acc,test acc,test F1,test AUC,time".split(",")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal."""
    lines = [[harmless(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [[markdown_text(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def weights(count: int) -> str:
    """How many weights a network has: millions, of the smallest all."""
    return f"{count / 1e6:.2f} M" if count >= 1e4 else f"{count:,}"


def stage_table(stages: dict[str, Stage]) -> str:
    """The stages of a summary, aligned."""
    return aligned(STAGE_HEADER, [stage_cells(role, stage) for role, stage in stages.items()])


def stage_cells(role: str, stage: Stage) -> list[str]:
    """A stage of a summary as the cells of STAGE_HEADER."""
    test, auc = stage.test, stage.test.get("auc")
    scores = [stage.validation.get("accuracy"), test.get("accuracy"), test.get("f1_score")]
    cells = [role, stage.network, weights(stage.parameters), stage.status, str(stage.epoch)]
    cells += ["-" if score is None else f"{score:.2f}" for score in scores]
    return [*cells, "-" if auc is None else f"{auc:.4f}", f"{stage.seconds:.1f} s"]
