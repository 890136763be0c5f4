"""The learning rate: its shape, and its growth with the global batch."""

from typing import Any

import pytest

from galmerhpc.config import Training
from galmerhpc.training.schedule import learning_rate

STEPS = 200


def rates(steps: int = STEPS, **training: Any) -> list[float]:
    schedule = learning_rate(Training.model_validate(training), steps)
    return [float(schedule(step)) for step in range(steps + 1)]


def test_the_paper_s_rate_is_constant() -> None:
    assert rates(schedule={"kind": "constant", "warmup_steps": 0}) == pytest.approx([1e-3] * 201)


def test_warm_up_is_linear_and_half_a_cosine_leads_to_zero() -> None:
    found = rates(learning_rate=0.1, schedule={"kind": "cosine", "warmup_steps": 50})
    assert found[:51] == pytest.approx([0.1 * k / 50 for k in range(51)])
    assert found[125] == pytest.approx(0.05)  # half-way
    assert found[200] == pytest.approx(0, abs=1e-9)
    assert found[50:] == sorted(found[50:], reverse=True)


def test_a_constant_rate_may_be_warmed_up() -> None:
    found = rates(learning_rate=0.1, schedule={"kind": "constant", "warmup_steps": 20})
    assert found[10] == pytest.approx(0.05)
    assert found[20:] == pytest.approx([0.1] * 181)


def test_a_warm_up_longer_than_half_of_the_training_is_cut() -> None:
    assert rates(10, schedule={"warmup_steps": 100})[5] == pytest.approx(1e-3)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 4), ("linear", 16)])
def test_the_peak_grows_with_the_global_batch(rule: str, factor: float) -> None:
    schedule = {"warmup_steps": 0, "batch_scaling": rule, "reference_batch": 32}
    assert rates(batch_size=512, schedule=schedule)[0] == pytest.approx(1e-3 * factor)
    assert rates(batch_size=32, schedule=schedule)[0] == pytest.approx(1e-3)
