"""Raw shards: nothing that was appended is lost, nothing damaged is read."""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.dataset import raw
from galmerhpc.dataset.raw import RawStore, RawWriter, Response
from galmerhpc.dataset.slices import Slice
from galmerhpc.errors import InputError
from tests.dataset.runs import held

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
# A disk takes its time to sync.
FEW = settings(deadline=None, max_examples=40)
LABELS = ("spin", "inclination", "mass ratio")


def response(view: str, body: bytes = b"", **more: object) -> Response:
    body = body or f"GIF89a {view}".encode()
    values = {
        "labels": dict.fromkeys(LABELS, 1.0),
        "simulation": 0,
        "snapshot_id": 27436,
        "time_myr": 100.0,
        "url": f"http://127.0.0.1/get_preview.cgi?{view}",
        "content_type": "image/gif",
        "fetched_utc": "2025-01-01T00:00:00+00:00",
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return Response(view=view, body=body, **(values | more))


@st.composite
def responses(draw: st.DrawFn, max_size: int = 12) -> list[Response]:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    return [
        response(
            view,
            view.encode() + draw(st.binary(max_size=40)),  # no two views look alike
            labels={name: draw(numbers) for name in LABELS},
            simulation=draw(st.integers(0, 2**62)),
            snapshot_id=draw(st.integers(0, 2**31)),
            time_myr=draw(numbers),
            url=draw(TEXT),
            content_type=draw(TEXT),
        )
        for view in draw(st.lists(TEXT.filter(bool), max_size=max_size, unique=True))
    ]


def write(folder: Path, items: Sequence[Response], per_shard: int = 4, rank: int = 0) -> None:
    writer = RawWriter(folder, rank, per_shard)
    writer.append(items)
    writer.close()


def spool_of(folder: Path, items: Sequence[Response]) -> Path:
    """Leave a spool behind as a killed rank does."""
    writer = RawWriter(folder, 0, len(items) + 1)
    writer.append(items)
    (spool,) = folder.glob("*.spool")
    die(writer)
    return spool


def die(writer: RawWriter) -> None:
    """Let go of a writer's spool as the system does for a killed rank."""
    if writer._spool:
        writer._spool.close()


@FEW
@given(items=responses(), per_shard=st.integers(1, 5), data=st.data())
def test_what_was_appended_in_any_portions_is_read_back(
    items: list[Response], per_shard: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        with closing(RawWriter(folder, 3, per_shard)) as writer:
            left = list(items)
            while left:
                portion = data.draw(st.integers(1, len(left)))
                writer.append(left[:portion])
                left = left[portion:]
        store = RawStore(folder)
        assert store.ids() == {item.view for item in items}
        assert held(folder) == {item.view: item.body for item in items}
        assert store.paths == writer.shards
        assert {path.suffix for path in folder.iterdir()} <= {".h5"}
        read = [row for path in store.paths for row in rows(path)]
        assert read == items
        assert all(len(rows(path)) == per_shard for path in store.paths[:-1])


def rows(path: Path) -> list[Response]:
    """Read a shard with h5py alone, as docs/format.md describes it."""
    with h5py.File(path) as file:
        names = file["labels"].attrs["parameters"].astype(str).tolist()
        offset, body = file["offset"][:], file["response"][:].tobytes()
        texts = {
            name: file[name].asstr()[:]
            for name in ("view", "url", "sha256", "content_type", "fetched_utc")
        }
        return [
            Response(
                labels=dict(zip(names, file["labels"][row].tolist(), strict=True)),
                simulation=int(file["simulation"][row]),
                snapshot_id=int(file["snapshot_id"][row]),
                time_myr=float(file["time_myr"][row]),
                body=body[offset[row] : offset[row + 1]],
                **{name: column[row] for name, column in texts.items()},
            )
            for row in range(len(offset) - 1)
        ]


@FEW
@given(items=responses(5), cut=st.floats(0, 1))
def test_a_spool_cut_anywhere_keeps_every_whole_record(items: list[Response], cut: float) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        ends = [0]
        writer = RawWriter(folder, 0, 100)
        for item in items:
            writer.append([item])
            ends.append(next(folder.iterdir()).stat().st_size)
        if not items:
            return
        die(writer)
        (spool,) = folder.iterdir()
        size = round(cut * ends[-1])
        with spool.open("rb+") as file:
            file.truncate(size)
        whole = sum(end <= size for end in ends) - 1
        assert raw.read_spool(spool) == items[:whole]
        raw.tidy(folder)
        assert RawStore(folder).ids() == {item.view for item in items[:whole]}
        assert not list(folder.glob("*.spool"))


@FEW
@given(
    items=responses(4).filter(len),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_a_damaged_spool_gives_nothing_that_did_not_come(
    items: list[Response], place: float, flip: int
) -> None:
    with TemporaryDirectory() as name:
        spool = spool_of(Path(name), items)
        data = bytearray(spool.read_bytes())
        data[int(place * len(data))] ^= flip
        spool.write_bytes(data)
        read = raw.read_spool(spool)
        assert len(read) < len(items)
        assert read == items[: len(read)]


def test_a_spool_beside_its_shard_is_not_packed_twice(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [response("a"), response("b")])
    copy = shutil.copy(spool, tmp_path / "copy")
    raw.tidy(tmp_path)
    copy.rename(spool)  # as if the job had been killed between the two steps
    raw.tidy(tmp_path)
    (path,) = tmp_path.iterdir()
    assert [item.view for item in rows(path)] == ["a", "b"]


def at(minute: int) -> dict[str, str]:
    """Return when a response came, as `response` takes it."""
    return {"fetched_utc": f"2025-01-01T00:{minute:02}:00.000+00:00"}


@pytest.mark.parametrize("allow", [True, False])
def test_of_a_view_that_was_stored_twice_the_newest_response_counts(
    tmp_path: Path, allow: bool
) -> None:
    write(tmp_path, [response("a", b"second", **at(7)), response("b", b"other")], rank=0)
    write(tmp_path, [response("a", b"first")], rank=1)  # to the second, as older versions wrote it
    store = RawStore(tmp_path, allow)
    assert store.ids() == {"a", "b"}
    assert held(tmp_path, allow) == {"a": b"second", "b": b"other"}


def test_an_image_that_a_service_mixed_up_is_its_view_s_where_that_is_allowed(
    tmp_path: Path,
) -> None:
    write(tmp_path, [response(view, b"of a", **at(0)) for view in "ab"], rank=1)
    write(tmp_path, [response("b", **at(1))], rank=0)
    assert RawStore(tmp_path).duplicates.keys() == {"a"}
    assert held(tmp_path) == {"b": b"GIF89a b"}
    assert held(tmp_path, allow_duplicates=True) == {"a": b"of a", "b": b"GIF89a b"}


@FEW
@given(data=st.data(), allow=st.booleans())
def test_a_picture_of_several_views_is_none_of_theirs_wherever_they_stand(
    data: st.DataObject, allow: bool
) -> None:
    pictures = st.sampled_from([b"good 1", b"good 2", b"an error's", b"another error's"])
    rows_ = data.draw(st.lists(st.tuples(st.sampled_from("abcd"), pictures), max_size=12))
    with TemporaryDirectory() as name:
        folder = Path(name)
        items = [response(view, body, **at(k)) for k, (view, body) in enumerate(rows_)]
        for rank, part in enumerate((items[::2], items[1::2])):
            write(folder, part, 2, rank)
        store = RawStore(folder, allow)
        views_of = {body: {v for v, b in rows_ if b == body} for _, body in rows_}
        good = {body for body, views in views_of.items() if allow or len(views) == 1}
        # The newest of a view's good ones counts.
        assert held(folder, allow) == {view: body for view, body in rows_ if body in good}
        assert store.duplicates.keys() == {view for view, _ in rows_} - store.ids()
        for view, sha256 in store.duplicates.items():
            bodies = [body for v, body in rows_ if v == view]
            assert sha256.decode() in {hashlib.sha256(body).hexdigest() for body in bodies}


def test_a_spool_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with closing(RawWriter(tmp_path, 0, 10)) as writer:
        writer.append([response("a")])
        with pytest.raises(InputError, match=r"raw-0000-00000\.spool: still being written"):
            raw.tidy(tmp_path)
        writer.append([response("b")])
    assert RawStore(tmp_path).ids() == {"a", "b"}


def test_a_slice_tidies_up_after_all_but_its_siblings(tmp_path: Path) -> None:
    parts = [Slice(), Slice(1, 2), Slice(1, 3), Slice(2, 3), Slice(12, 13)]
    writers = [RawWriter(tmp_path, 0, 10, part) for part in parts]
    for part, writer in zip(parts, writers, strict=True):
        writer.append([response(f"of {part}")])
        (tmp_path / f".tmp-node-2of9-1-raw{part.suffix}-0000-00000.h5").touch()
        if part != Slice(1, 3):
            die(writer)
    (tmp_path / ".tmp-node-1-stage.json").touch()
    raw.tidy(tmp_path, Slice(2, 3))
    assert {path.name for path in tmp_path.glob("*.spool")} == {"raw-1of3-0000-00000.spool"}
    (temporary,) = tmp_path.glob(".tmp*")
    assert temporary.name.endswith("raw-1of3-0000-00000.h5")
    assert len(RawStore(tmp_path).ids()) == len(parts) - 1
    die(writers[2])
    raw.tidy(tmp_path, Slice(1, 3))
    assert len(RawStore(tmp_path).ids()) == len(parts)
    assert {path.suffix for path in tmp_path.iterdir()} == {".h5"}


@given(size=st.integers(0, 300), count=st.integers(1, 40))
def test_slices_divide_a_catalogue(size: int, count: int) -> None:
    parts = [Slice(number, count) for number in range(1, count + 1)]
    assert sorted(view for part in parts for view in part.of(size)) == list(range(size))
    assert sum(part.share(size) for part in parts) == size
    for part in parts:
        assert Slice.parse(f"{part.number}/{part.count}") == part
        assert Slice.of_file(Path(f"raw{part.suffix}-0000-00001.h5")) == part
        assert Slice.of_file(Path(f"missing{part.suffix}.csv")) == part


def test_names_are_never_used_again(tmp_path: Path) -> None:
    for start in range(3):  # three jobs, with another number of ranks each time
        for rank in range(start + 1):
            write(tmp_path, [response(f"{start} {rank} {k}") for k in range(5)], 2, rank)
    assert len(RawStore(tmp_path).ids()) == 6 * 5


def test_a_folder_that_is_not_there_has_no_views(tmp_path: Path) -> None:
    store = RawStore(tmp_path / "raw")
    assert store.ids() == set()
    assert store.find(["a", "b"], 2).tolist() == [-1, -1]


def test_views_are_found_in_any_order_and_verified(tmp_path: Path) -> None:
    for rank in range(3):
        write(tmp_path, [response(f"{rank} {k}", bytes([rank, k])) for k in range(5)], 2, rank)
    store, ids = RawStore(tmp_path), ["2 4", "nowhere", "0 0", "1 3", "2 4"]
    rows = store.find(ids, len(ids))
    assert (rows < 0).tolist() == [False, True, False, False, False]
    assert [store.path_of(row).name for row in rows[[0, 2]]] == [
        "raw-0002-00002.h5", "raw-0000-00000.h5"
    ]  # fmt: skip
    there = [0, 2, 3, 4]
    read = {k: body for k, body, _ in store.read(rows[there], [ids[k] for k in there])}
    assert read == {0: b"\2\4", 1: b"\0\0", 2: b"\1\3", 3: b"\2\4"}
    with pytest.raises(InputError, match=r"raw-0002-00002.h5: damaged .*view 0 0 is not where"):
        list(store.read(rows[:1], ["0 0"]))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a shard's bytes."""
    folder = tmp_path_factory.mktemp("shard")
    write(folder, [response(f"view {k}", bytes([k]) * 50) for k in range(4)])
    return (folder / "raw-0000-00000.h5").read_bytes()


def read_all(data: bytes) -> dict[str, bytes]:
    """Read a shard of these bytes by the door that preprocess uses."""
    with TemporaryDirectory() as name:
        path = Path(name) / "raw-0000-00000.h5"
        path.write_bytes(data)
        try:
            return held(path.parent)
        except InputError as error:
            fault = error
        assert str(path) in str(fault)
        assert "remove" in str(fault)
        assert "scrape again" in str(fault)
        assert "\n" not in str(fault)
        raise fault


@FEW
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_shard_is_named(shard: bytes, cut: float) -> None:
    with pytest.raises(InputError):
        read_all(shard[: int(cut * len(shard))])


@settings(deadline=None, max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_shard_never_gives_other_bytes(shard: bytes, place: float, flip: int) -> None:
    whole = set(read_all(shard).values())
    data = bytearray(shard)
    data[int(place * len(data))] ^= flip
    with contextlib.suppress(InputError):
        assert set(read_all(bytes(data)).values()) <= whole


def test_every_damaged_response_is_found(shard: bytes, tmp_path: Path) -> None:
    path = tmp_path / "raw-0000-00000.h5"
    path.write_bytes(shard.replace(bytes([2]) * 50, bytes([2]) * 49 + b"!"))
    store = RawStore(tmp_path)
    ids = ["view 2", "view 3"]
    rows = store.find(ids, 2)
    with pytest.raises(InputError, match="checksum mismatch in view view 2") as raised:
        list(store.read(rows[:1], ids[:1]))
    assert str(path) in str(raised.value)
    assert [body for _, body, _ in store.read(rows[1:], ids[1:])] == [bytes([3]) * 50]


def test_a_shard_of_another_format_is_refused(shard: bytes, tmp_path: Path) -> None:
    path = tmp_path / "raw-0000-00000.h5"
    path.write_bytes(shard)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = raw.FORMAT_VERSION + 1
    with pytest.raises(InputError, match="raw format 3, while this galmerhpc reads 2"):
        RawStore(tmp_path)


def test_a_shard_says_what_it_is(shard: bytes, tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(shard)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"galmerhpc raw"
        assert file["response"].chunks is None
        assert file["offset"].dtype == np.int64
        assert file["labels"].shape == (4, len(LABELS))
        assert h5py.check_string_dtype(file["view"].dtype).encoding == "utf-8"
