"""The figures of an evaluation: each takes arrays and a path, and writes a PNG and a PDF.

Colours are those of Okabe & Ito (2008), told apart with any colour vision; line styles and markers
differ as well, for print in grey.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from galmerhpc import files
from galmerhpc.parameters import SPIN, Parameter, named

SUFFIXES = (".png", ".pdf")

# It tells of every font table that goes into a PDF.
logging.getLogger("fontTools").setLevel(logging.WARNING)

BLUE, ORANGE, VERMILION, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#6b6b6b"
YELLOW = "#F0E442"

# Any: matplotlib 3.11 types the keys one by one, older releases as strings.
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text
}

# How each predictor is drawn, wherever it appears: label, then keywords of `Axes.plot`.
PREDICTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "network": ("network", {"color": BLUE, "marker": "o", "linestyle": "-"}),
    "lookup": ("look-up", {"color": ORANGE, "marker": "s", "linestyle": "--"}),
    "mean": ("mean predictor", {"color": GREY, "marker": "", "linestyle": ":"}),
}

_TRAINING: dict[str, Any] = {"color": ORANGE, "marker": "s", "linestyle": "--", "label": "training"}
_VALIDATION: dict[str, Any] = {
    "color": BLUE, "marker": "o", "linestyle": "-", "label": "validation",
}  # fmt: skip
_PARAMETER_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "o"},
    {"color": VERMILION, "marker": "s"},
    {"color": GREEN, "marker": "^"},
    {"color": ORANGE, "marker": "D"},
)

_DISTINCT = 40
"""True values up to this many are drawn one by one, more of them in as many bins."""


def learning_curve(
    history: dict[str, NDArray[np.float64]], parameters: Sequence[str], path: Path, note: str
) -> None:
    """Draw loss, MAE and MSE against epoch, as the paper's figure 5 does for the latter two.

    The fourth panel has each parameter's MAE on validation images. Not its R2: a blocked validation
    holds a patch of directions, whose angles vary so little that R2 falls far below zero.

    Parameters
    ----------
    history : dict of ndarray, shape (epochs,)
        Columns of metrics.csv; what is not defined is not a number.
    parameters : sequence of str
        Names of the labels.
    path : Path
        Where to write, without suffix.
    note : str
        A line under the figure.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        (loss, mae), (mse, each) = figure.subplots(2, 2, sharex=True)
        epoch = history["epoch"]
        loss.plot(epoch, history["training_loss"], **_TRAINING)
        if "validation_loss" in history:
            loss.plot(epoch, history["validation_loss"], **_VALIDATION)
        loss.set(title="Loss", ylabel="loss of the targets as trained")
        for axes, key, unit in ((mae, "mae", "deg"), (mse, "mse", "deg²")):
            axes.plot(epoch, history[f"training_{key}"], **_TRAINING)
            axes.plot(epoch, history[f"validation_{key}"], **_VALIDATION)
            axes.set(title=f"{key.upper()}, mean over parameters", ylabel=f"{unit}; spin as 0 or 1")
        for k, name in enumerate(parameters):
            style = _PARAMETER_STYLES[k % len(_PARAMETER_STYLES)]
            each.plot(epoch, history[f"validation_mae_{name}"], label=_title(named(name)), **style)
        each.set(title="MAE on validation images", ylabel="deg; spin as 0 or 1")
        for axes in (loss, mae, mse, each):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
            axes.legend()
        for axes in (mse, each):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(figure, path, note)


def predicted_against_true(
    parameters: Sequence[str],
    true: NDArray[np.float64],
    predicted: NDArray[np.float64],
    path: Path,
    note: str,
) -> None:
    """Draw every prediction over its true value, with median and central 68 % at each.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true, predicted : ndarray, shape (N, P)
        In the labels' units.
    path : Path
        Where to write, without suffix.
    note : str
        A line under the figure.
    """
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(true))  # looks only, so any seed does
    with rc_context(STYLE):
        figure, panels = _panels(len(parameters))
        for k, (name, axes) in enumerate(zip(parameters, panels, strict=True)):
            parameter = named(name)
            x, y = true[:, k], predicted[:, k]
            centres, member = _bins(x)
            gap = np.diff(centres).min() if 1 < len(centres) < _DISTINCT else 0.0
            axes.plot(
                x + gap * jitter, y, ".", color=BLUE, markersize=3, markeredgewidth=0,
                alpha=float(np.clip(400 / len(x), 0.03, 0.5)), rasterized=True,
            )  # fmt: skip
            axes.plot([], [], ".", color=BLUE, label="one image")  # visible in the legend
            low, middle, high = np.transpose(
                [np.percentile(y[member == b], (16, 50, 84)) for b in range(len(centres))]
            )
            axes.errorbar(
                centres, middle, yerr=(middle - low, high - middle), fmt="o", color="black",
                markersize=3.5, elinewidth=1, capsize=2, label="median, central 68 %",
            )  # fmt: skip
            ends = (x.min(), x.max())
            axes.plot(ends, ends, color=VERMILION, linewidth=1.2, label="predicted = true")
            mae, spread = np.abs(y - x).mean(), ((x - x.mean()) ** 2).mean()
            score = f"MAE {mae:.3g}{' ' if parameter.unit else ''}{parameter.unit}"
            if spread > 0:
                score += f"    R² {1 - ((y - x) ** 2).mean() / spread:.3f}"
            axes.set_title(f"{_title(parameter)}:  {score}")
            axes.set(
                xlabel=f"true {_with_unit(parameter)}", ylabel=f"predicted {_with_unit(parameter)}"
            )
            if parameter is SPIN:
                axes.set_xticks([0, 1])
        _legend(figure, panels[0])
        _finish(figure, path, note)


