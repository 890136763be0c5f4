import hashlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from galmerhpc import files
from galmerhpc.catalogue import View, Views
from galmerhpc.cli import open_run
from galmerhpc.cluster.stages import is_complete
from galmerhpc.config import Preprocess, load
from galmerhpc.dataset.missing import list_path, write
from galmerhpc.dataset.preprocess import picture_of, preprocess
from galmerhpc.dataset.records import StageRecord
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import ExitCode, InputError
from tests.dataset.runs import galmerhpc_without_room, held, picture, scraped, write_config
from tests.support import galmerhpc, kill, ranks_of, start, wait_for


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that one rank has preprocessed; copy it to change it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    preprocess(scraped(write_config(folder, preprocess={"copies": 1})))
    return folder


def another(undisturbed: Path, folder: Path, **preprocess: object) -> Path:
    """Return the configuration of a run with the same raw shards, not yet preprocessed."""
    path = write_config(folder, preprocess={"copies": 1} | preprocess)
    shutil.copytree(undisturbed / "run" / "raw", folder / "run" / "raw")
    return path


@pytest.fixture(scope="module")
def many_shards(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the shards folder of an undisturbed run of many small shards."""
    folder = tmp_path_factory.mktemp("many")
    preprocess(load(another(undisturbed, folder, samples_per_shard=8)))
    return folder / "run" / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def one_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if "galmerhpc:" in line]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def gif(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "GIF")
    return buffer.getvalue()


# --- what is made ---------------------------------------------------------------------------------


def test_every_view_is_there_with_its_picture_labels_and_source(undisturbed: Path) -> None:
    config = load(undisturbed / "run.yaml")
    bodies, views = held(config.run_dir / "raw"), Views(config.catalogue)
    dataset = Dataset.open(config.run_dir / "shards")
    copy, source = dataset.column("copy"), dataset.column("source_sha256")
    originals = np.flatnonzero(copy == 0)
    assert dataset.view[originals].tolist() == [view.id for view in views]
    images = dataset.images(originals)
    for row, image, view in zip(originals, images, views, strict=True):
        body = bodies[view.id]
        assert source[row] == hashlib.sha256(body).hexdigest()
        assert dataset.labels[row].tolist() == pytest.approx(list(view.labels.values()))
        expected = Image.open(io.BytesIO(body)).convert("RGB").resize((32, 32), Image.LANCZOS)
        np.testing.assert_array_equal(image, np.asarray(expected))
    for name, wanted in (
        ("simulation", [view.run.simulation for view in views]),
        ("snapshot_id", [view.snapshot.id for view in views]),
        ("time_myr", [view.snapshot.time_myr for view in views]),
    ):
        assert dataset.column(name)[originals].tolist() == wanted
    # One copy of each training view, right behind it, is another picture.
    copies = np.flatnonzero(copy == 1)
    assert (copy[copies - 1] == 0).all()
    assert (dataset.view[copies] == dataset.view[copies - 1]).all()
    training = dataset.rows("train")
    assert sorted([*copies, *(copies - 1)]) == training.tolist()
    assert (dataset.images(copies) != dataset.images(copies - 1)).any(axis=(1, 2, 3)).all()


def test_shards_are_balanced(undisturbed: Path) -> None:
    folder = undisturbed / "run" / "shards"
    names = sorted(files.read_json(folder / "stage.json")["files"])
    assert names == sorted(path.name for path in folder.glob("*.h5"))
    lengths = []
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path) as file:
            lengths.append(len(file["images"]))
    assert max(lengths) <= 50
    assert max(lengths) - min(lengths) <= 1


def test_a_finished_stage_is_skipped(undisturbed: Path) -> None:
    folder = undisturbed / "run" / "shards"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = galmerhpc("preprocess", str(undisturbed / "run.yaml"))
    assert done.returncode == ExitCode.COMPLETE
    assert "complete, nothing to do" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (1, 64), (3, 64), (3, 40)])
def test_size_and_channels(channels: int, size: int) -> None:
    flat = np.full((64, 64), 77, np.uint8)
    made = picture_of(gif(flat), 64, Preprocess(image_size=size, channels=channels))
    assert made.size == (size, size)
    assert made.mode == {1: "L", 3: "RGB"}[channels]
    assert (np.asarray(made) == 77).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_palette_gives_what_three_equal_channels_give(channels: int) -> None:
    """Grey pictures are resized in one channel, coloured ones in three."""
    pixels = np.random.default_rng(1).integers(0, 200, (48, 48), np.uint8)
    settings = Preprocess(image_size=32, channels=channels)
    for tint in (0, 1):
        coloured = Image.fromarray(pixels).convert("P")
        palette = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 3)
        palette[:, 2] = np.maximum(palette[:, 2], tint) - tint
        coloured.putpalette(palette.tobytes())
        buffer = io.BytesIO()
        coloured.save(buffer, "GIF", optimize=False)
        made = picture_of(buffer.getvalue(), 48, settings)
        plain = Image.open(io.BytesIO(buffer.getvalue()))
        assert plain.mode == ("P" if tint else "L")
        expected = plain.convert(made.mode).resize((32, 32), Image.LANCZOS)
        np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))


def test_reducing_leaves_nothing_to_alias() -> None:
    """Stripes finer than the new pixels become grey; a filter of fixed width would keep some."""
    x = np.arange(400)
    for period in (2, 3, 5):
        stripes = np.tile(np.where(x % period < period / 2, 200, 0).astype(np.uint8), (400, 1))
        made = np.asarray(picture_of(gif(stripes), 400, Preprocess(channels=1)), float)
        inner = made[4:-4, 4:-4]
        assert abs(inner.mean() - stripes.mean()) < 2
        assert inner.std() < 4


def test_jpeg_on_the_way_leaves_its_mark() -> None:
    body = gif(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    clean = np.asarray(picture_of(body, 64, Preprocess(channels=1)), float)
    errors = []
    for quality in (95, 30):
        settings = Preprocess(channels=1, jpeg_quality=quality)
        errors.append(np.abs(np.asarray(picture_of(body, 64, settings)) - clean).mean())
    assert 0 < errors[0] < 5 < errors[1]


@pytest.mark.parametrize("compression", ["gzip", "blosc-lz4", "blosc-zstd"])
def test_compressed_shards_hold_the_same_and_are_kept_on_resume(
    undisturbed: Path, tmp_path: Path, compression: str
) -> None:
    path = another(undisturbed, tmp_path, compression=compression)
    preprocess(load(path))
    folder, plain = tmp_path / "run" / "shards", undisturbed / "run" / "shards"
    for shard in sorted(folder.glob("*.h5")):
        with h5py.File(shard) as file, h5py.File(plain / shard.name) as other:
            assert file["images"].chunks in (None, (1, 32, 32, 3))
            for name in other:
                np.testing.assert_array_equal(file[name][:], other[name][:])
        assert shard.stat().st_size < (plain / shard.name).stat().st_size or shard.stem == "dataset"
    (folder / "dataset.h5").unlink()
    kept = {shard.name: shard.stat().st_ino for shard in folder.glob("shard-*.h5")}
    made = contents(folder)
    flipped = bytearray((folder / "shard-00002.h5").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "shard-00002.h5").write_bytes(flipped)
    preprocess(load(path))
    assert {name for name in kept if (folder / name).stat().st_ino != kept[name]} == {
        "shard-00002.h5"
    }
    assert contents(folder).items() >= made.items()


def test_a_compression_that_is_not_installed_says_what_to_do(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match=r"preprocess.compression: blosc-lz4 needs hdf5plugin"):
        preprocess(load(another(undisturbed, tmp_path, compression="blosc-lz4")))
    assert not (tmp_path / "run" / "shards").exists()


def test_the_images_held_at_once_change_no_byte(undisturbed: Path, tmp_path: Path) -> None:
    for count in (1, 7):
        path = another(undisturbed, tmp_path / str(count), images_in_memory=count)
        preprocess(load(path))
        made = contents(tmp_path / str(count) / "run" / "shards")
        assert made == contents(undisturbed / "run" / "shards")


def test_no_more_images_are_held_than_the_configuration_says(tmp_path: Path) -> None:
    path = write_config(tmp_path, step=30, preprocess={"image_size": 256, "samples_per_shard": 999})
    config = scraped(path)
    peaks = []
    for count in (4, 112):
        settings = config.preprocess.model_copy(update={"images_in_memory": count})
        shutil.rmtree(config.run_dir / "shards", ignore_errors=True)
        tracemalloc.start()
        preprocess(config.model_copy(update={"preprocess": settings}))
        peaks.append(tracemalloc.get_traced_memory()[1] / (256 * 256 * 3))
        tracemalloc.stop()
    assert peaks[0] < 20
    assert peaks[1] > 112


def test_a_shard_made_from_other_responses_is_not_kept_on_resume(tmp_path: Path) -> None:
    path = write_config(tmp_path, step=45)
    config = scraped(path)
    preprocess(config)
    expected = contents(config.run_dir / "shards")
    changed = Views(config.catalogue)[3].id
    shutil.rmtree(config.run_dir / "raw")
    scraped(path, lambda view: picture(view) if view.id != changed else gif(np.eye(48, dtype="u1")))
    (config.run_dir / "shards" / "dataset.h5").unlink()
    preprocess(config)
    made = contents(config.run_dir / "shards")
    assert {name for name in expected if made[name] != expected[name]} == {"shard-00000.h5"}


# --- any number of ranks, any kill ----------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(
    undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    path = another(undisturbed, tmp_path)
    done = galmerhpc("preprocess", str(path), ranks=ranks)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    made, expected = tmp_path / "run" / "shards", undisturbed / "run" / "shards"
    assert contents(made) == contents(expected)
    assert Dataset.open(made).fingerprint == Dataset.open(expected).fingerprint


def test_more_ranks_than_shards(undisturbed: Path, tmp_path: Path) -> None:
    path = another(undisturbed, tmp_path, samples_per_shard=1000)
    done = galmerhpc("preprocess", str(path), ranks=3)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    made = Dataset.open(tmp_path / "run" / "shards")
    assert sorted(contents(tmp_path / "run" / "shards")) == ["dataset.h5", "shard-00000.h5"]
    expected = Dataset.open(undisturbed / "run" / "shards")
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(made.images(rows), expected.images(rows))


@pytest.mark.parametrize("whole_job", [True, False], ids=["the whole job", "one rank"])
def test_a_killed_job_goes_on_with_what_is_not_finished(
    undisturbed: Path, many_shards: Path, tmp_path: Path, whole_job: bool
) -> None:
    path = another(undisturbed, tmp_path, samples_per_shard=8)
    folder = tmp_path / "run" / "shards"
    job = start("preprocess", str(path), ranks=2)
    wait_for(lambda: len(list(folder.glob("shard-*.h5"))) >= 3, job)
    kill(job, None if whole_job else ranks_of(job)[-1])
    assert job.returncode != 0
    kept = {p.name: p.stat().st_ino for p in folder.glob("shard-*.h5")}
    assert kept
    assert not (folder / "dataset.h5").exists()

    done = galmerhpc("preprocess", str(path), ranks=2)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert {name: (folder / name).stat().st_ino for name in kept} == kept
    assert contents(folder) == contents(many_shards)
    assert not list(folder.glob(".tmp*"))


# Ten parts, so that each has an end that can be waited for, and can be run alone.
@pytest.mark.parametrize(
    "seed", [8, *(pytest.param(s, marks=pytest.mark.soak) for s in range(10, 20))]
)
def test_kills_at_random_moments_change_no_byte(
    undisturbed: Path, many_shards: Path, tmp_path: Path, seed: int
) -> None:
    draw, expected, kills, done = np.random.default_rng(seed), contents(many_shards), 8, 0
    for number in itertools.count():
        path = another(undisturbed, tmp_path / str(number), samples_per_shard=8)
        folder = tmp_path / str(number) / "run" / "shards"
        in_row = 0
        while in_row < 4 and done < kills and killed(path, folder, draw):
            in_row, done = in_row + 1, done + 1
        ended = galmerhpc("preprocess", str(path), ranks=int(draw.integers(1, 4)))
        assert ended.returncode == ExitCode.COMPLETE, ended.stderr
        assert contents(folder) == expected
        assert not list(folder.glob(".tmp*"))
        if done == kills:
            break


def killed(path: Path, folder: Path, draw: np.random.Generator) -> bool:
    """Start a job and kill a rank, or all of it, at a random moment; False if it ended before."""
    ranks, record = int(draw.integers(1, 4)), folder / "stage.json"
    begun = record.stat().st_ino if record.exists() else None
    job = start("preprocess", str(path), ranks=ranks)
    if draw.random() < 0.8:  # else also while it starts
        while job.poll() is None and not (record.exists() and record.stat().st_ino != begun):
            time.sleep(0.002)
    time.sleep(draw.uniform(0, 1.5))  # the moment is what is drawn; nothing is waited for
    in_time = job.poll() is None
    workers = ranks_of(job)
    one = workers and draw.random() < 0.5
    kill(job, workers[draw.integers(len(workers))] if one else None)
    return in_time and job.returncode != 0


def test_a_damaged_or_foreign_shard_is_not_kept_on_resume(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = another(undisturbed, tmp_path)
    made = tmp_path / "run" / "shards"
    shutil.copytree(undisturbed / "run" / "shards", made)
    (made / "shard-00002.h5").unlink()  # so that the stage is not complete
    shutil.copy(made / "shard-00001.h5", made / "shard-00000.h5")
    data = bytearray((made / "shard-00003.h5").read_bytes())
    data[-1] ^= 1
    (made / "shard-00003.h5").write_bytes(data)
    preprocess(load(path))
    assert contents(made) == contents(undisturbed / "run" / "shards")


def test_a_second_job_on_one_folder_says_so_and_stops(undisturbed: Path, tmp_path: Path) -> None:
    path = another(undisturbed, tmp_path)
    folder = tmp_path / "run" / "shards"
    with files.lock(folder / "preprocess.lock"):
        done = galmerhpc("preprocess", str(path), ranks=2)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert f"{folder}: in use by process {os.getpid()}" in one_line(done.stderr)
    assert not list(folder.iterdir())


# --- what is wrong is one line --------------------------------------------------------------------


def bad_picture(kind: str, view: View) -> bytes:
    body = picture(view)
    match kind:
        case "truncated":
            return body[: len(body) // 2]
        case "another size":
            return gif(np.zeros((10, 10), np.uint8))
        case _:
            return b"<html>no such snapshot</html>"


@pytest.mark.parametrize(("kind", "ranks"), [("truncated", 2), ("another size", 1), ("a page", 1)])
def test_a_bad_picture_is_named(tmp_path: Path, kind: str, ranks: int) -> None:
    path = write_config(tmp_path)
    chosen = Views(load(path).catalogue)[100].id
    scraped(path, lambda view: bad_picture(kind, view) if view.id == chosen else picture(view))
    done = galmerhpc("preprocess", str(path), ranks=ranks)
    assert done.returncode == ExitCode.WRONG_INPUT
    message = one_line(done.stderr)
    assert chosen in message
    assert "raw-0000-00000.h5" in message
    assert "galmerhpc scrape" in message
    assert not (tmp_path / "run" / "shards" / "dataset.h5").exists()


def test_a_damaged_raw_shard_is_named(tmp_path: Path) -> None:
    config = scraped(write_config(tmp_path))
    shard = config.run_dir / "raw" / "raw-0000-00000.h5"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"raw-0000-00000.h5: damaged"):
        preprocess(config)


def test_an_unfinished_scrape_says_what_to_run(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    done = galmerhpc("preprocess", str(path), ranks=2)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "galmerhpc scrape" in one_line(done.stderr)
    assert not (tmp_path / "run" / "shards").exists()


def test_a_view_without_picture_is_named(tmp_path: Path) -> None:
    config = scraped(write_config(tmp_path), chosen=lambda view: view.run.simulation == 0)
    with pytest.raises(InputError, match=r"182 of 364 views are missing, simulation=1&"):
        preprocess(config)


def test_views_left_out_are_counted_named_and_no_one_elses_loss(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path, preprocess={"copies": 1})
    views = Views(load(path).catalogue)
    absent = [views[index].id for index in (0, 7, 100, 363)]
    config = scraped(path, chosen=lambda view: view.id not in absent)
    missing = config.run_dir / "raw" / "missing.csv"
    missing.write_text("view,reason\n" + "".join(f"{view},status 500\n" for view in absent))
    record = StageRecord(config.run_dir / "raw", config.inputs("scrape"))
    record.finish(record.files | {missing.name: files.sha256(missing)})
    done = galmerhpc("preprocess", str(path), ranks=2)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert "4 of 364 views are left out" in done.stderr
    assert ", ".join(absent[:3]) in done.stderr
    made = Dataset.open(config.run_dir / "shards")
    whole = Dataset.open(undisturbed / "run" / "shards")
    rows = np.flatnonzero(~np.isin(whole.view, absent))
    assert len(made) == len(rows)
    np.testing.assert_array_equal(made.images(np.arange(len(made))), whole.images(rows))
    for name in ("view", "copy", "split", "group"):
        np.testing.assert_array_equal(made.column(name), whole.column(name)[rows])

    # All that works on the run afterwards opens it first.
    assert open_run(config) is config
    assert is_complete(config, "preprocess")

    # While a scrape is under way again, nobody knows what it will leave out.
    StageRecord(config.run_dir / "raw", config.inputs("scrape")).begin()
    assert open_run(config) is config
    assert not is_complete(config, "preprocess")
    done = galmerhpc("preprocess", str(path))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "raw: not complete; run galmerhpc scrape first" in one_line(done.stderr)

    # Now the others came too: these shards are not those of the whole catalogue.
    shutil.rmtree(config.run_dir / "raw")
    scraped(path)
    done = galmerhpc("preprocess", str(path))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert 'made with another raw.left_out: "4 views' in one_line(done.stderr)


@pytest.mark.parametrize(
    ("lost", "split"), [({0, 1, 2}, "train"), ({0}, "train"), ({1}, "validation"), ({2}, "test")]
)
def test_a_split_that_lost_all_its_views_is_refused(
    tmp_path: Path, lost: set[int], split: str
) -> None:
    path = write_config(tmp_path, realisations=3, step=90)
    config = scraped(path, chosen=lambda view: view.run.simulation not in lost)
    absent = [v.id for v in Views(load(path).catalogue) if v.run.simulation in lost]
    missing = list_path(config.run_dir / "raw")
    write(missing, dict.fromkeys(absent, "status 500"))
    record = StageRecord(config.run_dir / "raw", config.inputs("scrape"))
    record.finish(record.files | {missing.name: files.sha256(missing)})
    with pytest.raises(InputError, match=rf"missing\.csv: all views of the {split} split are"):
        preprocess(config)


def test_a_run_whose_split_is_impossible_is_refused_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, realisations=1, step=90, scrape={"source": "http://127.0.0.1:9"})
    done = galmerhpc("run", str(path))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "split.kind: simulation needs two realisations" in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_the_shards_of_another_configuration_are_kept(undisturbed: Path, tmp_path: Path) -> None:
    path = another(undisturbed, tmp_path, image_size=64)
    shutil.copytree(undisturbed / "run" / "shards", tmp_path / "run" / "shards")
    done = galmerhpc("preprocess", str(path))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "preprocess.image_size" in one_line(done.stderr)
    assert contents(tmp_path / "run" / "shards") == contents(undisturbed / "run" / "shards")


def test_a_disk_that_is_full_is_one_line_and_the_same_command_goes_on(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = another(undisturbed, tmp_path)
    done = galmerhpc_without_room(50_000, "preprocess", str(path))
    assert done.returncode == ExitCode.FAILED
    message = one_line(done.stderr)
    assert "shard-00000.h5: cannot be written" in message
    folder = tmp_path / "run" / "shards"
    assert [p.name for p in folder.iterdir()] == ["stage.json"]
    preprocess(load(path))
    assert contents(folder) == contents(undisturbed / "run" / "shards")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_small_disk_keeps_what_fits_and_takes_the_rest_when_there_is_room(
    undisturbed: Path, tmp_path: Path, compression: str
) -> None:
    disk = tmp_path / "run" / "shards"
    path = another(undisturbed, tmp_path, compression=compression)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    try:
        done = galmerhpc("preprocess", str(path), ranks=2)
        assert done.returncode == ExitCode.FAILED
        message = one_line(done.stderr)
        assert "cannot be written: No space left on device; make room" in message
        kept = {shard.name: shard.stat().st_ino for shard in disk.glob("shard-*.h5")}
        assert 0 < len(kept) < 11
        grow = ["mount", "-o", "remount,size=50m", str(disk)]
        subprocess.run(grow, check=True, capture_output=True)
        done = galmerhpc("preprocess", str(path), ranks=2)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert {name: (disk / name).stat().st_ino for name in kept} == kept
        if compression == "none":
            assert contents(disk) == contents(undisturbed / "run" / "shards")
        assert len(Dataset.open(disk)) == len(Dataset.open(undisturbed / "run" / "shards"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
