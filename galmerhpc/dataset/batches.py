"""Which images every rank sees in which step, and their reading. NumPy only, no MPI in the order.

The order of an epoch is a function of (number of images, seed, epoch) alone. A step takes the next
global batch of it, and each rank its share of that batch, so that any number of ranks sees the same
images in the same steps.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import parallel
from galmerhpc.dataset.shards import Dataset, Images, Rows


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


def epoch_order(count: int, seed: int, epoch: int) -> Rows:
    """Return the permutation of 0..count - 1 in which an epoch goes through its images.

    It sorts the raw words of a counter-based generator. NumPy promises those for ever (NEP 19),
    and its own shuffling not, so that a run may be resumed under another NumPy.

    Parameters
    ----------
    count : int
        Number of images.
    seed, epoch : int
        What the order depends on beside it; 0 or more.

    Returns
    -------
    ndarray, shape (count,), int64
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


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


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of global batches; the last one may be short."""
    return -(-count // batch_size)


# --- the images -----------------------------------------------------------------------------------


class _Rows(Protocol):
    """Images by position in the split, a slice or an array of positions at a time."""

    def __getitem__(self, positions: Any, /) -> Images: ...


class SplitReader:
    """The images and labels of one split, opened by all ranks together. Collective.

    A split of at most `memory_gb` is read once a node, in order, into memory that the node's ranks
    share; of a larger one each batch is read through memory maps.

    Parameters
    ----------
    dataset : Dataset
        The shards.
    split : str
        A name of `split.SPLITS`.
    memory_gb : float
        Room for the split on a node, 1e9 bytes.

    Attributes
    ----------
    rows : ndarray, shape (count,), int64
        The split's rows of the data set.
    labels : ndarray, shape (count, P), float32
        Their labels.
    images : indexable by a slice or an array of positions 0..count - 1
        Their images, uint8.

    Raises
    ------
    InputError
        A shard is damaged.
    GalmerhpcError
        The node's shared memory has no room for it.
    """

    def __init__(self, dataset: Dataset, split: str, memory_gb: float) -> None:
        self.rows = dataset.rows(split)
        self.labels: NDArray[np.float32] = dataset.labels[self.rows]
        size = int(np.prod(dataset.image_shape)) * self.count
        self.images: _Rows = (
            _in_memory(dataset, self.rows, split)
            if 0 < size <= memory_gb * 1e9
            else _OnDisk(dataset, self.rows)
        )

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    def batch(self, step: int, positions: slice | Rows, global_size: int) -> Batch:
        """Return the images at these positions of the split."""
        return Batch(
            step, self.rows[positions], self.images[positions], self.labels[positions], global_size
        )


def _in_memory(dataset: Dataset, rows: Rows, split: str) -> Images:
    """Read a split into an array that the node's ranks share; local rank 0 reads."""
    images = parallel.node_array((len(rows), *dataset.image_shape), np.uint8)
    if parallel.local_rank() == 0:
        with tqdm(
            desc=f"read {split}", total=len(rows), unit="img", leave=False,
            disable=None if parallel.rank() == 0 else True,
        ) as bar:  # fmt: skip
            for place, block in dataset.in_order(rows):
                images[place] = block
                bar.update(len(block))
    parallel.node_barrier()
    images.flags.writeable = False
    return images


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """The images of a split that stay in their shards."""

    dataset: Dataset
    rows: Rows

    def __getitem__(self, positions: slice | Rows) -> Images:
        return self.dataset.images(self.rows[positions])


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
    """Yield a rank's share of each global batch of an epoch; the next one is read meanwhile.

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

    def read(step: int) -> Batch:
        positions = order[step * batch_size : (step + 1) * batch_size]
        share = positions[rank_share(len(positions), rank, size)]
        return reader.batch(step, share, len(positions))

    yield from _read_ahead(read, range(first_step, steps_per_epoch(reader.count, batch_size)))


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

    def read(step: int) -> Batch:
        count = min(whole, reader.count - step * whole)
        share = rank_share(count, rank, size)
        return reader.batch(
            step, slice(step * whole + share.start, step * whole + share.stop), count
        )

    full, rest = divmod(reader.count, whole)
    yield from _read_ahead(read, range(full + (rank < rest)))


def _read_ahead(read: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """Yield the batches of steps in order; a thread reads the next one while one is used.

    An error of the thread is raised in the step it belongs to. The thread ends with the iterator.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        ahead: Future[Batch] | None = None
        for step in steps:
            due, ahead = ahead, thread.submit(read, step)
            if due:
                yield due.result()
        if ahead:
            yield ahead.result()
