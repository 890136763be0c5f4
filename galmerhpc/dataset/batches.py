"""Which images every rank sees in which step, and their reading. NumPy only, no MPI in the order.

The order of an epoch is a function of (number of images, seed, epoch) alone. A step takes the next
global batch of it, and each rank its share of that batch, so that any number of ranks sees the same
images in the same steps.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from galmerhpc import parallel
from galmerhpc.config import Data
from galmerhpc.dataset.shards import Dataset, Images, Rows, blocks, read_columns
from galmerhpc.dataset.split import SPLITS
from galmerhpc.dataset.staging import stage_locally
from galmerhpc.errors import InputError

# Images that are read into memory at once: few enough to be in the processor's cache still when
# their checksums are compared.
_PART_BYTES = 2 << 20

# A row of the data set, or a position in a split.
Positions = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch.

    Attributes
    ----------
    step : int
        Number of the global batch in its epoch, from 0.
    rows : ndarray, shape (n,), int64
        Rows of the data set; n is 0 where a short batch has fewer images than there are ranks.
    images : ndarray, shape (n, H, W, C), uint8
        Images.
    labels : ndarray, shape (n, P), float32
        Labels, degrees where an angle.
    global_size : int
        Images of this step over all ranks.
    """

    step: int
    rows: Rows
    images: Images
    labels: NDArray[np.float32]
    global_size: int


# --- the order ------------------------------------------------------------------------------------


def _index_type(count: int) -> np.dtype[np.signedinteger[Any]]:
    """Return int32 where it counts to `count`, else int64."""
    return np.dtype(np.int32 if count <= np.iinfo(np.int32).max else np.int64)


def epoch_order(count: int, seed: int, epoch: int) -> Positions:
    """Return the permutation of 0..count - 1 in which an epoch goes through its images.

    It sorts the raw words of a counter-based generator. NumPy promises those for ever (NEP 19),
    and its own shuffling not, so that a run may be resumed under another NumPy.

    Parameters
    ----------
    count : int
        Number of images.
    seed, epoch : int
        What else the order depends on; 0 or more.

    Returns
    -------
    ndarray, shape (count,), int32 where that holds it, else int64
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable").astype(_index_type(count))


def rank_share(count: int, rank: int, size: int) -> slice:
    """Return a rank's contiguous share of `count` images; shares differ by at most one image.

    Examples
    --------
    >>> rank_share(25, 0, 2), rank_share(25, 1, 2)
    (slice(0, 13, None), slice(13, 25, None))
    """
    least, more = divmod(count, size)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def pieces(batch: Batch, ranks: int, micro_batch: int | None) -> list[slice]:
    """Return a rank's share piece by piece, as many pieces on each rank; the last may be empty.

    Parameters
    ----------
    batch : Batch
        The rank's share.
    ranks : int
        Number of ranks.
    micro_batch : int, optional
        Most images of a piece; by default the share is one piece.
    """
    largest_share = math.ceil(batch.global_size / ranks)
    count = math.ceil(largest_share / (micro_batch or largest_share))
    return [rank_share(len(batch.images), k, count) for k in range(count)]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of global batches; the last one may be short."""
    return math.ceil(count / batch_size)


# --- the images -----------------------------------------------------------------------------------


class SplitReader:
    """The images and labels of one split, opened by all ranks together. Collective.

    The images come from the first source that applies:

    1. A split of at most `data.memory_gb` is read once per node, in order, into memory that the
       node's ranks share; each rank has its own where they cannot (`parallel.unshared_ranks`), and
       all of these together are at most so large.
    2. With `data.stage`, from a copy of the shards on node-local storage.
    3. From the shards where they are.

    Each image is compared with its checksum when the node first reads it. What is held of each
    image except its pixels is in memory that the node's ranks share as well.

    Parameters
    ----------
    dataset : Dataset
        The shards.
    split : str
        A name of `split.SPLITS`.
    data : Data
        The configuration's section.

    Attributes
    ----------
    data : Data
        As given.
    image_shape : tuple of int
        H, W, C.
    rows : ndarray, shape (count,), int32 or int64
        The split's rows of the data set.
    labels : ndarray, shape (count, P), float32
        Their labels.

    Raises
    ------
    InputError
        A shard is damaged.
    GalmerhpcError
        The node's shared memory has no room for it.
    """

    def __init__(self, dataset: Dataset, split: str, data: Data) -> None:
        self.data, self.image_shape = data, dataset.image_shape
        table = _node_table(dataset, split)
        self.rows: Positions = table["row"]
        self.labels: NDArray[np.float32] = table["labels"]
        self._source: _Source
        if self.count * self.image_bytes * parallel.unshared_ranks() <= data.memory_gb * 1e9:
            self._source = _InMemory(dataset, table, split, data.threads)
        else:
            self._source = _InShards(stage_locally(dataset, data) if data.stage else dataset, table)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    @property
    def image_bytes(self) -> int:
        """Bytes of an image."""
        return int(np.prod(self.image_shape))

    def announce(self, positions: Positions) -> None:
        """Let the system begin to read images by position that are asked for soon.

        Raises
        ------
        InputError
            A shard is gone or unreadable.
        """
        self._source.announce(positions)

    def read(self, positions: Positions, images: Images) -> None:
        """Read images by position in the split; any number of threads may.

        Parameters
        ----------
        positions : ndarray, shape (n,), int
            Positions in 0..count - 1, in any order.
        images : ndarray, shape (n, H, W, C), uint8
            Where they go; contiguous.

        Raises
        ------
        InputError
            A shard is gone or damaged.
        """
        self._source.read(positions, images)


