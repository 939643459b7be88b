"""Figures as SVG text that stands in a page, drawn without a display."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdx.errors import KdxError
from kdx.text import harmless

FAR = 20  # times the least cost: above, costs stand on a logarithmic axis
MOST_NAMES = 12  # of a legend
LONGEST_LABEL = 32  # characters; longer ones leave no room for the drawing


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    names: tuple[str, str],
    digits: int = 2,
) -> str:
    """`values[row, column]` as a labelled heat map; missing cells stay blank. `names` are those of rows and columns."""
    import numpy as np

    table = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows], dtype=float)
    if np.isnan(table).all():
        raise KdxError("a heat map without a value")
    rows, columns = ([plain_text(name) for name in labels] for labels in (rows, columns))
    beside, below = (0.07 * max(0, max(map(len, labels)) - 8) for labels in (rows, columns))  # inches of long labels
    figure, axes = _figure(1.5 + 0.9 * len(columns) + beside, 1.2 + 0.6 * len(rows) + below)
    image = axes.imshow(table, cmap="viridis", aspect="auto")
    slanted = max(map(len, columns)) > 6
    axes.set_xticks(range(len(columns)), columns, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(plain_text(names[1]))
    axes.set_ylabel(plain_text(names[0]))
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for y in range(len(rows)):
        for x in range(len(columns)):
            if not np.isnan(table[y, x]):
                colour = "black" if table[y, x] > middle else "white"
                axes.text(x, y, f"{table[y, x]:.{digits}f}", ha="center", va="center", color=colour)
    figure.colorbar(image)
    return _svg(figure).replace("<svg", '<svg class="colours"', 1)  # which a dark page must not turn round


def curves(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_name: str, y_name: str) -> str:
    """Named lines of (x, y) points, those of one name in one colour; no legend where it would cover the lines."""
    figure, axes = _figure(6.4, 3.6)
    names = list(dict.fromkeys(name for name, _ in lines))
    colours, drawn = dict(zip(names, _colours(len(names)), strict=True)), {}
    for name, points in lines:
        x, y = [x for x, _ in points], [y for _, y in points]
        (drawn[name],) = axes.plot(x, y, color=colours[name], linewidth=1.2, marker=".", markersize=3)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if 1 < len(names) <= MOST_NAMES:
        axes.legend(list(drawn.values()), _told_apart(names), fontsize=7)
    return _svg(figure)


def front(points: Sequence[tuple[str, float, float, bool]], names: tuple[str, str]) -> str:
    """Named (x, y) points, far costs on a logarithmic axis; those of the Pareto front filled and joined by a line."""
    low, high = (limit(x for _, x, _, _ in points) for limit in (min, max))
    figure, axes = _figure(4.8, 3.6)
    best = sorted((x, y) for _, x, y, of_front in points if of_front)
    axes.plot([x for x, _ in best], [y for _, y in best], color="#4477aa", linewidth=1, drawstyle="steps-post")
    far = high > FAR * low > 0
    middle = math.sqrt(low * high) if far else (low + high) / 2
    for name, (_, x, y, of_front) in zip(_told_apart([name for name, *_ in points]), points, strict=True):
        axes.plot([x], [y], marker="o", color="#4477aa", markerfacecolor="#4477aa" if of_front else "white")
        right = x > middle
        aside = {"xytext": (-5 if right else 5, 5), "ha": "right" if right else "left"}
        axes.annotate(name, (x, y), textcoords="offset points", fontsize=7, **aside)
    if far:
        axes.set_xscale("log")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    return _svg(figure)


def intervals(rows: Sequence[tuple[str, float, float, float, bool]], x_name: str) -> str:
    """Named (middle, low, high) one below the other beside a line at zero; filled where the last value is true."""
    figure, axes = _figure(6.4, 0.9 + 0.26 * len(rows))
    axes.axvline(0, color="#888888", linewidth=1)
    for place, (_, middle, low, high, filled) in enumerate(rows):
        axes.plot([low, high], [place, place], color="#4477aa", linewidth=1.2)
        axes.plot([middle], [place], marker="o", color="#4477aa", markerfacecolor="#4477aa" if filled else "white")
    axes.set_yticks(range(len(rows)), _told_apart([name for name, *_ in rows]), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(x_name)
    axes.grid(alpha=0.3, axis="x")
    return _svg(figure)


def bars_and_line(
    x: Sequence[float], y: Sequence[float], counts: Sequence[int], names: tuple[str, str], bins: int = 15
) -> str:
    """A reliability diagram (1706.04599): (confidence, accuracy) of each bin as a dot, its images as a bar."""
    figure, axes = _figure(4.8, 4.2)
    filled = [i for i, count in enumerate(counts) if count]
    behind = axes.twinx()
    behind.bar([(i + 0.5) / bins for i in range(bins)], counts, width=0.9 / bins, color="#cccccc")
    behind.set_ylabel("images")
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    axes.plot([x[i] for i in filled], [y[i] for i in filled], marker="o", color="#4477aa")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=names[0], ylabel=names[1])
    return _svg(figure)


def plain_text(text: str, longest: int = LONGEST_LABEL) -> str:
    """A label in which a dollar sign begins no formula, all can be drawn, and the middle of a long text is left out."""
    text = harmless(text)
    if len(text) > longest:
        text = text[: longest - longest // 4 - 1] + "…" + text[-(longest // 4) :]
    return text.replace("$", r"\$")


def _told_apart(names: Sequence[str]) -> list[str]:
    """Labels, shortened only as far as different names stay different."""
    longest = LONGEST_LABEL
    while len({plain_text(name, longest) for name in names}) < len({*names}) and longest < max(map(len, names)):
        longest += LONGEST_LABEL // 2
    return [plain_text(name, longest) for name in names]


def _colours(count: int) -> list[Any]:
    """As many colours, the same again from the twenty-first on."""
    import matplotlib

    known = matplotlib.colormaps["tab10" if count <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return [known[place % len(known)] for place in range(count)]


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure) -> str:  # type: ignore[no-untyped-def]
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdx"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
