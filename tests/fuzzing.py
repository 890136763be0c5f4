"""Damaged input by the thousand, for `test_fuzz.py`: in a process of its own, as HDF5 may crash.

``python -m tests.fuzzing KIND FOLDER SEED FIRST COUNT`` writes each damaged file to FOLDER before
it is looked at, prints its number when it has been judged, and ends with a traceback at the
first one that was judged wrongly. So whatever ends the process, or stops it, the culprit is the
file there.
"""

import contextlib
import io
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits

from galmerhpc.catalogue import Views, describe
from galmerhpc.config import dump, load
from galmerhpc.dataset import shards
from galmerhpc.dataset.client import Client, TryAgainError, ViewFailedError
from galmerhpc.dataset.import_images import check
from galmerhpc.dataset.preprocess import picture_of
from galmerhpc.dataset.raw import RawShard
from galmerhpc.errors import InputError
from galmerhpc.evaluation.photographs import MOST_PIXELS, read
from galmerhpc.preview import Preview
from galmerhpc.simulate import import_fits, library
from galmerhpc.simulate.library import Encounter, merge, write_encounter
from tests.dataset.runs import scraped, write_config, write_dataset
from tests.evaluation.pictures import odd_files
from tests.servers import Reply, gif, serve
from tests.support import ROOT

UNTIL_THE_END = contextlib.ExitStack()
MEMORY_BYTES = 6 << 30
LONGEST_MESSAGE = 1000

Generator = np.random.Generator
Judge = Callable[[Path, bytes], bool]
"""Looks at a damaged file: whether it was accepted; an exception where that was wrong."""


# --- damage ---------------------------------------------------------------------------------------


def damage(content: bytes, draw: Generator) -> bytes:
    """Change a file in one to four places."""
    data = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        if not data:
            break
        # Headers decide most: half of all changes go there.
        limit = min(len(data), 1024) if draw.random() < 0.5 else len(data)
        at = int(draw.integers(limit))
        length = int(min(draw.geometric(0.1), len(data) - at))
        match draw.choice(["bit", "byte", "number", "zero", "cut", "drop", "insert", "repeat"]):
            case "bit":
                data[at] ^= 1 << draw.integers(8)
            case "byte":
                data[at] = draw.integers(256)
            case "number":
                width = int(draw.choice([1, 2, 4, 8]))
                number = int(draw.choice([0, 1, 0x7F, 0x80, 0xFF])) * 0x0101010101010101
                data[at : at + width] = number.to_bytes(9, "little")[:width]
            case "zero":
                data[at : at + length] = bytes(length)
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw.bytes(length)
            case "repeat":
                data[at:at] = data[at : at + length] * int(draw.integers(1, 4))
    return bytes(data)


VALUES = (
    "0", "-1", "1", "2", "1e3", "1e-3", "1e308", "-1e308", "1e-308", ".nan", ".inf", "-.inf",
    "null", "true", "''", "[]", "{}", "[1, 2]", "{a: 1}", "9" * 30, "9" * 5000, "0x10", "1:30",
    "2001-01-01", "prograde", "runs", "*a", "&a x", "!!python/object:os.system x", "\u202e", "é",
    "'", "- x", "? x",
)  # fmt: skip


def damage_text(content: bytes, draw: Generator) -> bytes:
    """Change a text as a hand may: other values, lines moved, dropped or repeated, or bytes."""
    if draw.random() < 0.2:
        return damage(content, draw)
    lines = content.decode().splitlines()
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(len(lines)))
        match draw.choice(["value", "value", "value", "drop", "repeat", "move", "indent", "word"]):
            case "value":
                parts = _numbers(lines[at])
                if parts:
                    start, end = parts[draw.integers(len(parts))]
                    lines[at] = lines[at][:start] + str(draw.choice(VALUES)) + lines[at][end:]
            case "drop":
                lines.pop(at)
            case "repeat":
                lines.insert(at, lines[draw.integers(len(lines))])
            case "move":
                lines.insert(int(draw.integers(len(lines))), lines.pop(at))
            case "indent":
                lines[at] = " " * int(draw.integers(4)) + lines[at].strip()
            case "word":
                line = lines[at]
                place = int(draw.integers(len(line) + 1))
                lines[at] = line[:place] + str(draw.choice(VALUES)) + line[place:]
        if not lines:
            break
    return "\n".join(lines).encode()


