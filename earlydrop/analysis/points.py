"""Figures of paired differences: points with their 95% intervals, one row per arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.compare import metric_of
from earlydrop.analysis.panels import (
    DPI,
    GREY,
    LOOK,
    SMALL,
    SUBTITLE,
    WIDTH,
    add_title,
    legend_name,
)
from earlydrop.analysis.stats import Paired
from earlydrop.analysis.styles import styles

BARS = "bars: 95% intervals of the paired difference (Student's t)"


def differences_by_metric(
    found: Mapping[str, Mapping[str, Paired]],
) -> dict[str, dict[str, Paired]]:
    """The differences of `earlydrop.analysis.compare.differences`, by heading and then by arm."""
    by_metric: dict[str, dict[str, Paired]] = {}
    for arm, by_heading in found.items():
        for heading, point in by_heading.items():
            by_metric.setdefault(heading, {})[arm] = point
    return by_metric


def points_figure(
    by_heading: Mapping[str, Mapping[str, Paired]],
    arms: Sequence[str],
    title: str,
    subtitle: str,
) -> Figure:
    """Paired differences with their 95% intervals: one panel per metric, one row per arm.

    Args:
        by_heading: By heading of a metric, the difference of each arm.
        arms: All arms of the study, so that each looks the same in every figure.
        title: What is shown.
        subtitle: What was run.

    Returns:
        The figure.
    """
    look = styles(sorted(arms))
    rows = max(len(points) for points in by_heading.values())
    with mpl.rc_context(LOOK):
        height = (0.75 + 0.34 * rows) * len(by_heading) + 0.5
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        stacked = figure.subplots(len(by_heading), squeeze=False)
        for axes, (heading, points) in zip(stacked.ravel(), by_heading.items(), strict=True):
            _draw_points(axes, points, look)
            _name_points(axes, heading, titled=len(by_heading) > 1)
        add_title(figure, title, subtitle)
    return figure


def _draw_points(axes: Axes, points: Mapping[str, Paired], look: Mapping[str, Any]) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    for row, (arm, point) in enumerate(points.items()):
        bar = axes.errorbar(
            [point.effect],
            [row],
            xerr=[[point.effect - point.low], [point.high - point.effect]],
            capsize=3,
            markersize=6,
            **(look[arm] | {"linestyle": "none"}),
        )
        bar.lines[0].set_gid(f"point-{row}")
    names = [legend_name(arm, 22) for arm in points]
    axes.set_yticks(range(len(points)), names, fontsize=SMALL)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.grid(alpha=0.25, axis="x")


def words_of_heading(heading: str) -> str:
    """The heading of a column in words, such as "Test accuracy, at the end"."""
    metric = metric_of(heading)
    if metric is None:
        return heading
    when = "mean over the first fifth" if metric.column == "early" else "at the end"
    return f"{metric.label[:1].upper()}{metric.label[1:]}, {when}"


def _name_points(axes: Axes, heading: str, titled: bool) -> None:
    """Name the metric above its points, and say below which way is better."""
    if titled:
        axes.set_title(words_of_heading(heading), fontsize=10, loc="left")
    metric = metric_of(heading)
    if metric is not None and metric.better == "lower":
        axes.set_xlabel("\N{LEFTWARDS ARROW} better", loc="left", **SUBTITLE)
    elif metric is not None and metric.better == "higher":
        axes.set_xlabel("better \N{RIGHTWARDS ARROW}", loc="right", **SUBTITLE)


def draw_differences(
    found: Mapping[str, Mapping[str, Paired]],
    path: Path,
    subtitle: str = "",
) -> None:
    """Draw paired differences as points with their 95% intervals, against the arm without dropout.

    Args:
        found: By arm and heading, from `earlydrop.analysis.compare.differences`.
        path: The picture.
        subtitle: What was run.
    """
    start = f"{subtitle}; " if subtitle else ""
    figure = points_figure(
        differences_by_metric(found),
        list(found),
        title="Each arm minus the arm without dropout",
        subtitle=f"{start}mean over seeds, {BARS}",
    )
    with mpl.rc_context(LOOK):
        figure.savefig(path, dpi=DPI)
