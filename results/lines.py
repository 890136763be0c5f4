"""The lines of docs/results.md: their commands, what is read from the runs, and their targets."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from galmerhpc import files
from galmerhpc.config import load
from galmerhpc.evaluation.evaluate import read_history
from galmerhpc.evaluation.report import PAPER
from galmerhpc.evaluation.summary import PREDICTORS, condition_name, conditions
from galmerhpc.metrics import regression_metrics
from galmerhpc.parameters import decode_classes, encode_classes
from galmerhpc.studies import power_law, table

Metrics = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """A target.

    Attributes
    ----------
    what : str
        Name of the measured quantity.
    value : float
        Its measured value.
    sense : str
        ``<=`` or ``>=``.
    limit : float
        The threshold.
    """

    what: str
    value: float
    sense: str
    limit: float

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.limit if self.sense == "<=" else self.value >= self.limit


@dataclass
class Found:
    """Content of a line.

    Attributes
    ----------
    runs : list of dict
        metrics.json of the runs that it was read from.
    tables : dict
        Rows by caption.
    bars : list of Bar
        Targets.
    remarks : list of str
        Conclusions, in sentences.
    figures : dict
        Files without suffix, by caption.
    """

    runs: list[Metrics]
    tables: dict[str, Rows] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A result, required or optional.

    Attributes
    ----------
    number : int
        Its number.
    title : str
        What it shows.
    commands : tuple of str
        Commands that make it, run in the project's folder; each is resumable.
    read : callable
        Reads it from the folder of runs.
    must : bool
        Whether it is required.
    needs : tuple of str
        Required files in the project's folder that no command makes.
    """

    number: int
    title: str
    commands: tuple[str, ...]
    read: Callable[[Path], Found]
    must: bool = True
    needs: tuple[str, ...] = ()


# --- input ----------------------------------------------------------------------------------------


def metrics_of(run: Path, folder: str = "evaluation") -> Metrics:
    """Return what an evaluation measured."""
    return files.read_json(run / folder / "metrics.json")


def scores_table(part: Metrics, *more: dict[str, Any]) -> Rows:
    """Return MAE by parameter and averages, one row per predictor; `part` contains ``scores``."""
    rows = []
    for key, label in PREDICTORS.items():
        scores = part["scores"][key]
        by_name, average = scores["parameters"], scores["average"]
        row = {"": label, **{f"MAE {name}": by_name[name]["mae"] for name in by_name}}
        row |= {f"average {m.upper()}": average[m] for m in ("mae", "mse", "r2")}
        if "spin" in by_name:
            row["spin right"] = by_name["spin"]["accuracy"]
        rows.append(row)
    return [*rows, *more]


def mae(part: Metrics, predictor: str, name: str) -> float:
    """Return the MAE of one parameter."""
    return part["scores"][predictor]["parameters"][name]["mae"]


def wins(part: Metrics) -> list[str]:
    """Return the parameters on which the network beats the look-up."""
    names = part["scores"]["network"]["parameters"]
    return [n for n in names if mae(part, "network", n) < mae(part, "lookup", n)]


def points(study: Path) -> tuple[list[table.Row], list[Metrics]]:
    """Return a study's table, and metrics.json of its points."""
    rows = table.read(study / "results.csv")
    return rows, [metrics_of(study / row["point"]) for row in rows]


def study_found(runs: Path, *names: str, columns: Sequence[str] = ()) -> Found:
    """Return tables and figures of studies, ``RUN/studies/NAME`` each."""
    found = Found([])
    for name in names:
        run, _, study = name.partition("/studies/")
        rows, metrics = points(runs / name)
        caption = f"{study} on {run}"
        found.tables[caption] = [
            {
                study: row["point"],
                "training images": row["training_images"],
                "network MAE": row["network_mae"],
                "network MSE": row["network_mse"],
                "look-up MAE": row["lookup_mae"],
                **{column: row.get(column) for column in columns},
            }
            for row in rows
        ]
        found.runs += metrics
        found.figures[caption] = runs / name / "figure"
    return found


# --- the lines ------------------------------------------------------------------------------------


