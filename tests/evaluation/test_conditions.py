"""Which conditions a network was trained for."""

from pathlib import Path

import pytest

from galmerhpc.config import Config, load
from galmerhpc.evaluation.conditions import trained_sky_like

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("demo", False), ("never_seen", False), ("sky_like", True), ("real_sky", True)],
)
def test_blur_and_noise_alone_are_no_training_for_the_sky(name: str, expected: bool) -> None:
    assert trained_sky_like(load(CONFIGS / f"{name}.yaml")) is expected


def test_where_no_sky_is_evaluated_there_is_no_condition_for_it() -> None:
    config = Config(
        run_dir="run", training={"augment": {"rotation_deg": 180}}, evaluation={"sky": None}
    )
    assert not trained_sky_like(config)
