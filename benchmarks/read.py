"""Random batches per second, warm and cold, against TFRecord, WebDataset, files and h5py.

    python benchmarks/read.py [--gb 0.75] [--runs 5]

Every contender stores the same raw uint8 images, of 64, 128, 256 and 400 pixels, and labels in its
own format, and delivers batches of 128: contiguous images (128, H, W, 3) uint8 and labels (128, 4)
float32, on the host. The contenders:

galmerhpc
    The reader with its default configuration, one rank: a split of this size is read once, in
    order, into memory; then true random batches. Cold includes opening, reading and one epoch.
galmerhpc, shards
    The same with ``data.memory_gb: 0``, as for data larger than memory: true random rows of the
    shards, sorted and read ahead by threads.
TFRecord
    tf.data over 8 files: parallel interleave (8 at once, 1 MB buffers, any order), shuffle buffer
    of 128 MB, batch, then parallel decoding of whole batches, prefetch, all with AUTOTUNE; among
    the fastest of the settings tried (2 to 8 files at once, buffers of 0.25 to 8 MB). A record is
    the bare bytes, without the usual tf.train.Example, which would cost another copy. Its order is
    only approximately random: an image moves only as far as the shuffle buffer reaches.
WebDataset
    8 tar files, shard shuffle and a shuffle buffer as above, one read-ahead thread. Without
    PyTorch's worker processes, which would double its rate on two cores.
files
    One raw file per image, opened and read into its place in the batch by four threads, one batch
    each; true random. Directory entries stay cached even if the data do not.
h5py
    One contiguous HDF5 file, ``images[sorted rows]``, one read-ahead thread; true random.

Warm: everything is in the page cache; galmerhpc is measured after its first epoch, in which
checksums are verified, while TFRecord always verifies its own. Cold: after posix_fadvise(DONTNEED)
on the contender's files, including opening; all have the same free memory (`take_memory`).
galmerhpc and TFRecord deliver complete epochs; the slower ones as many batches as they can in
SLICE_S. Runs alternate; medians are reported. The target: in its default configuration galmerhpc is
at least as fast as the best of the others, at every size. The plain memory copy moves the same
bytes in order, in one thread, into the memory of one batch; the disk alone is TFRecord's files read
in order, cold, into 1 MB of memory.

Last, the reader's private memory (RssAnon, the maximum of a rank over an epoch, with one rank and
with two), for 1 GB and 8 GB of 64-pixel images in sparse shards, which are not kept in memory; and
the memory shared by the node's ranks (RssShmem): labels and checksums.
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import numpy as np
from machine import write_results

from galmerhpc import files, hdf5, parallel
from galmerhpc.config import Data, digest
from galmerhpc.dataset import shards
from galmerhpc.dataset.batches import SplitReader, training_batches
from galmerhpc.dataset.records import StageRecord
from galmerhpc.dataset.shards import Dataset

SIZES = (64, 128, 256, 400)
BATCH = 128
PARTS = 8
SHUFFLE_BYTES = 128e6
SHARD_BYTES = 100e6
SLICE_S = 0.5
LEAST_RATIO, MOST_GROWTH = 1.0, 0.05
PARAMETERS = ("spin", "inclination", "azimuth", "viewing_angle")

Batches = Iterator[tuple[Any, Any]]


# --- the formats ----------------------------------------------------------------------------------


def parts(count: int) -> list[range]:
    """Divide images among a format's files."""
    ends = [k * count // PARTS for k in range(PARTS + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends)]


def write_all(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write every format and flush it to disk, since only clean pages can be dropped."""
    import tensorflow as tf

    write_shards(folder / "shards", images, labels)
    (folder / "h5py").mkdir()
    with h5py.File(folder / "h5py" / "all.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    (folder / "tfrecord").mkdir()
    (folder / "webdataset").mkdir()
    for number, rows in enumerate(parts(len(images))):
        with tf.io.TFRecordWriter(str(folder / "tfrecord" / f"{number}.tfrecord")) as record:
            for row in rows:
                record.write(labels[row].tobytes() + images[row].tobytes())
        with tarfile.open(folder / "webdataset" / f"{number}.tar", "w") as tar:
            for row in rows:
                for kind, array in (("image", images[row]), ("label", labels[row])):
                    member = tarfile.TarInfo(f"{row:07d}.{kind}")
                    member.size = array.nbytes
                    tar.addfile(member, io.BytesIO(array.tobytes()))
    for row, image in enumerate(images):
        path = image_file(folder / "files", row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    np.save(folder / "files" / "labels.npy", labels)
    os.sync()


def write_shards(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write training shards of about 100 MB."""
    record = StageRecord(folder, {})
    record.begin()
    made = {}
    per_shard = max(int(SHARD_BYTES / images[0].nbytes), 1)
    for first in range(0, len(images), per_shard):
        block = images[first : first + per_shard]
        texts = [""] * len(block)
        zeros = np.zeros(len(block), np.int64)
        columns = {
            "labels": labels[first : first + per_shard], "split": np.ones(len(block), np.uint8),
            "view": hdf5.text_column(texts, 8), "group": hdf5.text_column(texts, 8),
            "copy": zeros.astype(np.int32), "simulation": zeros, "snapshot_id": zeros,
            "time_myr": zeros.astype(np.float64),
        }  # fmt: skip
        path = folder / shards.shard_name(len(made))
        identity = shards.attributes(digest({}), first)
        shards.write_shard(path, identity, PARAMETERS, block.shape[1:], columns, [(block, texts)])
        made[path.name] = files.sha256(path)
    record.finish(made)


def write_black_shards(folder: Path, total: float) -> None:
    """Write sparse shards of black 64-pixel images, which take no space on disk."""
    count = int(SHARD_BYTES / (64 * 64 * 3))
    write_shards(folder, np.zeros((count, 64, 64, 3), np.uint8), np.zeros((count, 4), np.float32))
    first = folder / shards.shard_name(0)
    made = {first.name: files.sha256(first)}
    for number in range(1, round(total / SHARD_BYTES)):
        path = folder / shards.shard_name(number)
        subprocess.run(["cp", "--sparse=always", first, path], check=True)
        with h5py.File(path, "r+") as file:
            file.attrs.modify("first_sample", number * count)
        made[path.name] = "unknown"
    StageRecord(folder, {}).finish(made)


def image_file(folder: Path, row: int) -> Path:
    return folder / f"{row // 1000:04d}" / f"{row:07d}"


# --- the contenders -------------------------------------------------------------------------------


class Galmerhpc:
    """Our reader; opened again when cold."""

    whole_epoch = True

    def __init__(self, folder: Path, data: Data) -> None:
        self._folder, self._data, self._epoch = folder / "shards", data, itertools.count()
        self._reader: SplitReader | None = None

    def paths(self) -> Iterable[Path]:
        return self._folder.iterdir()

    def batches(self, cold: bool) -> Batches:
        if cold or not self._reader:
            self._reader = SplitReader(Dataset.open(self._folder), "train", self._data)
        for batch in training_batches(self._reader, 0, next(self._epoch), BATCH, 0, 1):
            yield batch.images, batch.labels

    def close(self) -> None:
        self._reader = None


class TFRecord:
    """tf.data."""

    whole_epoch = True

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self._folder, self._shape = folder / "tfrecord", shape

    def paths(self) -> Iterable[Path]:
        return self._folder.iterdir()

    def batches(self, cold: bool) -> Batches:  # noqa: ARG002
        import tensorflow as tf

        def decode(records: Any) -> tuple[Any, Any]:
            raw = tf.io.decode_raw(records, tf.uint8)
            labels = tf.bitcast(tf.reshape(raw[:, :16], (-1, 4, 4)), tf.float32)
            return tf.reshape(raw[:, 16:], (-1, *self._shape)), labels

        auto = tf.data.AUTOTUNE
        names = sorted(map(str, self.paths()))
        data = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names)).interleave(
            lambda name: tf.data.TFRecordDataset(name, buffer_size=1 << 20),
            cycle_length=PARTS, num_parallel_calls=auto, deterministic=False,
        )  # fmt: skip
        data = data.shuffle(shuffled(self._shape)).batch(BATCH)
        yield from data.map(decode, num_parallel_calls=auto, deterministic=False).prefetch(auto)

    def close(self) -> None:
        pass