def random_split(runs: Path) -> Found:
    """Line 1."""
    metrics = metrics_of(runs / "random_split")
    average = metrics["scores"]["network"]["average"]
    lookup = metrics["scores"]["lookup"]["average"]["mae"]
    paper = {"": "the paper", **{f"average {m.upper()}": value for m, value in PAPER.items()}}
    return Found(
        [metrics],
        {"clean images, views drawn at random": scores_table(metrics, paper)},
        [
            Bar("average MAE", average["mae"], "<=", 0.6),
            Bar("average R2", average["r2"], ">=", 0.99),
        ],
        [
            f"A look-up among thumbnails, which learns nothing, has an average MAE of {lookup:.2f} "
            "here: with this split nearly every test view has training views one step away, so "
            "the result measures interpolation between near-duplicates.",
            *resumed(runs / "random_split", metrics["run"]["parameters"]),
        ],
        {
            "Predicted against true": runs / "random_split/evaluation/predicted_against_true",
            "Test images, true and predicted": runs / "random_split/evaluation/montage",
        },
    )


def resumed(run: Path, parameters: Sequence[str]) -> list[str]:
    """Return remarks on trainings that were resumed after their learning rate had reached 0."""
    history = read_history(run / "metrics.csv", parameters)
    epochs, errors = history["epoch"], history["validation_mae"]
    return [
        f"The training first ended after epoch {epochs[k]:.0f} (average MAE on validation "
        f"{errors[k]:.3f}, learning rate 0), and was then resumed with changed keys to epoch "
        f"{epochs[-1]:.0f} (after one more epoch {errors[k + 1]:.3f}). A run from scratch has a "
        "slower schedule and will not reproduce these figures exactly."
        for k in np.flatnonzero(history["learning_rate"][:-1] == 0)
    ]


def never_seen(runs: Path) -> Found:
    """Line 2."""
    clean, sky = metrics_of(runs / "never_seen"), metrics_of(runs / "never_seen_sky")
    scores, names = clean["scores"]["network"], sky["run"]["parameters"]
    found = Found([clean, sky])
    found.tables["clean images, trained on clean images"] = scores_table(clean)
    found.tables["sky-like images, trained on sky-like images"] = scores_table(sky["sky"])
    centred = metrics_of(runs / "never_seen_sky", "evaluation-on-never_seen_sky-test")
    found.tables["the same with roll, PSF and noise only"] = scores_table(centred["sky"])
    for name, part in (("clean", clean), ("sky-like", sky["sky"])):
        found.tables[f"{name} images, MAE by realisation"] = by_value(
            part, "simulation", "realisation"
        )
    found.bars = [
        Bar("clean: average R2", scores["average"]["r2"], ">=", 0.98),
        Bar("clean: average MAE", scores["average"]["mae"], "<=", 2.3),
        Bar("clean: spin right", scores["parameters"]["spin"]["accuracy"], ">=", 0.995),
        Bar(
            "sky-like: parameters on which the network beats the look-up",
            len(wins(sky["sky"])), ">=", len(names),
        ),
    ]  # fmt: skip
    found.remarks = [
        "The goal behind this target is an average MAE of 1 on clean images.",
        NOT_INDEPENDENT,
        "For sky-like images, the look-up has as many versions of each training image as the "
        f"network saw: {sky['training']['epochs']}, changed in the same ways as the test images. "
        "Without shifts and changes of scale and brightness it beats the network on "
        f"{len(names) - len(wins(centred['sky']))} of {len(names)} parameters. This line was first "
        "evaluated under those conditions; the test images are now changed as in training, since "
        "on the sky neither the centre nor the scale of a pair is known exactly.",
    ]
    found.figures = {
        "Predicted against true, clean images": runs
        / "never_seen/evaluation/predicted_against_true"
    }
    return found


def by_value(part: Metrics, axis: str, label: str) -> Rows:
    """Return the MAE of every parameter for each value of an axis, network and look-up."""
    return [
        {
            label: entry["from"],
            **{
                f"{PREDICTORS[predictor]} {name}": entry[predictor][name]["mae"]
                for name in entry["network"]
                for predictor in ("network", "lookup")
            },
        }
        for entry in part["by"][axis]
    ]


