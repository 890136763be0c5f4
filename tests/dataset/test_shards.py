import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import InputError
from tests.dataset.runs import PARAMETERS, write_dataset

COLUMNS = {
    "images": ((5, 4, 3), np.uint8),
    "labels": ((2,), np.float32),
    "view": ((), "S12"),
    "group": ((), "S12"),
    "split": ((), np.uint8),
    "copy": ((), np.int32),
    "simulation": ((), np.int64),
    "snapshot_id": ((), np.int64),
    "time_myr": ((), np.float64),
    "source_sha256": ((), "S64"),
    "image_crc32": ((), np.uint32),
}
"""Item shape and type of each dataset, as docs/format.md has them."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished folder of 3 shards; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("good") / "shards"
    write_dataset(folder, count=23, per_shard=9)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "shards"))


def refusal(folder: Path) -> str:
    """Return the message with which a folder is refused, on opening or at the latest on reading."""
    with pytest.raises(InputError) as failure:
        read_all(folder)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def read_all(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    dataset = Dataset.open(folder)
    images = np.concatenate([block for _, block in dataset.in_order(np.arange(len(dataset)))])
    return images, dataset.labels, [*dataset.view, *dataset.column("group")]


@given(st.integers(1, 40), st.integers(1, 45), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_what_was_written_is_read_in_order_and_at_random_with_any_number_of_shards(
    count: int, per_shard: int, random: object
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        images, labels = write_dataset(folder, count, per_shard)
        dataset = Dataset.open(folder)
        assert dataset.parameters == PARAMETERS
        assert dataset.image_shape == images.shape[1:]
        np.testing.assert_array_equal(dataset.labels, labels)
        assert list(dataset.view) == [f"view {row}" for row in range(count)]
        rows = np.array(random.choices(range(count), k=2 * count))  # repeated, in any order
        np.testing.assert_array_equal(dataset.images(rows), images[rows])
        for name, split_rows in (("train", range(0, count, 3)), ("test", range(2, count, 3))):
            np.testing.assert_array_equal(dataset.rows(name), np.array(split_rows, np.int64))
            read = np.zeros((len(split_rows), *dataset.image_shape), np.uint8)
            for place, block in Dataset.open(folder).in_order(dataset.rows(name)):
                read[place] = block
            np.testing.assert_array_equal(read, images[list(split_rows)])
        # Any HDF5 tool sees one file, from wherever it is called and wherever the folder lies.
        moved = folder.rename(Path(scratch) / "moved")
        with h5py.File(moved / "dataset.h5") as file:
            assert set(file) == set(COLUMNS)
            np.testing.assert_array_equal(file["images"][:], images)
            np.testing.assert_array_equal(file["labels"][:], labels)
            assert file["view"].asstr()[:].tolist() == list(dataset.view)
            assert tuple(file["labels"].attrs["parameters"].astype(str)) == PARAMETERS


def test_files_are_as_documented(folder: Path) -> None:
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            assert file.attrs["format"] == b"galmerhpc training"
            assert file.attrs["format_version"] == 1
            assert {"code_version", "configuration"} <= set(file.attrs)
            names = file["split"].attrs["names"].astype(str).tolist()
            assert names == ["none", "train", "validation", "test"]
            for name, (item, dtype) in COLUMNS.items():
                assert (file[name].shape[1:], file[name].dtype) == (item, np.dtype(dtype)), name
            if path.name != "dataset.h5":
                assert file["images"].chunks is None
                data = np.fromfile(path, np.uint8, offset=file["images"].id.get_offset())
                np.testing.assert_array_equal(
                    data[: file["images"].size], file["images"][:].ravel()
                )


def test_other_tools_read_the_virtual_file_from_another_folder(folder: Path) -> None:
    code = f"import h5py; print(h5py.File({str(folder / 'dataset.h5')!r})['images'][:].sum())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == read_all(folder)[0].sum(dtype=np.int64)


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "same", count=23, per_shard=9)
    write_dataset(tmp_path / "other", count=22, per_shard=9)
    fingerprint = Dataset.open(folder).fingerprint
    assert Dataset.open(tmp_path / "same").fingerprint == fingerprint
    assert Dataset.open(tmp_path / "other").fingerprint != fingerprint


# --- what is wrong is refused, with one line that names the file ----------------------------------


def test_a_missing_shard_is_named_and_not_read_as_zeros(folder: Path) -> None:
    (folder / "shard-00001.h5").unlink()
    message = refusal(folder)
    assert str(folder / "shard-00001.h5") in message
    assert "galmerhpc preprocess" in message


@pytest.mark.parametrize("what", ["nothing", "an unfinished stage", "a damaged record"])
def test_a_folder_without_finished_shards_says_what_to_run(folder: Path, what: str) -> None:
    record = folder / "stage.json"
    if what == "nothing":
        shutil.rmtree(folder)
    elif what == "an unfinished stage":
        record.write_text('{"version": "0", "inputs": {}, "files": null}')
    else:
        record.write_text('{"inputs": 3}')
    remedy = "remove it and run the stage" if what == "a damaged record" else "galmerhpc preprocess"
    assert remedy in refusal(folder)


def test_a_shard_in_the_place_of_another_is_refused(folder: Path) -> None:
    shutil.copy(folder / "shard-00000.h5", folder / "shard-00001.h5")
    assert "shard-00001.h5" in refusal(folder)


def test_a_shard_of_another_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", 23, 9, image_shape=(6, 4, 3))
    shutil.copy(tmp_path / "other" / "shard-00002.h5", folder)
    assert "shard-00002.h5" in refusal(folder)


def test_a_file_that_is_no_shard_is_refused(folder: Path) -> None:
    (folder / "shard-00001.h5").write_text("not HDF5")
    assert "shard-00001.h5: damaged" in refusal(folder)


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_shard_cut_anywhere_is_refused(good: Path, cut: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(good, Path(scratch) / "shards"))
        path = copy / "shard-00001.h5"
        os.truncate(path, int(cut * path.stat().st_size))
        assert "shard-00001.h5: damaged" in refusal(copy)


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_is_refused_or_without_effect(good: Path, place: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(good, Path(scratch) / "shards"))
        path = copy / "shard-00001.h5"
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= flip
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            for one, other in zip(read_all(copy), read_all(good), strict=True):
                np.testing.assert_array_equal(one, other)
            return
        assert "shard-00001.h5" in refusal(copy)


def test_a_flipped_byte_in_any_image_is_found_by_either_way_of_reading(folder: Path) -> None:
    path = folder / "shard-00001.h5"
    with h5py.File(path) as file:
        offset, size = file["images"].id.get_offset(), file["images"][0].size
    good = path.read_bytes()
    for row in range(9):
        data = bytearray(good)
        data[offset + row * size + 7] ^= 1
        path.write_bytes(data)
        dataset = Dataset.open(folder)
        with pytest.raises(InputError, match=rf"shard-00001.h5: damaged .*image {row}\)"):
            dataset.images(np.array([2, 9 + row]))
        with pytest.raises(InputError, match=rf"shard-00001.h5: damaged .*image {row}\)"):
            list(dataset.in_order(np.arange(23)))
        assert len(dataset.images(np.array([0, 22]))) == 2  # the other shards are good


@pytest.mark.parametrize("label", [np.nan, np.inf])
def test_a_label_that_is_no_number_is_refused(tmp_path: Path, label: float) -> None:
    # dataset.h5, which is made last, is made over good shards only.
    with pytest.raises(InputError, match=r"shard-00000\.h5.*a label is not finite"):
        write_dataset(tmp_path, count=4, per_shard=4, label_0=label)
