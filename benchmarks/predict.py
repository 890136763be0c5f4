"""Prediction of images: seconds for 1,000 of them after start-up, and for the network alone.

    python benchmarks/predict.py [--pictures 1000] [--runs 5]

PNG files of 64 x 64 and 400 x 400 pixels pass through the steps of `galmerhpc predict` after
start-up: reading, a ResNet50 for 64 x 64 pixels (untrained, which takes as long) and the table; the
network alone gets the same images from memory. Runs alternate; medians are reported.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import write_results
from PIL import Image

from galmerhpc import files
from galmerhpc.config import Config, dump
from galmerhpc.evaluation.predict import Predictor, answer, as_table
from galmerhpc.models.build import build, exported
from galmerhpc.models.targets import make_targets

MOST_SECONDS = 20.0
SIZES = (64, 400)


def write_pictures(folder: Path, count: int, size: int) -> list[Path]:
    """Write `count` images of two blobs at random positions."""
    folder.mkdir()
    random, (y, x) = np.random.default_rng(size), np.mgrid[:size, :size] / size
    paths = [folder / f"{k:05d}.png" for k in range(count)]
    for path in paths:
        places = random.uniform(0.3, 0.7, (2, 2))
        light = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.02) for a, b in places)
        Image.fromarray((127 * light).astype(np.uint8)).save(path)
    return paths


def write_model(folder: Path) -> Predictor:
    """Write a run folder with an untrained network, and open it."""
    config = Config(run_dir=folder)
    labels = np.array([[0, 0, 0, 0], [1, 90, 180, 90]], np.float32)
    model = exported(build(config, (64, 64, 3), make_targets(config, labels)))
    folder.mkdir()
    model.save(folder / "model.keras")
    files.write_text(folder / "config.yaml", dump(config))
    return Predictor.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        predictor = write_model(Path(place) / "run")
        paths = {s: write_pictures(Path(place) / str(s), given.pictures, s) for s in SIZES}
        images = np.zeros((given.pictures, 64, 64, 3), np.uint8)
        for _ in range(given.runs):
            for size in SIZES:
                start = time.perf_counter()
                as_table(answer(predictor, paths[size]), predictor)
                seconds.setdefault(f"{size} px", []).append(time.perf_counter() - start)
            start = time.perf_counter()
            for k in range(0, len(images), predictor.config.training.evaluation_batch):
                predictor.estimate(images[k : k + predictor.config.training.evaluation_batch])
            seconds.setdefault("network alone", []).append(time.perf_counter() - start)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    first = round(seconds["64 px"][0], 2)  # includes tracing of the network
    print(f"{given.pictures} pictures        seconds (median of {given.runs})")
    for name, value in medians.items():
        print(f"{name:16} {value:8.2f}")
    passed = max(first, medians["64 px"]) <= MOST_SECONDS
    verdict = "met" if passed else "MISSED"
    print(f"first time, 64 px {first:7.2f}   at most {MOST_SECONDS:g}: {verdict}")
    write_results(
        "predict",
        {
            "pictures": given.pictures, "seconds": medians, "first_seconds": first,
            "most_seconds": MOST_SECONDS, "passed": passed,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
