"""The network on real pairs: its inclination beside the observed one from Eq. 3 of the paper.

The observed inclination is not ground truth: position angles and inclinations of warped discs are
uncertain, and an image does not show which side of a disc is nearer. If the two discs tilt in
opposite senses, the relative inclination is different. This second solution is listed but never
scored: taking for each pair the solution nearer to the prediction would flatter any network.

Eq. 3 takes position angles as they are in the table, but they are known only modulo 180 degrees,
and for two that differ by more than 90 this decides which solution comes first. So the network is
also scored with the difference reduced to within 90 degrees: the first solution is then the
smaller one, whatever the network predicts.

Pairs whose angles are unknown are predicted, but not scored.

The paper (arXiv:2112.12604, section 4) tested on the 15 SDSS pairs in ``data/paper_pairs.csv``,
with position angles and inclinations from HyperLEDA and the predictions that its authors published.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

import galmerhpc
from galmerhpc import files, tables
from galmerhpc.errors import InputError
from galmerhpc.evaluation import archives, photographs
from galmerhpc.evaluation.pair_image import Steps, field_kpc, prepare
from galmerhpc.evaluation.pairs import MOST_UNEQUAL, Pair, folded, pair_of, read_pairs
from galmerhpc.evaluation.predict import Predictor
from galmerhpc.metrics import regression_metrics, to_json
from galmerhpc.parameters import INCLINATION

log = logging.getLogger(__name__)

PAPER_PAIRS = Path(galmerhpc.__file__).parent / "data" / "paper_pairs.csv"

ROWS = {
    "network": "network",
    "trained": "training mean",
    "constant": "median of these pairs",
    "network_within": "network, PA within 90°",
    "constant_within": "median, PA within 90°",
    "paper": "paper (text)",
    "published": "paper (authors' table)",
    "published_constant": "median of the paper's pairs",
}
"""Rows of the table and their names for a reader. The medians are the best constants and know the
answers; the mean of the training labels does not."""

PAPER_CLAIM = {"pairs": 15, "mae": 5.44, "mse": 46.69, "r2": 0.8048}
"""What the paper's text reports for its 15 pairs."""


@dataclass(frozen=True)
class PairEstimate:
    """A pair with the network's prediction of its inclination.

    Attributes
    ----------
    pair : Pair
        The pair.
    predicted_deg : float
        The network's prediction.
    separation_kpc : float, optional
        Projected separation; None if the redshift or the image's scale is unknown.
    """

    pair: Pair
    predicted_deg: float
    separation_kpc: float | None

    @property
    def scored_deg(self) -> float:
        """The prediction as compared with Eq. 3: min(i, 180 - i), in 0..90."""
        return float(folded(abs(self.predicted_deg) % 180.0))


def real_pairs(
    model: Path,
    table: Path,
    images: Path,
    ask: archives.Archives | None,
    explain: Path | None,
) -> None:
    """Print a network's inclinations of real pairs, and the errors of those known from Eq. 3.

    Writes ``real_pairs/TABLE.json`` beside the model, where TABLE is the table's name.

    Parameters
    ----------
    model : Path
        Run folder or ``model.keras`` (`Predictor.open`).
    table : Path
        Table of pairs (`pairs`).
    images : Path
        Folder of their images.
    ask : Archives, optional
        Archives from which to fetch missing images, magnitudes and orientations.
    explain : Path, optional
        Folder for the steps from each photograph to the network's input.

    Raises
    ------
    InputError
        The model does not estimate the inclination, the width of its training images is unknown,
        the table is invalid, none of its pairs can be used, or the folder for the steps cannot be
        made.
    GalmerhpcError
        An archive cannot be reached.
    """
    pairs = paper_pairs()[0] if table == PAPER_PAIRS else read_pairs(table)
    if explain:
        try:
            explain.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--explain {explain}: not a folder: {error.strerror}") from None
    predictor = Predictor.open(model)
    if INCLINATION.name not in predictor.config.parameters:
        raise InputError(f"{predictor.path}: does not estimate the inclination")
    width_kpc = field_kpc(predictor.config)
    if ask:
        pairs = archives.fetch(pairs, images, ask)
    known = training_facts(predictor)
    bright_level = known.get("bright_level")
    if bright_level == 0:
        log.warning(
            "pairs fill less than a hundredth of the training images, which says nothing about "
            "their brightness; photographs keep theirs"
        )
        bright_level = None
    answers, left_out = answer(predictor, pairs, images, bright_level, explain)
    if not answers:
        raise InputError(f"{table}: none of its pairs can be used; the reasons are given above")
    mean = known.get("training_mean", {}).get(INCLINATION.name)
    scored = [one for one in answers if one.pair.solutions_deg]
    scores = score(scored, mean) if scored else {}
    print(describe(answers, scores, width_kpc))
    if left_out:
        print(f"\n{len(left_out)} of {len(pairs)} pairs are left out: {', '.join(left_out)}")
    values = {
        "model": files.sha256(predictor.path),
        "pairs": [as_values(one) for one in answers],
        "left_out": left_out,
        "table": table_of(scores),
    }
    path = predictor.path.parent / "real_pairs" / f"{table.stem}.json"
    files.write_text(path, json.dumps(to_json(values), indent=1) + "\n")


