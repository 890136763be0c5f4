"""Training shards: images ready to train on, in HDF5 files that several ranks read at once.

A shard's images are contiguous and uncompressed, unless compression was asked for, so that they are
read without HDF5, as parts of a plain file. ``dataset.h5`` shows all shards as one file to any HDF5
tool; our own reading does not go through it. docs/format.md describes both.
"""

import contextlib
import functools
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galmerhpc import __version__, files, hdf5
from galmerhpc.config import digest
from galmerhpc.dataset.records import read_record
from galmerhpc.dataset.split import SPLITS
from galmerhpc.errors import InputError

FORMAT = "galmerhpc training"
FORMAT_VERSION = 1
VIRTUAL = "dataset.h5"
GREY = "grey"
"""Attribute of a shard: 1 if all its images are grey, even in three channels."""

_BLOCK_BYTES = 16 << 20

# Images between two wanted ones are read along where they are fewer bytes than a disk reads in the
# time of one more request: 1.4 GB/s over 40,000 requests/s where it was measured.
_HOLE_BYTES = 32 << 10
# Where they go: every reader writes here, none reads it.
_HOLE = memoryview(bytearray(_HOLE_BYTES))
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")
# Linux cuts a longer announcement short: at its read-ahead window or the device's largest request,
# whichever is more (force_page_cache_ra in mm/readahead.c), and that is 1.25 MB on most systems.
_ANNOUNCED_BYTES = 1 << 20
# Shards held open at once; a process may have 1,024 files open on most systems.
_OPEN_FILES = 256

_COLUMNS = (
    "labels", "view", "group", "split", "copy", "simulation", "snapshot_id", "time_myr",
    "source_sha256", "image_crc32",
)  # fmt: skip

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]
Table = dict[str, NDArray[Any]]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.h5"


def in_order(names: Iterable[str]) -> list[str]:
    """Return the file names of shards by their numbers, of which those from 100,000 on are longer.

    Examples
    --------
    >>> in_order([shard_name(100_000), shard_name(99_999)])
    ['shard-99999.h5', 'shard-100000.h5']
    """
    return sorted(names, key=lambda name: (len(name), name))