def realisations(runs: Path) -> Found:
    """Line 3."""
    study = "never_seen_coarse/studies/realisations"
    found = study_found(runs, study, columns=("training_mae",))
    rows = table.read(runs / study / "results.csv")
    found.remarks = [
        "All points see about 60,000 images in training. Each realisation is seen from its "
        "own directions, so that more realisations also mean a denser grid of views; the smallest "
        "set is a single realisation, and thus a single random draw.",
        "The encounters have a quarter of line 2's particles, so that all 144 can be simulated in "
        "an hour: their images are noisier, and differ more between realisations. They are also "
        "smaller, and the network of line 2 sees 400,000 of its own in training.",
        law_of(rows, "network"),
        law_of(rows, "lookup"),
    ]
    last = rows[-1]
    if last["training_mae"] > 0.8 * last["network_mae"]:
        found.remarks.append(
            f"With {last['value']:g} realisations the error is {last['training_mae']:.2g} on the "
            f"blurred and noisy images of training and {last['network_mae']:.2g} on the "
            "tested ones: these networks are limited by the length of their training, and the "
            "curve does not say what more realisations would bring to a longer one."
        )
    return found


def law_of(rows: Sequence[table.Row], predictor: str) -> str:
    """Return a remark on the power law of a predictor's average MAE, and its value at 100."""
    x, error = ([r[column] for r in rows] for column in ("value", f"{predictor}_mae"))
    law, name = power_law.fit(x, error), PREDICTORS[predictor]
    if not law or law.exponent + 2 * law.exponent_error >= 0:
        return f"The average MAE of the {name} does not follow a power law (fit: {law})."
    return (
        f"The average MAE of the {name} follows {law}, where x is the number of realisations. "
        f"Extrapolated to 100 of them it would be {law.at(100):.2g}, from {len(rows)} points up "
        f"to {max(x):g}."
    )


def inclinations(runs: Path) -> Found:
    """Line 4."""
    metrics = metrics_of(runs / "never_seen", "evaluation-on-inclinations-all")
    found, name = Found([metrics]), "inclination"
    rows = found.tables["inclination, by its true value"] = []
    for entry in metrics["by"]["inclination_deg"]:
        rows.append(
            {
                "i (deg)": entry["from"],
                "network bias": entry["network"][name]["bias"],
                "network MAE": entry["network"][name]["mae"],
                "look-up bias": entry["lookup"][name]["bias"],
                "look-up MAE": entry["lookup"][name]["mae"],
            }
        )
        text = f"i = {entry['from']:g}"
        found.bars += [
            Bar(f"{text}: |bias|", abs(entry["network"][name]["bias"]), "<=", 3),
            Bar(f"{text}: MAE", entry["network"][name]["mae"], "<=", 5),
        ]
    found.tables["the intervals of line 7 on these images"] = carried(metrics)
    mean = metrics["run"]["training_mean"][name]
    off = ", ".join(f"{abs(row['i (deg)'] - mean):.3g}" for row in rows)
    found.remarks = [
        "As in GalMer, the training has only 0, 45, 75 and 90 degrees. A miss is a finding: the "
        "paper claims that inclinations are interpolated.",
        f"Always answering the mean of the training, {mean:.3g} degrees, has MAEs of {off}.",
    ]
    return found


def classification(runs: Path) -> Found:
    """Line 5."""
    found, best = Found([]), []
    for run, kind in (
        ("random_split", "views drawn at random"),
        ("demo", "a realisation never seen, trained on one other"),
    ):
        study = runs / run / "studies/classification"
        rows, metrics = points(study)
        names = metrics[0]["run"]["parameters"]
        found.runs += metrics
        found.tables[f"{kind}: share of images, and average MAE of the chosen labels"] = [
            {
                "": f"{PREDICTORS[predictor]} {row['point'] if predictor == 'network' else ''}",
                **{f"{n} right": row[f"{predictor}_class_accuracy_{n}"] for n in names},
                "all right": row[f"{predictor}_class_all_accuracy"],
                "binary accuracy": row[f"{predictor}_class_binary_accuracy"],
                "average MAE": row[f"{predictor}_mae"],
            }
            for row, predictor in [*((row, "network") for row in rows), (rows[0], "lookup")]
        ]
        best.append(error_of_centres(study / rows[0]["point"], names))
        trivial = rows[0]["network_class_trivial_binary_accuracy"]
    found.remarks = [
        f"A network that always says no reaches a binary accuracy of {100 * trivial:.2f} %; the "
        "paper's 93.63 % is consistent with that measure.",
        f"A classifier that is always right would have average MAEs of {best[0]:.2f} and "
        f"{best[1]:.2f}, since it answers with the centres of classes. The look-up averages the "
        "angles of neighbours, so its average MAE is not comparable with the networks'.",
        "Half of the angles of the random split, and all viewing angles of the realisation never "
        "seen, are edges of classes of 5 degrees: a prediction that is slightly too low falls into "
        "the class below. That costs the look-up most, which has fewer classes right than its "
        "errors in degrees suggest.",
    ]
    return found


