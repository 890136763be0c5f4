"""Raw shards: the responses as received, first in a spool that survives a kill, then in HDF5.

HDF5 is not safe while it is written, so a rank appends to a spool and packs it into the shard of
the same name once it is full: ``raw/raw-<rank>-<number>.spool`` and ``.h5``. Whoever finds a spool
that no process holds can finish the work; one beside its shard is obsolete. docs/format.md
describes both files.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import __version__, files, hdf5
from galmerhpc.catalogue import Places, View
from galmerhpc.config import Config
from galmerhpc.dataset.slices import WHOLE, Slice
from galmerhpc.errors import InputError

log = logging.getLogger(__name__)

FORMAT = "galmerhpc raw"
FORMAT_VERSION = 2

_MAGIC = b"GHR1"
_HEADER = struct.Struct("<4sIII")  # magic, bytes of metadata, bytes of body, CRC-32 of both
# Readable by HDF5 1.10 (2016) and later; its object headers carry checksums, older ones' do not.
_LIBVER = ("v110", "v110")
_TEXTS = ("view", "url", "sha256", "content_type", "fetched_utc")
_NUMBERS = {"simulation": np.int64, "snapshot_id": np.int64, "time_myr": np.float64}

Rows = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Response:
    """A view's image as received, and all that is known about it.

    Attributes
    ----------
    view : str
        `catalogue.View.id`.
    labels : dict
        `catalogue.View.labels`: degrees, spin as 0 or 1.
    simulation : int
        Realisation.
    snapshot_id : int
        The service's number of the snapshot.
    time_myr : float or None
        Time since pericentre; None if unknown, NaN in a shard.
    url, content_type, fetched_utc : str
        Its address, its type, and when it arrived (ISO 8601).
    sha256 : str
        Of `body`, hexadecimal, taken on arrival.
    body : bytes
        The response.
    """

    view: str
    labels: dict[str, float]
    simulation: int
    snapshot_id: int
    time_myr: float | None
    url: str
    content_type: str
    fetched_utc: str
    sha256: str
    body: bytes

    @classmethod
    def of(
        cls, view: View, url: str, content_type: str, fetched_utc: str, body: bytes
    ) -> "Response":
        """Return the response that a view's image is."""
        return cls(
            view=view.id,
            labels=view.labels,
            simulation=view.run.simulation,
            snapshot_id=view.snapshot.id,
            # JSON, of which a spool's metadata are, has no NaN.
            time_myr=None if math.isnan(time := view.snapshot.time_myr) else time,
            url=url,
            content_type=content_type,
            fetched_utc=fetched_utc,
            sha256=hashlib.sha256(body).hexdigest(),
            body=body,
        )


class RawWriter:
    """Writes one rank's responses: those for which `append` has returned survive any kill.

    Full spools are packed by a thread, so that writing does not wait for it.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder. Its leftover spools have been packed (`tidy`).
    rank : int
        This rank; no other process writes under its names.
    views_per_shard : int
        Responses per shard.
    part : Slice
        The slice that this job fetches; it is part of the names.

    Attributes
    ----------
    shards : list of Path
        Shards made, once the writer is closed.
    """

    def __init__(self, folder: Path, rank: int, views_per_shard: int, part: Slice = WHOLE) -> None:
        self.shards: list[Path] = []
        self._folder, self._views_per_shard = folder, views_per_shard
        self._name, self._number = f"raw{part.suffix}-{rank:04d}", -1
        self._spool: FileIO | None = None
        self._count = 0
        self._packer = ThreadPoolExecutor(1)
        self._packed: Future[Path | None] | None = None

    def append(self, responses: Sequence[Response]) -> None:
        """Write responses and force them to disk; pack the spool where it is full.

        Raises
        ------
        GalmerhpcError
            The disk is full or cannot be written.
        """
        while responses:
            now = responses[: self._views_per_shard - self._count]
            responses = responses[len(now) :]
            self._write(b"".join(_encode(response) for response in now))
            self._count += len(now)
            if self._count == self._views_per_shard:
                self._hand_over()

    def close(self) -> None:
        """Pack what is left in the spool, and wait until all is packed.

        Raises
        ------
        GalmerhpcError
            The disk is full or cannot be written.
        """
        self._hand_over()
        self._take_shard()
        self._packer.shutdown()

    def _hand_over(self) -> None:
        """Have the spool packed, one at a time; raise what went wrong with the one before."""
        self._take_shard()
        if self._spool is not None:
            self._packed = self._packer.submit(_pack_held, self._spool)
        self._spool, self._count = None, 0

    def _take_shard(self) -> None:
        if self._packed and (shard := self._packed.result()):
            self.shards.append(shard)
        self._packed = None

    def _write(self, data: bytes) -> None:
        path = self._folder
        try:
            if self._spool is None:
                self._spool = self._new_spool()
            path = Path(self._spool.name)
            left = memoryview(data)
            while left:  # a disk that fills up writes a part
                left = left[self._spool.write(left) :]
            os.fsync(self._spool.fileno())
        except OSError as error:
            raise files.unwritable(path, error) from error

    def _new_spool(self) -> FileIO:
        """Claim a name that no spool or shard has, whatever a stale listing would say.

        The spool is held while this process lives, so that no other process packs it.
        """
        while True:
            self._number += 1
            path = self._folder / f"{self._name}-{self._number:05d}.spool"
            if path.with_suffix(".h5").exists():
                continue
            with contextlib.suppress(FileExistsError):
                spool = FileIO(path, "xb")
                files.hold(spool)
                files.sync(self._folder)
                return spool


