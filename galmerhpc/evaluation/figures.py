"""The figures of an evaluation: each function takes arrays and a path and writes a PNG and a PDF.

Colours are those of Okabe & Ito (2008), distinguishable with any colour vision; line styles and
markers differ as well, for printing in grey.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from galmerhpc import files
from galmerhpc.evaluation.summary import PREDICTORS
from galmerhpc.parameters import SPIN, Parameter, named

SUFFIXES = (".png", ".pdf")

# It logs every font table that goes into a PDF.
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
    "pdf.fonttype": 42,  # keep text as text
    "text.parse_math": False,  # names may have dollar signs
}

PREDICTOR_STYLES: dict[str, dict[str, Any]] = {
    "network": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "lookup": {"color": ORANGE, "marker": "s", "linestyle": "--"},
    "mean": {"color": GREY, "marker": "", "linestyle": ":"},
}
"""Style of each predictor in all figures: keywords of `Axes.plot`."""

_ON_SKY: dict[str, Any] = {"markerfacecolor": "white", "linewidth": 1.0}
"""Changes to the style for sky-like images, where both are in one panel."""

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
"""Up to this many true values are drawn one by one; more are drawn in as many bins."""

_FEW_TICKS = 8
"""Up to this many values each have their own tick."""

SHARES = colormaps["Blues"]
"""A single hue from light to dark: the same with any colour vision and in grey."""
DENSITY = LinearSegmentedColormap.from_list("density", SHARES(np.linspace(0.3, 1, 64)))
"""The same, but dark enough for a single image to be visible."""


def learning_curve(
    history: dict[str, NDArray[np.float64]], parameters: Sequence[str], path: Path, note: str
) -> None:
    """Draw training and validation errors against epoch, as the paper's figures 3 and 5.

    The last panel shows each parameter's MAE on validation images, not its R2: blocked validation
    covers a patch of directions with so little variance that R2 falls far below zero.

    Parameters
    ----------
    history : dict of ndarray, shape (epochs,)
        Columns of metrics.csv; undefined values are NaN. For a classification, accuracies are
        drawn instead of the MSE.
    parameters : sequence of str
        Names of the labels.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        (loss, mae), (second, each) = figure.subplots(2, 2, sharex=True)
        epoch = history["epoch"]
        classes = "training_binary_accuracy" in history

        def both(axes: Axes, key: str, title: str, ylabel: str) -> None:
            for column, style in (
                (f"training_{key}", _TRAINING),
                (f"validation_{key}", _VALIDATION),
            ):
                if column in history:
                    axes.plot(epoch, history[column], **style)
            axes.set(title=title, ylabel=ylabel)

        both(loss, "loss", "Loss", "loss on training targets")
        both(mae, "mae", "MAE, mean over parameters", "deg; spin as 0 or 1")
        if classes:
            both(second, "binary_accuracy", "Accuracy", "share correct")
            for column, style in (("training", _TRAINING), ("validation", _VALIDATION)):
                thin = {**style, "label": f"{column}, all parameters", "alpha": 0.5, "marker": ""}
                second.plot(epoch, history[f"{column}_all_accuracy"], **thin)
            for line in second.lines[:2]:
                line.set_label(f"{line.get_label()}, each class separately")
            second.set_ylim(0, 1.02)
        else:
            both(second, "mse", "MSE, mean over parameters", "deg²; spin as 0 or 1")
        for k, name in enumerate(parameters):
            style = _PARAMETER_STYLES[k % len(_PARAMETER_STYLES)]
            each.plot(epoch, history[f"validation_mae_{name}"], label=_title(named(name)), **style)
        each.set(title="MAE on validation images", ylabel="deg; spin as 0 or 1")
        for axes in (loss, mae, second, each):
            axes.legend()
            if not (classes and axes is second):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter("{x:g}")
        for axes in (second, each):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        save(figure, path, note)


