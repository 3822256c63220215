"""Plots of measurements, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

COLOURS = mpl.colormaps["tab20"].colors[::2] + mpl.colormaps["tab20"].colors[1::2]  # type: ignore[attr-defined]
Interval = Sequence[Any]
"""A mean and the ends of its interval: three numbers, or three times None if there is no mean."""

_MARKS = "os^Dv<>Pp*hX"


def points(
    series: Mapping[str, tuple[Interval, Interval]],
    *,
    title: str,
    x: str,
    y: str,
    line: float | None = None,
    line_label: str = "",
) -> bytes:
    """Draws a point with two intervals for every name.

    Args:
      series: (mean, low, high) along x and along y, by name; names without a mean are left out.
      title: of the figure.
      x: the label of the horizontal axis.
      y: the label of the vertical axis.
      line: a value of x that is marked by a line.
      line_label: the label of that line.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, (across, up)) in enumerate(series.items()):
        if across[0] is None or up[0] is None:
            continue
        bars = [[[abs(each[0] - each[1])], [abs(each[2] - each[0])]] for each in (across, up)]
        axes.errorbar(
            [across[0]], [up[0]], xerr=bars[0], yerr=bars[1], label=name, capsize=2,
            marker=_MARKS[number % len(_MARKS)], color=COLOURS[number % len(COLOURS)],
            linestyle="none", elinewidth=0.8, markersize=7,
        )  # fmt: skip
    if line is not None:
        axes.axvline(line, color="0.5", linestyle="--", linewidth=1, label=line_label)
    _finish(figure, axes, title, x, y)
    return _png(figure)


