"""The report of an evaluation: one HTML file that loads nothing, for screen, phone and print."""

import base64
import logging
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from galmerhpc import files
from galmerhpc.config import Config, dump
from galmerhpc.errors import InputError
from galmerhpc.evaluation.evaluate import (
    COLLISIONLESS,
    REPORT,
    WHAT_IS_NEW,
    describe_sample,
    intact,
    lost_to_lookup,
    number,
    verdict,
)
from galmerhpc.evaluation.figures import PREDICTORS
from galmerhpc.parameters import named

log = logging.getLogger(__name__)

PAPER = {"mae": 0.2012, "mse": 0.0833, "r2": 0.9986}
"""The test figures of the paper's regression, means over its four outputs (arXiv:2112.12604)."""

PAPER_ACCURACY = 0.9363
"""That of the paper's classification, without a name; Keras's binary accuracy fits (inferred)."""

MEASURES = {"mae": "Mean absolute error", "mse": "Mean squared error", "r2": "R²"}
"""The measures that the paper gives."""

FEW_REALISATIONS = 4
"""Below this number of evaluated realisations, the report warns of the small sample."""

PARTS = {
    "train": "Training",
    "validation": "Validation",
    "test": "Test",
    "none": "Guard band, unused",
}

CAPTIONS = {
    "montage": "Images with true values (white, top left) and the network's predictions (yellow, "
    "bottom right), as the paper prints them: P or R, i, φ, θ; angles in degrees.",
    "predicted_against_true": "Every prediction of the network over its true value. Points are "
    "spread sideways a little where true values repeat. Black: median and central 68 %.",
    "error_against_theta": "Mean absolute error against the viewing angle, for the network and the "
    "two baselines. θ = 0 looks down on the orbit, 90 along its plane.",
    "learning_curve": "Loss, MAE and MSE in training and validation, and R² on validation images, "
    "against epoch. The MAE and MSE panels are the paper's figure 5.",
}
"""The figures in the report's order."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
       max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { font-size: 1.05rem; border-left: 4px solid #0072B2; padding-left: .8rem; }
.warnings { background: #fff6e0; border: 1px solid #e69f00; border-radius: 4px;
            padding: .6rem .8rem .6rem 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
td { white-space: nowrap; } tbody th { padding-top: .8rem; color: #555; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #555; } dd { margin: 0; min-width: 0; }
figure { margin: 1.5rem 0; break-inside: avoid; } figure img { width: 100%; height: auto; }
figcaption, .note { font-size: .9rem; color: #444; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: .85rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; }
                            dd { margin-bottom: .5rem; }
                            figure img { width: 46rem; } }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } pre { white-space: pre-wrap; }
               .scroll { overflow: visible; } th, td { padding: .15rem .4rem; } }
"""

# Whatever a hostile name may bring past the escaping, a browser loads and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report(config: Config) -> Path:
    """Write ``evaluation/report.html`` from the evaluation's files; called by rank 0.

    Parameters
    ----------
    config : Config
        The run.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    InputError
        The run has not been evaluated with this configuration.
    """
    folder = config.run_dir / "evaluation"
    if not intact(files.StageRecord(folder, config.inputs("evaluate")), folder):
        raise InputError(f"{folder}: missing, unfinished or changed; run galmerhpc evaluate first")
    path = folder / REPORT
    metrics = files.read_json(folder / "metrics.json")
    figures = {name: (folder / f"{name}.png").read_bytes() for name in CAPTIONS}
    files.write_text(path, page(config, metrics, figures))
    log.info("report: %s", path)
    return path


