import itertools
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.config import Data
from galmerhpc.dataset.batches import (
    Batch,
    SplitReader,
    epoch_order,
    evaluation_batches,
    rank_share,
    steps_per_epoch,
    training_batches,
)
from galmerhpc.dataset.shards import Dataset, Shard
from galmerhpc.errors import InputError
from tests.dataset.runs import compress, write_dataset
from tests.support import mpirun

COUNT = 120  # 40 of each split
IMAGE_BYTES = 60
IN_MEMORY = Data(memory_gb=1)
IN_SHARDS = Data(memory_gb=0)  # an epoch is one group of batches
BY_BATCH = Data(memory_gb=0, threads=2, ahead_mb=1e-6)  # each batch is read alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    write_dataset(folder, COUNT, per_shard=32)
    return folder


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    write_dataset(folder, COUNT, per_shard=32)
    compress(folder)
    return folder


@pytest.fixture(params=["in memory", "in shards", "by batch", "compressed"])
def reader(folder: Path, compressed: Path, request: pytest.FixtureRequest) -> SplitReader:
    data = {"in memory": IN_MEMORY, "by batch": BY_BATCH}.get(request.param, IN_SHARDS)
    chosen = compressed if request.param == "compressed" else folder
    return SplitReader(Dataset.open(chosen), "train", data)