def clouds(
    groups: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    *,
    title: str,
    x: str,
    y: str,
    names: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Draws many points: the first name gives the colour, the second the mark, and the third number the area.

    Args:
      groups: (x, y, size) of every point, by colour and by mark; a legend shows both.
      title: of the figure.
      x: the label of the horizontal axis.
      y: the label of the vertical axis.
      names: places of single points, by the names that are written beside them.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    marks = list(dict.fromkeys(mark for group in groups.values() for mark in group))
    largest = max(
        point[2] for group in groups.values() for points in group.values() for point in points
    )
    for number, (name, group) in enumerate(groups.items()):
        axes.plot([], [], "o", color=COLOURS[number % len(COLOURS)], label=name)
        for mark, points in group.items():
            across, up, size = np.asarray(points).T
            axes.scatter(
                across, up, s=15 + 150 * size / largest, color=COLOURS[number % len(COLOURS)],
                marker=_MARKS[marks.index(mark) % len(_MARKS)], alpha=0.7, linewidths=0,
            )  # fmt: skip
    for number, mark in enumerate(marks):
        axes.plot([], [], _MARKS[number % len(_MARKS)], color="0.4", label=mark)
    if names:
        axes.margins(y=0.2)  # They hang below their points.
    for name, place in (names or {}).items():
        axes.annotate(
            name, place, (3, -5), textcoords="offset points", fontsize=8, rotation=-60, va="top",
            rotation_mode="anchor",
        )  # fmt: skip
    _finish(figure, axes, title, x, y)
    return _png(figure)


def strips(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    *,
    columns: int,
    title: str,
    y: str,
) -> bytes:
    """Draws every value as a point and the median of each strip as a bar.

    Args:
      panels: values by panel, by place on its horizontal axis, and by series, which has a colour.
      columns: panels in a row.
      title: of the figure.
      y: the label of the vertical axes.
    """
    rows = -(-len(panels) // columns)
    places = list(dict.fromkeys(place for panel in panels.values() for place in panel))
    series = list(
        dict.fromkeys(name for panel in panels.values() for own in panel.values() for name in own)
    )
    figure = Figure(figsize=(5.2 * columns, 4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    width = 0.8 / len(series)
    for axes, (name, panel) in zip(grid.flat, panels.items(), strict=False):
        for place, own in panel.items():
            for label, values in own.items():
                number = series.index(label)
                middle = places.index(place) + (number - (len(series) - 1) / 2) * width
                across = middle + width * np.linspace(-0.3, 0.3, len(values))
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(across, values, ".", color=colour, markersize=3, alpha=0.6)
                middles = [middle - width / 2, middle + width / 2]
                axes.plot(middles, [np.median(values)] * 2, color=colour, linewidth=2)
        axes.set_title(name)
        axes.set_xticks(range(len(places)), places, rotation=30, ha="right")
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    marks = [
        grid[0, 0].plot([], [], "s", color=COLOURS[number % len(COLOURS)])[0]
        for number in range(len(series))
    ]
    figure.legend(marks, series, loc="outside lower center", ncols=len(series))
    figure.suptitle(title)
    return _png(figure)


def curves(
    series: Mapping[str, Mapping[float, Interval]],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
) -> bytes:
    """Draws a line for every name, with its interval as a band.

    Args:
      series: (mean, low, high) by name, then by x.
      title: of the figure.
      x: the label of the horizontal axis.
      y: the label of the vertical axis.
      log: use a logarithmic x axis whose ticks are the values of x.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(series.items()):
        known = {at: three for at, three in values.items() if three[0] is not None}
        colour = COLOURS[number % len(COLOURS)]
        means, low, high = ([three[i] for three in known.values()] for i in range(3))
        mark = _MARKS[number % len(_MARKS)]
        axes.plot(list(known), means, label=name, color=colour, marker=mark, markersize=4)
        axes.fill_between(list(known), low, high, color=colour, alpha=0.15, linewidth=0)
    if log:
        ticks = sorted({at for values in series.values() for at in values})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    _finish(figure, axes, title, x, y)
    return _png(figure)


def growth(
    panels: Mapping[str, tuple[Mapping[float, Interval], Mapping[float, float]]],
    *,
    title: str,
    x: str,
) -> bytes:
    """Draws measured and expected growth, one panel for each quantity, with logarithmic axes.

    Args:
      panels: the measured (median, low, high) and the expected value at each x, by label.
      title: of the figure.
      x: the label of the horizontal axes.
    """
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    for axes, (label, (measured, expected)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        middle, low, high = zip(*measured.values(), strict=True)
        down = [abs(a - b) for a, b in zip(middle, low, strict=True)]
        up = [abs(b - a) for a, b in zip(middle, high, strict=True)]
        axes.plot(list(expected), list(expected.values()), "--", color="0.6", label="expected")
        axes.errorbar(
            list(measured), middle, yerr=[down, up], marker="o", capsize=2, color=COLOURS[0],
            label="measured",
        )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=label)
        axes.set_xticks(list(measured), [f"{at:g}" for at in measured])
        axes.minorticks_off()
        ends = [value for part in (expected.values(), middle) for value in part]
        ticks = np.geomspace(min(ends), max(ends), 4) if max(ends) > min(ends) else ends[:1]
        axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return _png(figure)


def bars(values: Mapping[str, Mapping[str, Interval]], *, title: str, y: str) -> bytes:
    """Draws groups of bars with intervals: (mean, low, high) by group, then by name."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        places, means, errors = [], [], []
        for place, group in enumerate(values.values()):
            mean, low, high = group.get(name, (None,) * 3)
            if mean is not None and low is not None and high is not None:
                places.append(place + (number - (len(names) - 1) / 2) * width)
                means.append(mean)
                errors.append((mean - low, high - mean))
        axes.bar(
            places, means, width, label=name, color=COLOURS[number % len(COLOURS)],
            yerr=[list(side) for side in zip(*errors, strict=True)] if errors else None,
            error_kw={"elinewidth": 0.8},
        )  # fmt: skip
    axes.set_xticks(range(len(values)), list(values), rotation=20, ha="right")
    _finish(figure, axes, title, "", y)
    return _png(figure)


def stacks(
    values: Mapping[str, Mapping[str, float]], *, names: Sequence[str], title: str, x: str
) -> bytes:
    """Draws a bar for every group, made of its parts: numbers by group, then by one of `names`."""
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(values)), layout="constrained")
    axes = figure.subplots()
    ends = dict.fromkeys(values, 0.0)
    for number, name in enumerate(names):
        parts = [group.get(name, 0.0) for group in values.values()]
        if any(parts):
            axes.barh(
                list(values), parts, 0.6, left=list(ends.values()), label=name,
                color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
        ends = {group: end + part for (group, end), part in zip(ends.items(), parts, strict=True)}
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    _finish(figure, axes, title, x, "")
    return _png(figure)


def reliability(
    groups: Mapping[str, Sequence[tuple[float, float, float, float]]], *, title: str
) -> bytes:
    """Draws the observed success against the stated confidence: (stated, observed, low, high) of every bin."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as stated")
    for number, (name, bins) in enumerate(groups.items()):
        stated, observed, low, high = zip(*bins, strict=True)
        down = [a - b for a, b in zip(observed, low, strict=True)]
        up = [b - a for a, b in zip(observed, high, strict=True)]
        axes.errorbar(
            stated, observed, yerr=[down, up], label=name, marker="o", capsize=2,
            color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _finish(figure, axes, title, "confidence", "share of edits that were right")
    return _png(figure)


def heat_grid(
    picture: Float[np.ndarray, "height width 3"],
    maps: Mapping[str, Float[np.ndarray, "h w"]],
    *,
    title: str,
) -> bytes:
    """Draws a picture, and over a grey copy of it a heat map for every name, each from its least to its greatest value.

    Args:
      picture: in [-1, 1].
      maps: shares by name, of the picture's proportions.
      title: of the figure.
    """
    columns = min(len(maps) + 1, 5)
    rows = -(-(len(maps) + 1) // columns)
    height, width = picture.shape[:2]
    side = 2.2 * min(width / height, 1.6), 2.2 * min(width / height, 1.6) * height / width + 0.4
    figure = Figure(figsize=(columns * side[0], rows * side[1] + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = np.clip((picture + 1) / 2, 0, 1)
    extent = (0, width, height, 0)
    axes[0].imshow(shown, extent=extent)
    axes[0].set_title("picture", fontsize=10)
    for axis, (name, heat) in zip(axes[1:], maps.items(), strict=False):
        axis.imshow(shown.mean(axis=-1), cmap="gray", vmin=0, vmax=1, extent=extent)
        axis.imshow(heat, cmap="inferno", alpha=0.7, extent=extent)
        axis.set_title(f"{name}  ({heat.min():.1%} to {heat.max():.1%})", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    return _png(figure)


def _finish(figure: Figure, axes: Any, title: str, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    # Beside the axes, so that the legend covers no data.
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)


def _png(figure: Figure) -> bytes:
    with io.BytesIO() as buffer:
        # Without date and version, so that equal figures give equal files.
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        return buffer.getvalue()
