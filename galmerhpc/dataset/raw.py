"""Raw shards: responses as they came, first in a spool that a kill cannot break, then in HDF5.

HDF5 is not safe while it is written, so a rank appends to a spool and packs it into the shard of
the same name once it is full: ``raw/raw-<rank>-<number>.spool`` and ``.h5``. Whoever finds a spool
that no process holds can finish the work; one beside its shard is done with. docs/format.md
describes both files.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galmerhpc import __version__, files
from galmerhpc.config import Config
from galmerhpc.dataset.slices import WHOLE, Slice
from galmerhpc.errors import GalmerhpcError, InputError

log = logging.getLogger(__name__)

FORMAT = "galmerhpc raw"
FORMAT_VERSION = 2

_MAGIC = b"GHR1"
_HEADER = struct.Struct("<4sIII")  # magic, bytes of metadata, bytes of body, CRC-32 of both
# Readable by HDF5 1.10 (2016) and later; its object headers carry checksums, older ones' do not.
_LIBVER = ("v110", "v110")
_TEXTS = ("view", "url", "sha256", "content_type", "fetched_utc")
_NUMBERS = {"simulation": np.int64, "snapshot_id": np.int64, "time_myr": np.float64}


@dataclass(frozen=True, slots=True)
class Response:
    """A view's picture as it came, and all that is known of it.

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
    time_myr : float
        Time since pericentre.
    url, content_type, fetched_utc : str
        Where it came from, as what, when (ISO 8601).
    sha256 : str
        Of `body`, hexadecimal, taken on arrival.
    body : bytes
        The response.
    """

    view: str
    labels: dict[str, float]
    simulation: int
    snapshot_id: int
    time_myr: float
    url: str
    content_type: str
    fetched_utc: str
    sha256: str
    body: bytes


class RawWriter:
    """Writes one rank's responses: what `append` has returned from survives any kill.

    Full spools are packed by a thread, so that nobody waits for it.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder. Its leftover spools have been packed (`tidy`).
    rank : int
        This rank; no other process writes under its names.
    views_per_shard : int
        Responses a shard.
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
        """Let the spool be packed, one at a time; what went wrong with the one before is raised."""
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
            while left:  # a disk that gets full takes a part
                left = left[self._spool.write(left) :]
            os.fsync(self._spool.fileno())
        except OSError as error:
            raise GalmerhpcError(
                f"{path}: cannot be written: {error.strerror}; make room or "
                "choose another run_dir, then run again: what was fetched before is kept"
            ) from error

    def _new_spool(self) -> FileIO:
        """Claim a name that is no spool's and no shard's, whatever a stale listing would say.

        The spool is held while this process lives, so that nobody packs it meanwhile.
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
    """Pack the spools that killed jobs left, of whatever ranks, and remove their temporary files.

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
        with spool.open("rb") as file:
            if not files.hold(file):
                raise InputError(f"{spool}: still being written by another job; wait for its end")
            _pack(spool)


def _pack_held(spool: FileIO) -> Path | None:
    """Pack a spool that is held until then."""
    with spool:
        return _pack(Path(spool.name))


def _pack(spool: Path) -> Path | None:
    """Turn a spool into the shard of its name, or into nothing if it holds no whole record.

    Raises
    ------
    GalmerhpcError
        The disk is full or cannot be written; the spool is kept.
    """
    shard = spool.with_suffix(".h5")
    # A kill between the two steps leaves both; the shard was renamed when it was whole.
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


def _encode(response: Response) -> bytes:
    fields = {f.name: getattr(response, f.name) for f in dataclasses.fields(response)}
    body = fields.pop("body")
    metadata = json.dumps(fields).encode()
    crc = zlib.crc32(body, zlib.crc32(metadata))
    return _HEADER.pack(_MAGIC, len(metadata), len(body), crc) + metadata + body


