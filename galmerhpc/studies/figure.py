"""A study's figure: average errors, as the paper's figures 6 and 7, and those of each parameter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from galmerhpc.evaluation.figures import PREDICTOR_STYLES, STYLE, VERMILION, save
from galmerhpc.evaluation.summary import PREDICTORS
from galmerhpc.parameters import named
from galmerhpc.studies import power_law
from galmerhpc.studies.study import Study
from galmerhpc.studies.table import Row

_TRAINING: dict[str, Any] = {
    "color": VERMILION, "marker": "^", "linestyle": "-.", "label": "network, training images",
}  # fmt: skip
_COLUMNS = 3


def draw(
    study: Study, rows: Sequence[Row], parameters: Sequence[str], path: Path, note: str
) -> None:
    """Draw errors against the quantity that a study varies.

    Parameters
    ----------
    study : Study
        The study.
    rows : sequence of dict
        Its table, with at least one row.
    parameters : sequence of str
        Labels, with one panel each; a point may lack one.
    path : Path
        File to write, without suffix.
    note : str
        Lines below the figure.
    """
    panels = [("mae", "", "average MAE"), ("mse", "", "average MSE")]
    panels += [("mae", f"_{name}", f"MAE of {name.replace('_', ' ')}") for name in parameters]
    lines = -(-len(panels) // _COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * _COLUMNS, 3.3 * lines + 0.8), layout="constrained")
        grid = figure.subplots(lines, _COLUMNS, squeeze=False, sharex=True).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (measure, suffix, title) in zip(grid, panels, strict=False):
            law = _panel(axes, study, rows, measure, suffix)
            unit = named(suffix[1:]).unit if suffix else "deg; spin as 0 or 1"
            unit = f"({unit.replace('deg', 'deg²') if measure == 'mse' else unit})" if unit else ""
            title = f"{title} {unit}".strip() + (f"\n{law}" if law else "")
            axes.set(title=title, xlabel=study.axis)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        save(figure, path, note)


def _panel(
    axes: Axes, study: Study, rows: Sequence[Row], measure: str, suffix: str
) -> power_law.PowerLaw | None:
    """Draw one measure for the network and the look-up; return the law that it shows.

    The mean predictor is left out, since it would hide the differences between points.
    """
    categories = study.scale == "categories"
    places = list(range(len(rows))) if categories else [row[study.column] for row in rows]
    line = {"linestyle": ""} if categories else {}
    for predictor in ("network", "lookup"):
        label, style = PREDICTORS[predictor], PREDICTOR_STYLES[predictor]
        values = _column(rows, f"{predictor}_{measure}{suffix}")
        axes.plot(places, values, label=label, **(style | line))
    if not suffix:
        axes.plot(places, _column(rows, f"training_{measure}"), **(_TRAINING | line))
    errors = _column(rows, f"network_{measure}{suffix}")
    if study.law:
        axes.set_yscale("log")  # makes a power law a straight line
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, None)
    law = power_law.fit(places, errors) if study.law else None
    if law:
        x = np.geomspace(min(places), max(places), 50)
        label = "power law fitted to the network"
        axes.plot(x, [law.at(v) for v in x], color="black", linewidth=0.8, label=label)
    if study.scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(places))
    texts = [
        str(row["point"]) if categories else f"{place:g}"
        for row, place in zip(rows, places, strict=True)
    ]
    long = max(map(len, texts)) > 6
    axes.set_xticks(places, texts, rotation=30 if long else 0, ha="right" if long else "center")
    axes.tick_params(labelbottom=True)
    return law


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [np.nan if row.get(name) is None else row[name] for row in rows]