@given(st.integers(0, 500), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_has_every_image_once_in_an_order_of_its_own(
    count: int, seed: int, epoch: int
) -> None:
    order = epoch_order(count, seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    np.testing.assert_array_equal(order, epoch_order(count, seed, epoch))
    if count > 20:
        assert (order != np.arange(count)).any()
        assert (order != epoch_order(count, seed, epoch + 1)).any()
        assert (order != epoch_order(count, seed + 1, epoch)).any()


def test_the_order_stays_what_it_was() -> None:
    """A run that is resumed after an update must find its order again."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert epoch_order(8, seed=3, epoch=5).tolist() == [6, 4, 3, 2, 0, 7, 5, 1]


@given(st.integers(0, 1000), st.integers(1, 64))
def test_shares_are_all_images_and_differ_by_one_at_most(count: int, size: int) -> None:
    shares = [rank_share(count, rank, size) for rank in range(size)]
    assert list(itertools.chain(*(range(count)[share] for share in shares))) == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_the_last_batch_is_short_and_not_empty(count: int, batch: int) -> None:
    steps = steps_per_epoch(count, batch)
    assert (steps - 1) * batch < count <= steps * batch


@given(size=st.integers(1, 8), batch=st.integers(8, 50), epoch=st.integers(0, 3), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_number_of_ranks_sees_the_same_steps_from_any_step_on(
    folder: Path, size: int, batch: int, epoch: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from([IN_MEMORY, IN_SHARDS, BY_BATCH]))
    reader = SplitReader(Dataset.open(folder), "train", chosen)
    first = data.draw(st.integers(0, steps_per_epoch(reader.count, batch)))
    whole = list(training_batches(reader, 7, epoch, batch, 0, 1))
    ranks = [
        list(training_batches(reader, 7, epoch, batch, rank, size, first)) for rank in range(size)
    ]
    assert sorted(row for b in whole for row in b.rows) == sorted(reader.rows)
    assert all(len(batches) == len(whole) - first for batches in ranks)
    for expected, *parts in zip(whole[first:], *ranks, strict=True):
        for name in ("rows", "images", "labels"):
            union = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(union, getattr(expected, name))
        assert {(part.step, part.global_size) for part in parts} == {
            (expected.step, len(expected.rows))
        }


def test_batches_hold_what_their_rows_say(folder: Path, reader: SplitReader) -> None:
    dataset = Dataset.open(folder)
    for batches in (training_batches(reader, 0, 0, 13, 0, 1), evaluation_batches(reader, 13, 0, 1)):
        for batch in batches:
            assert batch.images.dtype == np.uint8
            assert batch.labels.dtype == np.float32
            np.testing.assert_array_equal(batch.images, dataset.images(batch.rows))
            np.testing.assert_array_equal(batch.labels, dataset.labels[batch.rows])
            assert (dataset.split[batch.rows] == 1).all()


@given(size=st.integers(1, 60), batch=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_evaluation_sees_every_image_once_and_no_empty_batch(
    folder: Path, size: int, batch: int
) -> None:
    reader = SplitReader(Dataset.open(folder), "test", IN_MEMORY)
    ranks = [list(evaluation_batches(reader, batch, rank, size)) for rank in range(size)]
    assert sorted(row for b in itertools.chain(*ranks) for row in b.rows) == list(reader.rows)
    for batches in ranks:
        rows = [row for b in batches for row in b.rows]
        assert rows == sorted(rows)
        assert all(1 <= len(b.rows) <= batch for b in batches)


@pytest.mark.parametrize("data", [IN_SHARDS, BY_BATCH], ids=["in a group", "alone"])
def test_an_error_of_a_reading_thread_reaches_the_step_it_belongs_to(
    tmp_path: Path, data: Data
) -> None:
    write_dataset(tmp_path, COUNT, per_shard=32)
    reader = SplitReader(Dataset.open(tmp_path), "train", data)
    bad = int(training_order(reader)[20])
    shard = tmp_path / f"shard-{bad // 32:05d}.h5"
    content = bytearray(shard.read_bytes())
    content[place_of(shard, bad % 32)] ^= 1
    shard.write_bytes(content)
    reader = SplitReader(Dataset.open(tmp_path), "train", data)
    batches = training_batches(reader, 0, 0, 10, 0, 1)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(InputError, match=rf"{shard.name}.*image {bad % 32}\)"):
        next(batches)
    assert not reading_threads()
    with pytest.raises(InputError, match=shard.name):
        SplitReader(Dataset.open(tmp_path), "train", IN_MEMORY)


def test_a_split_of_many_blocks_is_read_into_memory_and_compared_whole(tmp_path: Path) -> None:
    shape = (64, 64, 3)  # 600 of them are 7 MB
    images, labels = write_dataset(tmp_path, 1800, per_shard=700, image_shape=shape)
    reader = SplitReader(Dataset.open(tmp_path), "train", Data(ahead_mb=1e-6))
    assert reader.rows.tolist() == list(range(0, 1800, 3))
    (batch,) = evaluation_batches(reader, 600, 0, 1)
    np.testing.assert_array_equal(batch.images, images[::3])
    np.testing.assert_array_equal(batch.labels, labels[::3])
    shard = tmp_path / "shard-00002.h5"
    content = bytearray(shard.read_bytes())
    content[Shard.open(shard).offset + (1797 - 1400) * int(np.prod(shape))] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=rf"{shard.name}.*image {1797 - 1400}\)"):
        SplitReader(Dataset.open(tmp_path), "train", IN_MEMORY)


def place_of(shard: Path, row: int) -> int:
    """Return where an image begins in a file; of a compressed shard, the last byte."""
    offset = Shard.open(shard).offset
    return shard.stat().st_size - 1 if offset is None else offset + row * IMAGE_BYTES


@pytest.mark.parametrize("kind", ["plain", "compressed"])
@pytest.mark.parametrize("fault", ["cut short", "gone"])
def test_a_shard_lost_in_an_epoch_fails_the_step_that_needs_it(
    tmp_path: Path, kind: str, fault: str
) -> None:
    images, _ = write_dataset(tmp_path, COUNT, per_shard=32)
    if kind == "compressed":
        compress(tmp_path)
    order = training_order(SplitReader(Dataset.open(tmp_path), "train", BY_BATCH))
    reader = SplitReader(Dataset.open(tmp_path), "train", BY_BATCH)
    path = tmp_path / "shard-00002.h5"
    if fault == "gone":
        path.unlink()
    else:
        os.truncate(path, place_of(path, 16))
    lost = range(80 if (kind, fault) == ("plain", "cut short") else 64, 96)
    good = next(k for k in range(10) if not set(lost).isdisjoint(order[4 * k : 4 * k + 4]))
    batches = training_batches(reader, 0, 0, 4, 0, 1)
    for batch in itertools.islice(batches, good):
        np.testing.assert_array_equal(batch.images, images[batch.rows])
    with pytest.raises(InputError, match=path.name):
        next(batches)


def training_order(reader: SplitReader) -> np.ndarray:
    return np.concatenate([b.rows for b in training_batches(reader, 0, 0, 10, 0, 1)])


def test_the_reading_thread_ends_with_its_consumer(reader: SplitReader) -> None:
    batches = training_batches(reader, 0, 0, 4, 0, 1)
    assert next(batches).step == 0
    assert reading_threads()
    batches.close()
    assert not reading_threads()


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_a_batch_is_its_holders_own_as_long_as_any_view_of_it_lives(reader: SplitReader) -> None:
    """Memory is used again, but never that of a batch, or of a part of one, that somebody holds."""
    expected = [b.images.copy() for b in training_batches(reader, 0, 0, 4, 0, 1)]
    parts = []
    for batch in training_batches(reader, 0, 0, 4, 0, 1):
        parts.append(batch.images[1:, ..., 0])
        batch.images[0] = 0  # what a consumer writes reaches nobody else
    for part, whole in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part, whole[1:, ..., 0])
    for batch, whole in zip(training_batches(reader, 0, 0, 4, 0, 1), expected, strict=True):
        np.testing.assert_array_equal(batch.images, whole)


def test_what_each_of_a_node_s_ranks_holds_alone_fits_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path, COUNT, per_shard=32)
    dataset, room_for_two = Dataset.open(tmp_path), Data(memory_gb=2.5 * 40 * IMAGE_BYTES / 1e9)
    readers = []
    for ranks in ("2", "3"):
        monkeypatch.setenv("HOROVOD_LOCAL_SIZE", ranks)  # as horovodrun does with Gloo
        readers.append(SplitReader(dataset, "train", room_for_two))
    for path in tmp_path.glob("*.h5"):
        path.unlink()
    held, not_held = readers
    assert sum(len(b.rows) for b in training_batches(held, 0, 0, 8, 0, 1)) == 40
    with pytest.raises(InputError, match=str(tmp_path)):
        list(training_batches(not_held, 0, 0, 8, 0, 1))


def test_a_split_without_images_has_no_batches(folder: Path) -> None:
    reader = SplitReader(Dataset.open(folder), "none", IN_MEMORY)
    assert list(training_batches(reader, 0, 0, 8, 0, 1)) == []
    assert reader.count == 0
    assert list(evaluation_batches(reader, 8, 0, 1)) == []


RANKS = """
import json, sys
from pathlib import Path
from galmerhpc import parallel
from galmerhpc.config import Data
from galmerhpc.dataset.batches import SplitReader, evaluation_batches, training_batches
from galmerhpc.dataset.shards import Dataset
me, size, found = parallel.rank(), parallel.size(), []
dataset = Dataset.open(Path(sys.argv[1]))
assert SplitReader(dataset, "none", Data()).count == 0
for data in (Data(), Data(memory_gb=0), Data(memory_gb=0, stage=True, stage_dir=sys.argv[2])):
    reader = SplitReader(dataset, "train", data)
    batches = [
        *training_batches(reader, 5, 1, 25, me, size), *evaluation_batches(reader, 7, me, size)
    ]
    found.append([[b.rows.tolist(), [int(image.sum()) for image in b.images]] for b in batches])
everything = parallel.gather(found)
if me == 0:
    print(json.dumps(everything))
"""


def test_ranks_of_a_node_read_the_same_from_every_source(folder: Path, local_storage: Path) -> None:
    done = mpirun(2, sys.executable, "-c", RANKS, str(folder), str(local_storage))
    assert done.returncode == 0, done.stderr
    reader = SplitReader(Dataset.open(folder), "train", IN_SHARDS)
    for rank, (in_memory, in_shards, in_copy) in enumerate(json.loads(done.stdout)):
        expected: list[Batch] = [
            *training_batches(reader, 5, 1, 25, rank, 2),
            *evaluation_batches(reader, 7, rank, 2),
        ]
        sums = [[b.rows.tolist(), [int(image.sum()) for image in b.images]] for b in expected]
        assert in_memory == in_shards == in_copy == sums
