"""What tests of the data path share: runs with a finished scrape, shards, and a full disk."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from PIL import Image

from galmerhpc import files, hdf5
from galmerhpc.catalogue import View, Views
from galmerhpc.config import Config, digest, load, require_catalogue
from galmerhpc.dataset import shards
from galmerhpc.dataset.raw import RawStore, RawWriter, Response
from galmerhpc.dataset.records import StageRecord
from tests.support import run


def picture(view: View) -> bytes:
    """Return a GIF that shows where it is seen from: two blobs on noise of its own."""
    size = view.render.nbins
    y, x = np.mgrid[:size, :size] / size
    cx, cy = 0.2 + view.phi / 400, 0.2 + view.theta / 200
    blobs = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.01) for a, b in ((cx, cy), (1 - cx, 0.5)))
    noise = np.random.default_rng(abs(hash((view.theta, view.phi, view.snapshot.id))) % 2**32)
    pixels = 200 * blobs + 20 * noise.random((size, size))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "GIF")
    return buffer.getvalue()


def write_config(folder: Path, realisations: int = 2, step: float = 15, **sections: Any) -> Path:
    """Write a configuration of small pictures and return its path."""
    runs = [
        {"spin": spin, "inclination_deg": i, "simulation": s, "first_id": 1000 + 10 * k}
        for k, (s, (spin, i)) in enumerate(
            (s, kind) for s in range(realisations) for kind in (("prograde", 0), ("retrograde", 75))
        )
    ]
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {
            "render": {"nbins": 48},
            "views": {
                "theta_deg": {"start": 0, "stop": 90, "step": step},
                "phi_deg": {"start": 0, "stop": 180, "step": step},
            },
            "runs": runs,
        },
        **sections,
    }
    values["preprocess"] = {"image_size": 32, "samples_per_shard": 50} | values.get(
        "preprocess", {}
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def scraped(
    path: Path,
    draw: Callable[[View], bytes] = picture,
    chosen: Callable[[View], bool] = lambda _: True,
) -> Config:
    """Write the raw shards of a configuration as a finished scrape leaves them."""
    config = load(path)
    folder = config.run_dir / "raw"
    record = StageRecord(folder, config.inputs("scrape"))
    record.begin()
    writer = RawWriter(folder, 0, config.scrape.views_per_shard)
    views = filter(chosen, Views(require_catalogue(config)))
    writer.append([response(view, draw(view)) for view in views])
    writer.close()
    record.finish({shard.name: files.sha256(shard) for shard in writer.shards})
    return config


def response(view: View, body: bytes) -> Response:
    """Return a picture as if it had been fetched."""
    fetched = "2024-01-01T00:00:00+00:00"
    return Response.of(view, "http://localhost/", "image/gif", fetched, body)


def held(folder: Path, allow_duplicates: bool = False) -> dict[str, bytes]:
    """Return what a raw folder holds: picture by view."""
    store = RawStore(folder, allow_duplicates)
    ids = sorted(store.ids())
    return {ids[k]: body for k, body, _ in store.read(store.find(ids, len(ids)), ids)}


PARAMETERS = ("spin", "azimuth")


def write_dataset(
    folder: Path,
    count: int,
    per_shard: int,
    image_shape: tuple[int, int, int] = (5, 4, 3),
    label_0: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Write training shards of random images; return images and labels."""
    draw = np.random.default_rng(count)
    images = draw.integers(0, 256, (count, *image_shape), np.uint8)
    labels = draw.random((count, len(PARAMETERS)), np.float32)
    labels[0, 0] = label_0
    inputs = {"preprocess.image_size": image_shape[0]}
    record = StageRecord(folder, inputs)
    record.begin()
    names = []
    for start in range(0, count, per_shard):
        rows = np.arange(start, min(start + per_shard, count))
        name = shards.shard_name(len(names))
        columns = {
            "labels": labels[rows],
            "view": hdf5.text_column([f"view {row}" for row in rows], 12),
            "group": hdf5.text_column([f"group {row // 3}" for row in rows], 12),
            "split": (rows % 3 + 1).astype(np.uint8),
            "copy": np.zeros(len(rows), np.int32),
            "simulation": np.zeros(len(rows), np.int64),
            "snapshot_id": rows,
            "time_myr": rows.astype(np.float64),
        }
        # Several blocks a shard, as preprocessing writes them.
        blocks = ((images[part], ["ab" * 32] * len(part)) for part in np.array_split(rows, 2))
        identity = shards.attributes(digest(inputs), start)
        shards.write_shard(folder / name, identity, PARAMETERS, image_shape, columns, blocks)
        names.append(name)
    shards.write_virtual(folder, names, {"train": 0})
    record.finish({name: files.sha256(folder / name) for name in (*names, shards.VIRTUAL)})
    return images, labels


def compress(folder: Path) -> None:
    """Write the shards of a data set again, their images one a chunk through gzip."""
    record = json.loads((folder / "stage.json").read_text())
    for name in record["files"].keys() - {shards.VIRTUAL}:
        plain = (folder / name).rename(folder / "plain.h5")
        with h5py.File(plain) as source, h5py.File(folder / name, "w") as made:
            made.attrs.update(source.attrs)
            for column in source.keys() - {"images"}:
                source.copy(column, made)
            images = source["images"][:]
            made.create_dataset("images", data=images, chunks=(1, *images.shape[1:]), compression=1)
        plain.unlink()
        record["files"][name] = files.sha256(folder / name)
    files.write_json(folder / "stage.json", record)


_WITHOUT_ROOM = """
import resource, sys
from galmerhpc.cli import main
limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), most))
try:
    sys.exit(main(sys.argv[2:]))
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))  # coverage writes at exit
"""


def galmerhpc_without_room(largest_file: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `galmerhpc` where a file of more than so many bytes cannot be written."""
    return run(sys.executable, "-c", _WITHOUT_ROOM, str(largest_file), *arguments)