def predicted_against_true(
    parameters: Sequence[str],
    true: NDArray[np.float64],
    predicted: NDArray[np.float64],
    path: Path,
    note: str,
) -> None:
    """Draw the density of predictions against true values, with median and central 68 %.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true, predicted : ndarray, shape (N, P)
        In the labels' units.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(true))  # cosmetic, so any seed will do
    with rc_context(STYLE):
        figure, panels = _panels(len(parameters))
        cells = []
        for k, (name, axes) in enumerate(zip(parameters, panels, strict=True)):
            parameter = named(name)
            x, y = true[:, k], predicted[:, k]
            centres, member = _bins(x)
            gap = np.diff(centres).min() if 1 < len(centres) < _DISTINCT else 0.0
            cells.append(axes.hexbin(
                x + gap * jitter, y, gridsize=45, mincnt=1, cmap=DENSITY, linewidths=0,
                rasterized=True,
            ))  # fmt: skip
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
        most = max(2.0, *(float(np.max(np.asarray(part.get_array()))) for part in cells))
        for part in cells:
            part.set_norm(LogNorm(1, most))
        bar = figure.colorbar(
            cells[0], ax=panels, label="images per cell", shrink=0.8, pad=0.02,
            ticks=LogLocator(subs=(1, 2, 5)), format="{x:g}",
        )  # fmt: skip
        bar.minorticks_off()
        _legend(figure, panels[0])
        save(figure, path, note)


def error_against(
    xlabel: str,
    x: NDArray[np.float64],
    parameters: Sequence[str],
    errors: dict[str, dict[str, NDArray[np.float64]]],
    sky_errors: dict[str, dict[str, NDArray[np.float64]]],
    path: Path,
    note: str,
) -> None:
    """Draw the mean absolute error of each predictor against a property of the views.

    Parameters
    ----------
    xlabel : str
        Label of that property.
    x : ndarray, shape (N,)
        Its value for each image.
    parameters : sequence of str
        Names of the labels.
    errors : dict of dict of ndarray, shape (N,)
        Absolute errors on clean images by name of `summary.PREDICTORS` and parameter.
    sky_errors : dict of dict of ndarray, shape (N,)
        Those on sky-like images, for the predictors and parameters to be shown.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    centres, member = _bins(x)
    counts = np.bincount(member, minlength=len(centres))
    with rc_context(STYLE):
        figure, panels = _panels(len(parameters))
        for name, axes in zip(parameters, panels, strict=True):
            parameter = named(name)

            def draw(of: dict[str, NDArray[np.float64]], name: str = name, axes: Axes = axes,
                     **style: Any) -> None:  # fmt: skip
                if name in of:
                    sums = np.bincount(member, weights=of[name], minlength=len(centres))
                    axes.plot(centres, sums / counts, **style)

            for predictor, of in errors.items():
                draw(of, label=PREDICTORS[predictor], **PREDICTOR_STYLES[predictor])
            for predictor, of in sky_errors.items():
                style = {**PREDICTOR_STYLES[predictor], **_ON_SKY}
                draw(of, label=f"{PREDICTORS[predictor]}, sky-like", **style)
            axes.set_title(_title(parameter))
            unit = f" ({parameter.unit})" if parameter.unit else ""
            axes.set(xlabel=xlabel, ylabel=f"mean absolute error{unit}", ylim=(0, None))
            if len(centres) <= _FEW_TICKS:
                axes.set_xticks(centres)
        _legend(figure, panels[0])
        save(figure, path, note)