def error_against_theta(
    parameters: Sequence[str],
    theta: NDArray[np.float64],
    errors: dict[str, NDArray[np.float64]],
    path: Path,
    note: str,
) -> None:
    """Draw the mean absolute error of each predictor against the viewing angle.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    theta : ndarray, shape (N,)
        True viewing angle, degrees.
    errors : dict of ndarray, shape (N, P)
        Absolute errors by name of `PREDICTORS`.
    path : Path
        Where to write, without suffix.
    note : str
        A line under the figure.
    """
    centres, member = _bins(theta)
    counts = np.bincount(member, minlength=len(centres))
    with rc_context(STYLE):
        figure, panels = _panels(len(parameters))
        for k, (name, axes) in enumerate(zip(parameters, panels, strict=True)):
            parameter = named(name)
            for predictor, (label, style) in PREDICTORS.items():
                sums = np.bincount(member, weights=errors[predictor][:, k], minlength=len(centres))
                axes.plot(centres, sums / counts, label=label, **style)
            axes.set_title(_title(parameter))
            unit = f" ({parameter.unit})" if parameter.unit else ""
            axes.set(
                xlabel="true viewing angle θ (deg)",
                ylabel=f"mean absolute error{unit}",
                ylim=(0, None),
            )
        _legend(figure, panels[0])
        _finish(figure, path, note)


def montage(
    images: NDArray[np.uint8],
    true: Sequence[str],
    predicted: Sequence[str],
    columns: int,
    path: Path,
    note: str,
) -> None:
    """Show images with true values top left and predictions bottom right (paper, figures 4, 8, 9).

    Parameters
    ----------
    images : ndarray, shape (n, H, W, C), uint8
        Images, in reading order; C is 1 or 3.
    true, predicted : sequence of str
        A text for each image (`montage_text`).
    columns : int
        Images in a row.
    path : Path
        Where to write, without suffix.
    note : str
        A line under the figure.
    """
    rows = -(-len(images) // columns)
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0, compress=True)
        figure = Figure(figsize=(1.8 * columns, 1.8 * rows + 0.6), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        box = {"facecolor": "black", "alpha": 0.55, "pad": 1.2, "edgecolor": "none"}
        for axes, image, above, below in zip(grid, images, true, predicted, strict=False):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            text = {"transform": axes.transAxes, "fontsize": 8.5, "bbox": box, "parse_math": False}
            axes.text(0.03, 0.97, above, color="white", ha="left", va="top", **text)
            axes.text(0.97, 0.03, below, color=YELLOW, ha="right", va="bottom", **text)
        _finish(figure, path, note)


def montage_text(parameters: Sequence[str], values: Sequence[float]) -> str:
    """Write labels as the paper prints them: ``P or R, i, phi, theta``.

    Angles are in whole degrees. A predicted spin is named by the side of one half that it is on.

    Parameters
    ----------
    parameters : sequence of str
        Names of the labels.
    values : sequence of float
        Their values.

    Examples
    --------
    >>> montage_text(("spin", "inclination", "azimuth", "viewing_angle"), (0.93, 74.6, -0.2, 30))
    'R, 75, 0, 30'
    """
    texts = []
    for name, value in zip(parameters, values, strict=True):
        if name == SPIN.name:
            texts.append("R" if value > 0.5 else "P")
        elif named(name).unit == "deg":
            texts.append(str(round(value)))
        else:
            texts.append(f"{value:.3g}")
    return ", ".join(texts)


def montage_key(parameters: Sequence[str], above: str = "true") -> str:
    """Say what a montage's texts mean; `above` is what stands top left."""
    names = [
        "P prograde or R retrograde" if name == SPIN.name else _with_unit(named(name))
        for name in parameters
    ]
    return f"White, top left: {above}.  Yellow, bottom right: predicted.  {', '.join(names)}."


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, two in a row."""
    rows, columns = -(-count // 2), min(count, 2)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def _legend(figure: Figure, panel: Axes) -> None:
    """Write one legend for all panels above them, where it hides no point."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _bins(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the centres of the bins that hold values, and the bin of each value."""
    distinct, member = np.unique(values, return_inverse=True)
    if len(distinct) <= _DISTINCT:
        return distinct, member
    edges = np.linspace(distinct[0], distinct[-1], _DISTINCT + 1)
    index = np.clip(np.digitize(values, edges) - 1, 0, _DISTINCT - 1)
    used, member = np.unique(index, return_inverse=True)
    return (edges[used] + edges[used + 1]) / 2, member


def _title(parameter: Parameter) -> str:
    """Return a parameter's name and symbol, as in ``viewing angle θ``."""
    name = parameter.name.replace("_", " ")
    return name if parameter.symbol in (name, parameter.name) else f"{name} {parameter.symbol}"


def _with_unit(parameter: Parameter) -> str:
    """Return a parameter's symbol and unit for an axis."""
    if parameter is SPIN:
        return "spin (0 prograde, 1 retrograde)"
    return f"{parameter.symbol} ({parameter.unit})" if parameter.unit else parameter.symbol


def _finish(figure: Figure, path: Path, note: str) -> None:
    """Write the note under the figure and the figure to its files, each whole or not at all."""
    figure.supxlabel(note, fontsize=8.5, color=GREY, wrap=True)
    for suffix in SUFFIXES:
        with files.atomic_path(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary)