def _node_table(dataset: Dataset, split: str) -> NDArray[Any]:
    """Return a record of each image of a split, in memory that the node's ranks share.

    Local rank 0 reads them, shard by shard.
    """
    code = SPLITS.index(split)
    count = sum(shard.counts[code] for shard in dataset.shards)
    record = np.dtype(
        [
            ("row", _index_type(len(dataset))), ("crc32", np.uint32), ("checked", np.bool_),
            ("labels", np.float32, (len(dataset.parameters),)),
        ],
        align=True,
    )  # fmt: skip
    table = np.asarray(parallel.node_array((count,), record))
    if parallel.local_rank() == 0:
        start = end = 0
        for shard in dataset.shards:
            columns = read_columns(shard.path, ["split", "labels", "image_crc32"])
            here = np.flatnonzero(columns["split"] == code)
            part = table[end : end + len(here)]
            part["row"], part["checked"] = start + here, False
            part["labels"], part["crc32"] = columns["labels"][here], columns["image_crc32"][here]
            start, end = start + len(shard), end + len(here)
    parallel.node_barrier()
    return table


class _Source(Protocol):
    """Where the images of a split are."""

    def announce(self, positions: Positions, /) -> None: ...

    def read(self, positions: Positions, images: Images, /) -> None: ...


class _InShards:
    """The images of a split that stay in their shards."""

    def __init__(self, dataset: Dataset, table: NDArray[Any]) -> None:
        self._dataset, self._table = dataset, table

    def announce(self, positions: Positions) -> None:
        self._dataset.announce(self._table["row"][positions].astype(np.int64))

    def read(self, positions: Positions, images: Images) -> None:
        about = self._table[positions]
        rows = about["row"].astype(np.int64)
        self._dataset.read(rows, images)
        new = np.flatnonzero(~about["checked"])
        if len(new):
            into = [images[k] for k in new.tolist()]
            self._dataset.check(rows[new], into, about["crc32"][new])
            self._table["checked"][positions] = True


class _InMemory:
    """The images of a split in memory that the node's ranks share; local rank 0 reads them."""

    def __init__(self, dataset: Dataset, table: NDArray[Any], split: str, threads: int) -> None:
        shape = (len(table), *dataset.image_shape)
        # A lone rank's own memory comes in huge pages, from which random images are copied faster.
        self._images: Images = (
            np.empty(shape, np.uint8)
            if parallel.size() == 1
            else np.asarray(parallel.node_array(shape, np.uint8))
        )
        if parallel.local_rank() == 0:
            # What is in memory need not be in the system's cache as well.
            shards = _InShards(dataset.to_read_once(), table)

            def read(block: tuple[int, int]) -> int:
                positions = np.arange(block[0], sum(block))
                shards.read(positions, self._images[block[0] : sum(block)])
                return block[1]

            bar = parallel.progress_bar(
                desc=f"read {split}", total=len(table), unit="img", leave=False
            )
            with bar, ThreadPoolExecutor(threads) as pool:
                for count in pool.map(read, blocks(len(table), dataset.image_shape, _PART_BYTES)):
                    bar.update(count)
        parallel.node_barrier()

    def announce(self, positions: Positions) -> None:
        """Do nothing: all images are in memory."""

    def read(self, positions: Positions, images: Images) -> None:
        # Any mode but "raise" writes into `images` without a copy of it between.
        np.take(self._images, positions, axis=0, out=images, mode="clip")


# --- batches --------------------------------------------------------------------------------------


