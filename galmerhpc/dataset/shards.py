"""Training shards: images ready to train on, in HDF5 files that several ranks read at once.

A shard's images are contiguous and uncompressed, unless compression was asked for, so that they are
read without HDF5: in order as a plain file, or at random through a memory map. ``dataset.h5`` shows
all shards as one file to any HDF5 tool; our own reading does not go through it. docs/format.md
describes both.
"""

import contextlib
import functools
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galmerhpc import __version__, files
from galmerhpc.config import digest
from galmerhpc.dataset.split import SPLITS
from galmerhpc.errors import InputError

FORMAT = "galmerhpc training"
FORMAT_VERSION = 1
VIRTUAL = "dataset.h5"

_BLOCK_BYTES = 16 << 20

# What h5py raises on files that are damaged or not HDF5.
_HDF5_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError)

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


def attributes(configuration: str, first_sample: int) -> dict[str, Any]:
    """Return what identifies a shard: the same attributes, the same content.

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


def blocks(count: int, image_shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Divide consecutive images into blocks: all that is held in memory at once.

    Parameters
    ----------
    count : int
        Number of images.
    image_shape : tuple
        H, W, C.

    Yields
    ------
    tuple of int
        First image of the block and number of images in it.
    """
    size = max(_BLOCK_BYTES // int(np.prod(image_shape)), 1)
    for first in range(0, count, size):
        yield first, min(size, count - first)


# --- writing --------------------------------------------------------------------------------------


def text_column(texts: Iterable[str], width: int) -> NDArray[Any]:
    """Return texts as a column of `width` bytes a row, which HDF5's tools show as text."""
    return np.array([text.encode() for text in texts], h5py.string_dtype("utf-8", width))


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
    """Write a shard, a block of images at a time.

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
    with files.atomic_path(path) as temporary, temporary.open("w+b") as plain:
        device = _Device(plain)
        with _create(device) as file:
            _set_attributes(file, identity)
            images = file.create_dataset("images", shape, np.uint8, **layout)
            for block, source_sha256 in pictures:
                first = len(checksums)
                if layout:  # chunk by chunk, so that they stand in order whatever the blocks
                    for row, image in enumerate(block, first):
                        images[row] = image
                else:
                    images[first : first + len(block)] = block
                device.raise_fault()
                sources += source_sha256
                checksums += map(zlib.crc32, block)
            late = {
                "source_sha256": text_column(sources, 64),
                "image_crc32": np.array(checksums, np.uint32),
            }
            for name in _COLUMNS:
                column = (columns | late)[name]
                file[name] = column
                _set_attributes(file[name], {"sha256": _sha256(column)})
            _describe(file, parameters)
        device.raise_fault()


class _Device:
    """A file as HDF5 writes it, which takes every write, also when the disk is full.

    HDF5 crashes the process where a write fails amid its closing of a file. So a fault is kept, and
    raised by `raise_fault` once HDF5 is out of the way; the file is of no use then.
    """

    def __init__(self, file: io.BufferedRandom) -> None:
        self._file = file
        self._fault: OSError | None = None
        self.seek, self.tell, self.readinto = file.seek, file.tell, file.readinto

    def write(self, data: memoryview) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._fault is None:
            try:
                action()
            except OSError as error:
                self._fault = error

    def raise_fault(self) -> None:
        """Raise the first fault, if there was one."""
        if self._fault:
            raise self._fault


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
        _create(buffer) as file,
        h5py.File(shards[0].path, "r", locking=False) as first,
    ):
        identity = {k: v for k, v in shards[0].identity.items() if k != "first_sample"}
        _set_attributes(file, identity)
        for name in ("images", *_COLUMNS):
            _create_virtual(file, first[name], [(shard.path.name, len(shard)) for shard in shards])
        _describe(file, shards[0].parameters)
        _set_attributes(file["split"], {f"count_{name}": n for name, n in counts.items()})
    with files.atomic_path(folder / VIRTUAL) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _create(device: "io.BytesIO | _Device") -> h5py.File:
    """Begin an HDF5 file whose bytes depend on its content alone."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, device)
    # Readable by HDF5 1.10 (2016) and later; its object headers carry checksums.
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    # A chunk is compressed when it is whole, not when a cache runs over.
    access.set_cache(0, 0, 0, 0.0)
    creation.set_obj_track_times(False)  # h5py.File has no switch for the root group's
    return h5py.File(h5py.h5f.create(b"shard", h5py.h5f.ACC_TRUNC, creation, access))


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

    Texts are of fixed length. h5py would write a str into HDF5's global heap, which has no
    checksum, and HDF5 1.14 runs for ever on a damaged one.
    """
    for name, value in values.items():
        texts = (value,) if isinstance(value, str) else value
        if isinstance(texts, tuple):
            column = text_column(texts, max(len(text.encode()) for text in texts))
            of.attrs[name] = column if isinstance(value, tuple) else column[0]
        else:
            of.attrs[name] = value


def _sha256(column: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """One training shard; its images are found in the file without HDF5.

    Attributes
    ----------
    path : Path
        The file.
    identity : dict
        `attributes`.
    parameters : tuple of str
        Names of the labels.
    shape : tuple of int
        N, H, W, C.
    offset : int or None
        Position of the images in the file, bytes; None where they are compressed.
    image_crc32 : ndarray, shape (N,), uint32
        CRC-32 of each image.
    """

    path: Path
    identity: dict[str, Any]
    parameters: tuple[str, ...]
    shape: tuple[int, int, int, int]
    offset: int | None
    image_crc32: NDArray[np.uint32]

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Read what a shard says of itself; its images are not read.

        Raises
        ------
        InputError
            It is missing, damaged or of another format; the message says what to do.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such shard; run galmerhpc preprocess again")
        try:
            with h5py.File(path, "r", locking=False) as file:
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
                plain = images.ndim == 4 and images.dtype == np.uint8
                plain &= offset is not None or images.chunks == (1, *shape[1:])
        except _HDF5_ERRORS as error:
            raise damaged(path, " ".join(str(error).split())[:120]) from None
        if not plain or lengths != {shape[0]}:
            raise damaged(path, "its datasets do not fit together")
        end = 0 if offset is None else offset + int(np.prod(shape, dtype=np.int64))
        if path.stat().st_size < end:
            raise damaged(path, "cut short")
        crc32 = read_columns(path, ["image_crc32"])["image_crc32"]
        return cls(path, identity, parameters, shape, offset, crc32)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.shape[0]

    @property
    def place(self) -> tuple[str, int]:
        """Digest of the configuration it was made with, and number of its first sample."""
        return self.identity.get("configuration", ""), self.identity.get("first_sample", -1)

    def map(self) -> Images:
        """Return uncompressed images as a memory map, shape (N, H, W, C)."""
        assert self.offset is not None
        return np.memmap(self.path, np.uint8, "r", self.offset, self.shape)

    def read(self, first: int, count: int) -> Images:
        """Read consecutive images, shape (count, H, W, C), unchecked."""
        if self.offset is None:
            return self._decompress(first, count)
        size = int(np.prod(self.shape[1:]))
        try:
            images = np.fromfile(
                self.path, np.uint8, count * size, offset=self.offset + first * size
            )
        except OSError as error:
            raise damaged(self.path, error.strerror or "unreadable") from None
        if images.size < count * size:
            raise damaged(self.path, "cut short")
        return images.reshape(count, *self.shape[1:])

    def _decompress(self, first: int, count: int) -> Images:
        with contextlib.suppress(ImportError):  # it gives HDF5 its filters
            import hdf5plugin  # noqa: F401
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                images: Images = file["images"][first : first + count]
        except _HDF5_ERRORS as error:
            if "filter" in str(error) and "hdf5plugin" not in sys.modules:
                raise InputError(
                    f"{self.path}: compressed; pip install hdf5plugin to read it"
                ) from None
            raise damaged(self.path, " ".join(str(error).split())[:120]) from None
        return images

    def check(self, rows: Iterable[int], images: Images) -> None:
        """Compare images of these rows with their checksums.

        Raises
        ------
        InputError
            An image is not what was written; the message names the file and the row.
        """
        for row, image in zip(rows, images, strict=True):
            if zlib.crc32(image) != self.image_crc32[row]:
                raise damaged(self.path, f"image {row} has another checksum")

    def check_all(self) -> None:
        """Read the whole shard and compare it with its checksums.

        Raises
        ------
        InputError
            It is damaged.
        """
        read_columns(self.path, _COLUMNS)
        for first, count in blocks(len(self), self.shape[1:]):
            self.check(range(first, first + count), self.read(first, count))


def read_columns(path: Path, names: Iterable[str]) -> Table:
    """Read columns of a shard and compare them with their checksums.

    Raises
    ------
    InputError
        The shard is damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            columns = {name: file[name][:] for name in names}
            expected = {name: _attributes(file[name])["sha256"] for name in names}
    except _HDF5_ERRORS as error:
        raise damaged(path, " ".join(str(error).split())[:120]) from None
    for name, column in columns.items():
        if _sha256(column) != expected[name]:
            raise damaged(path, f"{name} has another checksum")
    return columns


def damaged(path: Path, why: str) -> InputError:
    """Return the error that says how to get a good shard in the place of a bad one."""
    return InputError(
        f"{path}: damaged training shard ({why}); remove this file and run galmerhpc preprocess "
        "again, which makes it anew"
    )


class Dataset:
    """All training shards of a run.

    Labels and splits are held in memory, texts are read when asked for, images are read by row.
    Every image is compared with its checksum when it is first read.

    Attributes
    ----------
    parameters : tuple of str
        Names of the P labels.
    image_shape : tuple of int
        H, W, C.
    labels : ndarray, shape (N, P), float32
        Labels, degrees where an angle.
    split : ndarray, shape (N,), uint8
        Codes of `split.SPLITS`.
    fingerprint : str
        SHA-256 over the shards' SHA-256: two data sets with the same one are the same.
    """

    def __init__(self, shards: list[Shard], fingerprint: str) -> None:
        self._shards, self.fingerprint = shards, fingerprint
        self.parameters = shards[0].parameters
        self.image_shape: tuple[int, int, int] = shards[0].shape[1:]
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.labels: NDArray[np.float32] = self.column("labels")
        self.split: NDArray[np.uint8] = self.column("split")
        self._checked = np.zeros(len(self.split), bool)
        self._maps: dict[int, Images] = {}

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
        names = sorted(recorded.keys() - {VIRTUAL})
        shards: list[Shard] = []
        for name in names:
            shard = Shard.open(folder / name)
            place = (configuration, sum(map(len, shards)))
            same_labels = not shards or shard.parameters == shards[0].parameters
            same_shape = not shards or shard.shape[1:] == shards[0].shape[1:]
            if not (shard.place == place and same_labels and same_shape):
                raise damaged(shard.path, "it belongs to another data set")
            shards.append(shard)
        dataset = cls(shards, digest({name: recorded[name] for name in names}))
        bad = np.flatnonzero(~np.isfinite(dataset.labels).all(axis=1))
        if len(bad):
            raise damaged(shards[dataset._shard_of(bad)[0]].path, "a label is not finite")
        return dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._ends[-1])

    @functools.cached_property
    def view(self) -> NDArray[np.object_]:
        """Ids of the samples' views (`catalogue.View.id`), shape (N,), str."""
        return self.column("view")

    @functools.cached_property
    def group(self) -> NDArray[np.object_]:
        """What the split keeps together, shape (N,), str."""
        return self.column("group")

    def column(self, name: str) -> NDArray[Any]:
        """Read a column of docs/format.md from all shards, texts as str.

        Raises
        ------
        InputError
            A shard is damaged.
        """
        column = np.concatenate([read_columns(s.path, [name])[name] for s in self._shards])
        if column.dtype.kind == "S":
            return np.array([text.decode() for text in column], object)
        return column

    def rows(self, split: str) -> Rows:
        """Return the rows of one split of `split.SPLITS`, ascending, int64."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def images(self, rows: Rows) -> Images:
        """Return images by row, in any order, through memory maps.

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
        number = self._shard_of(rows)
        for k in np.unique(number):
            here = np.flatnonzero(number == k)
            local = rows[here] - (self._ends[k] - len(self._shards[k]))
            images[here] = self._map(int(k))[local]
            new = ~self._checked[rows[here]]
            self._shards[k].check(local[new], images[here[new]])
            self._checked[rows[here]] = True
        return images

    def in_order(self, rows: Rows) -> Iterator[tuple[slice, Images]]:
        """Read images of ascending rows as plain files, in large blocks, each shard once.

        Yields
        ------
        tuple of (slice, ndarray of shape (n, H, W, C))
            A place in `rows` and its images.

        Raises
        ------
        InputError
            A shard is damaged.
        """
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            start = end - len(shard)
            for first, count in blocks(len(shard), shard.shape[1:]):
                low, high = np.searchsorted(rows, [start + first, start + first + count])
                if low == high:
                    continue
                local = rows[low:high] - start
                block = shard.read(int(local[0]), int(local[-1] - local[0]) + 1)
                images = block[local - local[0]]
                shard.check(local, images)
                yield slice(int(low), int(high)), images

    def _shard_of(self, rows: Rows) -> NDArray[np.intp]:
        return np.searchsorted(self._ends, rows, side="right")

    def _map(self, number: int) -> Images:
        if number not in self._maps:
            self._maps[number] = self._shards[number].map()
        return self._maps[number]


def _finished(folder: Path) -> tuple[str, dict[str, str]]:
    """Read a finished stage's record: the digest of its inputs, and its files' SHA-256 by name."""
    path = folder / "stage.json"
    if not path.exists():
        raise InputError(f"{folder}: no training shards; run galmerhpc preprocess first")
    record = files.read_json(path)
    inputs, made = (
        (record.get("inputs"), record.get("files")) if isinstance(record, dict) else (0, 0)
    )
    if not isinstance(inputs, dict) or not isinstance(made, dict | None):
        raise InputError(f"{path}: damaged; remove {folder} and run galmerhpc preprocess again")
    if not made:
        raise InputError(f"{folder}: not finished; run galmerhpc preprocess again")
    for name in made:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; run galmerhpc preprocess again")
    return digest(inputs), made


def _attributes(of: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Read attributes as `_set_attributes` was given them."""
    plain: dict[str, Any] = {}
    for name, value in of.attrs.items():
        if isinstance(value, np.ndarray):
            plain[name] = tuple(text.decode() for text in value.tolist())
        else:
            plain[name] = value.decode() if isinstance(value, bytes) else value.item()
    return plain
