"""Gradients: those of the global batch, however it is dealt to ranks and pieces."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import mpirun
from tests.training.workers import CLIP_NORM, HUGE

WORKER = (sys.executable, "-m", "tests.training.workers")


def changes(folder: Path, ranks: int) -> dict[str, np.ndarray]:
    """Return the weights' changes by one step of all ranks together."""
    out = folder / f"{ranks}.npz"
    done = mpirun(ranks, *WORKER, "gradients", str(out))
    assert done.returncode == 0, done.stderr
    return {name: change.astype(np.float64) for name, change in np.load(out).items()}


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return changes(tmp_path_factory.mktemp("one"), 1)


def differ(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_uneven_shares_give_the_gradient_of_the_whole_batch(
    of_one: dict[str, np.ndarray], tmp_path: Path, ranks: int
) -> None:
    of_many = changes(tmp_path, ranks)  # 13 + 12; 7 + 6 + 6 + 6
    for name in ("whole", "clipped", "at once"):
        assert differ(of_one[name], of_many[name]) < 1e-6
    # Of ResNet50 with batch normalisation in training mode.
    assert differ(of_one["synchronised"], of_many["synchronised"]) < 1e-10
    # It is the gradient of the whole batch that is cut, not a rank's share of it.
    assert np.linalg.norm(of_many["clipped"]) == pytest.approx(HUGE * CLIP_NORM, rel=1e-5)
    for many in (of_one, of_many):
        assert differ(many["at once"], many["pieces"]) < 1e-6
        assert differ(many["at once"], many["fp16"]) < 2e-3
