"""Figures: their content, and that unusual data do not break them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from galmerhpc.config import Config
from galmerhpc.evaluation import figures
from galmerhpc.evaluation.gallery import confusion_counts
from galmerhpc.evaluation.summary import PREDICTORS
from galmerhpc.parameters import NAMES


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0, 0, 0, 0), "P, 0, 0, 0"),
        ((1, 75, 120, 35), "R, 75, 120, 35"),
        ((0.51, 74.6, -3.2, 90.4), "R, 75, -3, 90"),
        ((-0.2, 89.5, 179.7, 0.4), "P, 90, 180, 0"),
    ],
)
def test_montage_text_is_the_paper_s(values: tuple[float, ...], text: str) -> None:
    assert figures.montage_text(NAMES, np.array(values, np.float32)) == text


def test_montage_text_shows_other_labels_as_numbers() -> None:
    assert figures.montage_text(("azimuth", "mass_ratio"), (12.4, 9.8765)) == "12, 9.88"


def drawn(path: Path) -> np.ndarray:
    assert Path(f"{path}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(f"{path}.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_montage_holds_every_image(channels: int, tmp_path: Path) -> None:
    levels = np.array([40, 90, 140, 190, 240], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (5, 32, 32, channels))
    path = tmp_path / "montage_v1.5"
    figures.montage(images, ["true"] * 5, ["predicted"] * 5, 3, path, "note")
    picture = drawn(path)
    greys = {tuple(rgb) for rgb in picture.reshape(-1, 3) if rgb[0] == rgb[1] == rgb[2]}
    assert {(level,) * 3 for level in levels} <= greys


def test_true_values_are_white_top_left_and_predictions_yellow_bottom_right(tmp_path: Path) -> None:
    images = np.full((1, 32, 32, 3), 40, np.uint8)
    figures.montage(images, ["P, 0"], ["R, 90"], 1, tmp_path / "montage", "")
    picture = drawn(tmp_path / "montage").astype(int)
    inside = np.argwhere((picture == 40).all(axis=-1))
    low, high = inside.min(axis=0), inside.max(axis=0)
    picture = picture[low[0] : high[0], low[1] : high[1]]
    middle = (high - low) / 2
    white = np.argwhere(picture.min(axis=-1) > 230)
    yellow = np.argwhere(picture[..., 0] - picture[..., 2] > 100)
    assert len(white)
    assert (white < middle).all()
    assert len(yellow)
    assert (yellow > middle).all()


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_images_and_of_parameters_can_be_drawn(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = ("spin", "viewing_angle", "mass_ratio")
    true = random.uniform(0, 90, (count, 3))
    predicted = true + 1
    each = dict(zip(names, np.abs(predicted - true).T, strict=True))
    errors, sky = dict.fromkeys(PREDICTORS, each), {"network": {"spin": each["spin"]}}
    figures.predicted_against_true(names, true, predicted, tmp_path / "one", "note")
    figures.error_against("θ", true[:, 1], names, errors, sky, tmp_path / "two", "note")
    for name in ("one", "two"):
        assert len(np.unique(drawn(tmp_path / name))) > 10


@pytest.mark.parametrize("classes", [False, True])
def test_a_learning_curve_of_one_epoch_can_be_drawn(classes: bool, tmp_path: Path) -> None:
    accuracies = [
        f"{part}_{key}"
        for part in ("training", "validation")
        for key in ("binary_accuracy", "all_accuracy")
    ]
    names = [f"{part}_{key}" for part in ("training", "validation") for key in ("mae", "mse")]
    names += ["epoch", "training_loss", *(f"validation_mae_{name}" for name in NAMES)]
    names += accuracies if classes else []
    history = {name: np.ones(1) for name in names}
    figures.learning_curve(history, NAMES, tmp_path / "curve", "note")
    assert len(np.unique(drawn(tmp_path / "curve"))) > 10


def test_the_same_arrays_make_the_same_picture(tmp_path: Path) -> None:
    true = np.random.default_rng(0).uniform(0, 90, (50, 1))
    for name in ("a", "b"):
        figures.predicted_against_true(("azimuth",), true, true + 1, tmp_path / name, "note")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_confusion_matrix_is_darkest_where_most_images_are(tmp_path: Path) -> None:
    counts = {"spin": np.array([[9, 1], [0, 0]]), "azimuth": np.eye(36, dtype=int)}
    ticks = {"spin": ["P", "R"], "azimuth": [f"{5 * k}" for k in range(36)]}
    figures.confusion(counts, ticks, tmp_path / "confusion", "note")
    assert len(np.unique(drawn(tmp_path / "confusion"))) > 10


def test_a_class_without_images_has_an_empty_row(tmp_path: Path) -> None:
    counts = {"inclination": np.array([[0, 0, 0], [0, 0, 0], [0, 9, 0]])}
    figures.confusion(counts, {"inclination": ["0", "45", "60"]}, tmp_path / "a", "")
    counts["inclination"][:2, 0] = 1
    figures.confusion(counts, {"inclination": ["0", "45", "60"]}, tmp_path / "b", "")
    dark = [(drawn(tmp_path / name).sum(axis=2) < 250).sum() for name in ("a", "b")]
    assert dark[1] > 2 * dark[0]  # two more rows with a dark field


def test_the_classes_of_a_regression_are_what_was_trained_or_evaluated() -> None:
    config = Config(run_dir="run")
    sample = SimpleNamespace(true=np.tile([1.0, 60.0, 90.0, 45.0], (9, 1)))
    metrics = {"run": {"inclinations_deg": [0.0, 45.0]}, "sample": {"inclinations_deg": [60.0]}}
    predicted = np.tile([0.1, 3.0, 90.0, 45.0], (9, 1))
    counts, ticks = confusion_counts(config, sample, metrics, "clean", list(NAMES), predicted)
    assert ticks == {"spin": ["P", "R"], "inclination": ["0", "45", "60"]}
    assert counts["spin"].tolist() == [[0, 0], [9, 0]]
    assert counts["inclination"].tolist() == [[0, 0, 0], [0, 0, 0], [9, 0, 0]]


def test_names_may_have_dollar_signs(tmp_path: Path) -> None:
    images = np.full((1, 32, 32, 1), 100, np.uint8)
    maps = np.ones((1, 1, 32, 32), np.float32)
    figures.grad_cam(images, maps, [r"pair $\a$"], ["x_{$"], tmp_path / "map", "run_$1_{$")
    true = np.random.default_rng(0).uniform(0, 90, (50, 1))
    figures.predicted_against_true(["x_{$ $"], true, true, tmp_path / "true", r"$\a$ of $")
    for name in ("map", "true"):
        assert len(np.unique(drawn(tmp_path / name))) > 10


@pytest.mark.parametrize("spin", [True, False])
def test_coverage_of_any_conditions_can_be_drawn(spin: bool, tmp_path: Path) -> None:
    shares = [0.7, 0.9, 0.1]
    reliability = [{"predicted": 0.1, "observed": 0.2, "images": 3}]
    part = {
        "levels": [0.68, 0.9, 0.1],
        "parameters": {"azimuth": {"coverage": shares, "scatter": [0.1] * 3}},
        "spin": {"reliability": reliability} if spin else None,
    }
    figures.coverage({"clean images": part, "sky-like images": part}, 2, tmp_path / "c", "note")
    wide, high = drawn(tmp_path / "c").shape[1::-1]
    assert wide > (2.5 if spin else 1.5) * high


def test_places_and_geometry_can_be_drawn(tmp_path: Path) -> None:
    images = np.full((2, 32, 32, 1), 100, np.uint8)
    maps = np.zeros((2, 1, 32, 32), np.float32)
    maps[:, :, 10:20, 10:20] = 1
    figures.grad_cam(images, maps, ["one", "two"], ["azimuth"], tmp_path / "places", "note")
    figures.geometry(tmp_path / "geometry")
    for name in ("places", "geometry"):
        assert len(np.unique(drawn(tmp_path / name))) > 10