def _numbers(line: str) -> list[tuple[int, int]]:
    """Return where the words and numbers of a line stand."""
    places, start = [], None
    for index, letter in enumerate(line + " "):
        inside = letter.isalnum() or letter in "._-"
        if inside and start is None:
            start = index
        elif not inside and start is not None:
            places.append((start, index))
            start = None
    return places


def damage_hdf5(content: bytes, draw: Generator) -> bytes:
    """Damage a file's bytes, or, for a file that HDF5 opens, one dataset of it."""
    if draw.random() < 0.7:
        return damage(content, draw)
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        name = str(draw.choice(sorted(file)))
        dataset = file[name]
        if draw.random() < 0.2:
            del file[name]
        elif draw.random() < 0.3:  # one row less
            values, attributes = dataset[:-1], dict(dataset.attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)
        else:
            values = dataset[:]
            flat = values.reshape(-1).view(np.uint8)
            flat[draw.integers(flat.size)] ^= 1 << draw.integers(8)
            dataset[...] = values
    return buffer.getvalue()


# --- judges ---------------------------------------------------------------------------------------


def refused(path: Path, error: Exception) -> bool:
    """Check that a refusal begins with the file's name, in lines that can be read."""
    text = str(error)
    assert text.startswith(str(path)), f"names no file: {text}"
    assert readable(text)
    return False


def readable(text: str) -> bool:
    """Tell whether all lines of a message have a length to be read."""
    return max(map(len, text.splitlines())) < LONGEST_MESSAGE


