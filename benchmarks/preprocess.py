"""Images per second of preprocessing against a bare Pillow loop, and of two ranks against one.

    python benchmarks/preprocess.py [--views 4000] [--runs 5]

The mirror's images of 400 x 400 become training images of 64 x 64 x 3. The bare loop decodes and
resizes the same bytes with the same filter, from memory and into nothing: once as one writes it (to
RGB, then resized) and once, for the target, as preprocessing does (a grey image in its single
channel, then to RGB: the same pixels). Preprocessing also reads and verifies raw shards, and
writes, syncs and checksums training shards. Runs alternate; medians are reported. Rates per CPU
second are hardly affected by other processes; the gain of two ranks is in wall-clock time and needs
two idle cores.
"""

import argparse
import hashlib
import io
import json
import os
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
from machine import write_results
from PIL import Image

from galmerhpc import files, parallel
from galmerhpc.catalogue import Views
from galmerhpc.config import load, require_catalogue
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.raw import RawWriter, Response
from galmerhpc.dataset.records import StageRecord
from galmerhpc.preview import Preview
from galmerhpc.simulate.library import Library, library_path
from galmerhpc.simulate.render import render

LEAST_RATIO, LEAST_GAIN = 0.85, 1.7
PICTURE_PX, IMAGE_PX = 400, 64


def pictures(count: int) -> list[bytes]:
    """Return the mirror's GIFs from `count` directions."""
    made = []
    with Library(library_path("shipped")) as library:
        snapshot = library.snapshot(library.snapshot_ids[0])
    for k in range(count):
        phi, theta = float(101 * k % 181), float(37 * k % 91)
        view = Preview(PICTURE_PX, snapshot.snapshot_id, phi, theta, 1 / 6, 4, 0, 0, True, True,
                       False, 0)  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(render(snapshot, view)).save(buffer, "GIF", optimize=False, interlace=False)
        made.append(buffer.getvalue())
    return made


def write_run(folder: Path, views: int, bodies: list[bytes]) -> Path:
    """Write a run with `views` scraped views, and return its configuration."""
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
    record = StageRecord(config.run_dir / "raw", config.inputs("scrape"))
    record.begin()
    writer = RawWriter(config.run_dir / "raw", 0, config.scrape.views_per_shard)
    responses = []
    for k, view in enumerate(Views(require_catalogue(config))):
        body = (
            bodies[k % len(bodies)] + str(k).encode()
        )  # after the end of the GIF, to make bodies differ
        sha256 = hashlib.sha256(body).hexdigest()
        responses.append(
            Response(view.id, view.labels, 0, 1, 0.0, "", "image/gif", "", sha256, body)
        )
    writer.append(responses)
    writer.close()
    record.finish({shard.name: files.sha256(shard) for shard in writer.shards})
    return path


def bare(bodies: list[bytes], views: int, mode: str) -> float:
    """Decode and resize `views` images in a mode, to RGB; return images per CPU second."""
    start = time.process_time()
    for k in range(views):
        with Image.open(io.BytesIO(bodies[k % len(bodies)])) as image:
            picture = image.convert(mode).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS)
        np.asarray(picture.convert("RGB"))
    return views / (time.process_time() - start)


def ours(path: Path, ranks: int) -> tuple[float, float]:
    """Preprocess on `ranks` ranks; return total CPU seconds and wall-clock seconds."""
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
    """Run as one of the ranks that `ours` starts."""
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
    parser.add_argument("--views", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return 0
    bodies, runs = pictures(20), []
    with tempfile.TemporaryDirectory() as scratch:
        path = write_run(Path(scratch), given.views, bodies)
        for _ in range(given.runs):
            (cpu_1, clock_1), (_, clock_2) = ours(path, 1), ours(path, 2)
            runs.append({
                "bare_rgb_per_cpu_s": bare(bodies, given.views, "RGB"),
                "bare_per_cpu_s": bare(bodies, given.views, "L"),
                "ours_per_cpu_s": given.views / cpu_1,
                "ours_1_rank_per_s": given.views / clock_1,
                "ours_2_ranks_per_s": given.views / clock_2,
            })  # fmt: skip
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    ratio = median["ours_per_cpu_s"] / median["bare_per_cpu_s"]
    gain = median["ours_2_ranks_per_s"] / median["ours_1_rank_per_s"]
    print(f"bare Pillow loop, in RGB        {median['bare_rgb_per_cpu_s']:7.0f} images/s of CPU")
    print(f"bare Pillow loop, same modes    {median['bare_per_cpu_s']:7.0f} images/s of CPU")
    print(f"preprocess, 1 rank              {median['ours_per_cpu_s']:7.0f} images/s of CPU")
    print(f"preprocess, 1 rank              {median['ours_1_rank_per_s']:7.0f} images/s")
    print(f"preprocess, 2 ranks             {median['ours_2_ranks_per_s']:7.0f} images/s")
    print(f"of the bare loop, same modes    {ratio:7.2f} (wanted: {LEAST_RATIO})")
    print(f"2 ranks over 1                  {gain:7.2f} (wanted: {LEAST_GAIN})")
    bars = {
        "of_bare_loop": {"value": ratio, "wanted": LEAST_RATIO, "met": ratio >= LEAST_RATIO},
        "gain_2_ranks": {"value": gain, "wanted": LEAST_GAIN, "met": gain >= LEAST_GAIN},
    }
    write_results("preprocess", {
        "bars": bars, "medians": median, "runs": runs, "views": given.views,
        "load": os.getloadavg(), "pillow": PIL.__version__,
    })  # fmt: skip
    return 0 if all(bar["met"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