def attributes(configuration: str, first_sample: int) -> dict[str, Any]:
    """Return a shard's attributes.

    Parameters
    ----------
    configuration : str
        Digest of the configuration's keys that decide what preprocessing makes.
    first_sample : int
        Number of the shard's first sample in the data set.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "configuration": configuration,
        "first_sample": first_sample,
    }


def blocks(
    count: int, image_shape: tuple[int, int, int], nbytes: int = _BLOCK_BYTES
) -> Iterator[tuple[int, int]]:
    """Divide consecutive images into blocks: what is in memory at once.

    Parameters
    ----------
    count : int
        Number of images.
    image_shape : tuple
        H, W, C.
    nbytes : int
        Most bytes of a block of several images.

    Yields
    ------
    tuple of int
        First image of the block and number of images in it.
    """
    size = max(nbytes // int(np.prod(image_shape)), 1)
    for first in range(0, count, size):
        yield first, min(size, count - first)


# --- writing --------------------------------------------------------------------------------------


def filter_of(compression: str) -> dict[str, Any]:
    """Return how `h5py.Group.create_dataset` compresses images, each in a chunk of its own.

    Parameters
    ----------
    compression : str
        ``preprocess.compression``.

    Raises
    ------
    InputError
        It needs hdf5plugin, which is not installed.
    """
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip"}
    try:
        import hdf5plugin
    except ImportError:
        raise InputError(
            f"preprocess.compression: {compression} needs hdf5plugin, which is not installed; "
            "pip install hdf5plugin, or choose gzip or none"
        ) from None
    return dict(hdf5plugin.Blosc(cname=compression.removeprefix("blosc-")))


def write_shard(
    path: Path,
    identity: dict[str, Any],
    parameters: tuple[str, ...],
    image_shape: tuple[int, int, int],
    columns: Table,
    pictures: Iterable[tuple[Images, list[str]]],
    compression: str = "none",
) -> None:
    """Write a shard, one block of images at a time.

    Parameters
    ----------
    path : Path
        The shard.
    identity : dict
        `attributes`.
    parameters : tuple of str
        Names of the labels.
    image_shape : tuple
        H, W, C.
    columns : dict of ndarray, shape (N, ...)
        All of docs/format.md but those that come with the images.
    pictures : iterable of (ndarray of shape (B, H, W, C), list of str)
        Blocks of the images in order, and the SHA-256 of the responses they were made from.
    compression : str
        As in `filter_of`.

    Raises
    ------
    GalmerhpcError
        The disk is full or cannot be written.
    InputError
        The compression is not installed.
    """
    shape = (len(columns["labels"]), *image_shape)
    layout = filter_of(compression)
    if layout:
        layout["chunks"] = (1, *image_shape)
    sources: list[str] = []
    checksums: list[int] = []
    grey = True
    with hdf5.written(path) as (file, check):
        _set_attributes(file, identity)
        images = file.create_dataset("images", shape, np.uint8, **layout)
        for block, source_sha256 in pictures:
            first = len(checksums)
            if layout:  # chunk by chunk, so that they are in order whatever the blocks
                for row, image in enumerate(block, first):
                    images[row] = image
            else:
                images[first : first + len(block)] = block
            check()
            grey = grey and bool((block == block[..., :1]).all())
            sources += source_sha256
            # Not isal's, five times as fast: it leaves vector registers in a state in which
            # Pillow resizes the next images a fifth slower (isal 1.9.1, AMD EPYC).
            checksums += map(zlib.crc32, block)
        late = {
            "source_sha256": hdf5.text_column(sources, 64),
            "image_crc32": np.array(checksums, np.uint32),
        }
        for name in _COLUMNS:
            column = (columns | late)[name]
            file[name] = column
            _set_attributes(file[name], {"sha256": hdf5.sha256(column)})
        _describe(file, parameters)
        _set_attributes(file, {GREY: int(grey)})


def write_virtual(folder: Path, names: list[str], counts: dict[str, int]) -> None:
    """Write ``dataset.h5`` over all shards of a folder.

    Parameters
    ----------
    folder : Path
        The run's ``shards`` folder.
    names : list of str
        The shards in order; they are named relatively, so that the folder may be moved.
    counts : dict
        Samples by split, kept as an attribute of ``split``.
    """
    shards = [Shard.open(folder / name) for name in names]
    buffer = io.BytesIO()
    with (
        hdf5.create(buffer) as file,
        h5py.File(shards[0].path, "r", locking=False) as first,
    ):
        identity = {k: v for k, v in shards[0].identity.items() if k != "first_sample"}
        grey = all(shard.identity.get(GREY, 0) for shard in shards)
        _set_attributes(file, identity | {GREY: int(grey)})
        for name in ("images", *_COLUMNS):
            _create_virtual(file, first[name], [(shard.path.name, len(shard)) for shard in shards])
        _describe(file, shards[0].parameters)
        _set_attributes(file["split"], {f"count_{name}": n for name, n in counts.items()})
    with files.atomic_path(folder / VIRTUAL) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _create_virtual(file: h5py.File, like: h5py.Dataset, sources: list[tuple[str, int]]) -> None:
    """Create a virtual dataset over those of the same name in other files.

    Parameters
    ----------
    file : File
        Where to create it.
    like : Dataset
        The one of the first source, for its name, type and shape.
    sources : list of (str, int)
        File names, and the rows of each.
    """
    name, item = like.name.encode(), like.shape[1:]
    whole = h5py.h5s.create_simple((sum(rows for _, rows in sources), *item))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)  # h5py.VirtualLayout has no switch for them
    start = 0
    for source, rows in sources:
        place = whole.copy()
        place.select_hyperslab((start, *(0 for _ in item)), (rows, *item))
        layout.set_virtual(place, source.encode(), name, h5py.h5s.create_simple((rows, *item)))
        start += rows
    h5py.h5d.create(file.id, name, like.id.get_type(), whole, layout)


def _describe(file: h5py.File, parameters: tuple[str, ...]) -> None:
    _set_attributes(file["labels"], {"parameters": parameters})
    _set_attributes(file["split"], {"names": SPLITS})


def _set_attributes(of: h5py.File | h5py.Dataset, values: dict[str, Any]) -> None:
    """Write attributes: numbers, texts, and tuples of texts.

    Texts are of fixed length, as in `hdf5.text_column`, where h5py would not write them so.
    """
    for name, value in values.items():
        texts = (value,) if isinstance(value, str) else value
        if isinstance(texts, tuple):
            column = hdf5.text_column(texts)
            of.attrs[name] = column if isinstance(value, tuple) else column[0]
        else:
            of.attrs[name] = value


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """What one training shard says of itself.

    Attributes
    ----------
    path : Path
        The file.
    identity : dict
        `attributes`, and `GREY` (not in older shards).
    parameters : tuple of str
        Names of the labels.
    shape : tuple of int
        N, H, W, C.
    counts : tuple of int
        Images in each of `split.SPLITS`.
    offset : int or None
        Position of the images in the file, bytes; None where they went through an HDF5 filter
        (compression) and only HDF5 can read them.
    """

    path: Path
    identity: dict[str, Any]
    parameters: tuple[str, ...]
    shape: tuple[int, int, int, int]
    counts: tuple[int, ...]
    offset: int | None

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Read what a shard says of itself, labels and split too; its images are not read.

        Raises
        ------
        InputError
            It is missing, damaged, of another format or compressed with a filter that is not
            installed; the message says what to do.
        """
        if not path.exists():
            raise InputError(f"{path}: no such shard; run galmerhpc preprocess again")
        with hdf5.opened(path, damaged) as file:
            identity = _attributes(file)
            version = identity.get("format_version")
            if identity.get("format") != FORMAT or version != FORMAT_VERSION:
                raise InputError(
                    f"{path}: not a training shard of format {FORMAT_VERSION}; run the "
                    "galmerhpc that made it, or remove the folder and preprocess again"
                )
            images = file["images"]
            shape, offset = images.shape, images.id.get_offset()
            parameters = _attributes(file["labels"])["parameters"]
            lengths = {len(file[name]) for name in ("images", *_COLUMNS)}
            labels = hdf5.read_column(file, "labels")
            counts = np.bincount(hdf5.read_column(file, "split"))
            fits = images.ndim == 4 and images.dtype == np.uint8
            fits = fits and (offset is not None or images.chunks is not None)
            fits = fits and len(counts) <= len(SPLITS)
            missing = _missing_filters(images)
        if not fits or lengths != {shape[0]}:
            raise damaged(path, "its datasets do not fit together")
        if not np.isfinite(labels).all():
            raise damaged(path, "a label is not finite")
        if missing:
            raise InputError(
                f"{path}: its images are compressed with {', '.join(missing)}, which this HDF5 "
                "cannot read; pip install hdf5plugin"
            )
        size = int(np.prod(shape, dtype=np.int64))
        if offset is not None and path.stat().st_size < offset + size:
            raise damaged(path, "cut short")
        of_split = tuple(np.pad(counts, (0, len(SPLITS) - len(counts))).tolist())
        return cls(path, identity, parameters, shape, of_split, offset)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.shape[0]

    @property
    def place(self) -> tuple[str, int]:
        """Digest of the configuration it was made with, and number of its first sample."""
        return self.identity.get("configuration", ""), self.identity.get("first_sample", -1)

    def open_images(self, once: bool = False) -> "_PlainImages | _FilteredImages":
        """Open the file to read images from it.

        Parameters
        ----------
        once : bool
            Each image is read once, and in order: the system reads ahead, and keeps nothing.

        Raises
        ------
        InputError
            It is gone or unreadable.
        """
        return _FilteredImages(self) if self.offset is None else _PlainImages(self, once)

    def check_all(self) -> None:
        """Read the complete shard and compare it with its checksums.

        Raises
        ------
        InputError
            It is damaged.
        """
        crc32 = read_columns(self.path, _COLUMNS)["image_crc32"]
        file = self.open_images()
        for first, count in blocks(len(self), self.shape[1:]):
            images = np.empty((count, *self.shape[1:]), np.uint8)
            file.read(np.arange(first, first + count), [image.data for image in images])
            for row, image in enumerate(images, first):
                if zlib.crc32(image.data) != crc32[row]:
                    raise _mismatch(self.path, row)