def error_of_centres(run: Path, names: Sequence[str]) -> float:
    """Return the average MAE of a classifier that is always right about a run's test images."""
    with (run / "evaluation/predictions.csv").open(encoding="utf-8", newline="") as file:
        true = np.array([[float(row[f"true_{n}"]) for n in names] for row in csv.DictReader(file)])
    width = load(run / "config.yaml").model.class_width_deg
    right = decode_classes(encode_classes(true, width, names), width, names)
    return float(regression_metrics(true, right)["mae"].mean())


def real_pairs(runs: Path) -> Found:
    """Line 6."""
    found = Found([])
    for run, kind in (("real_clean", "without"), ("real_sky_short", "with")):
        result = files.read_json(runs / run / "real_pairs" / "pairs.json")
        metrics = metrics_of(runs / run)
        found.runs.append(metrics)
        found.remarks.append(on_simulated_images(metrics, kind))
        scored = [pair for pair in result["pairs"] if pair["inclination_deg"] is not None]
        caption = f"relative inclination of {len(scored)} pairs, {kind} sky augmentation"
        found.tables[caption] = result["table"]
        if result["left_out"]:
            found.remarks.append(f"Left out {kind} it: {', '.join(result['left_out'])}.")
    chance = 1.645 / math.sqrt(len(scored) - 1)
    found.remarks += [
        "The two trainings differ only in their augmentation: blur and noise against those of "
        "configs/real_sky.yaml. Both see one realisation of each encounter, at three times.",
        "The medians know the answers; a predictor is useful for these pairs if it beats its "
        f"training mean and its rank correlation exceeds {chance:.2f}, which happens by chance in "
        "5 of 100 cases. Eq. 3 is not ground truth: position angles and inclinations of warped "
        "discs are uncertain, and the sign of a disc's tilt is unknown.",
        'A position angle is known up to 180 degrees: "PA within 90°" brings the two of a pair '
        "within 90 degrees of each other before Eq. 3, which chooses the smaller of its two "
        "solutions. The paper's rows are for its own 15 pairs; the errors in its text are not "
        "those of the predictions that its authors published.",
    ]
    return found


def on_simulated_images(metrics: Metrics, kind: str) -> str:
    """Return a remark on how well a network of line 6 knows simulated pairs."""
    measured = " and ".join(
        f"{mae(part, 'network', 'inclination'):.1f} degrees on {condition_name(name, metrics)}"
        for name, part in conditions(metrics).items()
    )
    looked_up = " and ".join(
        f"{mae(part, 'lookup', 'inclination'):.1f}" for part in conditions(metrics).values()
    )
    return (
        f"On a realisation never seen, the network {kind} sky augmentation has an MAE of "
        f"{measured}; the look-up has {looked_up}, the mean of its training "
        f"{mae(metrics, 'mean', 'inclination'):.1f}."
    )


def coverage(runs: Path) -> Found:
    """Line 7."""
    metrics = metrics_of(runs / "never_seen")
    halvings = metrics["uncertainty"]["halvings"]
    shown = range(metrics["uncertainty"]["configured_levels"])
    found = Found([metrics])
    rows = found.tables["coverage over random halvings of the groups"] = []
    for name, held in halvings["parameters"].items():
        for k in shown:
            level, value = halvings["levels"][k], held["coverage"][k]
            rows.append(
                {
                    "parameter": name, "wanted": level, "held": value,
                    "scatter": held["scatter"][k], "median width (deg)": held["median_width"][k],
                }
            )  # fmt: skip
            found.bars.append(
                Bar(f"{name}: |held - {100 * level:g} %|", abs(value - level), "<=", 0.03)
            )
    found.remarks = [NOT_INDEPENDENT]
    found.tables["the same intervals on sky-like images"] = carried(metrics["sky"])
    found.figures = {"Share held against share promised": runs / "never_seen/evaluation/coverage"}
    return found


