"""Grad-CAM: it points to the origin of the output."""

import keras
import numpy as np

from galmerhpc.config import Config
from galmerhpc.evaluation.explain import grad_cam


def network(width: int) -> keras.Model:
    """Return a network whose first output is the mean of red, whose second that of green."""
    images = keras.Input((width, width, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    colours = keras.layers.Conv2D(3, 1, use_bias=False, name="colours")
    pooled = keras.layers.GlobalAveragePooling2D()(colours(scaled))
    outputs = keras.layers.Dense(2, use_bias=False, name="outputs")
    model = keras.Model(images, outputs(pooled))
    colours.set_weights([np.eye(3)[None, None]])
    outputs.set_weights([np.eye(3, 2)])
    return model


def test_each_output_is_found_where_it_comes_from() -> None:
    config = Config.model_validate({"run_dir": "run", "parameters": ["azimuth", "viewing_angle"]})
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[:, 3, 4, 0] = 200  # red
    images[:, 12, 10, 1] = 100  # green
    images[1] = images[1].transpose(1, 0, 2)
    maps = grad_cam(config, network(16), images)
    assert maps.shape == (2, 2, 16, 16)
    places = [[np.unravel_index(heat.argmax(), heat.shape) for heat in image] for image in maps]
    assert places == [[(3, 4), (12, 10)], [(4, 3), (10, 12)]]
    assert maps.max(axis=(2, 3)).tolist() == [[1, 1], [1, 1]]


def test_a_network_without_places_has_no_map() -> None:
    config = Config.model_validate({"run_dir": "run", "parameters": ["azimuth", "viewing_angle"]})
    maps = grad_cam(config, network(4), np.full((1, 4, 4, 3), 9, np.uint8))
    assert maps.shape == (1, 2, 4, 4)
    assert not maps.any()
