"""Batch normalisation with fixed statistics in the last epochs: what is trained is what is used."""

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

from tests.support import galmerhpc
from tests.training.test_train import checkpoints, set_keys


def statistics(folder: Path, name: str, rank: int) -> list[np.ndarray]:
    """Return a rank's statistics in a checkpoint."""
    with np.load(folder / name / "state.npz") as state:
        names = [key for key in state.files if key.startswith(f"rank{rank}/")]
        return [state[key] for key in names]


def weights(model: Path) -> dict[str, bytes]:
    """Return the arrays of a model's file."""
    found: dict[str, bytes] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()

    with (
        zipfile.ZipFile(model) as content,
        h5py.File(io.BytesIO(content.read("model.weights.h5"))) as file,
    ):
        file.visititems(note)
    return found


def test_the_last_epochs_train_with_the_statistics_that_the_model_has(tiny_run: Path) -> None:
    set_keys(
        tiny_run,
        training={
            "epochs": 3, "freeze_batchnorm_epochs": 2,
            "checkpoint_every_steps": 1, "keep_checkpoints": 50,
        },
    )  # fmt: skip
    done = galmerhpc("train", str(tiny_run), ranks=2)
    assert done.returncode == 0, done.stderr
    folder, model = tiny_run.parent / "run/checkpoints", tiny_run.parent / "run/model.keras"
    names = checkpoints(tiny_run)
    (first_end, *_, last_end) = [name for name in names if "epoch" in name]
    before, after = (names[names.index(first_end) + k] for k in (0, 1))
    moving = [statistics(folder, before, rank) for rank in (0, 1)]
    assert any((a != b).any() for a, b in zip(*moving, strict=True))  # each rank's own
    ends = [name for name in names if "epoch" in name][1:]
    for name, same_as in ((after, ends[0]), (names[-2], last_end)):
        for a, b, c in zip(
            statistics(folder, name, 0), statistics(folder, name, 1),
            statistics(folder, same_as, 0), strict=True,
        ):  # fmt: skip
            assert (a == b).all()
            assert (a == c).all()
    used = set(weights(model).values())
    assert all(a.tobytes() in used for a in statistics(folder, last_end, 0))

    # A training that goes on in the midst of such an epoch comes to the same network.
    made = weights(model)
    for name in names[-2:]:
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    model.unlink()
    done = galmerhpc("train", str(tiny_run), ranks=2)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 2, step" in done.stderr
    assert weights(model) == made


def test_keys_that_change_after_the_last_epoch_change_no_model(tiny_run: Path) -> None:
    model = tiny_run.parent / "run/model.keras"
    set_keys(tiny_run, training={"epochs": 2, "freeze_batchnorm_epochs": 0})
    done = galmerhpc("train", str(tiny_run), ranks=1)
    assert done.returncode == 0, done.stderr
    made = weights(model)
    model.unlink()
    key = "training.freeze_batchnorm_epochs"
    done = galmerhpc("train", str(tiny_run), f"{key}=1", "--allow-change", key, ranks=1)
    assert done.returncode == 0, done.stderr
    assert weights(model) == made