def coverage(conditions: dict[str, dict[str, Any]], configured: int, path: Path, note: str) -> None:
    """Draw measured against nominal coverage of intervals, and the reliability of the spin.

    Parameters
    ----------
    conditions : dict
        Result of `conformal.halved_coverage` by name of the images' condition.
    configured : int
        Number of leading levels that are drawn with their scatter.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    spins = {name: found["spin"] for name, found in conditions.items() if found["spin"]}
    columns = len(conditions) + bool(spins)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.3 * columns, 4.3), layout="constrained")
        panels = figure.subplots(1, columns, squeeze=False)[0]
        for axes, (name, found) in zip(panels, conditions.items(), strict=False):
            levels = np.array(found["levels"])
            order = np.argsort(levels)
            for k, (parameter, part) in enumerate(found["parameters"].items()):
                style = _PARAMETER_STYLES[(k + 1) % len(_PARAMETER_STYLES)]
                held, scatter = np.array(part["coverage"]), np.array(part["scatter"])
                axes.plot(
                    levels[order], held[order], label=_title(named(parameter)), markersize=3,
                    **style,
                )  # fmt: skip
                first = slice(0, configured)
                axes.errorbar(
                    levels[first] + 0.008 * (k - 1), held[first], yerr=scatter[first], fmt="none",
                    ecolor=style["color"], capsize=3,
                )  # fmt: skip
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="ideal")
            axes.set(
                title=f"Intervals, {name}", xlabel="nominal coverage",
                ylabel="measured coverage", xlim=(0, 1), ylim=(0, 1.02), aspect="equal",
            )  # fmt: skip
            axes.legend(loc="upper left")
        if spins:
            axes = panels[-1]
            for (name, found), style in zip(spins.items(), (_VALIDATION, _TRAINING), strict=False):
                predicted, observed, images = (
                    np.array([part[key] for part in found["reliability"]])
                    for key in ("predicted", "observed", "images")
                )
                axes.plot(predicted, observed, **{**style, "label": name, "markersize": 2})
                axes.scatter(
                    predicted, observed, 150 * images / images.sum(), style["color"],
                    marker=style["marker"],
                )  # fmt: skip
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="ideal")
            axes.set(
                title="Spin (area of marks: images)",
                xlabel="predicted probability of retrograde",
                ylabel="share of retrograde", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                aspect="equal",
            )  # fmt: skip
            axes.legend(loc="upper left")
        save(figure, path, note)


def confusion(
    counts: dict[str, NDArray[np.int64]],
    ticks: Mapping[str, Sequence[str]],
    path: Path,
    note: str,
) -> None:
    """Draw confusion matrices: for each true class, the share of each predicted class.

    The row of a class without images is left empty.

    Parameters
    ----------
    counts : dict of ndarray, shape (K, K)
        Number of images by true (row) and predicted class, by parameter.
    ticks : dict of sequence of str
        The K classes' names, by parameter.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    with rc_context({**STYLE, "axes.grid": False}):
        figure, panels = _panels(len(counts))
        for axes, (name, matrix) in zip(panels, counts.items(), strict=True):
            total = matrix.sum(axis=1, keepdims=True)
            share = np.where(total > 0, matrix / np.maximum(total, 1), np.nan)
            shown = axes.imshow(share, cmap=SHARES, vmin=0, vmax=1)
            size, names = len(matrix), list(ticks[name])
            every = -(-size // 10)
            places = list(range(0, size, every))
            axes.set_xticks(places, names[::every], rotation=90 if size > _FEW_TICKS else 0)
            axes.set_yticks(places, names[::every])
            for row in range(size if size <= _FEW_TICKS else 0):
                for column in range(size if total[row] else 0):
                    dark = share[row, column] > 0.5
                    axes.text(
                        column, row, f"{100 * share[row, column]:.1f} %", ha="center", va="center",
                        color="white" if dark else "black", fontsize=9,
                    )  # fmt: skip
            axes.set(
                title=_title(named(name)), xlabel=f"predicted {_symbol(name)}",
                ylabel=f"true {_symbol(name)}",
            )  # fmt: skip
        figure.colorbar(shown, ax=panels, label="share of the true class", shrink=0.8)
        save(figure, path, note)


def grad_cam(
    images: NDArray[np.uint8],
    maps: NDArray[np.float32],
    columns: Sequence[str],
    rows: Sequence[str],
    path: Path,
    note: str,
) -> None:
    """Draw where the network looks: one column per image, with one map per parameter below it.

    Parameters
    ----------
    images : ndarray, shape (n, H, W, C), uint8
        Images.
    maps : ndarray, shape (n, P, H, W)
        `explain.grad_cam`, 0..1.
    columns : sequence of str
        Title of each image.
    rows : sequence of str
        Names of the P parameters.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    """
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(1.5 * len(images) + 1, 1.5 * (len(rows) + 1) + 1), layout="constrained"
        )
        grid = figure.subplots(len(rows) + 1, len(images), squeeze=False)
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[])
        for k, image in enumerate(images):
            grid[0, k].set_title(columns[k], fontsize=8.5)
            grey = image.mean(axis=-1)
            grid[0, k].imshow(grey, cmap="gray", vmin=0, vmax=255)
            for row, heat in enumerate(maps[k], 1):
                grid[row, k].imshow(grey, cmap="gray", vmin=0, vmax=255)
                shown = grid[row, k].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        for axes, name in zip(
            grid[:, 0], ["image", *(_title(named(n)) for n in rows)], strict=True
        ):
            axes.set_ylabel(name, fontsize=8.5)
        figure.colorbar(
            shown, ax=grid, label="influence on the estimate (relative)", shrink=0.6, pad=0.01
        )
        save(figure, path, note)