def tidy(folder: Path, part: Slice = WHOLE) -> None:
    """Pack the spools that killed jobs left, of any ranks, and remove their temporary files.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder.
    part : Slice
        The slice of this job; what belongs to its siblings is left alone, as they may be at work.

    Raises
    ------
    InputError
        A process is still writing one of the spools.
    """

    def ours(path: Path) -> bool:
        return not part.is_sibling(Slice.of_file(path))

    files.remove_temporaries(folder, ours)
    for spool in sorted(filter(ours, folder.glob("raw-*.spool"))):
        with spool.open("r+b") as file:  # NFS locks what is open for writing only
            if not files.hold(file):
                raise InputError(f"{spool}: still being written by another job; wait for its end")
            _pack(spool)


def _pack_held(spool: FileIO) -> Path | None:
    """Pack a spool that is held, then release it."""
    with spool:
        return _pack(Path(spool.name))


def _pack(spool: Path) -> Path | None:
    """Turn a spool into the shard of its name, or into nothing if it holds no complete record.

    Raises
    ------
    GalmerhpcError
        The disk is full or cannot be written; the spool is kept.
    """
    shard = spool.with_suffix(".h5")
    # A kill between the two steps leaves both; the shard was renamed when it was complete.
    if not shard.exists() and (responses := read_spool(spool)):
        _write_shard(shard, responses)
    spool.unlink()
    return shard if shard.exists() else None


def read_spool(path: Path) -> list[Response]:
    """Read a spool up to its end, or to the record that a kill cut short."""
    data = memoryview(path.read_bytes())
    responses, position = [], 0
    while record := _decode(data[position:]):
        response, length = record
        responses.append(response)
        position += length
    if position < len(data):
        log.warning("%s: %d bytes of an unfinished record dropped", path, len(data) - position)
    return responses


def is_spool(path: Path) -> bool:
    """Return whether a file begins as a spool does; an empty one may be a spool."""
    with path.open("rb") as file:
        return _MAGIC.startswith(file.read(len(_MAGIC)))


def _encode(response: Response) -> bytes:
    fields = {f.name: getattr(response, f.name) for f in dataclasses.fields(response)}
    body = fields.pop("body")
    metadata = json.dumps(fields).encode()
    crc = zlib.crc32(body, zlib.crc32(metadata))
    return _HEADER.pack(_MAGIC, len(metadata), len(body), crc) + metadata + body


def _decode(data: memoryview) -> tuple[Response, int] | None:
    """Read the first record and its length; None if there is no complete one."""
    if len(data) < _HEADER.size:
        return None
    magic, metadata_bytes, body_bytes, crc = _HEADER.unpack_from(data)
    content = data[_HEADER.size : _HEADER.size + metadata_bytes + body_bytes]
    whole = magic == _MAGIC and len(content) == metadata_bytes + body_bytes
    if not whole or zlib.crc32(content) != crc:
        return None
    fields = json.loads(bytes(content[:metadata_bytes]))
    response = Response(**fields, body=bytes(content[metadata_bytes:]))
    return response, _HEADER.size + len(content)


