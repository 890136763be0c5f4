"""Preprocessing's images per second against a bare Pillow loop, and two ranks against one.

    python benchmarks/preprocess.py [--views 2000] [--runs 5] [--json FILE]

Pictures of 400 x 400 become training images of 64 x 64 x 3. The bare loop decodes and resizes the
same bytes with the same filter, from memory and into nothing; preprocessing also reads and verifies
raw shards, and writes, syncs and checksums training shards. Runs alternate and medians count. Rates
per CPU second hardly change with neighbours on the machine; the gain of two ranks is on the clock
and needs two idle cores.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import yaml
from PIL import Image

from galmerhpc import files, parallel
from galmerhpc.catalogue import Views
from galmerhpc.config import load, require_catalogue
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.raw import RawWriter, Response

LEAST_RATIO, LEAST_GAIN = 0.85, 1.7
PICTURE_PX, IMAGE_PX = 400, 64


def pictures(count: int) -> list[bytes]:
    """Return GIFs of two blobs on noise, about as large as the service's."""
    y, x = np.mgrid[:PICTURE_PX, :PICTURE_PX] / PICTURE_PX
    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        centres = draw.uniform(0.2, 0.8, (2, 2))
        blobs = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.01) for a, b in centres)
        speckle = draw.random((PICTURE_PX, PICTURE_PX)) < 0.2
        pixels = (200 * blobs + 40 * speckle * draw.random(x.shape)).clip(0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "GIF")
        made.append(buffer.getvalue())
    return made


def write_run(folder: Path, views: int, bodies: list[bytes]) -> Path:
    """Write a run with so many views whose scrape is finished, and return its configuration."""
    phi = {"start": 0, "stop": 180 * (1 - 1e-9), "step": 360 / views}
    runs = [{"spin": "prograde", "inclination_deg": 0, "first_id": 1}]
    grid = {"theta_deg": {"start": 30, "stop": 60, "step": 30}, "phi_deg": phi}
    path = folder / "run.yaml"
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {"render": {"nbins": PICTURE_PX}, "views": grid, "runs": runs},
        "scrape": {"allow_duplicates": True},
        "preprocess": {"image_size": IMAGE_PX, "samples_per_shard": 250},
        "split": {"kind": "random"},
    }
    path.write_text(yaml.safe_dump(values))
    config = load(path)
    record = files.StageRecord(config.run_dir / "raw", config.inputs("scrape"))
    record.begin()
    writer = RawWriter(config.run_dir / "raw", 0, config.scrape.views_per_shard)
    for k, view in enumerate(Views(require_catalogue(config))):
        body = bodies[k % len(bodies)]
        sha256 = hashlib.sha256(body).hexdigest()
        writer.append(
            [Response(view.id, view.labels, 0, 1, 0.0, "", "image/gif", "", sha256, body)]
        )
    writer.close()
    record.finish({shard.name: files.sha256(shard) for shard in writer.shards})
    return path


def bare(bodies: list[bytes], views: int) -> float:
    """Decode and resize so many pictures; return images per CPU second."""
    start = time.process_time()
    for k in range(views):
        with Image.open(io.BytesIO(bodies[k % len(bodies)])) as image:
            picture = image.convert("RGB").resize((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS)
        np.asarray(picture)
    return views / (time.process_time() - start)


def ours(path: Path, ranks: int) -> tuple[float, float]:
    """Preprocess on so many ranks; return seconds of all ranks' CPU and of the clock."""
    shutil.rmtree(path.parent / "run" / "shards", ignore_errors=True)
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "-np", str(ranks)]
    command = [*mpirun, "--oversubscribe", "--bind-to", "none", sys.executable, __file__]
    done = subprocess.run(
        [*command, "--measure", str(path)], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    )  # fmt: skip
    cpu_s, clock_s = json.loads(done.stdout)
    return cpu_s, clock_s


def measure(path: Path) -> None:
    """Be one of the ranks that `ours` starts."""
    config = load(path)
    parallel.barrier()
    cpu, clock = time.process_time(), time.perf_counter()
    preprocess(config)
    clock = time.perf_counter() - clock
    cpus = parallel.gather(time.process_time() - cpu)
    if parallel.rank() == 0:
        print(json.dumps([sum(cpus), clock]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--views", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return 0
    bodies, rates = pictures(20), []
    with tempfile.TemporaryDirectory() as scratch:
        path = write_run(Path(scratch), given.views, bodies)
        for _ in range(given.runs):
            (cpu_1, clock_1), (_, clock_2) = ours(path, 1), ours(path, 2)
            rates.append(
                (bare(bodies, given.views), *(given.views / s for s in (cpu_1, clock_1, clock_2)))
            )
    limit, per_cpu, one, two = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"bare Pillow loop        {limit:8.0f} images/s of CPU")
    print(f"preprocess, 1 rank      {per_cpu:8.0f} images/s of CPU, {one:8.0f} on the clock")
    print(f"preprocess, 2 ranks     {two:8.0f} images/s on the clock")
    print(f"of the bare loop        {per_cpu / limit:8.2f} (wanted: {LEAST_RATIO})")
    print(f"2 ranks over 1          {two / one:8.2f} (wanted: {LEAST_GAIN})")
    passed = per_cpu / limit >= LEAST_RATIO and two / one >= LEAST_GAIN
    if given.json:
        figures = {
            "bare_per_cpu_s": limit, "preprocess_per_cpu_s": per_cpu, "ratio": per_cpu / limit,
            "ratio_wanted": LEAST_RATIO, "gain_2_ranks": two / one, "gain_wanted": LEAST_GAIN,
            "passed": passed, "runs": rates, "views": given.views, "cpus": parallel.cpu_count(),
            "load": os.getloadavg(), "machine": platform.platform(), "pillow": PIL.__version__,
        }  # fmt: skip
        files.write_json(given.json, figures)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