def geometry(path: Path) -> None:
    """Draw the definition of the parameters, as the paper's figure 1.

    Parameters
    ----------
    path : Path
        File to write, without suffix.
    """
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn])  # (3, 200)
    i, theta, phi = np.radians((40.0, 50.0, 60.0))
    tilt = np.array([[1, 0, 0], [0, np.cos(i), -np.sin(i)], [0, np.sin(i), np.cos(i)]])
    sight = np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        encounter, view = figure.subplots(1, 2, subplot_kw={"projection": "3d"})
        for axes in (encounter, view):
            axes.set_axis_off()
            axes.view_init(elev=22, azim=-58)
            axes.set_box_aspect((4, 4, 2.4), zoom=1.35)
            axes.plot_surface(
                *np.array([[[-2, 2], [-2, 2]], [[-2, -2], [2, 2]], [[0, 0], [0, 0]]]), color=GREY,
                alpha=0.1, linewidth=0,
            )  # fmt: skip
            axes.set(xlim=(-2, 2), ylim=(-2, 2), zlim=(-0.8, 1.6))
        _draw_encounter(encounter, circle, tilt, i)
        _draw_view(view, sight, theta, phi)
        save(figure, path)


def _draw_encounter(axes: Any, circle: NDArray[np.float64], tilt: Any, i: float) -> None:
    axes.set_title("The encounter: spin and inclination i")
    first, second = np.array([[-1.1], [0], [0]]), np.array([[1.1], [0], [0]])
    for centre, disc, color, name in (
        (first, 0.6 * circle, BLUE, "disc 1, in the plane of the orbit"),
        (second, 0.6 * tilt @ circle, VERMILION, "disc 2, tilted by i"),
    ):
        axes.plot(*(centre + disc), color=color, label=name)
    for centre, axis, color in ((first, (0, 0, 1.0), BLUE), (second, tilt[:, 2], VERMILION)):
        axes.quiver(*centre.ravel(), *axis, color=color, arrow_length_ratio=0.12)
    axes.quiver(*second.ravel(), 0, 0, 1, color=GREY, arrow_length_ratio=0.12, linestyle="--")
    arc = np.linspace(0, i, 30)
    axes.plot(0 * arc + 1.1, -0.7 * np.sin(arc), 0.7 * np.cos(arc), color="black")
    axes.text(1.1, -0.45, 0.9, "i", fontsize=12)
    way = np.linspace(-1.3, 1.3, 60)
    for side in (-1, 1):
        axes.plot(side * (0.5 + 0.6 * way**2), side * 1.4 * way, 0 * way, color=GREEN, linewidth=1)
    axes.quiver(0, 0, 0, 0, 0, 1.2, color=GREEN, arrow_length_ratio=0.1)
    axes.text(0.1, 0, 1.3, "orbit", color=GREEN)
    axes.text2D(
        0.02, 0.02, "prograde: disc 1 rotates with the orbit (spin 0)\n"
        "retrograde: against it (spin 1)", transform=axes.transAxes, fontsize=8.5,
    )  # fmt: skip
    axes.legend(loc="upper left", fontsize=8.5)