def carried(part: Metrics) -> Rows:
    """Return the coverage of intervals calibrated elsewhere, one row per parameter."""
    found = part["uncertainty"]["carried"]
    heads = [f"held of {100 * level:g} %" for level in found["levels"]]
    return [
        {"parameter": name, **dict(zip(heads, shares, strict=True))}
        for name, shares in found["coverage"].items()
    ]


def out_of_family(runs: Path) -> Found:
    """Line 8."""
    metrics = metrics_of(runs / "never_seen", "evaluation-on-out_of_family-all")
    tables = {"a wider orbit, or a second galaxy of half the mass": scores_table(metrics)}
    return Found([metrics], tables)


NOT_INDEPENDENT = (
    "The eight encounters of a realisation start from the same particles, so the groups behind "
    "the intervals are not fully independent: four realisations are a small sample."
)

HALF_HOUR = "training.epochs=5 training.freeze_batchnorm_epochs=1"
"""Overrides for half an hour of training per study point of never_seen, on two cores."""

COARSE = (
    "configs/never_seen.yaml library=runs/realisations_coarse.h5 run_dir=runs/never_seen_coarse "
    "preprocess.image_size=32 split.validation_simulations=[12] "
    "split.test_simulations=[13,14,15,16,17] training.epochs=2 "
    "training.freeze_batchnorm_epochs=0 training.statistics_batches=16 evaluation.sky=null"
)
"""never_seen at 32 pixels with a quarter of the particles: a quarter of an hour per study point."""

HALF_HOUR_RANDOM = "training.epochs=9 training.freeze_batchnorm_epochs=1"
"""The same for random_split."""

BLUR_AND_NOISE = "'training.augment={blur_px: 1.1, noise: 4}'"
"""The augmentation of never_seen, which keeps a network from memorising the particles."""

QUARTER_HOUR_DEMO = f"training.epochs=20 {BLUR_AND_NOISE}"
"""About a quarter of an hour per study point of demo (estimated)."""

SKY_LIKE = (
    "configs/sky_like.yaml catalogue.render.zoom=4 training.epochs=8 "
    "training.freeze_batchnorm_epochs=1 evaluation.lookup.draws=8 run_dir=runs/never_seen_sky"
)
REAL_SKY = (
    "configs/real_sky.yaml catalogue.views.theta_deg.step=7.5 catalogue.views.phi_deg.step=7.5 "
    "training.epochs=6 training.freeze_batchnorm_epochs=1"
)
"""Six epochs of 6,000 images, the shipped library's first realisation in steps of 7.5 degrees."""

WITH_SKY = f"{REAL_SKY} run_dir=runs/real_sky_short"
WITHOUT_SKY = f"{REAL_SKY} {BLUR_AND_NOISE} run_dir=runs/real_clean"

SIMULATE = "mpirun -np 2 --oversubscribe --bind-to none galmerhpc simulate"
REALISATIONS = f"{SIMULATE} configs/realisations.yaml"
COARSE_REALISATIONS = (
    f"{REALISATIONS} library=runs/realisations_coarse.h5 "
    "'simulate.particles={halo: 2250, bulge: 750, stars: 3375, gas: 875}'"
)
TRAINED = (REALISATIONS, "galmerhpc run configs/never_seen.yaml")

PAIRS, PHOTOGRAPHS = "real_pairs/pairs.csv", "real_pairs/images"

