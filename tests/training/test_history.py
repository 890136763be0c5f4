"""The columns of metrics.csv."""

import pytest

from galmerhpc.training.history import larger_is_better


@pytest.mark.parametrize(
    ("metric", "larger"),
    [
        ("validation_loss", False),
        ("validation_mae", False),
        ("validation_mse_azimuth", False),
        ("validation_r2", True),
        ("training_r2_viewing_angle", True),
        ("validation_accuracy_spin", True),
        ("validation_all_accuracy", True),
        ("training_binary_accuracy", True),
        # A parameter may be called like a measure.
        ("validation_mae_r2", False),
        ("validation_mse_accuracy", False),
        ("validation_r2_r2", True),
    ],
)
def test_a_better_value_is_larger_or_smaller_by_its_measure(metric: str, larger: bool) -> None:
    assert larger_is_better(metric) == larger
