"""Small run folders to evaluate: real shards of drawn images, a real Keras model.

``python -m tests.evaluation.runs FOLDER`` writes the models, so that only that process needs
TensorFlow.
"""

import sys
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import ArrayLike

from galmerhpc import files, hdf5
from galmerhpc.config import Config, digest, dump, load
from galmerhpc.dataset import shards
from galmerhpc.dataset.records import StageRecord
from galmerhpc.dataset.split import SPLITS
from galmerhpc.parameters import NAMES, SPINS

SIZE = 32
IMAGE_SHAPE = (SIZE, SIZE, 3)
INCLINATIONS, FIRST_ID = [0, 45, 75, 90], 2**31 - 20
MODEL, EXPECTED, OTHER_MODEL = "model.keras", "expected.npy", "other.keras"


def draw_pair(labels: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Draw two blobs whose positions, widths and brightness depend on the four labels."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for image, (spin, inclination, azimuth, viewing_angle) in zip(images, labels, strict=True):
        turn, apart = np.radians(azimuth), 10 - viewing_angle / 15
        dx, dy = apart * np.cos(turn), apart * np.sin(turn)
        first = np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (8 + 4 * spin))
        second = np.exp(-((x + dx) ** 2 + (y + dy) ** 2) / (4 + inclination / 8))
        image[:] = (250 * np.clip(first + 0.6 * second, 0, 1))[..., None]
    return images


def grid(phis: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """Return the labels of all eight encounters seen from a grid, (N, 4) float32."""
    axes = np.meshgrid([0, 1], INCLINATIONS, phis, thetas, indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 4).astype(np.float32)


def write_run(folder: Path, model_file: Path, **sections: object) -> Config:
    """Make a run folder with everything that evaluation reads; its configuration is beside it.

    Realisation 0 is trained on, realisation 1 is seen from other directions; under split random
    these directions are for validation, and none for test.
    """
    path = folder / "run.yaml"
    values = {
        "catalogue": {"runs": catalogue_runs()},
        "preprocess": {"image_size": SIZE},
        "training": {"evaluation_batch": 50},
    }
    path.write_text(yaml.safe_dump({"run_dir": str(folder / "run"), **values, **sections}))
    config = load(path)
    files.write_text(config.run_dir / "config.yaml", dump(config))
    write_shards(config)
    write_history(config)
    (config.run_dir / "model.keras").write_bytes(model_file.read_bytes())
    return config


def snapshot_ids(simulation: ArrayLike, spin: ArrayLike, inclination: ArrayLike) -> np.ndarray:
    """Return snapshots' numbers; they are large, and come out right only as whole numbers."""
    number = 8 * np.asarray(simulation) + 4 * (np.asarray(spin) == 1)
    return FIRST_ID + number + np.searchsorted(INCLINATIONS, inclination)


def catalogue_runs() -> list[dict[str, object]]:
    """Return the catalogue's runs of both realisations."""
    return [
        {
            "simulation": simulation, "spin": spin, "inclination_deg": inclination,
            "snapshots": [{"id": int(snapshot_ids(simulation, SPINS[spin], inclination)),
                           "time_myr": 100}],
        }
        for simulation in (0, 1) for spin in SPINS for inclination in INCLINATIONS
    ]  # fmt: skip


def training_and_unseen() -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the training views and of views between them."""
    training, unseen = (
        grid(np.arange(start, 181, 30), np.arange(start, 91, 30)) for start in (0, 15)
    )
    return training, unseen


def write_shards(config: Config, shade: float = 1.0, time_myr: float = 100.0) -> None:
    """Write the shards as preprocessing does, their images multiplied by a factor."""
    training, unseen = training_and_unseen()
    labels = np.concatenate([training, unseen])
    simulation = np.repeat([0, 1], [len(training), len(unseen)])
    snapshot = snapshot_ids(simulation, labels[:, 0], labels[:, 1])
    held_out = "validation" if config.split.kind == "random" else "test"
    split = np.where(simulation == 0, SPLITS.index("train"), SPLITS.index(held_out))
    if config.split.kind != "random":
        split[:20] = SPLITS.index("validation")
        split[20:30] = SPLITS.index("none")
    views = [
        f"simulation={s}&nbins=400&snap_id={n}&phi={phi:g}&theta={theta:g}&bins=0.1&bri=4"
        for s, n, (_, _, phi, theta) in zip(simulation, snapshot, labels, strict=True)
    ]
    columns = {
        "labels": labels,
        "view": hdf5.text_column(views, 100),
        "group": hdf5.text_column([f"simulation={s}" for s in simulation], 20),
        "split": split.astype(np.uint8),
        "copy": np.zeros(len(labels), np.int32),
        "simulation": simulation,
        "snapshot_id": snapshot,
        "time_myr": np.full(len(labels), time_myr),
    }
    folder, inputs = config.run_dir / "shards", config.inputs("preprocess")
    record = StageRecord(folder, inputs)
    record.begin()
    names, half = [], len(labels) // 2
    for number, rows in enumerate((slice(0, half), slice(half, None))):
        part = {name: column[rows] for name, column in columns.items()}
        images = (shade * draw_pair(part["labels"])).astype(np.uint8)
        pictures = [(images, ["0" * 64] * len(images))]
        names.append(shards.shard_name(number))
        identity = shards.attributes(digest(inputs), number * half)
        shards.write_shard(folder / names[-1], identity, NAMES, IMAGE_SHAPE, part, pictures)
    counts = np.bincount(split, minlength=len(SPLITS)).tolist()
    shards.write_virtual(folder, names, dict(zip(SPLITS, counts, strict=True)))
    names.append(shards.VIRTUAL)
    record.finish({name: files.sha256(folder / name) for name in names})


def write_history(config: Config) -> None:
    """Write metrics.csv of three epochs."""
    head = ["epoch", "step", "seconds", "images_per_s", "learning_rate", "training_loss"]
    head += [f"{s}_{m}" for s in ("training", "validation") for m in ("mae", "mse", "r2")]
    head += [f"validation_{m}_{name}" for name in NAMES for m in ("mae", "r2")]
    lines = [",".join(head)]
    for epoch in (1, 2, 3):
        errors = [str(1 / (epoch + k)) for k in range(len(head) - 7)]
        lines.append(",".join([str(epoch), str(40 * epoch), str(9.5 * epoch), "95", "0.001", "0.5",
                               *errors, ""]))  # fmt: skip
    files.write_text(config.run_dir / "metrics.csv", "\n".join(lines) + "\n")


def write_models(folder: Path) -> None:
    """Save a network that fits the runs, what it predicts for the unseen views, and a misfit."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input(IMAGE_SHAPE, dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(4),
            layers.Rescaling([0.5, 30, 50, 25], [0.5, 50, 90, 45]),
        ]
    )
    model.save(folder / MODEL)
    _, unseen = training_and_unseen()
    np.save(folder / EXPECTED, model.predict(draw_pair(unseen), verbose=0))
    misfit = [layers.Input(IMAGE_SHAPE), layers.Flatten(), layers.Dense(2)]
    keras.Sequential(misfit).save(folder / OTHER_MODEL)


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