def page(config: Config, metrics: dict[str, Any], figures: dict[str, bytes]) -> str:
    """Return the report.

    Parameters
    ----------
    config : Config
        The run.
    metrics : dict
        Content of metrics.json.
    figures : dict of bytes
        PNG files by name of `CAPTIONS`.
    """
    run = metrics["run"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>galmerhpc: {escape(run["name"])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>galmerhpc: {escape(run["name"])}</h1>
<p class="lead">{escape(verdict(metrics))}</p>
{_list(warnings(metrics))}
<h2>Results</h2>
<p>On {escape(describe_sample(metrics))}.</p>
{results_table(metrics)}
<p class="note">{escape(paper_note(metrics))}</p>
{detail_table(metrics)}
<h2>What was trained on what</h2>
{_definitions(facts(config, metrics))}
<h2>Figures</h2>
{"".join(_figure(figures[name], caption) for name, caption in CAPTIONS.items())}
<h2>To repeat it</h2>
<pre>{escape(commands(config, metrics))}</pre>
{_definitions(provenance(metrics))}
<details><summary>Configuration</summary><pre>{escape(dump(config))}</pre></details>
</body>
</html>
"""


# --- what it says ---------------------------------------------------------------------------------


def warnings(metrics: dict[str, Any]) -> list[str]:
    """Return what a reader must know before using a figure of the report."""
    run, scores = metrics["run"], metrics["scores"]
    found = []
    if run["source"] == "mirror":
        found.append(f"The images are {COLLISIONLESS}.")
    if run["evaluated"] == "validation":
        found.append(
            "There is no test split: the validation images, which training was watched on, serve "
            "as test, as in the paper's regression."
        )
    if run["split"] == "random":
        found.append(
            "The split is random: nearly every evaluated view has neighbours a step away among the "
            "training images, so these figures measure interpolation between near-copies."
        )
    realisations = len(run["simulations"][run["evaluated"]])
    if realisations < FEW_REALISATIONS:
        found.append(
            f"The sample is small: {_count(realisations, 'realisation')} of the encounters. Views "
            "of one are not independent, so another one may give clearly different figures."
        )
    if lost := lost_to_lookup(metrics):
        found.append(
            f"The network loses to a look-up without training on: {', '.join(map(_name, lost))}."
        )
    network, mean = (scores[k]["parameters"] for k in ("network", "mean"))
    if useless := [n for n in run["parameters"] if network[n]["mae"] >= mean[n]["mae"]]:
        found.append(
            "The network is no better than always answering the mean on: "
            f"{', '.join(map(_name, useless))}."
        )
    return found


def paper_note(metrics: dict[str, Any]) -> str:
    """Say how the paper's figures compare with these."""
    run, classes = metrics["run"], metrics["scores"]["network"].get("classes")
    images = (
        "our collisionless N-body, not GalMer" if run["source"] == "mirror" else "another data set"
    )
    accuracy = (
        "The labels of a classification are its classes' values and bin centres. Every class by "
        "itself is Keras's binary accuracy, which the paper's figure fits; a network that always "
        f"says no has {100 * classes['trivial_binary_accuracy']:.2f} %. "
        if classes
        else ""
    )
    return accuracy + (
        "MAE in degrees, spin as 0 or 1; averages are plain means over the parameters and mix "
        "these units. Paper: Mahor et al. 2021, arXiv:2112.12604, on a random split of GalMer "
        f"views one degree apart. Here: {images}, on the split '{run['split']}' "
        f"({WHAT_IS_NEW[run['split']]})."
    )


def facts(config: Config, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was trained on what."""
    run, training = metrics["run"], metrics["training"]
    height, width, channels = run["image_shape"]
    t = config.training
    names = [
        f"{_name(n)}" + (f" ({named(n).unit})" if named(n).unit else "") for n in run["parameters"]
    ]
    source = (
        f"the mirror ({COLLISIONLESS}), library {config.library}"
        if run["source"] == "mirror"
        else run["source"]
    )
    splits = [
        (
            PARTS[name],
            f"{run['samples'][name]:,} images of {_realisations(run['simulations'][name])}",
        )
        for name in PARTS
        if run["samples"][name]
    ]
    return [
        ("Network", f"{run['architecture']}, {config.model.task}, head {config.model.head}"),
        ("Parameters", ", ".join(names)),
        ("Images", f"{width} x {height} pixels, {_count(channels, 'channel')}, from {source}"),
        ("Split", f"{run['split']}: {WHAT_IS_NEW[run['split']]}"),
        *splits,
        (
            "Work",
            f"{training['epochs']} epochs, {training['steps']:,} steps of {t.batch_size} images "
            f"over all ranks, {training['seconds'] / 60:.1f} minutes at "
            f"{training['images_per_s']:.0f} images/s; loss {t.loss}, {t.optimizer.kind} at "
            f"{t.peak_rate():g}, "
            f"schedule {t.schedule.kind}",
        ),
        (
            "Training errors",
            f"MAE {training['training_mae']:.4g}, MSE {training['training_mse']:.4g} "
            "in the last epoch",
        ),
    ]  # fmt: skip


def commands(config: Config, metrics: dict[str, Any]) -> str:
    """Return the commands that repeat the run."""
    ranks = metrics["repeat"]["machine"]["ranks"]
    launch = f"mpirun -np {ranks} " if ranks > 1 else ""
    return "\n".join(
        [
            "# the whole job, into a folder of its own; the configuration stands below",
            f"{launch}galmerhpc run {config.run_dir}/config.yaml run_dir={config.run_dir}-again",
            "# this page alone",
            f"galmerhpc evaluate {config.run_dir}",
            f"galmerhpc report {config.run_dir}",
        ]
    )


def provenance(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return hashes, versions and machine."""
    repeat = metrics["repeat"]
    host = repeat["machine"]
    return [
        ("Configuration", repeat["configuration"]),
        ("Data set", repeat["dataset"]),
        ("model.keras", repeat["model"]),
        (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in repeat["versions"].items()),
        ),
        (
            "Machine of the evaluation",
            f"{host['cpu']}, {_count(host['cpus'], 'CPU')}, {_count(host['ranks'], 'rank')}",
        ),
        ("Date", repeat["date"]),
    ]


# --- its tables -----------------------------------------------------------------------------------


def results_table(metrics: dict[str, Any]) -> str:
    """Return the table of the network, the baselines and the paper, a column each."""
    names, scores = metrics["run"]["parameters"], metrics["scores"]

    def row(name: str, values: Iterable[float | None], metric: str, paper: str = "-") -> list[str]:
        return [name, *(number(value, metric) for value in values), paper]

    rows = []
    for metric, title in MEASURES.items():
        by_name = [scores[predictor]["parameters"] for predictor in PREDICTORS]
        averages = (scores[predictor]["average"][metric] for predictor in PREDICTORS)
        rows.append([title])
        rows += [row(_name(n), (s[n][metric] for s in by_name), metric) for n in names]
        paper = "-" if "classes" in scores["network"] else f"{PAPER[metric]:.4f}"
        rows.append(row("average", averages, metric, paper))
    rows += _class_rows(scores) if "classes" in scores["network"] else _nearest_rows(scores)
    heads = ["", *(label for label, _ in PREDICTORS.values()), "paper"]
    return _table("The network, the baselines and the paper", heads, rows)


def _class_rows(scores: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a classification: how often classes are right."""
    by_predictor = [scores[predictor]["classes"] for predictor in PREDICTORS]

    def row(name: str, shares: Iterable[float], paper: str = "-") -> list[str]:
        return [name, *(f"{100 * share:.2f} %" for share in shares), paper]

    return [
        ["The class is the true one"],
        *(
            row(_name(parameter), (classes["accuracy"][parameter] for classes in by_predictor))
            for parameter in by_predictor[0]["accuracy"]
        ),
        row("all parameters of an image", (classes["all_accuracy"] for classes in by_predictor)),
        row(
            "every class by itself",
            (classes["binary_accuracy"] for classes in by_predictor),
            f"{100 * PAPER_ACCURACY:.2f} %",
        ),
    ]


def _nearest_rows(scores: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a regression: how often the nearest value that occurs is the true one."""
    rows = [["Nearest value is the true one"]]
    for name, network in scores["network"]["parameters"].items():
        if "accuracy" in network:
            shares = (scores[predictor]["parameters"][name]["accuracy"] for predictor in PREDICTORS)
            rows.append([_name(name), *(f"{100 * share:.1f} %" for share in shares), "-"])
    return rows


def detail_table(metrics: dict[str, Any]) -> str:
    """Return the network's table with more measures of each parameter."""
    by_name = metrics["scores"]["network"]["parameters"]
    columns = {
        "mae": "MAE",
        "rmse": "RMSE",
        "median_error": "median |error|",
        "p95_error": "95 % below",
        "sky_mae": "MAE, sky-weighted",
        "circular_mae": "MAE on the circle",
    }
    rows = [
        [_name(name), *(number(by_name[name].get(metric), metric) for metric in columns)]
        for name in metrics["run"]["parameters"]
    ]
    note = (
        "Sky-weighted: views count as sin θ and inclinations with a probability that grows as "
        "1 - cos i, as for pairs turned at random in space."
    )
    return (
        _table("The network in detail", ["", *columns.values()], rows)
        + f'<p class="note">{note}</p>'
    )


# --- pieces of HTML, every string escaped here ----------------------------------------------------


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a row of one cell is a heading over the rows that follow."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f'<tr><th colspan="{len(heads)}">{escape(row[0])}</th></tr>\n'
        if len(row) == 1
        else "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
    return f'<ul class="warnings">\n{items}</ul>' if texts else ""


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return (
        "<dl>\n"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in pairs)
        + "</dl>"
    )


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><div class="scroll"><img alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _name(parameter: str) -> str:
    return parameter.replace("_", " ")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _realisations(numbers: Sequence[int]) -> str:
    word = "realisation" if len(numbers) == 1 else "realisations"
    return f"{word} {', '.join(map(str, numbers))}"