def config_files(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge configurations that name a catalogue, hold one, or name a table of images."""
    names = [ROOT / f"configs/{name}.yaml" for name in ("demo", "library", "paper_classification")]
    (folder / "catalogues").mkdir()
    for path in (ROOT / "configs/catalogues").iterdir():
        (folder / "catalogues" / path.name).write_bytes(path.read_bytes())
    (folder / "labels.csv").write_text(
        "file,spin,inclination,azimuth,viewing_angle\na.png,prograde,45,30,60\n"
    )
    images = b"catalogue:\n  images: {table: labels.csv, labels: []}\n  render: {nbins: 64}\n"
    return [
        *(path.read_bytes() for path in names),
        dump(load(names[0])).encode(),
        images,
    ], judge_config


def catalogue_files(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge catalogues, through a configuration that names one."""
    sources = [path.read_bytes() for path in sorted((ROOT / "configs/catalogues").iterdir())]
    config = folder / "config.yaml"

    def judge(path: Path, content: bytes) -> bool:
        config.write_text(f"catalogue: {path.name}\n")
        return judge_config(config, content)

    return sources, judge


def judge_config(path: Path, content: bytes) -> bool:
    """Accept a configuration only if it is what its dump says, and its views can be asked for."""
    try:
        config = load(path)
        views = Views(config.catalogue) if config.catalogue else []
    except InputError as error:
        text = str(error)
    else:
        text = ""
    if text:
        # The file that is named first is this one, its catalogue, or a table that it names.
        named = text.partition(":")[0].removeprefix(f"{path.parent}/")
        assert named in (path.name, "case.yaml") or named.encode() in content, text
        assert readable(text)
        return False
    again = path.with_name("again.yaml")
    again.write_text(dump(config))
    assert load(again) == config
    config.inputs("evaluate")
    for view in [*views[:1], *views[-1:]]:
        assert view.file or Preview.parse(view.preview.query()) == view.preview
        assert np.isfinite(list(view.labels.values())).all()
        assert set(config.parameters) <= set(view.labels)
    if 0 < len(views) < 10**6:
        assert f"{len(views):,} views" in describe(config.catalogue)
    return True


def table_files(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge tables of images."""
    header = "file,spin,inclination,azimuth,viewing_angle,simulation,snapshot_id,time_myr\n"
    rows = [f"sub/{k}.png,prograde,45,{k},6{k},0,{k},-50\n" for k in range(9)]
    config = folder / "config.yaml"

    def judge(path: Path, _: bytes) -> bool:
        config.write_text(f"catalogue: {{images: {{table: {path.name}}}}}\n")
        try:
            views = Views(load(config).catalogue)
        except InputError as error:
            return refused(path, error)
        for view in views:
            assert view.file.is_relative_to(folder)
            assert 0 <= view.labels["inclination"] <= 180
            assert -180 <= view.phi <= 180
        assert len({view.id for view in views}) == len(views)
        return True

    return [(header + "".join(rows)).encode()], judge


def pictures(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge GIFs from a service, from a shard and from a folder."""
    size, body = 48, [b""]
    url = UNTIL_THE_END.enter_context(serve(lambda _query, _attempt: Reply(body[0]))).url
    client = Client(url, connections=1, timeout_s=20, contact="")
    query = Preview(size, 1, 30, 45, 1 / 6, 4, 0, 0, True, True, False, 0)
    settings = load(write_config(folder / "settings", preprocess={"image_size": 48})).preprocess

    def judge(_: Path, content: bytes) -> bool:
        accepted, why = [], []
        try:
            check(content, size)
            accepted.append("import")
        except ValueError as error:
            why.append(str(error))
        body[0] = content
        try:
            assert client.fetch(query).body == content
            accepted.append("scrape")
        except (ViewFailedError, TryAgainError) as error:
            why.append(str(error))
        try:
            assert picture_of(content, size, settings).size == (size, size)
            accepted.append("preprocess")
        except ValueError as error:
            why.append(str(error))
        assert all(map(readable, why))
        # What is kept must be good for what comes after it.
        assert "preprocess" in accepted or not accepted
        return "scrape" in accepted

    return [gif(query.query())], judge


def photographs(_: Path) -> tuple[list[bytes], Judge]:
    """Judge pictures that somebody gives."""

    def judge(path: Path, _: bytes) -> bool:
        try:
            picture = read(path)
        except ValueError as error:
            why = str(error)
        else:
            why = ""
        if why:
            assert readable(why)
            return False
        assert picture.mode in ("L", "RGB")
        assert picture.width * picture.height <= MOST_PIXELS
        return True

    kinds = ("grey.png", "colour.jpg", "plain.gif", "plain.tif", "float32.npy", "float.fits")
    return [odd_files()[kind] for kind in kinds], judge


def raw_shards(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge raw shards: every view as it was written, or none."""
    config = scraped(write_config(folder / "good", realisations=1, step=90))
    (good,) = (config.run_dir / "raw").glob("raw-*.h5")

    def content(path: Path) -> list[bytes]:
        shard = RawShard.open(path)
        bodies = shard.read(range(len(shard)), shard.texts("view"))
        return [*(body for body, _ in bodies), *(shard.column(name).tobytes() for name in names)]

    with h5py.File(good) as file:
        names = sorted(file.keys() - {"response"})
    original = content(good)

    def judge(path: Path, _: bytes) -> bool:
        try:
            found = content(path)
        except InputError as error:
            return refused(path, error)
        assert found == original
        return True

    return [good.read_bytes()], judge


def libraries(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge snapshot libraries: read throughout, or refused."""
    encounter = Encounter(
        "prograde-i45-r0", {"spin": "prograde", "inclination_deg": 45.0, "pair": "gSa-gSb"},
        np.array([0.0, 50.0]), np.random.default_rng(1).normal(0, 9, (2, 40, 3)), np.ones(40),
        np.zeros(40, np.uint8), np.repeat([0, 1], 20).astype(np.uint8),
    )  # fmt: skip
    write_encounter(folder / "part.h5", encounter, neighbours=4)
    merge(folder / "good.h5", {encounter.name: folder / "part.h5"}, first_snapshot_id=7)

    def judge(path: Path, _: bytes) -> bool:
        try:
            library.describe(path)
            library.stored_attributes(path)
            with library.Library(path) as found:
                for number in found.snapshot_ids:
                    assert np.isfinite(found.snapshot(number).position).all()
                    found.describe(number)
            merge(folder / "merged.h5", {encounter.name: path}, first_snapshot_id=7)
        except InputError as error:
            return refused(path, error)
        return True

    return [(folder / "good.h5").read_bytes()], judge


def training_shards(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge training shards: every byte as it was written, or none."""
    write_dataset(folder / "good", 6, 6)
    good = folder / "good" / shards.shard_name(0)
    names = [name for name in h5py.File(good) if name != "images"]

    def content(path: Path) -> list[object]:
        shard = shards.Shard.open(path)
        shard.check_all()
        columns = shards.read_columns(path, names)
        texts = [columns[name].tobytes() for name in names]
        images = np.empty(shard.shape, np.uint8)
        shard.open_images().read(np.arange(len(shard)), [image.data for image in images])
        return [shard.identity, shard.parameters, shard.shape, images.tobytes(), *texts]

    original = content(good)

    def judge(path: Path, _: bytes) -> bool:
        try:
            found = content(path)
        except InputError as error:
            return refused(path, error)
        assert found == original
        return True

    return [good.read_bytes()], judge


def fits_files(folder: Path) -> tuple[list[bytes], Judge]:
    """Judge FITS files: whatever is read is finite and can be drawn."""
    draw = np.random.default_rng(1)
    columns = [
        fits.Column(name=name, format="E", array=draw.normal(size=40).astype(np.float32))
        for name in import_fits.COLUMNS[:6]
    ]
    columns += [fits.Column(name=n, format="E", array=np.ones(40)) for n in ("MASS", "M_GAS")]
    columns += [
        fits.Column(name=n, format="I", array=np.arange(40) % m)
        for n, m in (("P_TYPE", 3), ("GAL", 2))
    ]
    fits.BinTableHDU.from_columns(columns).writeto(folder / "good.fits")

    def judge(path: Path, _: bytes) -> bool:
        try:
            particles = import_fits.read_particles(path, 1.0, 1.0)
        except InputError as error:
            return refused(path, error)
        assert np.isfinite(particles.position).all()
        assert (particles.mass >= 0).all()
        assert set(np.unique(particles.galaxy)) <= {0, 1}
        return True

    return [(folder / "good.fits").read_bytes()], judge


KINDS: dict[str, tuple[Callable, Callable, str]] = {
    "config": (config_files, damage_text, "case.yaml"),
    "catalogue": (catalogue_files, damage_text, "case.yaml"),
    "table": (table_files, damage_text, "case.csv"),
    "photograph": (photographs, damage, "case.png"),
    "picture": (pictures, damage, "case.gif"),
    "raw": (raw_shards, damage_hdf5, "case/raw-0000-00000.h5"),
    "training": (training_shards, damage_hdf5, "case.h5"),
    "fits": (fits_files, damage, "case.fits"),
    "library": (libraries, damage, "case.h5"),
}
"""Good files and judge, damage, and the damaged file's name."""


def main(kind: str, folder: Path, seed: int, first: int, count: int) -> None:
    """Damage and judge so many files."""
    make, harm, name = KINDS[kind]
    sources, judge = make(folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    # What asks for more than this has believed a damaged number.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for source in sources:
        path.write_bytes(source)
        assert judge(path, source), "a good file is refused"
    for number in range(first, first + count):
        draw = np.random.default_rng([seed, number])
        content = harm(sources[draw.integers(len(sources))], draw)
        path.write_bytes(content)
        print(number, int(judge(path, content)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
