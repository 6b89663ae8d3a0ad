"""The figure of a sensitivity, such as the loss against the learning rate: one curve per arm."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.arms import text
from earlydrop.analysis.plots import LOOK
from earlydrop.analysis.stats import interval
from earlydrop.analysis.styles import styles
from earlydrop.claims.declare import FIRST, Claim, Declaration, Study
from earlydrop.claims.differences import differences
from earlydrop.claims.summaries import Summaries
from earlydrop.metrics import METRICS


def draw_sensitivity(declaration: Declaration, summaries: Summaries, path: Path) -> list[str]:
    """Draw a panel for each claim about a sensitivity: the mean over seeds with its 95% interval.

    Args:
        declaration: A file of claims.
        summaries: The runs.
        path: The file to write the picture to.

    Returns:
        The fingerprints of the runs in the picture. Empty if no claim about a sensitivity has runs
        at two or more values of its setting; then no picture is written.
    """
    study = declaration.studies[declaration.main_study]
    claims = [claim for claim in declaration.claims if claim.sensitivity is not None]
    curves = {claim.id: _curves(claim, study, summaries) for claim in claims}
    drawn = [claim for claim in claims if max(map(len, curves[claim.id].values())) > 1]
    if not drawn:
        return []
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(4.4 * len(drawn), 4.0), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False).ravel()
        for axes, claim in zip(panels, drawn, strict=True):
            _draw_panel(axes, claim, curves[claim.id])
        panels[0].set_ylabel(f"{METRICS[drawn[0].metric].label}, final")
        panels[0].legend(frameon=False, fontsize=9)
        model, data = (study.config.get(f"{key}.name", "") for key in ("model", "data"))
        seeds = len(study.rounds[FIRST])
        figure.suptitle(
            f"{study.name}: {model} on {data}, n = {seeds}; bands are 95% intervals",
            fontsize=9,
            x=0.02,
            ha="left",
        )
        figure.savefig(path, dpi=130)
    runs = summaries.of(study.name)
    fingerprints: set[str] = set()
    for claim in drawn:
        fingerprints.update(differences(runs, study, claim, study.rounds[FIRST]).fingerprints)
    return sorted(fingerprints)


Curve = dict[float, list[float]]
"""The values of the metric, one per seed, for each value of the setting."""


def _curves(claim: Claim, study: Study, summaries: Summaries) -> dict[str, Curve]:
    """The curve of each arm, by its name."""
    sensitivity = claim.sensitivity
    if sensitivity is None:
        return {}
    names = study.arm(claim.arm).words, study.arm(claim.against).words
    curves: dict[str, Curve] = {names[1]: {}, names[0]: {}}
    runs = summaries.of(study.name)
    if runs.empty:
        return curves
    for value, part in zip(sensitivity.values, claim.parts, strict=True):
        measured = differences(runs, study, part, study.rounds[FIRST])
        for name, values in zip(names, (measured.arm, measured.against), strict=True):
            if values:
                curves[name][value] = list(values.values())
    return curves


def _draw_panel(axes: Axes, claim: Claim, curves: dict[str, Curve]) -> None:
    look = styles(sorted(curves))
    for arm, curve in curves.items():
        settings = np.array(sorted(curve))
        means, halves = np.array([interval(curve[value]) for value in settings]).reshape(-1, 2).T
        axes.plot(settings, means, label=arm, markersize=5, **look[arm])
        axes.fill_between(
            settings,
            means - halves,
            means + halves,
            color=look[arm]["color"],
            alpha=0.15,
            linewidth=0,
        )
    key = claim.sensitivity.key if claim.sensitivity is not None else ""
    axes.set_xscale("log", base=2)
    ticks = sorted(set().union(*curves.values()))
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xlabel(key)
    other_settings = []  # the settings of the arm that are not part of its schedule
    for name, value in claim.arm.items():
        if not name.startswith("schedule."):
            other_settings.append(f"{name}={text(value)}")
    axes.set_title(", ".join(other_settings) or "as in the study", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