def _draw_view(axes: Any, sight: NDArray[np.float64], theta: float, phi: float) -> None:
    axes.set_title("The view: viewing angle θ and azimuth φ")
    axes.quiver(0, 0, 0, 0, 0, 1.5, color=GREEN, arrow_length_ratio=0.1)
    axes.text(-1.5, 0, 1.5, "normal of the orbit", color=GREEN)
    axes.quiver(0, 0, 0, 2, 0, 0, color=GREY, arrow_length_ratio=0.06)
    axes.text(0.5, -1.1, 0, "line of pericentre", color=GREY)
    axes.quiver(0, 0, 0, *(1.7 * sight), color=VERMILION, arrow_length_ratio=0.1)
    axes.text(*(1.75 * sight + (0.1, 0.1, -0.1)), "to the observer", color=VERMILION)
    ground = 1.7 * sight * (1, 1, 0)
    axes.plot(*np.transpose([(0, 0, 0), ground]), color=VERMILION, linestyle=":")
    axes.plot(*np.transpose([ground, 1.7 * sight]), color=VERMILION, linestyle=":")
    arc = np.linspace(0, theta, 30)
    flat = np.array([np.cos(phi), np.sin(phi)])
    axes.plot(
        0.8 * np.sin(arc) * flat[0], 0.8 * np.sin(arc) * flat[1], 0.8 * np.cos(arc), color="black"
    )
    axes.text(*(0.95 * np.array([np.sin(theta / 2) * flat[0], np.sin(theta / 2) * flat[1],
                                 np.cos(theta / 2)])), "θ", fontsize=12)  # fmt: skip
    arc = np.linspace(0, phi, 30)
    axes.plot(0.8 * np.cos(arc), 0.8 * np.sin(arc), 0 * arc, color="black")
    axes.text(0.95 * np.cos(phi / 2), 0.95 * np.sin(phi / 2), 0, "φ", fontsize=12)


def montage(
    images: NDArray[np.uint8],
    true: Sequence[str],
    predicted: Sequence[str],
    columns: int,
    path: Path,
    note: str,
    axes_names: tuple[str, str] | None = None,
) -> None:
    """Show images with true values top left and predictions bottom right (paper, figures 4, 8, 9).

    Parameters
    ----------
    images : ndarray, shape (n, H, W, C), uint8
        Images, in reading order; C is 1 or 3.
    true, predicted : sequence of str
        A text for each image (`montage_text`).
    columns : int
        Number of columns.
    path : Path
        File to write, without suffix.
    note : str
        A line under the figure.
    axes_names : tuple of str, optional
        What increases to the right and downwards.
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
            text = {"transform": axes.transAxes, "fontsize": 8.5, "bbox": box}
            axes.text(0.03, 0.97, above, color="white", ha="left", va="top", **text)
            axes.text(0.97, 0.03, below, color=YELLOW, ha="right", va="bottom", **text)
        if axes_names:
            figure.suptitle(f"{axes_names[0]}  →", fontsize=10)
            figure.supylabel(f"←  {axes_names[1]}", fontsize=10)
        save(figure, path, note)


def montage_text(parameters: Sequence[str], values: Sequence[float]) -> str:
    """Format labels as in the paper: ``P or R, i, phi, theta``.

    Angles are in whole degrees. A predicted spin is R above one half, otherwise P.

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
    """Return the key to a montage's texts; `above` is what is shown top left."""
    names = [
        "P prograde or R retrograde" if name == SPIN.name else _with_unit(named(name))
        for name in parameters
    ]
    return f"White, top left: {above}.  Yellow, bottom right: predicted.  {', '.join(names)}."


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels in two columns."""
    rows, columns = -(-count // 2), min(count, 2)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def _legend(figure: Figure, panel: Axes) -> None:
    """Draw one legend for all panels above them, where it hides no points."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _bins(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the centres of the non-empty bins, and the bin of each value."""
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


def _symbol(name: str) -> str:
    """Return a parameter's symbol and unit for a confusion matrix."""
    parameter = named(name)
    return f"{parameter.symbol} ({parameter.unit})" if parameter.unit else parameter.name


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Add the note below the figure and write ``PATH.png`` and ``PATH.pdf``."""
    # Text that is wrapped is measured as mathematics even if it is not drawn so.
    escaped = note.replace("$", r"\$")
    figure.supxlabel(escaped, fontsize=8.5, color=GREY, wrap=True, parse_math=True)
    for suffix in SUFFIXES:
        with files.atomic_path(path.with_name(path.name + suffix)) as temporary:
            figure.savefig(temporary)
