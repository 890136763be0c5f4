"""Gradients: those of the global batch, however it is dealt to ranks and pieces."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from tests.support import mpirun
from tests.training.workers import CLIP_NORM, HUGE

WORKER = (sys.executable, "-m", "tests.training.workers")

Changes = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Changes]:
    """Return the function to the weights' changes by one step of a network on so many ranks."""
    folder = tmp_path_factory.mktemp("changes")

    def of(network: str, ranks: int) -> Changes:
        out = folder / f"{network}-{ranks}.npz"
        if not out.exists():
            done = mpirun(ranks, *WORKER, "gradients", str(out), network)
            assert done.returncode == 0, done.stderr
        return {name: change.astype(np.float64) for name, change in np.load(out).items()}

    return of


def differ(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


@pytest.mark.parametrize(
    ("network", "ranks"),
    [
        ("small", 2),
        pytest.param("small", 4, marks=pytest.mark.soak),
        pytest.param("resnet50", 2, marks=pytest.mark.soak),
        pytest.param("resnet50", 4, marks=pytest.mark.soak),
    ],
)
def test_uneven_shares_give_the_gradient_of_the_whole_batch(
    changes: Callable[[str, int], Changes], network: str, ranks: int
) -> None:
    one, many = changes(network, 1), changes(network, ranks)  # 25; 13 + 12; 7 + 6 + 6 + 6
    assert differ(one["frozen"], many["frozen"]) < 1e-6
    # Batch normalisation in training mode, float64.
    assert differ(one["synchronised"], many["synchronised"]) < 1e-10


@pytest.mark.parametrize("ranks", [1, 2])
def test_pieces_clipping_and_compression_are_those_of_the_whole_gradient(
    changes: Callable[[str, int], Changes], ranks: int
) -> None:
    of = changes("small", ranks)
    assert differ(of["frozen"], of["pieces"]) < 1e-6
    assert differ(of["frozen"], of["fp16"]) < 2e-3
    # It is the gradient of the whole batch that is cut, not a rank's share of it.
    assert np.linalg.norm(of["clipped"]) == pytest.approx(HUGE * CLIP_NORM, rel=1e-5)
    cosine = of["clipped"] @ of["frozen"] / np.linalg.norm(of["clipped"])
    assert cosine / np.linalg.norm(of["frozen"]) == pytest.approx(1, abs=1e-6)
