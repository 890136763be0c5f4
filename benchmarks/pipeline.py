"""The data path from end to end: scrape, preprocess and one epoch of reading, on four ranks.

    python benchmarks/pipeline.py [--views 20000] [--ranks 4] [--folder FOLDER]

The mirror's images of 400 x 400 become grey training images of that size, which are read from their
shards in the random order of an epoch (data.memory_gb=0: nothing is kept in memory). A quarter of
the views is run first, so that the table shows what grows with their number: disk usage, but no
rank's memory. The mirror draws on the same cores as the ranks. With --folder, an interrupted job
can be resumed: finished measurements are kept there, and stages resume by themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import write_results

from galmerhpc import cli, parallel
from galmerhpc.catalogue import Views
from galmerhpc.config import Config, load, require_catalogue
from galmerhpc.dataset.batches import SplitReader, training_batches
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.shards import Dataset
from galmerhpc.simulate.library import Library, library_path
from galmerhpc.training.memory import peak_bytes

PICTURE_PX, BATCH = 400, 32
STAGES = ("scrape", "preprocess", "read")
# Allowed growth of a rank's peak memory between the two sizes, for allocators and caches.
MOST_GROWTH = 1.1


def write_config(folder: Path, views: int) -> Path:
    """Write a run of about `views` views, the same grid for each encounter of the library."""
    with Library(library_path("shipped")) as library:
        middle = [
            (library.attributes(name), library.snapshots_of(name)[1]) for name in library.encounters
        ]
    rows = int((views / len(middle) / 2) ** 0.5)
    columns = views // (len(middle) * rows)
    runs = [
        {
            "spin": attributes["spin"], "inclination_deg": attributes["inclination_deg"],
            "simulation": attributes["realisation"],
            "snapshots": [{"id": number, "time_myr": 100}],
        }
        for attributes, number in middle
    ]  # fmt: skip
    path = folder / "run.yaml"
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {
            "render": {"nbins": PICTURE_PX},
            "views": {"theta_deg": _angles(90, rows), "phi_deg": _angles(180, columns)},
            "runs": runs,
        },
        "preprocess": {"image_size": PICTURE_PX, "channels": 1, "samples_per_shard": 500},
        "split": {"kind": "random", "validation_fraction": 0.01, "test_fraction": 0},
        "data": {"memory_gb": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def _angles(stop: float, count: int) -> dict[str, float]:
    """Return `count` angles that exclude the ends of the range."""
    step = stop / count
    return {"start": step / 2, "stop": stop - step / 2 + 1e-6, "step": step}


def read(config: Config) -> int:
    """Read one epoch's training images; return how many over all ranks."""
    reader = SplitReader(Dataset.open(config.run_dir / "shards"), "train", config.data)
    rank, size, count = parallel.rank(), parallel.size(), 0
    for batch in training_batches(reader, 0, 0, BATCH * size, rank, size):
        count += len(batch.images)
    return sum(parallel.gather(count))


def measure(stage: str, path: Path) -> None:
    """Run as one of the ranks that `run_stage` starts."""
    config = load(path)
    images = len(Views(require_catalogue(config)))
    parallel.barrier()
    start = time.perf_counter()
    if stage == "scrape":
        cli.main(["scrape", str(path)])
    elif stage == "preprocess":
        preprocess(config)
    else:
        images = read(config)
    parallel.barrier()
    seconds = time.perf_counter() - start
    peaks = parallel.gather(peak_bytes() / 2**20)
    if parallel.rank() == 0:
        print(json.dumps({"images": images, "seconds": seconds, "peak_rss_mb": max(peaks)}))


def run_stage(stage: str, path: Path, ranks: int) -> dict[str, Any]:
    """Run a stage on several ranks; return its results."""
    command = ["-np", str(ranks), "--oversubscribe", "--bind-to", "none", sys.executable, __file__]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "mpirun"), *command, "--measure", stage, str(path)],
        stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
             "OMPI_MCA_mpi_yield_when_idle": "1"},
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    made = path.parent / "run" / ("raw" if stage == "scrape" else "shards")
    size = sum(file.stat().st_size for file in made.iterdir()) / 1e6
    read_mb = figures["images"] * PICTURE_PX**2 / 1e6
    figures["disk_mb"] = 0 if stage == "read" else size
    figures["images_per_s"] = figures["images"] / figures["seconds"]
    figures["mb_per_s"] = (read_mb if stage == "read" else size) / figures["seconds"]
    return figures


def pipeline(folder: Path, views: int, ranks: int) -> dict[str, dict[str, Any]]:
    """Run all stages over about `views` views; return their results by name."""
    path, known = folder / "run.yaml", folder / "figures.json"
    if not path.exists():
        write_config(folder, views)
    figures = json.loads(known.read_text()) if known.exists() else {}
    for stage in STAGES:
        if stage not in figures:
            figures[stage] = run_stage(stage, path, ranks)
            known.write_text(json.dumps(figures))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--views", type=int, default=20_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to work and stay, to go on after a kill")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]))
        return 0
    rows = []
    print(f"{given.ranks} ranks, {PICTURE_PX} x {PICTURE_PX} pixels\n")
    print("| stage | images | time | images/s | MB/s | peak RSS a rank | disk |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for views in (given.views // 4, given.views):
            folder = (given.folder or Path(scratch)) / str(views)
            for stage, f in pipeline(folder, views, given.ranks).items():
                print(
                    f"| {stage} | {f['images']:,} | {f['seconds']:.0f} s | {f['images_per_s']:.0f} "
                    f"| {f['mb_per_s']:.0f} | {f['peak_rss_mb']:.0f} MB | {f['disk_mb']:,.0f} MB |",
                    flush=True,
                )
                rows.append({"views": views, "stage": stage, **f})
    growth = {
        stage: float(np.divide(*(row["peak_rss_mb"] for row in reversed(rows)
                                 if row["stage"] == stage)))
        for stage in STAGES
    }  # fmt: skip
    met = max(growth.values()) <= MOST_GROWTH
    text = ", ".join(f"{stage} {factor:.2f}" for stage, factor in growth.items())
    print(f"\npeak RSS at all views over that at a quarter: {text} (wanted: {MOST_GROWTH} or less)")
    write_results("pipeline", {
        "ranks": given.ranks, "rows": rows,
        "bars": {"memory_growth": {"value": growth, "wanted": MOST_GROWTH, "met": met}},
    })  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