def training_facts(predictor: Predictor) -> dict[str, Any]:
    """Return what the run's evaluation recorded of its training images: ``run`` of metrics.json.

    Raises
    ------
    InputError
        The evaluation is damaged or belongs to another model.
    """
    path = predictor.path.parent / "evaluation" / "metrics.json"
    if not path.is_file():
        log.warning(
            "%s: no such file; photographs keep their brightness, which may differ from that of "
            "the training images; run galmerhpc evaluate first", path,
        )  # fmt: skip
        return {}
    try:
        content = files.read_json(path)
        facts: dict[str, Any] = content["run"]
        same = content["repeat"]["model"] == files.sha256(predictor.path)
        if same and {"bright_level", "training_mean"} <= facts.keys():
            return facts
    except (KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path}: damaged or from another model; run galmerhpc evaluate again")


def answer(
    predictor: Predictor,
    pairs: Sequence[Pair],
    images: Path,
    bright_level: float | None,
    explain: Path | None,
) -> tuple[list[PairEstimate], dict[str, str]]:
    """Return the network's estimates; and by name, why pairs are left out (also logged)."""
    answers, left_out = [], {}
    for number, pair in enumerate(pairs, 1):
        try:
            picture = photographs.read(images / pair.image)
            steps = prepare(picture, pair, predictor.config, bright_level)
        except ValueError as error:
            left_out[pair.name] = str(error)
            log.warning("%s: left out: %s", images / pair.image, error)
            continue
        (estimate,) = predictor.estimate(steps.image[None])
        answers.append(PairEstimate(pair, estimate.labels[INCLINATION.name], steps.separation_kpc))
        if explain:
            write_steps(steps, explain, f"{number:03d}_{pair.name}")
    return answers, left_out


def write_steps(steps: Steps, folder: Path, name: str) -> None:
    """Write every intermediate image as ``NAME_1_original.png`` and so on."""
    safe = re.sub(r"[^\w.+-]", "_", name)
    for number, (step, picture) in enumerate(steps.pictures().items(), 1):
        with files.atomic_path(folder / f"{safe}_{number}_{step}.png") as temporary:
            picture.save(temporary, "PNG")


# --- scores ---------------------------------------------------------------------------------------