def training_batches(
    reader: SplitReader,
    seed: int,
    epoch: int,
    batch_size: int,
    rank: int,
    size: int,
    first_step: int = 0,
) -> Iterator[Batch]:
    """Yield a rank's share of each global batch of an epoch; threads read the next ones.

    Parameters
    ----------
    reader : SplitReader
        The training split.
    seed, epoch : int
        What the order depends on.
    batch_size : int
        Images of a step over all ranks.
    rank, size : int
        This rank, and the number of ranks.
    first_step : int
        Step to begin with: the rest of the epoch is the same.
    """
    order = epoch_order(reader.count, seed, epoch)

    def share(step: int) -> tuple[Positions, int]:
        whole = order[step * batch_size : (step + 1) * batch_size]
        return whole[rank_share(len(whole), rank, size)], len(whole)

    yield from _read_ahead(
        reader, range(first_step, steps_per_epoch(reader.count, batch_size)), share
    )


def evaluation_batches(
    reader: SplitReader, batch_size: int, rank: int, size: int
) -> Iterator[Batch]:
    """Yield a rank's share of a split, in order and without empty batches.

    Parameters
    ----------
    reader : SplitReader
        The split; every image of it goes to exactly one rank.
    batch_size : int
        Images of this rank at once.
    rank, size : int
        This rank, and the number of ranks.
    """
    whole = batch_size * size

    def share(step: int) -> tuple[Positions, int]:
        count = min(whole, reader.count - step * whole)
        mine = rank_share(count, rank, size)
        return step * whole + np.arange(mine.start, mine.stop), count

    full, rest = divmod(reader.count, whole)
    yield from _read_ahead(reader, range(full + (rank < rest)), share)


def _read_ahead(
    reader: SplitReader, steps: range, share: Callable[[int], tuple[Positions, int]]
) -> Iterator[Batch]:
    """Yield the batches of steps in order, while threads read the next ones.

    Each thread reads a group of consecutive batches into one piece of memory: a source that sees
    more rows at once finds more neighbours among them. The threads end with the iterator.

    Parameters
    ----------
    reader : SplitReader
        The split.
    steps : range
        The steps.
    share : callable
        From a step to the positions of this rank's images and the size of the global batch.

    Raises
    ------
    InputError
        A shard is gone or damaged; raised in the step that needs it.
    """
    if not steps:
        return
    data = reader.data
    batch_bytes = max(len(share(steps[0])[0]), 1) * reader.image_bytes
    per_group = max(int(data.ahead_mb * 1e6 / data.threads / batch_bytes), 1)
    memory = _Memory(per_group * batch_bytes)

    def read(group: range) -> list[Batch]:
        shares = [share(step) for step in group]
        positions = np.concatenate([mine for mine, _ in shares])
        images = memory.take((len(positions), *reader.image_shape))
        reader.read(positions, images)
        rows, labels = reader.rows[positions].astype(np.int64), reader.labels[positions]
        batches, end = [], 0
        for step, (mine, global_size) in zip(group, shares, strict=True):
            part = slice(end, end + len(mine))
            batches.append(Batch(step, rows[part], images[part], labels[part], global_size))
            end = part.stop
        return batches

    def read_alone(step: int) -> Batch:
        return read(range(step, step + 1))[0]

    groups = [steps[k : k + per_group] for k in range(0, len(steps), per_group)]

    def read_group(number: int) -> list[Batch]:
        # The disk is at work on the next groups while the threads wait for and copy theirs.
        next_one = number + data.threads
        for group in groups[next_one if number else 0 : next_one + 1]:
            reader.announce(np.concatenate([share(step)[0] for step in group]))
        return read(groups[number])

    ahead: deque[tuple[range, Future[list[Batch]]]] = deque()
    pool = ThreadPoolExecutor(data.threads, thread_name_prefix="read-ahead")
    try:
        for number, group in enumerate(groups):
            ahead.append((group, pool.submit(read_group, number)))
            if len(ahead) > data.threads:
                yield from _batches_of(*ahead.popleft(), read_alone)
        while ahead:
            yield from _batches_of(*ahead.popleft(), read_alone)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches_of(
    group: range, reading: Future[list[Batch]], read_alone: Callable[[int], Batch]
) -> Iterator[Batch]:
    """Yield a group's batches; where it cannot be read, those before the step at fault."""
    try:
        batches: Iterator[Batch] = iter(reading.result())
    except InputError:
        batches = map(read_alone, group)
    yield from batches


class _Memory:
    """Memory for groups of batches, reused once none of its batches is held any more.

    Fresh memory costs about as much as filling it, since the kernel clears every page first.

    Parameters
    ----------
    nbytes : int
        Size of a piece.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._free: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...]) -> Images:
        """Return an array that is the caller's until it, and every view of it, is gone."""
        try:
            piece = self._free.pop()
        except IndexError:
            piece = np.empty(self._nbytes, np.uint8)
        # Through a memoryview, since views of an array refer to what it is a view of, past it.
        lease = np.frombuffer(piece.data, np.uint8, int(np.prod(shape)))
        weakref.finalize(lease, self._free.append, piece).atexit = False
        return lease.reshape(shape)
