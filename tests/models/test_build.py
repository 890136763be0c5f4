"""The networks: Table 1 row by row, any image, and models that load without our code."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galmerhpc.config import Config
from galmerhpc.models.build import build, exported
from galmerhpc.models.targets import make_targets
from tests.support import run

LABELS = np.array([[0, 0, 0, 0], [1, 45, 60, 30], [0, 75, 120, 60], [1, 90, 180, 90]], np.float32)
CLASSIFIER = {"task": "classification"}


def network(size: int, channels: int, **sections: Any) -> Any:
    """Build a network for the four parameters."""
    config = Config.model_validate({"run_dir": "unused", **sections})
    return build(config, (size, size, channels), make_targets(config, LABELS))


def classifier(architecture: str, size: int, channels: int) -> Any:
    return network(
        size, channels, model={**CLASSIFIER, "architecture": architecture, "dropout": 0.3},
        training={"loss": "binary_crossentropy"},
    )  # fmt: skip


def test_table_1_has_the_paper_s_parameters_row_by_row() -> None:
    model = classifier("table1_cnn", 64, 3)
    rows = [layer.count_params() for layer in model.layers if layer.weights]
    assert rows == [
        208, 4160, 32896, 131328, 524800, *[1049088] * 5, 524544, 131200, 16512, 30780,
    ]  # fmt: skip
    kinds = [type(layer).__name__ for layer in model.layers]
    assert (kinds.count("Conv2D"), kinds.count("MaxPooling2D")) == (12, 5)
    assert {layer.kernel_size for layer in model.layers if hasattr(layer, "kernel_size")} == {
        (2, 2)
    }
    assert model.get_layer("flatten").output.shape == (None, 512)


@pytest.mark.parametrize(("size", "channels"), [(64, 1), (100, 3), (400, 1)])
def test_table_1_takes_images_of_any_size(size: int, channels: int) -> None:
    raw, predictions = classifier("table1_cnn", size, channels).output_shape
    assert raw == predictions == (None, 60)


def test_resnet50_classifies_full_pictures_in_grey() -> None:
    model = classifier("resnet50", 400, 1)
    assert model.get_layer("flatten").output.shape == (None, 13 * 13 * 2048)
    assert exported(model).output_shape == (None, 60)


def test_another_label_is_another_output() -> None:
    names = ["azimuth", "mass_ratio"]
    config = Config.model_validate(
        {"run_dir": "unused", "parameters": names, "model": {"architecture": "table1_cnn"}}
    )
    targets = make_targets(config, LABELS[:, :2])
    assert exported(build(config, (32, 32, 3), targets)).output_shape == (None, 2)


EXPORTS: dict[str, dict[str, Any]] = {
    "degrees": {},
    "probability and angles": {
        "model": {"spin": "probability", "sine_cosine": ["azimuth", "viewing_angle"]}
    },
    "sigmoid": {"model": CLASSIFIER, "training": {"loss": "binary_crossentropy"}},
    "softmax": {"model": CLASSIFIER, "training": {"loss": "categorical_crossentropy"}},
}

LOAD = """
import sys, keras, numpy as np
folder = sys.argv[1]
images = np.load(folder + "/images.npy")
for number, expected in enumerate(np.load(folder + "/expected.npz").values()):
    model = keras.models.load_model(f"{folder}/{number}.keras")
    found = model.predict(images, verbose=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
assert "galmerhpc" not in sys.modules
print(number + 1)
"""


# Keras writes weights through an interface that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_exported_models_load_without_our_code_and_give_what_training_saw(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = {}
    for number, (name, sections) in enumerate(EXPORTS.items()):
        small = {**sections, "model": {**sections.get("model", {}), "architecture": "table1_cnn"}}
        model = network(32, 3, **small)
        exported(model).save(tmp_path / f"{number}.keras")
        _, predictions = model(images)
        expected[name] = predictions.numpy()
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "expected.npz", **expected)
    done = run(sys.executable, "-c", LOAD, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"
    assert 1 < np.abs(expected["degrees"][:, 1:]).max() < 360  # no standardised numbers
    assert expected["probability and angles"][:, 0].min() > 0
    assert expected["softmax"].sum(axis=1) == pytest.approx([4, 4, 4])  # four groups