class _PlainImages:
    """The images of an uncompressed shard, read as a plain file, by any number of threads.

    Not through a memory map: a file that is cut short under one ends the process with SIGBUS, and
    on a parallel file system each page of it is a request of its own.
    """

    def __init__(self, shard: Shard, once: bool) -> None:
        self._path, self._first_byte, self._once = shard.path, shard.offset or 0, once
        self._size = int(np.prod(shard.shape[1:]))
        try:
            self._descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
            # Where we know what comes next, we announce it; the system would guess, and read too
            # much.
            advice = os.POSIX_FADV_SEQUENTIAL if once else os.POSIX_FADV_RANDOM
            os.posix_fadvise(self._descriptor, 0, 0, advice)
        except OSError as error:
            raise _unreadable(shard.path, error) from None

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def announce(self, rows: Rows) -> None:
        """Let the system begin to read images, ascending rows, that are asked for soon.

        Raises
        ------
        InputError
            The file is unreadable.
        """
        try:
            for _, position, size in self._requests(rows):
                for start in range(position, position + size, _ANNOUNCED_BYTES):
                    left = min(_ANNOUNCED_BYTES, position + size - start)
                    os.posix_fadvise(self._descriptor, start, left, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise _unreadable(self._path, error) from None

    def read(self, rows: Rows, into: Sequence[memoryview]) -> None:
        """Read images into arrays, neighbours in one request.

        Parameters
        ----------
        rows : ndarray, shape (n,), int64
            Rows of the shard, ascending.
        into : sequence of memoryview
            Where each goes, H W C bytes.

        Raises
        ------
        InputError
            The file is unreadable or ends too early.
        """
        try:
            for part, position, size in self._requests(rows):
                buffers = self._buffers(rows[part].tolist(), into[part])
                if os.preadv(self._descriptor, buffers, position) < size:
                    self._read_slowly(position, buffers)
                if self._once:
                    os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _unreadable(self._path, error) from None

    def _requests(self, rows: Rows) -> Iterator[tuple[slice, int, int]]:
        """Yield which rows are read at once, and position and size of that part of the file."""
        holes = (np.diff(rows) - 1) * self._size
        breaks = np.flatnonzero((holes < 0) | (holes > _HOLE_BYTES)) + 1
        for first, end in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
            for k in range(first, end, _MOST_BUFFERS // 2):  # an image's, and the hole's before it
                part = slice(k, min(k + _MOST_BUFFERS // 2, end))
                start, count = int(rows[k]), int(rows[part.stop - 1] - rows[k]) + 1
                position = self._first_byte + start * self._size
                yield part, position, count * self._size

    def _buffers(self, rows: Sequence[int], into: Sequence[memoryview]) -> list[memoryview]:
        """Return what one request fills: the images, and the holes between them."""
        buffers, end = [], rows[0]
        for row, image in zip(rows, into, strict=True):
            if row > end:
                buffers.append(_HOLE[: (row - end) * self._size])
            buffers.append(image)
            end = row + 1
        return buffers

    def _read_slowly(self, position: int, buffers: list[memoryview]) -> None:
        """Read buffer by buffer what came short in one go: at a file's end, or on a busy server."""
        for buffer in buffers:
            left = buffer.cast("B")
            while left:
                got = os.preadv(self._descriptor, [left], position)
                if not got:
                    raise damaged(self._path, "cut short")
                left, position = left[got:], position + got


class _FilteredImages:
    """The images of a compressed shard, read through HDF5: one thread at a time, under its lock."""

    def __init__(self, shard: Shard) -> None:
        self._path = shard.path
        try:
            # Images are a chunk each: HDF5's cache of chunks would only hold memory.
            self._file = h5py.File(shard.path, "r", locking=False, rdcc_nbytes=0)
            self._images = self._file["images"]
        except hdf5.ERRORS as error:
            raise hdf5.fault(shard.path, error, damaged) from None

    def announce(self, rows: Rows) -> None:
        """Do nothing: HDF5 alone knows where an image lies."""

    def read(self, rows: Rows, into: Sequence[memoryview]) -> None:
        """Read images into arrays; see `_PlainImages.read`."""
        try:
            for row, image in zip(rows.tolist(), into, strict=True):
                self._images.read_direct(np.asarray(image), np.s_[row])
        except hdf5.ERRORS as error:
            raise hdf5.fault(self._path, error, damaged) from None


def _missing_filters(images: h5py.Dataset) -> list[str]:
    """Return the names of filters that are needed to read a dataset and are not there."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 - loading it makes its filters known to HDF5

    creation = images.id.get_create_plist()
    filters = [creation.get_filter(k) for k in range(creation.get_nfilters())]
    return [
        name.decode() or f"HDF5 filter {code}"
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]


def all_grey(folder: Path) -> bool:
    """Return whether a run's shards are there and say that all their images are grey.

    Raises
    ------
    InputError
        ``dataset.h5`` is damaged.
    """
    path = folder / VIRTUAL
    if not path.exists():
        return False
    with hdf5.opened(path, damaged) as file:
        return bool(file.attrs.get(GREY, 0))


def read_columns(path: Path, names: Iterable[str]) -> Table:
    """Read columns of a shard and compare them with their checksums.

    Raises
    ------
    InputError
        The shard is damaged.
    """
    with hdf5.opened(path, damaged) as file:
        return {name: hdf5.read_column(file, name) for name in names}


def damaged(path: Path, why: str) -> InputError:
    """Return the error that says how to get a good shard in the place of a bad one."""
    return InputError(
        f"{path}: damaged training shard ({why}); remove this file and run galmerhpc preprocess "
        "again, which makes it from scratch"
    )


def _mismatch(path: Path, row: int) -> InputError:
    return damaged(path, f"checksum mismatch in image {row}")


def _unreadable(path: Path, error: OSError) -> InputError:
    """Return the error of a file that the system refuses to read; it may be intact."""
    return InputError(
        f"{path}: cannot be read: {error.strerror}; check the disk, or run galmerhpc preprocess "
        "again if the shard is gone"
    )


class Dataset:
    """All training shards of a run.

    Nothing that grows with the number of samples is loaded until it is asked for. Any number of
    threads may read images by row.

    Attributes
    ----------
    parameters : tuple of str
        Names of the P labels.
    image_shape : tuple of int
        H, W, C.
    fingerprint : str
        SHA-256 over the shards' SHA-256: two data sets with the same one are the same.
    shards : list of Shard
        The shards in order.
    sha256 : dict
        Each shard's SHA-256 by file name.
    """

    def __init__(self, shards: list[Shard], sha256: dict[str, str], once: bool = False) -> None:
        self.shards, self.sha256, self.fingerprint = shards, sha256, digest(sha256)
        self.parameters = shards[0].parameters
        self.image_shape: tuple[int, int, int] = shards[0].shape[1:]
        self._ends = np.cumsum([len(shard) for shard in shards])
        # What the cache forgets is closed when the last thread that reads it is done.
        self._images = functools.lru_cache(_OPEN_FILES)(lambda k: shards[k].open_images(once))

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open the finished shards of a run.

        Parameters
        ----------
        folder : Path
            The run's ``shards`` folder.

        Raises
        ------
        InputError
            Preprocessing is not finished, or a file is missing or damaged; the message names it.
        """
        configuration, recorded = _finished(folder)
        names = in_order(recorded.keys() - {VIRTUAL})
        shards: list[Shard] = []
        for name in names:
            shard = Shard.open(folder / name)
            place = (configuration, sum(map(len, shards)))
            same_labels = not shards or shard.parameters == shards[0].parameters
            same_shape = not shards or shard.shape[1:] == shards[0].shape[1:]
            if not (shard.place == place and same_labels and same_shape):
                raise damaged(shard.path, "it belongs to another data set")
            shards.append(shard)
        return cls(shards, {name: recorded[name] for name in names})

    def at(self, folder: Path) -> "Dataset":
        """Return the same data set in another folder that holds copies of its shards."""
        shards = [replace(shard, path=folder / shard.path.name) for shard in self.shards]
        return Dataset(shards, self.sha256)

    def to_read_once(self) -> "Dataset":
        """Return the same data set, to read each image once, in order (`Shard.open_images`)."""
        return Dataset(self.shards, self.sha256, once=True)

    @property
    def folder(self) -> Path:
        """Where the shards lie."""
        return self.shards[0].path.parent

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._ends[-1])

    @functools.cached_property
    def labels(self) -> NDArray[np.float32]:
        """Labels, degrees where an angle, shape (N, P), float32."""
        return self.column("labels")

    @functools.cached_property
    def split(self) -> NDArray[np.uint8]:
        """Codes of `split.SPLITS`, shape (N,), uint8."""
        return self.column("split")

    @functools.cached_property
    def view(self) -> NDArray[np.object_]:
        """Ids of the samples' views (`catalogue.View.id`), shape (N,), str."""
        return self.column("view")

    def column(self, name: str) -> NDArray[Any]:
        """Read a column of docs/format.md from all shards, texts as str.

        Raises
        ------
        InputError
            A shard is damaged.
        """
        column = np.concatenate([read_columns(s.path, [name])[name] for s in self.shards])
        if column.dtype.kind == "S":
            return np.array([text.decode() for text in column], object)
        return column

    def rows(self, split: str) -> Rows:
        """Return the rows of one split of `split.SPLITS`, ascending, int64."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def announce(self, rows: Rows) -> None:
        """Let the system begin to read images by row, in any order, that are asked for soon.

        Raises
        ------
        InputError
            A shard is gone or unreadable.
        """
        for number, places in self._by_shard(rows):
            self._images(number).announce(rows[places] - self._start(number))

    def read(self, rows: Rows, images: Images) -> None:
        """Read images by row into an array, unchecked.

        The rows are sorted, so that each shard is read in one go and neighbours at once.

        Parameters
        ----------
        rows : ndarray, shape (n,), int64
            Rows in any order.
        images : ndarray, shape (n, H, W, C), uint8
            Where they go; contiguous.

        Raises
        ------
        InputError
            A shard is gone or unreadable.
        """
        for number, places in self._by_shard(rows):
            into = [images[k].data for k in places.tolist()]
            self._images(number).read(rows[places] - self._start(number), into)

    def check(self, rows: Rows, images: Iterable[Images], crc32: NDArray[np.uint32]) -> None:
        """Compare images by row with their checksums, column ``image_crc32``.

        Raises
        ------
        InputError
            An image is not what was written; the message names the file and the row in it.
        """
        for row, image, expected in zip(rows.tolist(), images, crc32.tolist(), strict=True):
            if zlib.crc32(image.data) != expected:
                number = int(np.searchsorted(self._ends, row, side="right"))
                raise _mismatch(self.shards[number].path, row - self._start(number))

    def images(self, rows: Rows) -> Images:
        """Read images by row, in any order, and compare them with their checksums.

        Parameters
        ----------
        rows : ndarray, shape (n,), int64
            Rows.

        Returns
        -------
        ndarray, shape (n, H, W, C), uint8

        Raises
        ------
        InputError
            A shard is damaged.
        """
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        self.announce(rows)  # the disk works on all of them at once
        self.read(rows, images)
        crc32 = np.empty(len(rows), np.uint32)
        for number, places in self._by_shard(rows):
            column = read_columns(self.shards[number].path, ["image_crc32"])["image_crc32"]
            crc32[places] = column[rows[places] - self._start(number)]
        self.check(rows, images, crc32)
        return images

    def in_order(self, rows: Rows) -> Iterator[tuple[slice, Images]]:
        """Read images of ascending rows in large blocks, checked; each shard once.

        Yields
        ------
        tuple of (slice, ndarray of shape (n, H, W, C))
            A place in `rows` and its images.

        Raises
        ------
        InputError
            A shard is damaged.
        """
        for first, count in blocks(len(rows), self.image_shape):
            place = slice(first, first + count)
            yield place, self.images(rows[place])

    def _by_shard(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Yield the numbers of the rows' shards, and the places of their rows by ascending row."""
        order = np.argsort(rows, kind="stable")
        numbers = np.searchsorted(self._ends, rows[order], side="right")
        for number in np.unique(numbers).tolist():
            first, end = np.searchsorted(numbers, [number, number + 1])
            yield number, order[first:end]

    def _start(self, number: int) -> int:
        """Return the first row of a shard."""
        return int(self._ends[number]) - len(self.shards[number])


def _finished(folder: Path) -> tuple[str, dict[str, str]]:
    """Read a finished stage's record: the digest of its inputs, and its files' SHA-256 by name."""
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder}: no training shards; run galmerhpc preprocess first")
    if not record.files:
        raise InputError(f"{folder}: not finished; run galmerhpc preprocess again")
    for name in record.files:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; run galmerhpc preprocess again")
    return digest(record.inputs), record.files


def _attributes(of: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Read attributes as `_set_attributes` was given them."""
    plain: dict[str, Any] = {}
    for name, value in of.attrs.items():
        if isinstance(value, np.ndarray):
            plain[name] = tuple(text.decode() for text in value.tolist())
        else:
            plain[name] = value.decode() if isinstance(value, bytes) else value.item()
    return plain
