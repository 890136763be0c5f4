"""The report of an evaluation: one self-contained HTML file for screen, phone and print."""

import base64
import logging
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from galmerhpc import files
from galmerhpc.config import Config, differences, dump, load
from galmerhpc.errors import InputError
from galmerhpc.evaluation.conditions import CLEAN
from galmerhpc.evaluation.evaluate import FORMAT, REPORT, folder_of, intact, record_of
from galmerhpc.evaluation.gallery import CAPTIONS
from galmerhpc.evaluation.summary import (
    COLLISIONLESS,
    PREDICTORS,
    WHAT_IS_NEW,
    condition_name,
    conditions,
    describe_sample,
    interval,
    is_foreign,
    listed,
    lost_to_lookup,
    number,
    verdict,
)
from galmerhpc.parameters import NAMES, named

log = logging.getLogger(__name__)

PAPER = {"mae": 0.2012, "mse": 0.0833, "r2": 0.9986}
"""Test results of the paper's regression, means over its four outputs (arXiv:2112.12604)."""

PAPER_ACCURACY = 0.9363
"""Accuracy of the paper's classification; consistent with Keras's binary accuracy, which the paper
does not name."""

PAPER_ALWAYS_NO = 56 / 60
"""Binary accuracy of always saying no to the paper's 60 classes, of which four are true."""

MEASURES = {"mae": "Mean absolute error", "mse": "Mean squared error", "r2": "R²"}
"""Measures that the paper reports."""

DETAILS = {
    "rmse": "RMSE",
    "median_error": "median |error|",
    "p95_error": "95th percentile",
    "sky_mae": "MAE, sky-weighted",
    "sky_mse": "MSE, sky-weighted",
    "circular_mae": "MAE on the circle",
}
"""Further measures, for the network only."""

AXES = {
    "inclination_deg": "true inclination (deg)",
    "theta_deg": "true viewing angle θ (deg)",
    "phi_deg": "true azimuth φ (deg)",
    "time_myr": "time since pericentre (Myr)",
    "simulation": "realisation",
}
"""Quantities that errors are tabulated against."""

FEW_REALISATIONS = 4
"""With fewer evaluated realisations, the report warns that the sample is small."""

FEW_GROUPS = 10
"""With fewer encounters, bootstrap intervals and calibrations are themselves uncertain."""

PARTS = {
    "train": "Training",
    "validation": "Validation",
    "test": "Test",
    "none": "Guard band, unused",
}

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
thead th[colspan] { text-align: center; border-bottom: 1px solid #999; }
summary { cursor: pointer; font-weight: 600; }
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
               .scroll { overflow: visible; } th, td { padding: .1rem .25rem; }
               table { font-size: 7.5pt; } /* the widest ones fit A4 */
               details.tables::details-content { content-visibility: visible; block-size: auto; } }
"""

# Even if a hostile name got past the escaping, a browser would load and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Without it, browsers request /favicon.ico.
ICON = "data:,"


def report(
    config: Config,
    split: str | None = None,
    other: Config | None = None,
    beside: Sequence[Config] = (),
) -> Path:
    """Write ``report.html`` from an evaluation's files; called by rank 0.

    Parameters
    ----------
    config : Config
        The run.
    split, other
        Which of its evaluations, as passed to `evaluate.evaluate`.
    beside : sequence of Config
        Other evaluated runs whose results are shown beside this one's, for example a regressor's
        beside a classifier's.

    Returns
    -------
    Path
        Path of the report.

    Raises
    ------
    InputError
        A run has not been evaluated with this configuration.
    """
    metrics, made = _read(config, split, other)
    folder = folder_of(config, split, other)
    path = folder / REPORT
    names = [run.run_dir.name for run in beside]
    others = {
        str(run.run_dir) if names.count(name) > 1 else name: _read(run, split, other)[0]
        for name, run in zip(names, beside, strict=True)
    }
    figures = {
        name: (folder / f"{name}.png").read_bytes() for name in CAPTIONS if f"{name}.png" in made
    }
    given = differences(config, load(config.run_dir))
    files.write_text(path, page(config, metrics, figures, others, given))
    log.info("report: %s", path)
    return path


def _read(
    config: Config, split: str | None, other: Config | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a run's metrics.json and the files of its evaluation."""
    folder, record = folder_of(config, split, other), record_of(config, split, other)
    if not intact(record, folder):
        raise InputError(
            f"{folder}: missing, incomplete, modified or made with other keys; run galmerhpc "
            "evaluate first, with the same keys as this command"
        )
    metrics = files.read_json(folder / "metrics.json")
    if metrics["format"] != FORMAT:
        raise InputError(
            f"{folder / 'metrics.json'}: of format {metrics['format']}, not {FORMAT}: made by "
            "another version of galmerhpc; run galmerhpc evaluate again"
        )
    return metrics, record.files