class WebDataset:
    """Tar files."""

    whole_epoch = False

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self._folder, self._shape = folder / "webdataset", shape

    def paths(self) -> Iterable[Path]:
        return self._folder.iterdir()

    def batches(self, cold: bool) -> Batches:  # noqa: ARG002
        import webdataset

        names = sorted(map(str, self.paths()))
        data = webdataset.WebDataset(names, shardshuffle=PARTS, empty_check=False)
        samples = iter(data.shuffle(shuffled(self._shape)))

        def batch() -> tuple[np.ndarray, np.ndarray] | None:
            several = list(itertools.islice(samples, BATCH))
            if not several:
                return None
            images = np.frombuffer(b"".join(s["image"] for s in several), np.uint8)
            labels = np.frombuffer(b"".join(s["label"] for s in several), np.float32)
            return images.reshape(-1, *self._shape), labels.reshape(-1, 4)

        yield from one_thread_ahead(iter(batch, None))

    def close(self) -> None:
        pass


class Files:
    """One raw file per image."""

    whole_epoch = False

    def __init__(self, folder: Path, shape: tuple[int, ...], count: int) -> None:
        self._folder, self._shape = folder / "files", shape
        # Only as many as fit in the time slice: dropping all of 80,000 files takes seconds.
        most = int(min(count, 3e9 * SLICE_S / np.prod(shape), 40_000 * SLICE_S))
        self._order = np.random.default_rng(0).permutation(count)[:most].tolist()
        self._labels = np.load(self._folder / "labels.npy")

    def paths(self) -> Iterable[Path]:
        return (image_file(self._folder, row) for row in self._order)

    def batches(self, cold: bool) -> Batches:  # noqa: ARG002
        def read(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
            images = np.empty((len(rows), *self._shape), np.uint8)
            for row, image in zip(rows, images, strict=True):
                with open(f"{self._folder}/{row // 1000:04d}/{row:07d}", "rb", 0) as file:  # noqa: PTH123
                    file.readinto(image)
            return images, self._labels[rows]

        groups = [self._order[k : k + BATCH] for k in range(0, len(self._order), BATCH)]
        ahead: deque[Any] = deque()
        with ThreadPoolExecutor(4) as pool:
            for rows in groups:
                ahead.append(pool.submit(read, rows))
                if len(ahead) > 4:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def close(self) -> None:
        pass


class H5py:
    """Fancy indexing."""

    whole_epoch = False

    def __init__(self, folder: Path) -> None:
        self._path = folder / "h5py" / "all.h5"

    def paths(self) -> Iterable[Path]:
        return [self._path]

    def batches(self, cold: bool) -> Batches:  # noqa: ARG002
        with h5py.File(self._path, "r") as file:
            images, labels = file["images"], file["labels"][:]
            order = np.random.default_rng().permutation(len(labels))
            rows = (np.sort(order[k : k + BATCH]) for k in range(0, len(order), BATCH))
            yield from one_thread_ahead((images[r], labels[r]) for r in rows)

    def close(self) -> None:
        pass


def shuffled(shape: tuple[int, ...]) -> int:
    return int(SHUFFLE_BYTES / np.prod(shape))


def one_thread_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Prepare the next batches in a thread."""
    line: queue.Queue[Any] = queue.Queue(4)
    stop = threading.Event()

    def work() -> None:
        for batch in batches:
            line.put(batch)
            if stop.is_set():
                return
        line.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield from iter(line.get, None)
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                line.get(timeout=0.01)


# --- measuring ------------------------------------------------------------------------------------


def drop(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def take_memory(nbytes: int) -> None:
    """Make this much of the system's free memory available for the next measurement.

    A virtual machine may return memory that has been free for seconds to its host, and whoever uses
    it next pays for getting it back: 2 s of CPU per GB on the author's machine, twenty times the
    normal cost. Who pays would depend on the order of the contenders.
    """
    np.ones(nbytes, np.uint8)


def rate(contender: Any, shape: tuple[int, ...], count: int, cold: bool) -> float:
    """Return images per second, from opening to the last batch."""
    if cold:
        contender.close()
        drop(contender.paths())
        take_memory(2 * count * int(np.prod(shape)))
    images = 0
    start = time.perf_counter()
    batches = contender.batches(cold)
    for pixels, labels in batches:
        assert tuple(pixels.shape) == (len(labels), *shape)
        images += len(pixels)
        if not contender.whole_epoch and time.perf_counter() - start > SLICE_S:
            break
    seconds = time.perf_counter() - start
    batches.close()
    assert images == count or not contender.whole_epoch
    return images / seconds


def copy_rate(images: np.ndarray) -> float:
    """Return images per second of a plain sequential copy."""
    memory = np.zeros_like(images[:BATCH])
    start = time.perf_counter()
    for first in range(0, len(images) - BATCH + 1, BATCH):
        np.copyto(memory, images[first : first + BATCH])
    return (len(images) // BATCH) * BATCH / (time.perf_counter() - start)


def disk_rate(paths: Iterable[Path], image_bytes: int) -> float:
    """Return images per second of reading cold files sequentially into a small buffer."""
    paths, memory, total = list(paths), bytearray(1 << 20), 0
    drop(paths)
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(memory):
                total += size
    return total / image_bytes / (time.perf_counter() - start)


def compare(px: int, total: float, runs: int, scratch: Path) -> dict[str, Any]:
    """Measure one size; return the medians by contender, warm and cold."""
    shape = (px, px, 3)
    count = int(total / np.prod(shape))
    draw = np.random.default_rng(px)
    images = draw.integers(0, 256, (count, *shape), np.uint8)
    labels = draw.random((count, 4), np.float32)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_all(folder, images, labels)
    contenders = {
        "galmerhpc": Galmerhpc(folder, Data()),
        "galmerhpc, shards": Galmerhpc(folder, Data(memory_gb=0)),
        "TFRecord": TFRecord(folder, shape),
        "WebDataset": WebDataset(folder, shape),
        "files": Files(folder, shape, count),
        "h5py": H5py(folder),
    }
    found: dict[str, dict[str, list[float]]] = {
        name: {"warm": [], "cold": []} for name in (*contenders, "memory copy", "disk alone")
    }
    for _ in range(runs):
        found["memory copy"]["warm"].append(copy_rate(images))
        tfrecords = contenders["TFRecord"].paths()
        found["disk alone"]["cold"].append(disk_rate(tfrecords, images[0].nbytes))
        for name, contender in contenders.items():
            found[name]["cold"].append(rate(contender, shape, count, cold=True))
            if not contender.whole_epoch:
                for path in contender.paths():
                    path.read_bytes()
            found[name]["warm"].append(rate(contender, shape, count, cold=False))
            contender.close()
    shutil.rmtree(folder)
    medians = {
        name: {kind: statistics.median(rates) for kind, rates in by_kind.items() if rates}
        for name, by_kind in found.items()
    }
    ratios = {}
    for kind in ("warm", "cold"):
        peers = {name: medians[name][kind] for name in contenders if "galmerhpc" not in name}
        best = max(peers, key=peers.__getitem__)
        ratios[kind] = {
            "best_peer": best, "ratio": medians["galmerhpc"][kind] / peers[best],
            "shards_ratio": medians["galmerhpc, shards"][kind] / peers[best],
        }  # fmt: skip
    return {"px": px, "images": count, "medians": medians, "ratios": ratios, "runs": found}


def print_size(result: dict[str, Any]) -> None:
    medians, copy = result["medians"], result["medians"]["memory copy"]["warm"]
    print(
        f"\n{result['px']} px, {result['images']} images        warm        cold  of a copy, warm"
    )
    for name, rates in medians.items():
        warm, cold = (f"{rates[k]:12.0f}" if k in rates else " " * 12 for k in ("warm", "cold"))
        of_copy = f"{rates['warm'] / copy:17.2f}" if "warm" in rates else ""
        print(f"{name:24}{warm}{cold}{of_copy}")
    for kind, found in result["ratios"].items():
        print(
            f"{kind}: {found['ratio']:.2f} times {found['best_peer']} (wanted: {LEAST_RATIO}); "
            f"from shards {found['shards_ratio']:.2f} times", flush=True,
        )  # fmt: skip


# --- memory ---------------------------------------------------------------------------------------


def memory_of(total: float, scratch: Path) -> dict[int, dict[str, int]]:
    """Return the peak memory per rank, of one rank and of two, over an epoch of this much data."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_black_shards(folder, total)
    found = {}
    for ranks in (1, 2):
        mpirun = [str(Path(sys.executable).parent / "mpirun"), "-np", str(ranks)]
        python = ["--oversubscribe", "--bind-to", "none", sys.executable]
        done = subprocess.run(
            [*mpirun, *python, __file__, "--measure", str(folder)],
            stdout=subprocess.PIPE, text=True, check=True,
            env={
                **os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            },
        )  # fmt: skip
        found[ranks] = json.loads(done.stdout)
    shutil.rmtree(folder)
    return found


def measure(folder: Path) -> None:
    """Run as one of the ranks that `memory_of` starts."""
    reader = SplitReader(Dataset.open(folder), "train", Data(memory_gb=0))
    most: dict[str, int] = {}
    for batch in training_batches(reader, 0, 0, 2 * BATCH, parallel.rank(), parallel.size()):
        if batch.step % 50 == 0:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(("RssAnon", "RssShmem")):
                    kind, value = line.split(":")
                    most[kind] = max(most.get(kind, 0), int(value.split()[0]) * 1024)
    ranks = parallel.gather(most)
    if parallel.rank() == 0:
        print(json.dumps({kind: max(rank[kind] for rank in ranks) for kind in most}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=0.75, help="data of each size, 1e9 bytes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return 0
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        print("images/s; medians")
        for px in given.sizes:
            results.append(compare(px, given.gb * 1e9, given.runs, Path(scratch)))
            print_size(results[-1])
        memory = {gb: memory_of(gb * 1e9, Path(scratch)) for gb in (1, 8)}
    print("\npeak memory per rank, MB   private      shared")
    growth = 0.0
    for ranks in (1, 2):
        for gb, found in memory.items():
            private, shared = (found[ranks][kind] / 1e6 for kind in ("RssAnon", "RssShmem"))
            print(f"{ranks} ranks, {gb} GB of data {private:12.1f}{shared:12.1f}")
        growth = max(growth, memory[8][ranks]["RssAnon"] / memory[1][ranks]["RssAnon"] - 1)
    print(f"growth of private memory {growth:.1%} (wanted: below {MOST_GROWTH:.0%})")
    fast = all(r["ratios"][k]["ratio"] >= LEAST_RATIO for r in results for k in ("warm", "cold"))
    passed = fast and growth < MOST_GROWTH
    write_results(
        "read",
        {
            "results": results, "memory": memory, "memory_growth": growth,
            "ratio_wanted": LEAST_RATIO, "memory_growth_wanted": MOST_GROWTH, "passed": passed,
            "batch": BATCH, "gb": given.gb, "runs": given.runs, "load": os.getloadavg(),
            "webdataset": importlib.metadata.version("webdataset"),
        },
    )  # fmt: skip
    print("passed" if passed else "NOT passed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