LINES = (
    Line(
        1,
        "Views split at random, as in the paper; one realisation, grid of 2.5 degrees, 48 pixels",
        ("galmerhpc run configs/random_split.yaml",),
        random_split,
    ),
    Line(
        2,
        "Realisations never seen, clean and sky-like",
        (
            *TRAINED,
            f"galmerhpc run {SKY_LIKE}",
            f"galmerhpc evaluate {SKY_LIKE} evaluation.sky.zoom=0 evaluation.sky.centre_px=0 "
            "evaluation.sky.intensity=0 --data runs/never_seen_sky --split test",
        ),
        never_seen,
    ),
    Line(
        3,
        "Error on realisations never seen against the number of training realisations, "
        "at 32 pixels with 14,500 particles each",
        (COARSE_REALISATIONS, f"galmerhpc study realisations {COARSE}"),
        realisations,
    ),
    Line(
        4,
        "Inclinations never trained, on realisations never seen",
        (
            *TRAINED,
            f"{SIMULATE} configs/inclinations.yaml",
            "galmerhpc scrape configs/inclinations.yaml",
            "galmerhpc preprocess configs/inclinations.yaml",
            "galmerhpc evaluate configs/never_seen.yaml --data configs/inclinations.yaml "
            "--split all",
        ),
        inclinations,
    ),
    Line(
        5,
        "Classification: Table 1's network and ResNet50",
        (
            f"galmerhpc study classification configs/random_split.yaml {HALF_HOUR_RANDOM}",
            f"galmerhpc study classification configs/demo.yaml {QUARTER_HOUR_DEMO}",
        ),
        classification,
    ),
    Line(
        6,
        "Real pairs: relative inclination with and without sky augmentation",
        (
            f"galmerhpc run {WITHOUT_SKY}",
            f"galmerhpc run {WITH_SKY}",
            f"galmerhpc real-pairs runs/real_clean --pairs {PAIRS} --images {PHOTOGRAPHS}",
            f"galmerhpc real-pairs runs/real_sky_short --pairs {PAIRS} --images {PHOTOGRAPHS}",
        ),
        real_pairs,
        needs=(PAIRS, PHOTOGRAPHS),
    ),
    Line(
        7,
        "Coverage of the intervals",
        TRAINED,
        coverage,
    ),
    Line(
        8,
        "Out of family: another pericentre or mass ratio",
        (
            *TRAINED,
            f"{SIMULATE} configs/out_of_family.yaml",
            "galmerhpc scrape configs/out_of_family.yaml",
            "galmerhpc preprocess configs/out_of_family.yaml",
            "galmerhpc evaluate configs/never_seen.yaml --data configs/out_of_family.yaml "
            "--split all",
        ),
        out_of_family,
        must=False,
    ),
    Line(
        9,
        "The paper's figures 6 and 7: batch size and number of training images",
        (
            f"galmerhpc study batch-size configs/random_split.yaml {HALF_HOUR_RANDOM}",
            f"galmerhpc study data-size configs/random_split.yaml {HALF_HOUR_RANDOM}",
        ),
        lambda runs: study_found(
            runs, "random_split/studies/batch-size", "random_split/studies/data-size"
        ),
        must=False,
    ),
    Line(
        10,
        "Resolution: 64, 96 and 128 pixels",
        (
            "galmerhpc study resolution configs/random_split.yaml training.epochs=4 "
            "training.freeze_batchnorm_epochs=1",
        ),
        lambda runs: study_found(runs, "random_split/studies/resolution"),
        must=False,
    ),
    Line(
        11,
        "The other studies",
        (
            REALISATIONS,
            f"galmerhpc study split configs/never_seen.yaml {HALF_HOUR}",
            f"galmerhpc study augmentation configs/never_seen.yaml {HALF_HOUR} "
            "catalogue.render.zoom=4 run_dir=runs/never_seen_wide",
            f"galmerhpc study dropout configs/never_seen.yaml {HALF_HOUR}",
            f"galmerhpc study class-width configs/never_seen.yaml {HALF_HOUR}",
            f"galmerhpc study inclination configs/never_seen.yaml {HALF_HOUR}",
            f"{SIMULATE} configs/particles.yaml",
            "galmerhpc study time configs/particles.yaml",
            "galmerhpc study particles configs/particles.yaml",
        ),
        lambda runs: study_found(
            runs,
            *(
                f"never_seen/studies/{name}"
                for name in ("split", "dropout", "class-width", "inclination")
            ),
            "never_seen_wide/studies/augmentation",
            "particles/studies/time",
            "particles/studies/particles",
            columns=("sky_network_mae", "sky_lookup_mae"),
        ),
        must=False,
    ),
)
