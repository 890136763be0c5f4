"""metrics.json in words: the table that a command ends with, and who wins."""

import textwrap
from collections.abc import Sequence
from typing import Any

from galmerhpc.evaluation.conditions import CLEAN, SKY
from galmerhpc.parameters import SPIN

PREDICTORS = {"network": "network", "lookup": "look-up", "mean": "mean predictor"}
"""What is scored, and what it is called."""

WHAT_IS_NEW = {
    "simulation": "realisations of their own, which training never saw",
    "blocked": "tiles of views that training never saw",
    "inclination": "an inclination that training never saw",
    "random": "views drawn at random, whose near neighbours were trained on",
}
"""What sets the evaluated images apart from the training images, by kind of split."""

SHORT_TRAINING = 400_000
"""Images seen; up to here the error of networks on our images fell as a power of that number."""

COLLISIONLESS = "our collisionless N-body, not GalMer; its gas is a collisionless disc"
"""What the mirror's images show; said wherever they appear."""


def conditions(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was found by condition of the images: clean, and sky-like where that was done."""
    return {CLEAN: metrics} | ({SKY: metrics["sky"]} if metrics["sky"] else {})


def condition_name(condition: str, metrics: dict[str, Any]) -> str:
    """Name a condition for a reader."""
    if condition == CLEAN:
        return "clean images"
    return f"sky-like images ({metrics['sky']['changes']})"


def describe_sample(metrics: dict[str, Any]) -> str:
    """Say in one phrase which images were evaluated."""
    run, sample = metrics["run"], metrics["sample"]
    name = "" if run["evaluated"] == "all" else f"{run['evaluated']} "
    count = f"{sample['images']:,} {name}images"
    if metrics["data"]:
        return f"{count} of {metrics['data']['name']} (other data than the training's)"
    if run["evaluated"] == "all":
        return f"{count}, those of training too"
    new = what_is_new(run)
    if run["evaluated"] == "validation" and not run["samples"]["test"]:
        return (
            f"{count} (split {run['split']}: {new}; there is no test split, so validation serves)"
        )
    return f"{count} (split {run['split']}: {new})"


def what_is_new(run: dict[str, Any]) -> str:
    """Say what sets the evaluated images apart from the training images.

    Where realisations or inclinations are too few to hold some out for validation, tiles are.
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
            lines += ["", *textwrap.wrap(f"The same as {condition_name(condition, metrics)}:", 88)]
        lines += _condition_lines(found)
    unit = "MAE in degrees, spin as 0 or 1; the average is the plain mean over parameters."
    return "\n".join([*lines, "", unit, *textwrap.wrap(verdict(metrics), 88)])


def _condition_lines(found: dict[str, Any]) -> list[str]:
    """Return the tables of one condition of the images."""
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
        f"Binary: every class by itself, as Keras counts; always no is {100 * trivial:.2f} %.",
    ]


def _coverage_lines(uncertainty: dict[str, Any] | None) -> list[str]:
    """Return what intervals promise and hold, with the scatter over halvings."""
    if not uncertainty or not uncertainty["halvings"]["parameters"]:
        return []
    found = uncertainty["halvings"]
    names = list(found["parameters"])
    lines = ["", _row("intervals hold", names)]
    for place, level in enumerate(found["levels"][: uncertainty["configured_levels"]]):
        cells = [
            f"{100 * part['coverage'][place]:.1f} ± {100 * part['scatter'][place]:.1f}"
            for part in found["parameters"].values()
        ]
        lines.append(_row(f"  of {100 * level:g} %", cells, names))
    return lines


def _row(label: str, cells: Sequence[str], heads: Sequence[str] | None = None) -> str:
    widths = [max(len(head), 11) for head in heads or cells]
    return f"{label:14}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=False))


def number(value: float | None, metric: str) -> str:
    """Write a figure of metrics.json for a table; a dash where it is not defined."""
    if value is None:
        return "-"
    if metric == "r2" or abs(value) < 1:
        return f"{round(value, 3) + 0.0:.3f}"  # 0.0: no negative zero
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def interval(bounds: Sequence[float | None], metric: str) -> str:
    """Write an interval of metrics.json for a table; a hyphen where it is not defined."""
    if None in bounds:
        return "-"
    texts = [number(bound, metric) for bound in bounds]
    return (", " if "-" in "".join(texts) else "\N{EN DASH}").join(texts)  # no dash beside a minus


def lost_to_lookup(found: dict[str, Any]) -> list[str]:
    """Return the names of the parameters whose MAE the look-up makes smaller than the network.

    Parameters
    ----------
    found : dict
        One of `conditions`.
    """
    return [name for name, part in found["against_lookup"].items() if part["mae_difference"] > 0]


def unclear(found: dict[str, Any]) -> list[str]:
    """Return the names of the parameters where the 95 % interval leaves open who is better.

    One encounter has no interval, and says nothing of others.
    """
    return [
        name
        for name, part in found["against_lookup"].items()
        if None in part["interval"] or part["interval"][0] <= 0 <= part["interval"][1]
    ]


def listed(names: Sequence[str]) -> str:
    """Write names as in ``spin, azimuth and viewing angle``."""
    words = [name.replace("_", " ") for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def verdict(metrics: dict[str, Any]) -> str:
    """Say whether the network beats the look-up on clean and on sky-like images, and why not."""
    texts = [_verdict_of(condition, found) for condition, found in conditions(metrics).items()]
    if set(lost_to_lookup(metrics)) - set(unclear(metrics)):
        texts.insert(1, _why(metrics))
    if metrics["sky"] and not metrics["training"]["sky_like"]:
        texts.append("The network was trained on images without such changes (training.augment).")
    return " ".join(filter(None, texts))


def _verdict_of(condition: str, found: dict[str, Any]) -> str:
    images = "sky-like images" if condition == SKY else "clean images"
    names, lost, open_ = list(found["against_lookup"]), lost_to_lookup(found), unclear(found)
    if not lost:
        text = f"The network beats the look-up on every parameter of {images}"
    elif len(lost) == len(names):
        text = f"The look-up beats the network on every parameter of {images}"
    else:
        won = [name for name in names if name not in lost]
        text = (
            f"The look-up beats the network on {listed(lost)} of {images}, the network the look-up "
            f"on {listed(won)}"
        )
    return text + (f" (not clearly on {listed(open_)})." if open_ else ".")


def _why(metrics: dict[str, Any]) -> str:
    """Say what lets the look-up win on clean images, as far as the run's facts tell."""
    training, run = metrics["training"], metrics["run"]
    images = training["epochs"] * run["samples"]["train"]
    seen = f"{training['epochs']} epochs of {run['samples']['train']:,} images"
    if images < SHORT_TRAINING:
        return (
            "The look-up has only to find what is most like an image at the same roll, while "
            f"{training['seconds'] / 60:.0f} minutes ({seen}) of {run['architecture']} end long "
            "before its error does."
        )
    if len(lost_to_lookup(metrics)) < len(metrics["against_lookup"]):
        return ""
    return f"After {seen} the network has learned nothing there that is worth a GPU."
