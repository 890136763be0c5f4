"""What is inside a raw shard, a training shard, a virtual data set or a spool, as lines of text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from galmerhpc import hdf5
from galmerhpc.dataset import raw, shards
from galmerhpc.dataset.split import SPLITS
from galmerhpc.errors import InputError

_FIRST_VIEWS = 3
_RANGES = ("simulation", "snapshot_id", "time_myr", "copy")


def describe(path: Path) -> list[str]:
    """Return what a file holds; names are those of docs/format.md.

    Raises
    ------
    InputError
        It is missing, damaged, or none of these.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".spool" and raw.is_spool(path):
        return list(_spool(path))
    with hdf5.opened(path, _unknown) as file:
        form = file.attrs.get("format", b"")
        form = form.decode() if isinstance(form, bytes) else form
        if form not in (raw.FORMAT, shards.FORMAT):
            raise InputError(f"{path}: HDF5, but not a shard or library of galmerhpc")
        return [*_head(path, form, file), *_datasets(file), "", *_content(file)]


def _unknown(path: Path, why: str) -> InputError:
    return InputError(f"{path}: not a shard, spool or library, or damaged ({why})")


def _spool(path: Path) -> Iterator[str]:
    responses = raw.read_spool(path)
    yield f"{path}: spool of raw responses, {_size(path.stat().st_size)}"
    yield "galmerhpc scrape packs it into a raw shard"
    yield f"{'responses':<16}{len(responses)}, {_size(sum(len(r.body) for r in responses))}"
    yield from _views([response.view for response in responses])


def _head(path: Path, form: str, file: h5py.File) -> Iterator[str]:
    virtual = ", virtual" if any(d.is_virtual for d in file.values()) else ""
    yield f"{path}: {form}{virtual}, {_size(path.stat().st_size)}"
    for name, value in file.attrs.items():
        if name != "format":
            yield f"{name:<16}{value.decode() if isinstance(value, bytes) else value}"


def _datasets(file: h5py.File) -> Iterator[str]:
    yield ""
    yield f"{'dataset':<16}{'shape':<24}{'type':<10}stored"
    for name, dataset in file.items():
        text = h5py.check_string_dtype(dataset.dtype)
        kind = f"text {text.length}" if text else str(dataset.dtype)
        yield f"{name:<16}{dataset.shape!s:<24}{kind:<10}{_stored(dataset)}"


def _stored(dataset: h5py.Dataset) -> str:
    if dataset.is_virtual:
        sources = [source.file_name for source in dataset.virtual_sources()]
        missing = [
            name for name in sources if not (Path(dataset.file.filename).parent / name).exists()
        ]
        lost = f", {missing[0]} is missing and reads as zeros" if missing else ""
        return f"in {len(sources)} files{lost}"
    if dataset.chunks is None:
        return f"contiguous, {_size(dataset.nbytes)}"
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(k)[3].decode() for k in range(creation.get_nfilters())]
    stored = dataset.id.get_storage_size()
    return f"{', '.join(filters) or 'chunks'}, {_size(stored)} of {_size(dataset.nbytes)}"


def _content(file: h5py.File) -> Iterator[str]:
    labels = file["labels"][:]
    names = [n.decode() if isinstance(n, bytes) else n for n in file["labels"].attrs["parameters"]]
    columns = dict(zip(names, labels.T, strict=True))
    columns |= {name: file[name][:] for name in _RANGES if name in file}
    yield f"{'label, column':<16}{'smallest':>12}{'largest':>12}{'distinct':>10}"
    for name, column in columns.items():
        values = np.unique(column[column == column])  # an unknown time is NaN
        low, high = (values[0], values[-1]) if len(values) else (np.nan, np.nan)
        yield f"{name:<16}{low:>12.10g}{high:>12.10g}{len(values):>10}"
    yield ""
    if "split" in file:
        counts = np.bincount(file["split"][:], minlength=len(SPLITS)).tolist()
        pairs = zip(SPLITS, counts, strict=True)
        yield f"{'samples by split':<20}{', '.join(f'{name} {count}' for name, count in pairs)}"
        yield f"{'groups':<20}{len(set(file['group'][:].tolist()))}"
    yield from _views([view.decode() for view in file["view"][:_FIRST_VIEWS].tolist()])


def _views(views: Sequence[str]) -> Iterator[str]:
    for number, view in enumerate(views[:_FIRST_VIEWS]):
        yield f"{'first views' if number == 0 else '':<20}{view}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
