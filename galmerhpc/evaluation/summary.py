"""metrics.json in words: the table that evaluation prints, and the verdict."""

import textwrap
from collections.abc import Sequence
from typing import Any

from galmerhpc.evaluation.conditions import CLEAN, SKY
from galmerhpc.parameters import SPIN

PREDICTORS = {"network": "network", "lookup": "look-up", "mean": "mean predictor"}
"""What is scored, and its name for a reader."""

WHAT_IS_NEW = {
    "simulation": "realisations never seen in training",
    "blocked": "tiles of views never seen in training",
    "inclination": "an inclination never seen in training",
    "random": "views drawn at random, with near neighbours in training",
}
"""How the evaluated images differ from the training images, by kind of split."""

SHORT_TRAINING = 400_000
"""Images seen in training; up to this number, our networks' error fell as a power of it."""

COLLISIONLESS = "our collisionless N-body encounters, not GalMer's; the gas is a collisionless disc"
"""What the mirror's images show; stated wherever they appear."""


def conditions(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the results by condition of the images: clean, and sky-like if evaluated."""
    return {CLEAN: metrics} | ({SKY: metrics["sky"]} if metrics["sky"] else {})


def condition_name(condition: str, metrics: dict[str, Any]) -> str:
    """Name a condition for a reader."""
    if condition == CLEAN:
        return "clean images"
    return f"sky-like images ({metrics['sky']['changes']})"


def is_foreign(metrics: dict[str, Any]) -> bool:
    """Return whether the evaluated images are of another data set than the training's."""
    return bool(metrics["data"]) and not metrics["data"]["own"]


def describe_sample(metrics: dict[str, Any]) -> str:
    """Return a phrase that says which images were evaluated."""
    run, sample = metrics["run"], metrics["sample"]
    name = "" if run["evaluated"] == "all" else f"{run['evaluated']} "
    count = f"{sample['images']:,} {name}images"
    if is_foreign(metrics):
        return f"{count} of {metrics['data']['name']} (not the training's data set)"
    if run["evaluated"] == "all":
        return f"{count}, including the training images"
    new = what_is_new(run)
    if run["evaluated"] == "validation" and not run["samples"]["test"]:
        return f"{count} (split {run['split']}: {new}; used because there is no test split)"
    return f"{count} (split {run['split']}: {new})"


def what_is_new(run: dict[str, Any]) -> str:
    """Return how the evaluated images differ from the training images.

    Where there are too few realisations or inclinations to hold some out for validation, tiles of
    views are held out.
    """
    validation, training = (set(run["simulations"][name]) for name in ("validation", "train"))
    if run["evaluated"] == "validation" and run["split"] != "random" and validation & training:
        return WHAT_IS_NEW["blocked"]
    return WHAT_IS_NEW[run["split"]]


def result_table(metrics: dict[str, Any]) -> str:
    """Return the results as text: the network, the look-up and the mean predictor, and a verdict.

    Parameters
    ----------
    metrics : dict
        Content of metrics.json.
    """
    lines = [describe_sample(metrics)]
    for condition, found in conditions(metrics).items():
        if condition != CLEAN:
            lines += ["", *textwrap.wrap(f"On {condition_name(condition, metrics)}:", 88)]
        lines += _condition_lines(found)
    unit = "MAE in degrees, spin as 0 or 1; the average is the plain mean over parameters."
    return "\n".join([*lines, "", unit, *textwrap.wrap(verdict(metrics), 88)])


def _condition_lines(found: dict[str, Any]) -> list[str]:
    """Return the tables for one condition of the images."""
    scores, lines = found["scores"], []
    names = list(scores["network"]["parameters"])
    for metric, title in (("mae", "MAE"), ("r2", "R2")):
        with_accuracy = metric == "mae" and SPIN.name in names
        heads = [*names, "average", *(["spin right"] if with_accuracy else [])]
        lines += ["", _row(title, heads)]
        for predictor, label in PREDICTORS.items():
            by_name, average = scores[predictor]["parameters"], scores[predictor]["average"]
            values = [*(by_name[name][metric] for name in names), average[metric]]
            cells = [number(value, metric) for value in values]
            if with_accuracy:
                cells.append(f"{100 * by_name[SPIN.name]['accuracy']:.1f} %")
            lines.append(_row(label, cells, heads))
            if predictor == "network" and metric == "mae":
                bounds = [
                    *(by_name[name]["interval"][metric] for name in names),
                    average["interval"][metric],
                ]
                cells = [interval(pair, metric) for pair in bounds]
                lines.append(_row("  95 %", cells, heads))
    if "classes" in scores["network"]:
        lines += _class_lines(scores, names)
    return lines + _coverage_lines(found["uncertainty"])


def _class_lines(scores: dict[str, Any], names: list[str]) -> list[str]:
    heads = [*names, "all of them", "binary"]
    lines = ["", _row("class right", heads)]
    for predictor, label in PREDICTORS.items():
        right = scores[predictor]["classes"]
        shares = [*right["accuracy"].values(), right["all_accuracy"], right["binary_accuracy"]]
        lines.append(_row(label, [f"{100 * share:.2f} %" for share in shares], heads))
    trivial = scores["network"]["classes"]["trivial_binary_accuracy"]
    return [
        *lines,
        f"Binary: each class separately, as Keras counts; always no gives {100 * trivial:.2f} %.",
    ]


def _coverage_lines(uncertainty: dict[str, Any] | None) -> list[str]:
    """Return the intervals' measured coverage, with its scatter over halvings."""
    if not uncertainty or not uncertainty["halvings"]["parameters"]:
        return []
    found = uncertainty["halvings"]
    names = list(found["parameters"])
    lines = ["", _row("coverage", names)]
    for place, level in enumerate(found["levels"][: uncertainty["configured_levels"]]):
        cells = [
            f"{100 * part['coverage'][place]:.1f} ± {100 * part['scatter'][place]:.1f}"
            for part in found["parameters"].values()
        ]
        lines.append(_row(f"{100 * level:g} % intervals", cells, names))
    return lines


def _row(label: str, cells: Sequence[str], heads: Sequence[str] | None = None) -> str:
    widths = [max(len(head), 11) for head in heads or cells]
    return f"{label:14}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=False))


def number(value: float | None, metric: str) -> str:
    """Format a number of metrics.json for a table; a hyphen where it is undefined."""
    if value is None:
        return "-"
    if metric == "r2" or abs(value) < 1:
        return f"{round(value, 3) + 0.0:.3f}"  # 0.0: no negative zero
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def interval(bounds: Sequence[float | None], metric: str) -> str:
    """Format an interval of metrics.json for a table; a hyphen where it is undefined."""
    if None in bounds:
        return "-"
    texts = [number(bound, metric) for bound in bounds]
    return (", " if "-" in "".join(texts) else "\N{EN DASH}").join(texts)  # no dash beside a minus


def lost_to_lookup(found: dict[str, Any]) -> list[str]:
    """Return the parameters on which the look-up has a smaller MAE than the network.

    Parameters
    ----------
    found : dict
        One of `conditions`.
    """
    return [name for name, part in found["against_lookup"].items() if part["mae_difference"] > 0]


def unclear(found: dict[str, Any]) -> list[str]:
    """Return the parameters for which the 95 % interval does not decide which is better.

    A single encounter has no interval, and says nothing about others.
    """
    return [
        name
        for name, part in found["against_lookup"].items()
        if None in part["interval"] or part["interval"][0] <= 0 <= part["interval"][1]
    ]


def listed(names: Sequence[str]) -> str:
    """Join names, as in ``spin, azimuth and viewing angle``."""
    words = [name.replace("_", " ") for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def verdict(metrics: dict[str, Any]) -> str:
    """Return a text that says whether the network beats the look-up, and if not, why."""
    texts = [_verdict_of(condition, found) for condition, found in conditions(metrics).items()]
    if set(lost_to_lookup(metrics)) - set(unclear(metrics)):
        texts.insert(1, _why(metrics))
    if metrics["sky"] and not metrics["training"]["sky_like"]:
        texts.append("The network was not trained on sky-like images (training.augment).")
    return " ".join(filter(None, texts))


def _verdict_of(condition: str, found: dict[str, Any]) -> str:
    images = "On sky-like images" if condition == SKY else "On clean images"
    names, lost, open_ = list(found["against_lookup"]), lost_to_lookup(found), unclear(found)
    if not lost:
        text = f"{images} the network beats the look-up on every parameter"
    elif len(lost) == len(names):
        text = f"{images} the look-up beats the network on every parameter"
    else:
        won = [name for name in names if name not in lost]
        text = (
            f"{images} the look-up beats the network on {listed(lost)}, and the network the "
            f"look-up on {listed(won)}"
        )
    return text + (f" (not clearly on {listed(open_)})." if open_ else ".")


def _why(metrics: dict[str, Any]) -> str:
    """Return why the look-up wins on clean images, as far as it is known."""
    training, run = metrics["training"], metrics["run"]
    images = training["epochs"] * run["samples"]["train"]
    seen = f"{training['epochs']} epochs of {run['samples']['train']:,} images"
    if images < SHORT_TRAINING:
        return (
            "At a known roll the look-up only has to find the most similar image; "
            f"{seen} in {training['seconds'] / 60:.0f} minutes is far too little training for "
            f"{run['architecture']} to converge."
        )
    if len(lost_to_lookup(metrics)) < len(metrics["against_lookup"]):
        return ""
    return f"After {seen} the network is still worse there than a look-up that learns nothing."