def _decode(data: memoryview) -> tuple[Response, int] | None:
    """Read the first record and its length; None where there is no whole one."""
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
        file["labels"].attrs["parameters"] = _text_column(names)
        for name, dtype in _NUMBERS.items():
            file[name] = np.array([getattr(r, name) for r in responses], dtype)
        for name in _TEXTS:
            file[name] = _text_column([getattr(r, name) for r in responses])
        for name in file.keys() - {"response"}:  # whose parts have checksums of their own
            file[name].attrs["sha256"] = np.bytes_(_sha256(file[name][:]))
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _sha256(column: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()


def read_column(file: h5py.File, name: str) -> NDArray[Any]:
    """Read a column and compare it with its checksum.

    Raises
    ------
    ValueError
        It is not what was written.
    """
    column: NDArray[Any] = file[name][:]
    if _sha256(column).encode() != file[name].attrs["sha256"]:
        raise ValueError(f"{name} has another checksum")
    return column


def _text_column(texts: Sequence[str]) -> NDArray[Any]:
    """Return texts as a column of one length: contiguous, and shown as text by HDF5's tools.

    Texts of their own lengths would stand in HDF5's global heap, which has no checksum, and HDF5
    1.14 runs for ever on a damaged one.
    """
    encoded = [text.encode() for text in texts]
    width = max(1, *map(len, encoded))
    return np.array(encoded, h5py.string_dtype("utf-8", width))


class RawStore:
    """All responses of a run's raw shards, by view.

    Only indices are held in memory. A view that stands twice counts once. A picture that came for
    several views is none of theirs: it is an error's, sent as an image.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder; one that does not exist has no views.
    allow_duplicates : bool
        Several views may look alike (`config.Scrape.allow_duplicates`).
    made : iterable of str
        Names of shards that other nodes have just made, which a listing may not show yet.

    Attributes
    ----------
    paths : list of Path
        The shards, sorted by name.
    duplicates : dict of str to bytes
        Views that are not there because their picture came for others too, and its SHA-256,
        hexadecimal.

    Raises
    ------
    InputError
        A shard is damaged; the message names it and says what to do.
    """

    def __init__(
        self, folder: Path, allow_duplicates: bool = False, made: Iterable[str] = ()
    ) -> None:
        self.paths = sorted({*folder.glob("raw-*.h5"), *(folder / name for name in made)})
        self._shards: list[_Shard] = []
        self._place: dict[str, tuple[int, int]] = {}  # view -> shard, row
        views_of = []
        for path in self.paths:
            shard, views = _open(path)
            self._shards.append(shard)
            views_of.append(views)
        shared = set() if allow_duplicates else _shared(self._shards, views_of)
        self.duplicates: dict[str, bytes] = {}
        for number, (shard, views) in enumerate(zip(self._shards, views_of, strict=True)):
            for row, (view, sha256) in enumerate(zip(views, shard.sha256, strict=True)):
                if sha256 in shared:
                    self.duplicates[view] = sha256
                else:
                    self._place.setdefault(view, (number, row))
        for view in self.duplicates.keys() & self._place:
            del self.duplicates[view]  # it came again, as itself

    def ids(self) -> set[str]:
        """Return the ids of the views that are there."""
        return set(self._place)

    def sha256(self, view_id: str) -> bytes:
        """Return the checksum of a view's response, hexadecimal, that was taken on arrival."""
        number, row = self._place[view_id]
        return bytes(self._shards[number].sha256[row])

    def read(self, view_id: str) -> bytes:
        """Return a view's response, its checksum verified.

        Raises
        ------
        InputError
            The view is not there, or its bytes are not those that came.
        """
        if view_id not in self._place:
            raise InputError(f"view {view_id} is in no raw shard; run galmerhpc scrape again")
        number, row = self._place[view_id]
        return self._shards[number].read(row, view_id)

    def path_of(self, view_id: str) -> Path:
        """Return the shard that holds a view."""
        return self.paths[self._place[view_id][0]]


def _shared(shards: "Sequence[_Shard]", views_of: Sequence[Sequence[str]]) -> set[bytes]:
    """Return the checksums that stand for more than one view."""
    if not shards:
        return set()
    sha256 = np.concatenate([shard.sha256 for shard in shards])
    views = np.concatenate([np.array(views, object) for views in views_of])
    _, place, count = np.unique(sha256, return_inverse=True, return_counts=True)
    several = np.flatnonzero(count[place] > 1)
    first: dict[bytes, str] = {}
    for row in several:
        first.setdefault(sha256[row], views[row])
    return {sha256[row] for row in several if first[sha256[row]] != views[row]}


def open_store(config: Config, made: Iterable[str] = ()) -> RawStore:
    """Open a run's raw shards; pictures of a folder may look alike.

    Parameters
    ----------
    config : Config
        The run.
    made : iterable of str
        As `RawStore` takes it.

    Raises
    ------
    InputError
        A shard is damaged.
    """
    of_folder = config.catalogue is not None and config.catalogue.images is not None
    return RawStore(config.run_dir / "raw", of_folder or config.scrape.allow_duplicates, made)


@dataclass(frozen=True, slots=True)
class _Shard:
    """Where a shard's responses stand in its file.

    Attributes
    ----------
    path : Path
        The file.
    start : ndarray, shape (N + 1,), int64
        Position of each response in the file: the dataset is contiguous.
    sha256 : ndarray, shape (N,), bytes
        Checksums, hexadecimal.
    """

    path: Path
    start: NDArray[np.int64]
    sha256: NDArray[np.bytes_]

    def read(self, row: int, view_id: str) -> bytes:
        start, end = (int(position) for position in self.start[row : row + 2])
        try:
            with self.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read: {error.strerror}; run galmerhpc scrape again"
            ) from None
        if hashlib.sha256(data).hexdigest().encode() != self.sha256[row]:
            raise _damaged(self.path, f"view {view_id} has another checksum")
        return data


def _open(path: Path) -> tuple[_Shard, list[str]]:
    """Read where a shard's responses stand, and the ids of their views."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{path}: raw format {version}, while this galmerhpc reads {FORMAT_VERSION}; "
                    "use the version that made it, or remove it and run galmerhpc scrape again"
                )
            response, offset = file["response"], read_column(file, "offset")
            sha256 = read_column(file, "sha256")
            views = [view.decode() for view in read_column(file, "view")]
            first, length = response.id.get_offset(), response.shape[0]
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path, " ".join(str(error).split())[:120]) from None
    sound = (
        len(offset) == len(views) + 1 == len(sha256) + 1
        and offset[0] == 0
        and offset[-1] == length
        and (np.diff(offset) >= 0).all()
        and first is not None
    )
    if not sound:
        raise _damaged(path, "its datasets do not fit together")
    return _Shard(path, first + offset, sha256), views


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: damaged raw shard ({why}); remove this file and run galmerhpc scrape again"
    )