def _write_shard(path: Path, responses: Sequence[Response]) -> None:
    # Into memory first: HDF5 reports a full disk in many ways, a plain write in one.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_LIBVER) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["code_version"] = np.bytes_(__version__)
        bodies = [np.frombuffer(r.body, np.uint8) for r in responses]
        file["response"] = np.concatenate(bodies)  # (bytes of all,)
        file["offset"] = np.cumsum([0, *map(len, bodies)], dtype=np.int64)  # (N + 1,)
        names = list(responses[0].labels)
        file["labels"] = np.array([[r.labels[n] for n in names] for r in responses], np.float64)
        file["labels"].attrs["parameters"] = hdf5.text_column(names)
        for name, dtype in _NUMBERS.items():
            file[name] = np.array([getattr(r, name) for r in responses], dtype)
        for name in _TEXTS:
            file[name] = hdf5.text_column([getattr(r, name) for r in responses])
        for name in file.keys() - {"response"}:  # whose parts have checksums of their own
            file[name].attrs["sha256"] = np.bytes_(hdf5.sha256(file[name][:]))
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class RawStore:
    """All responses of a run's raw shards, by row: shard after shard, in the order of their names.

    Only the places of rows in the files are held in memory, whatever the number of responses. Of a
    view that was stored several times the newest response counts. An image that came for several
    views is none of theirs: it is an error, sent as an image.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder; one that does not exist has no views.
    allow_duplicates : bool
        Several views may look alike (`config.Scrape.allow_duplicates`).
    made : iterable of str
        Names of shards that other nodes have just made and a listing may not show yet.
    without : collection of Path
        Shards to pass over.

    Attributes
    ----------
    paths : list of Path
        The shards, sorted by name.
    duplicates : dict of str to bytes
        Views that are missing because their image came for others too, and its SHA-256,
        hexadecimal.

    Raises
    ------
    InputError
        A shard is damaged; the message names it and says what to do.
    """

    def __init__(
        self,
        folder: Path,
        allow_duplicates: bool = False,
        made: Iterable[str] = (),
        without: Collection[Path] = (),
    ) -> None:
        listed = {*folder.glob("raw-*.h5"), *(folder / name for name in made)}
        self.paths = sorted(listed.difference(without))
        paths = tqdm(self.paths, "raw shards", unit="shard", leave=False, disable=None)
        self._shards = [RawShard.open(path) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._passed_over = set() if allow_duplicates else self._find_shared()
        self._passed_over |= self._find_superseded()
        self.duplicates = self._lost_to_others()

    def _find_shared(self) -> set[int]:
        """Return the rows whose image came for another view too."""
        rows = self._find_repeated("sha256")
        views, sha256 = self._cells("view", rows), self.sha256(rows)
        views_of: dict[bytes, set[bytes]] = defaultdict(set)
        for view, one in zip(views, sha256, strict=True):
            views_of[one].add(view)
        several = zip(rows.tolist(), sha256, strict=True)
        return {row for row, one in several if len(views_of[one]) > 1}

    def _find_superseded(self) -> set[int]:
        """Return the rows of views that have a newer row; of one moment's rows the last counts."""
        repeated = self._find_repeated("view")
        rows = repeated[~np.isin(repeated, list(self._passed_over))]
        newest: dict[bytes, tuple[bytes, int]] = {}
        stored = zip(
            self._cells("view", rows), self._cells("fetched_utc", rows), rows.tolist(), strict=True
        )
        for view, moment, row in stored:
            newest[view] = max(newest.get(view, (b"", -1)), (moment, row))
        return set(rows.tolist()).difference(row for _, row in newest.values())

    def _lost_to_others(self) -> dict[str, bytes]:
        """Return the views that have none but shared images, and the SHA-256 of one of these."""
        if not self._passed_over:
            return {}
        rows = np.array(sorted(self._passed_over), np.int64)
        cells = zip(self._cells("view", rows), self.sha256(rows), strict=True)
        views = {view.decode(): sha256 for view, sha256 in cells}
        found = zip(views.items(), self.find(views, len(views)).tolist(), strict=True)
        return {view: sha256 for (view, sha256), row in found if row < 0}

    def _find_repeated(self, name: str) -> Rows:
        """Return the rows whose text in a column occurs again, or nearly: its hash does."""
        cells = (cell for shard in self._shards for cell in shard.column(name).tolist())
        hashes = np.fromiter(map(hash, cells), np.int64, len(self))
        _, place, count = np.unique(hashes, return_inverse=True, return_counts=True)
        return np.flatnonzero(count[place.reshape(-1)] > 1)

    def __len__(self) -> int:
        """Return the number of responses."""
        return int(self._ends[-1]) if self._shards else 0

    def _views(self) -> Iterator[str]:
        """Yield the ids of all rows; that of a row which does not count is empty."""
        views = (view for shard in self._shards for view in shard.texts("view"))
        return ("" if row in self._passed_over else view for row, view in enumerate(views))

    def ids(self) -> set[str]:
        """Return the ids of all views."""
        return set(self._views()) - {""}

    def find(self, ids: Iterable[str], count: int) -> NDArray[np.int64]:
        """Return the rows of `count` views, shape (count,); -1 where a view is in no shard."""
        return Places(self._views(), len(self)).of(ids, count)

    def read(self, rows: Rows, ids: Sequence[str]) -> Iterator[tuple[int, bytes, str]]:
        """Read responses file by file, verify them, and yield them as they come.

        Parameters
        ----------
        rows : ndarray, shape (n,), int64
            Rows.
        ids : sequence of str
            Ids of their views.

        Yields
        ------
        tuple of (int, bytes, str)
            Place in `rows`, the response, and its SHA-256.

        Raises
        ------
        InputError
            A row does not hold this view, or its bytes are not those that came.
        """
        number = np.searchsorted(self._ends, rows, side="right")
        for k in np.unique(number).tolist():
            shard, here = self._shards[k], np.flatnonzero(number == k).tolist()
            first = int(self._ends[k]) - len(shard)
            local = [int(rows[place]) - first for place in here]
            responses = shard.read(local, [ids[place] for place in here])
            for place, (body, sha256) in zip(here, responses, strict=True):
                yield place, body, sha256

    def sha256(self, rows: Rows) -> list[bytes]:
        """Return the SHA-256 taken on arrival, hexadecimal, by row; an empty one for row -1."""
        return self._cells("sha256", rows)

    def _cells(self, name: str, rows: Rows) -> list[bytes]:
        """Read texts of a column by row."""
        number = np.where(rows < 0, -1, np.searchsorted(self._ends, rows, side="right"))
        found = np.full(len(rows), b"", object)
        for k in np.unique(number[number >= 0]).tolist():
            first = int(self._ends[k]) - len(self._shards[k])
            here = number == k
            found[here] = self._shards[k].column(name)[rows[here] - first]
        return found.tolist()

    def path_of(self, row: int) -> Path:
        """Return the shard that holds a row."""
        return self.paths[int(np.searchsorted(self._ends, row, side="right"))]


def open_store(
    config: Config, made: Iterable[str] = (), without: Collection[Path] = ()
) -> RawStore:
    """Open a run's raw shards; images of a folder may look alike.

    Parameters
    ----------
    config : Config
        The run.
    made : iterable of str
    without : collection of Path
        As `RawStore` takes them.

    Raises
    ------
    InputError
        A shard is damaged.
    """
    of_folder = config.catalogue is not None and config.catalogue.images is not None
    allow = of_folder or config.scrape.allow_duplicates
    return RawStore(config.run_dir / "raw", allow, made, without)


@dataclass(frozen=True, slots=True)
class RawShard:
    """One raw shard; its rows are read without HDF5, since its datasets are contiguous.

    Attributes
    ----------
    path : Path
        The file.
    count : int
        Responses in it.
    response : int
        Position of the responses in the file.
    columns : dict of (int, int)
        Position and bytes per row of ``offset``, ``view`` and ``sha256``.
    """

    path: Path
    count: int
    response: int
    columns: dict[str, tuple[int, int]]

    @classmethod
    def open(cls, path: Path) -> "RawShard":
        """Read where a shard's rows are.

        Raises
        ------
        InputError
            It is damaged or of another format; the message says what to do.
        """
        with hdf5.opened(path, damaged) as file:
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{path}: raw format {version}, while this galmerhpc reads {FORMAT_VERSION}; "
                    "use the version that made it, or remove it and run galmerhpc scrape again"
                )
            response, offset = file["response"], hdf5.read_column(file, "offset")
            count, length = len(hdf5.read_column(file, "view")), response.shape[0]
            hdf5.read_column(file, "sha256")
            position = response.id.get_offset()
            columns = {
                name: (file[name].id.get_offset(), file[name].dtype.itemsize)
                for name in ("offset", "view", "sha256")
            }
            lengths = {len(file[name]) for name in ("labels", *_TEXTS, *_NUMBERS)}
        sound = (
            lengths == {count}
            and len(offset) == count + 1
            and offset.dtype == np.int64
            and columns["sha256"][1] == 64
            and offset[0] == 0
            and offset[-1] == length
            and (np.diff(offset) >= 0).all()
            and None not in (position, *(place for place, _ in columns.values()))
        )
        if not sound:
            raise damaged(path, "its datasets do not fit together")
        return cls(path, count, position, columns)

    def __len__(self) -> int:
        """Return the number of responses."""
        return self.count

    def column(self, name: str) -> NDArray[Any]:
        """Read a column of docs/format.md and compare it with its checksum.

        Raises
        ------
        InputError
            The shard is damaged.
        """
        with hdf5.opened(self.path, damaged) as file:
            return hdf5.read_column(file, name)

    def parameters(self) -> tuple[str, ...]:
        """Return the names of the labels.

        Raises
        ------
        InputError
            The shard is damaged.
        """
        with hdf5.opened(self.path, damaged) as file:
            return tuple(name.decode() for name in file["labels"].attrs["parameters"])

    def texts(self, name: str) -> list[str]:
        """Read a column of texts.

        Raises
        ------
        InputError
            The shard is damaged.
        """
        try:
            return [text.decode() for text in self.column(name).tolist()]
        except (UnicodeDecodeError, AttributeError):
            raise damaged(self.path, f"{name} holds no texts") from None

    def misfit(self, views: Sequence[View | None]) -> str:
        """Return what of the rows is not the catalogue's; an empty text if all is.

        Parameters
        ----------
        views : sequence of View or None
            The view of each row (`catalogue.ViewsById`); None if the catalogue does not have it.

        Raises
        ------
        InputError
            The shard is damaged.
        """
        ids, names = self.texts("view"), self.parameters()
        known = [view for view in views if view is not None]
        if len(known) < len(ids):
            return f"view {ids[views.index(None)]} is not in the catalogue"
        if {*names} != known[0].labels.keys():
            return "its labels have other names than the catalogue's"
        wanted = {
            "labels": np.array([[view.labels[name] for name in names] for view in known]),
            "simulation": np.array([view.run.simulation for view in known]),
            "snapshot_id": np.array([view.snapshot.id for view in known]),
            "time_myr": np.array([view.snapshot.time_myr for view in known]),
        }
        for name, values in wanted.items():
            if row := hdf5.first_difference(self.column(name), values):
                return f"{name} of view {ids[row - 1]} is not the catalogue's"
        return ""

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """Yield the responses of rows and their SHA-256, verified.

        Raises
        ------
        InputError
            A row does not hold this view, or its bytes are not those that came.
        """
        low, high = min(rows), max(rows) + 1
        try:
            with self.path.open("rb", buffering=0) as file:
                offset = np.frombuffer(self._cells(file, "offset", low, high + 1), np.int64)
                view = self._texts(file, "view", low, high)
                recorded = self._texts(file, "sha256", low, high)
                for row, view_id in zip(rows, ids, strict=True):
                    if view[row - low] != view_id.encode():
                        raise damaged(self.path, f"view {view_id} is not where it was")
                    start, end = offset[row - low : row - low + 2].tolist()
                    body = os.pread(file.fileno(), end - start, self.response + start)
                    sha256 = hashlib.sha256(body).hexdigest()
                    if recorded[row - low] != sha256.encode():
                        raise damaged(self.path, f"checksum mismatch in view {view_id}")
                    yield body, sha256
        except OSError as error:
            raise files.unreadable(self.path, error) from None
        except (ValueError, IndexError):
            raise damaged(self.path, "cut short") from None

    def _texts(self, file: FileIO, name: str, low: int, high: int) -> NDArray[np.bytes_]:
        cells = self._cells(file, name, low, high)
        return np.frombuffer(cells, f"S{self.columns[name][1]}")

    def _cells(self, file: FileIO, name: str, low: int, high: int) -> bytes:
        """Read consecutive rows of a column."""
        position, size = self.columns[name]
        return os.pread(file.fileno(), (high - low) * size, position + low * size)


def damaged(path: Path, why: str) -> InputError:
    """Return the error that says how to replace a bad shard."""
    return InputError(
        f"{path}: damaged raw shard ({why}); remove this file and run galmerhpc scrape again"
    )