def errors_of(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    """Return MAE, MSE and R2 of inclinations (N,), degrees, and Spearman's rank correlation."""
    metrics = regression_metrics(true[:, None], predicted[:, None])
    ranks = np.nan
    if len(true) > 1 and np.ptp(true) > 0 and np.ptp(predicted) > 0:
        ranks = float(spearmanr(true, predicted).statistic)
    errors = {name: float(metrics[name][0]) for name in ("mae", "mse", "r2")}
    return {"pairs": len(true), **errors, "rank_correlation": ranks}


def score(answers: Sequence[PairEstimate], training_mean: float | None) -> dict[str, Any]:
    """Return the errors against Eq. 3 of the network and of what it is compared with.

    Parameters
    ----------
    answers : sequence of PairEstimate
        Pairs with known angles.
    training_mean : float, optional
        Mean inclination of the training images.

    Returns
    -------
    dict
        By `ROWS`; without a training mean, ``trained`` is missing.
    """
    solutions = np.array([one.pair.solutions_deg for one in answers])  # (N, 2)
    predicted = np.array([one.scored_deg for one in answers])
    first, smaller = solutions[:, 0], solutions.min(axis=1)
    paper, predictions = paper_pairs()
    published = np.array([pair.solutions_deg[0] for pair in paper if pair.solutions_deg])
    found = {
        "network": errors_of(first, predicted),
        "constant": best_constant(first),
        "network_within": errors_of(smaller, predicted),
        "constant_within": best_constant(smaller),
        "paper": PAPER_CLAIM,
        "published": errors_of(published, predictions),
        "published_constant": best_constant(published),
    }
    if training_mean is not None:
        found["trained"] = errors_of(first, np.full(len(first), training_mean))
    return found


def best_constant(true: NDArray[np.float64]) -> dict[str, float]:
    """Return the errors of the median, the constant with the least MAE."""
    return errors_of(true, np.full(len(true), np.median(true)))


def paper_pairs() -> tuple[list[Pair], NDArray[np.float64]]:
    """Return the paper's 15 pairs and its authors' published predictions, degrees."""
    column = "published_prediction_deg"

    def row(cells: dict[str, str]) -> tuple[Pair, float]:
        return pair_of(cells), float(cells[column])

    rows = tables.parse(PAPER_PAIRS, tables.read_bytes(PAPER_PAIRS), (column,), None, row)
    return [pair for pair, _ in rows], np.array([prediction for _, prediction in rows])


# --- output ---------------------------------------------------------------------------------------


def as_values(one: PairEstimate) -> dict[str, Any]:
    """Return an estimate as JSON values."""
    first, second = one.pair.solutions_deg or (None, None)
    return {
        "name": one.pair.name,
        "inclination_deg": first,
        "other_solution_deg": second,
        "predicted_deg": one.predicted_deg,
        "separation_kpc": one.separation_kpc,
        "light_ratio": one.pair.light_ratio,
    }


def describe(answers: Sequence[PairEstimate], scores: dict[str, Any], width_kpc: float) -> str:
    """Return a text for a reader: one line per pair, and one per predictor if any is scored."""
    lines = [
        f"{'pair':28} {'Eq. 3':>7} {'or':>7} {'network':>8} {'error':>7}   deg; Eq. 3 as min(i, "
        "180 - i); or: for discs that tilt in opposite senses"
    ]
    for one in answers:
        first = second = error = ""
        if known := one.pair.solutions_deg:
            first, second = (f"{solution:.2f}" for solution in known)
            error = f"{one.scored_deg - known[0]:+.2f}"
        lines.append(
            f"{one.pair.name[:28]:28} {first:>7} {second:>7} {one.predicted_deg:8.2f} {error:>7}   "
            + "; ".join(remarks(one, width_kpc))
        )
    if not scores:
        return "\n".join([*lines, "", "no pair has the position angles and inclinations of Eq. 3"])
    lines += ["", f"{'':28} {'pairs':>7} {'MAE':>7} {'MSE':>8} {'R2':>7} {'ranks':>7}"]
    for row in table_of(scores):
        ranks = row["rank correlation"]
        lines.append(
            f"{row['predictor']:28} {row['pairs']:7d} {row['MAE (deg)']:7.2f} "
            f"{row['MSE (deg²)']:8.2f} {row['R2']:7.3f} "
            + ("" if np.isnan(ranks) else f"{ranks:7.3f}")
        )
    return "\n".join(lines)


def table_of(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per predictor."""
    return [
        {
            "predictor": title,
            "pairs": scores[name]["pairs"],
            "MAE (deg)": scores[name]["mae"],
            "MSE (deg²)": scores[name]["mse"],
            "R2": scores[name]["r2"],
            "rank correlation": scores[name].get("rank_correlation", np.nan),
        }
        for name, title in ROWS.items()
        if name in scores
    ]


def remarks(one: PairEstimate, width_kpc: float) -> list[str]:
    """Return how a pair differs from those that the network was trained on."""
    found = []
    ratio = one.pair.light_ratio
    if ratio and ratio > MOST_UNEQUAL:
        found.append(f"far from 1:1 ({ratio:.1f} : 1 in light)")
    if one.separation_kpc is None:
        lacking = "scale_arcsec_per_px" if one.pair.redshift else "redshift"
        found.append(f"no {lacking}: scaled by separation")
    elif one.separation_kpc > width_kpc / 2:
        found.append(f"{one.separation_kpc:.0f} kpc apart, wide for a field of {width_kpc:.0f} kpc")
    return found