def page(
    config: Config,
    metrics: dict[str, Any],
    figures: dict[str, bytes],
    others: dict[str, dict[str, Any]],
    given: Sequence[str] = (),
) -> str:
    """Return the report as HTML.

    Parameters
    ----------
    config : Config
        The run.
    metrics : dict
        Content of metrics.json.
    figures : dict of bytes
        Content of PNG files, by name of `gallery.CAPTIONS`.
    others : dict of dict
        Content of other runs' metrics.json, by name of the run.
    given : sequence of str
        Overrides that the evaluation was given (`config.differences`).
    """
    run = metrics["run"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>galmerhpc: {escape(run["name"])}</title>
<link rel="icon" href="{ICON}">
<style>{STYLE}</style>
</head>
<body>
<h1>galmerhpc: {escape(run["name"])}</h1>
<p class="lead">{escape(verdict(metrics))}</p>
{_list(warnings(metrics))}
<h2>Results</h2>
<p>On {escape(describe_sample(metrics))}.</p>
{results_table(metrics, others)}
<p class="note">{escape(paper_note(metrics))}</p>
{class_table(metrics)}
{detail_table(metrics)}
<h2>How far to trust a prediction</h2>
{coverage_table(metrics)}
<h2>Where the errors are</h2>
{"".join(breakdown_table(metrics, axis) for axis in AXES)}
<h2>What was trained</h2>
{_definitions(fact_rows(config, metrics))}
<h2>Figures</h2>
{"".join(_figure(figures[name], CAPTIONS[name]) for name in CAPTIONS if name in figures)}
<h2>How to reproduce it</h2>
<pre>{escape(commands(config, metrics, given))}</pre>
{_definitions(provenance_rows(metrics))}
<details><summary>Configuration</summary><pre>{escape(dump(config))}</pre></details>
</body>
</html>
"""


# --- texts ----------------------------------------------------------------------------------------


def warnings(metrics: dict[str, Any]) -> list[str]:
    """Return what a reader must know before using a figure of the report."""
    run, sample, found = metrics["run"], metrics["sample"], []
    if (metrics["data"] or run)["our_encounters"]:
        found.append(f"The images are {COLLISIONLESS}.")
    if run["evaluated"] == "all" and not is_foreign(metrics):
        found.append("The evaluated images include the training images.")
    only_validation = run["evaluated"] == "validation" and not run["samples"]["test"]
    if only_validation and not is_foreign(metrics):
        found.append(
            "There is no test split: as in the paper's regression, the validation images, which "
            "were monitored during training, serve as the test set."
        )
    if run["split"] == "random" and not is_foreign(metrics):
        found.append(
            "The split is random: nearly every evaluated view has training views one grid step "
            "away, so these figures measure interpolation between near-duplicates."
        )
    elif sample["trained_encounters"] > 0 and (run["split"] != "blocked" or is_foreign(metrics)):
        share = 100 * sample["trained_encounters"]
        found.append(
            f"{share:.3g} % of the evaluated images show encounters (same realisation, same "
            "configuration) of which other views were in the training set."
        )
    if metrics["data"] and (keys := metrics["data"]["drawn_otherwise"]):
        found.append(f"The images are drawn otherwise than those of training: {'; '.join(keys)}.")
    if unknown := sample["never_trained_configurations"]:
        found.append(f"Never trained on: {'; '.join(unknown)}.")
    if len(sample["simulations"]) < FEW_REALISATIONS:
        found.append(
            f"The sample is small: {_count(len(sample['simulations']), 'realisation')} of the "
            "encounters. Views of one realisation are not independent, and another realisation may "
            "give clearly different figures."
        )
    if sample["groups"] < FEW_GROUPS:
        encounters = _count(sample["groups"], "encounter")
        found.append(
            f"The 95 % intervals and the calibration are based on {encounters} (realisation x "
            "configuration), too few to be precise."
        )
    for condition, part in conditions(metrics).items():
        images = condition_name(condition, metrics)
        if lost := lost_to_lookup(part):
            found.append(f"On {images} the network loses to the look-up on: {listed(lost)}.")
        network, mean = (part["scores"][k]["parameters"] for k in ("network", "mean"))
        if useless := [n for n in network if network[n]["mae"] >= mean[n]["mae"]]:
            found.append(
                f"On {images} the network is no better than always predicting the mean on: "
                f"{listed(useless)}."
            )
    if not metrics["uncertainty"]:
        found.append("There are too few encounters to calibrate intervals.")
    return found


def paper_note(metrics: dict[str, Any]) -> str:
    """Return a note on how the paper's figures compare with these."""
    run, classes = metrics["run"], metrics["scores"]["network"].get("classes")
    images = (
        "our collisionless N-body encounters, not GalMer's"
        if (metrics["data"] or run)["our_encounters"]
        else "another data set"
    )
    accuracy = (
        "The labels predicted by a classifier are its classes' values or bin centres. Each class "
        "separately is Keras's binary accuracy, with which the paper's figure is consistent; a "
        f"network that always says no reaches {100 * classes['trivial_binary_accuracy']:.2f} %. "
        if classes
        else ""
    )
    return accuracy + (
        "MAE in degrees, spin as 0 or 1; averages are plain means over the parameters and mix "
        "these units. In brackets: 95 % intervals from a bootstrap over whole encounters. The "
        "look-up averages the labels of the most similar training images, which are made sky-like "
        "where the evaluated ones are. "
        "Paper: Mahor et al. 2021, arXiv:2112.12604, on a random split of GalMer "
        f"views one degree apart. Here: {images}, {describe_sample(metrics)}; "
        f"{_distance(metrics)}."
    )


def _distance(metrics: dict[str, Any]) -> str:
    """Return a phrase that says how near the evaluated views are to the training views."""
    distance = metrics["sample"]["nearest_training_view_deg"]
    if not distance:
        return "none of these configurations was trained on"
    return (
        "the nearest training view of the same configuration, in any realisation, is "
        f"{distance['median']:.2g}° (median; {distance['min']:.2g}° to {distance['max']:.2g}°) away"
    )


def fact_rows(config: Config, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was trained and on what data, as names and texts."""
    run, training, data = metrics["run"], metrics["training"], metrics["data"]
    height, width, channels = run["image_shape"]
    t = config.training
    names = [
        f"{_name(n)}" + (f" ({named(n).unit})" if named(n).unit else "") for n in run["parameters"]
    ]
    source = run["source"] + (f" ({COLLISIONLESS})" if run["our_encounters"] else "")
    splits = [
        (
            PARTS[name],
            f"{run['samples'][name]:,} images of {_realisations(run['simulations'][name])}",
        )
        for name in PARTS
        if run["samples"][name]
    ]
    other = (
        [
            (
                "Evaluated on",
                f"{describe_sample(metrics)}; {data['name']} is from {data['source']} and has "
                f"{data['samples']:,} images",
            )
        ]
        if data
        else []
    )
    sky = metrics["sky"]
    rate = training["images_per_s"]
    return [
        ("Network", f"{run['architecture']}, {config.model.task}, head {config.model.head}"),
        ("Parameters", ", ".join(names)),
        ("Images", f"{width} x {height} pixels, {_count(channels, 'channel')}, from {source}"),
        ("Split", f"{run['split']}: {WHAT_IS_NEW[run['split']]}"),
        *splits,
        *other,
        (
            "Optimisation",
            f"{training['epochs']} epochs, {training['steps']:,} steps of {t.batch_size} images "
            f"over all ranks, {training['seconds'] / 60:.1f} minutes"
            f"{f' at {rate:.0f} images/s' if rate else ''}; loss {t.loss}, {t.optimizer.kind} at "
            f"{t.peak_rate():g}, schedule {t.schedule.kind}",
        ),
        ("Augmentation", training["changes"]),
        *([("Sky-like", f"{sky['changes']}; drawn independently for each image")] if sky else []),
        (
            "Training errors",
            f"MAE {training['training_mae']:.4g}, MSE {training['training_mse']:.4g} "
            "in the last epoch",
        ),
    ]


def commands(config: Config, metrics: dict[str, Any], given: Sequence[str]) -> str:
    """Return the commands that reproduce the run, with the overrides of its evaluation."""
    data, split = metrics["data"], metrics["repeat"]["split"]
    folder = config.run_dir
    this = [
        str(folder),
        *given,
        *(["--data", data["folder"]] if data else []),
        *(["--split", "val" if split == "validation" else split] if split else []),
    ]
    whole = [f"{folder}/config.yaml", *given, f"run_dir={folder}-again"]
    return "\n".join(
        [
            "# rerun everything in a new folder (add mpirun or srun if you used it);",
            "# the configuration is given below",
            f"galmerhpc run {shlex.join(whole)}",
            "# repeat only the evaluation and this page",
            f"galmerhpc evaluate {shlex.join(this)}",
            f"galmerhpc report {shlex.join(this)}",
        ]
    )


def provenance_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
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


# --- tables ---------------------------------------------------------------------------------------


def results_table(metrics: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Return the table of the network, the baselines and the paper, one column each."""
    # Header, scores, and whether intervals are shown, per column.
    columns: list[tuple[str, dict[str, Any], bool]] = []
    spans = [("", 1)]
    for condition, part in conditions(metrics).items():
        own = [(label, part["scores"][k], k == "network") for k, label in PREDICTORS.items()]
        own += [
            (
                _beside(name, other, metrics, condition),
                conditions(other)[condition]["scores"]["network"],
                True,
            )
            for name, other in others.items()
            if condition in conditions(other)
        ]
        columns += own
        spans.append((f"{condition} images" if condition == CLEAN else "sky-like images", len(own)))
    spans.append(("paper", 1))

    def cell(values: dict[str, Any], metric: str, with_interval: bool) -> str:
        text = number(values.get(metric), metric)
        if with_interval and values.get(metric) is not None:
            text += f" [{interval(values['interval'][metric], metric)}]"
        return text

    # The paper's averages are over its four parameters in a regression.
    comparable = metrics["run"]["task"] == "regression"
    comparable &= metrics["run"]["parameters"] == list(NAMES)
    rows = []
    for metric, title in MEASURES.items():
        rows.append([title])
        for name in metrics["run"]["parameters"]:
            cells = [cell(s["parameters"].get(name, {}), metric, more) for _, s, more in columns]
            rows.append([_name(name), *cells, "-"])
        paper = f"{PAPER[metric]:.4f}" if comparable else "-"
        rows.append(["average", *(cell(s["average"], metric, m) for _, s, m in columns), paper])
    rows.append(["Accuracy: the nearest simulated value is the true one"])
    for name, values in metrics["scores"]["network"]["parameters"].items():
        if "accuracy" in values:
            shares = (s["parameters"].get(name, {}).get("accuracy") for _, s, _ in columns)
            rows.append([_name(name), *map(_percent, shares), "-"])
    heads = ["", *(head for head, _, _ in columns), "random split"]
    return _table("The network, the baselines and the paper", heads, rows, spans)


def _beside(name: str, other: dict[str, Any], metrics: dict[str, Any], condition: str) -> str:
    """Name another run's network, and add if it was evaluated on other images."""
    same = other["repeat"]["dataset"] == metrics["repeat"]["dataset"]
    same &= condition_name(condition, other) == condition_name(condition, metrics)
    same &= other["run"]["evaluated"] == metrics["run"]["evaluated"]
    return f"network of {name}{'' if same else ', on other images'}"


def class_table(metrics: dict[str, Any]) -> str:
    """Return the table of a classifier's accuracies; nothing for a regression."""
    if "classes" not in metrics["scores"]["network"]:
        return ""
    columns = [
        (label if condition == CLEAN else f"{label}, sky-like", part["scores"][k]["classes"])
        for condition, part in conditions(metrics).items()
        for k, label in PREDICTORS.items()
    ]
    rows = []
    for key, title in (
        ("accuracy", "The most probable class is the true one"),
        ("top3_accuracy", "The true class is among the three most probable"),
    ):
        rows.append([title])
        rows += [
            [_name(name), *(_percent(c[key].get(name)) for _, c in columns), "-"]
            for name in metrics["run"]["parameters"]
        ]
    # Binary accuracy depends on the number of classes; the paper has 60 for its four parameters.
    always_no = metrics["scores"]["network"]["classes"]["trivial_binary_accuracy"]
    comparable = metrics["run"]["parameters"] == list(NAMES)
    comparable &= math.isclose(always_no, PAPER_ALWAYS_NO)
    paper = [PAPER_ACCURACY, PAPER_ALWAYS_NO] if comparable else [None, None]
    rows += [
        ["All parameters together"],
        ["all parameters right", *(_percent(c["all_accuracy"]) for _, c in columns), "-"],
        [
            "each class separately",
            *(_percent(c["binary_accuracy"]) for _, c in columns),
            _percent(paper[0]),
        ],
        [
            "each class separately, always saying no",
            *(_percent(c["trivial_binary_accuracy"]) for _, c in columns),
            _percent(paper[1]),
        ],
    ]
    return _table("Classes", ["", *(head for head, _ in columns), "paper"], rows)


def detail_table(metrics: dict[str, Any]) -> str:
    """Return a table of further measures of the network for each parameter."""
    rows = []
    for condition, part in conditions(metrics).items():
        rows.append([condition_name(condition, metrics)])
        for name, values in part["scores"]["network"]["parameters"].items():
            rows.append([_name(name), *(number(values.get(m), m) for m in DETAILS)])
    note = (
        "Sky-weighted: views are weighted by sin θ, inclinations by a probability that grows as "
        "1 - cos i, as for pairs oriented at random in space."
    )
    return (
        _table("The network in detail", ["", *DETAILS.values()], rows)
        + f'<p class="note">{note}</p>'
    )


def coverage_table(metrics: dict[str, Any]) -> str:
    """Return the table of the intervals' nominal and measured coverage."""
    rows = []
    for condition, part in conditions(metrics).items():
        uncertainty = part["uncertainty"]
        if not uncertainty:
            continue
        found, carried = uncertainty["halvings"], uncertainty["carried"]
        rows.append([condition_name(condition, metrics)])
        for name, values in found["parameters"].items():
            for place, level in enumerate(found["levels"][: uncertainty["configured_levels"]]):
                held, scatter = (100 * values[key][place] for key in ("coverage", "scatter"))
                width = number(values["median_width"][place], "mae")
                elsewhere = "-"
                # Intervals of the run's own evaluation may be of other levels.
                if carried and name in carried["coverage"] and level in carried["levels"]:
                    its_place = carried["levels"].index(level)
                    elsewhere = _percent(carried["coverage"][name][its_place])
                rows.append(
                    [f"{_name(name)}, {100 * level:g} %", f"{held:.1f} ± {scatter:.1f} %",
                     f"{width} {named(name).unit}", elsewhere]
                )  # fmt: skip
        if spin := found["spin"]:
            rows.append(
                ["spin, calibrated probability", f"{100 * spin['accuracy']:.1f} % right",
                 f"Brier {spin['brier']:.3f}, log loss {spin['log_loss']:.3f}", "-"]
            )  # fmt: skip
    if not rows:
        return "<p>There are too few encounters to calibrate intervals.</p>"
    origins = {
        part["uncertainty"]["carried"]["from"]
        for part in conditions(metrics).values()
        if part["uncertainty"] and part["uncertainty"]["carried"]
    }
    note = (
        "Split-conformal intervals, scaled by the typical error at the predicted viewing angle; "
        "azimuth intervals are arcs. Measured coverage: mean and scatter over random halvings of "
        "the encounters, one half to calibrate, the other to test. It applies only to encounters "
        "and images like these."
        + (f" Transferred: calibrated on {', '.join(sorted(origins))}." if origins else "")
    )
    heads = ["nominal coverage", "measured coverage", "median width", "transferred coverage"]
    return _table("Intervals", heads, rows) + f'<p class="note">{escape(note)}</p>'


def breakdown_table(metrics: dict[str, Any], axis: str) -> str:
    """Return the tables of the errors against one property of the views, collapsed."""
    tables = []
    for condition, part in conditions(metrics).items():
        if not (entries := part["by"].get(axis)):
            continue
        names = list(entries[0]["network"])
        spans = [("", 2), *((_name(name), 2) for name in names)]
        heads = [AXES[axis], "images", *(["network", "look-up"] * len(names))]
        rows = []
        for entry in entries:
            low, high = entry["from"], entry["to"]
            cells = [f"{low:g}" if low == high else f"{low:g} to {high:g}", f"{entry['images']:,}"]
            for name in names:
                for predictor in ("network", "lookup"):
                    error = entry[predictor][name]
                    bias = number(error["bias"], "mae")
                    cells.append(f"{number(error['mae'], 'mae')} ({bias})")
            rows.append(cells)
        caption = f"MAE and, in brackets, bias; {condition_name(condition, metrics)}"
        tables.append(_table(caption, heads, rows, spans))
    if not tables:
        return ""
    summary = f"<summary>Against {escape(AXES[axis])}</summary>"
    return f'<details class="tables">{summary}{"".join(tables)}</details>\n'


# --- pieces of HTML, every string escaped here ----------------------------------------------------


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    spans: Sequence[tuple[str, int]] = (),
) -> str:
    """Return a table.

    A row of one cell is a heading for the rows below it; `spans` are headings over several columns.
    """
    over = "".join(f'<th colspan="{count}">{escape(text)}</th>' for text, count in spans)
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f'<tr><th colspan="{len(heads)}">{escape(row[0])}</th></tr>\n'
        if len(row) == 1
        else "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n'
        f"<thead>{f'<tr>{over}</tr>' if over else ''}<tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


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
