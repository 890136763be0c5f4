"""A study's table: one row per finished point, read from its evaluation."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from galmerhpc import files
from galmerhpc.errors import InputError, brief
from galmerhpc.evaluation.conditions import CLEAN
from galmerhpc.evaluation.summary import PREDICTORS, conditions
from galmerhpc.studies.study import Point

Row = dict[str, Any]

MEASURES = ("mae", "mse", "r2", "accuracy")
"""Measures of each parameter, such as ``network_mae_azimuth`` (averages: ``network_mae``)."""

CLASS_SHARES = ("accuracy", "all_accuracy", "binary_accuracy", "trivial_binary_accuracy")
"""Measures of classification, in columns such as ``network_class_accuracy_spin``."""


def row_of(point: Point, run_dir: Path) -> Row:
    """Return a finished point's row.

    Parameters
    ----------
    point : Point
        The point.
    run_dir : Path
        Its run folder.

    Returns
    -------
    dict
        Text and numbers by column; None if undefined.

    Raises
    ------
    InputError
        Its metrics.json is missing or damaged.
    """
    path = run_dir / "evaluation" / "metrics.json"
    metrics = files.read_json(path)
    try:
        return _row(point, metrics)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({brief(error)}); remove the folder and run the study again"
        ) from None


def _row(point: Point, metrics: Row) -> Row:
    run, training = metrics["run"], metrics["training"]
    row: Row = {
        "point": point.name,
        "value": point.value,
        "training_images": run["samples"]["train"],
        "split": run["split"],
        "evaluated": run["evaluated"],
        "evaluated_images": run["samples"][run["evaluated"]],
        "epochs": training["epochs"],
        "seconds": training["seconds"],
        "training_mae": training["training_mae"],
        "training_mse": training["training_mse"],
    }
    for condition, part in conditions(metrics).items():
        prefix = "" if condition == CLEAN else f"{condition}_"
        for predictor in PREDICTORS:
            row |= {f"{prefix}{predictor}_{k}": v for k, v in _scores(part, predictor).items()}
    return row


def _scores(part: Row, predictor: str) -> Row:
    """Return a predictor's scores under one condition of the images, flat."""
    scores, row = part["scores"][predictor], Row()
    for name, values in {"": scores["average"], **scores["parameters"]}.items():
        suffix = f"_{name}" if name else ""
        row |= {f"{measure}{suffix}": values[measure] for measure in MEASURES if measure in values}
        if name and predictor in part["by"]["simulation"][0]:
            row[f"bias{suffix}"] = _bias(part["by"]["simulation"], predictor, name)
    for key in CLASS_SHARES if "classes" in scores else ():
        value = scores["classes"][key]
        each = value if isinstance(value, dict) else {"": value}
        row |= {f"class_{key}{f'_{name}' if name else ''}": share for name, share in each.items()}
    return row


def _bias(entries: Sequence[Row], predictor: str, name: str) -> float:
    """Return the mean of predicted - true over all images, from the means per realisation."""
    images = sum(entry["images"] for entry in entries)
    return sum(entry["images"] * entry[predictor][name]["bias"] for entry in entries) / images


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV, with empty cells for undefined or missing values."""
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
    files.write_text(path, text.getvalue())


def read(path: Path) -> list[Row]:
    """Read a table back: text and numbers by column, None for empty cells.

    Raises
    ------
    InputError
        It is missing or damaged.
    """
    try:
        rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True)
        whole = "point" in (rows.fieldnames or ())
        read = [*rows]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the study first") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {brief(error)}") from None
    if not whole or any(None in row or None in row.values() for row in read):
        raise InputError(f"{path}: damaged, or not a study's table; remove it and run the study")
    return [{k: cell if k == "point" else _value(cell) for k, cell in row.items()} for row in read]


def _value(cell: str) -> float | str | None:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def as_text(axis: str, rows: Sequence[Row]) -> str:
    """Return the table's main columns for a terminal."""
    heads = [axis, "training images", "network MAE", "look-up MAE", "network R2"]
    lines = [heads] + [
        [
            str(row["point"]), f"{row['training_images']:,.0f}",
            *(_short(row[key]) for key in ("network_mae", "lookup_mae", "network_r2")),
        ]
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
