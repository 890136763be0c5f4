"""`galmerhpc check`: every kind of damage is found, named, and made good by the next run."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from galmerhpc import files
from galmerhpc.catalogue import Views
from galmerhpc.check import Fault, check, set_aside
from galmerhpc.config import Config, Split, load
from galmerhpc.dataset import shards
from galmerhpc.dataset.missing import list_path, write
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.raw import RawWriter
from galmerhpc.dataset.records import LEFT_OUT, RECORD, StageRecord
from galmerhpc.dataset.split import TEST, TRAIN, Samples, ViewTable, assign
from galmerhpc.errors import ExitCode, InputError
from galmerhpc.training import checkpoint
from tests.dataset.runs import held, picture, response, scraped, write_config
from tests.servers import Service, encode, serve
from tests.support import galmerhpc


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def good(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with all that a check looks at; take a `copy` to change it."""
    folder = tmp_path_factory.mktemp("good")
    path = write_config(
        folder,
        step=30,
        scrape={"source": service.url, "views_per_shard": 30},
        preprocess={"copies": 1, "samples_per_shard": 25},
    )
    for stage in ("scrape", "preprocess"):
        done = galmerhpc(stage, str(path))
        assert done.returncode == 0, done.stderr
    run = folder / "run"
    for step in (3, 6):
        name = checkpoint.checkpoint_name(step)
        checkpoint.save(run / "checkpoints", name, {"w": np.arange(9.0)}, {"epoch": 1}, 2, None)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text("{}")
    record = StageRecord(run / "evaluation", {})
    record.finish({"metrics.json": files.sha256(run / "evaluation" / "metrics.json")})
    return folder


@pytest.fixture
def config(good: Path, tmp_path: Path) -> Config:
    """Return a good run of one's own."""
    return copy(good, tmp_path)


def copy(good: Path, folder: Path) -> Config:
    shutil.copytree(good / "run", folder / "run")
    return load(good / "run.yaml").model_copy(update={"run_dir": folder / "run"})


# --- damage: each returns the file that is bad ----------------------------------------------------


def flip(path: Path, place: int) -> Path:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    os.truncate(path, path.stat().st_size // 2)
    return path


def raw(run: Path) -> Path:
    return sorted((run / "raw").glob("*.h5"))[1]


def shard(run: Path) -> Path:
    return run / "shards" / "shard-00003.h5"


def edit(path: Path, name: str, row: int, value: object) -> Path:
    """Change a cell of a shard, its column's checksum too: no checksum of the shard tells."""
    with h5py.File(path, "r+") as file:
        file[name][row] = value
        if "sha256" in file[name].attrs:
            digest = hashlib.sha256(file[name][:].tobytes()).hexdigest()
            file[name].attrs["sha256"] = np.array(digest.encode(), file[name].attrs["sha256"].dtype)
    return path


def another_picture(run: Path) -> Path:
    """Put a picture of another size into a raw shard, with its right checksum."""
    path, body = raw(run), encode(np.zeros((10, 10), np.uint8))
    with h5py.File(path, "r+") as file:
        start, end = file["offset"][4:6]
        body = body.ljust(end - start, b"\0")
        file["response"][start:end] = np.frombuffer(body, np.uint8)
    return edit(path, "sha256", 4, hashlib.sha256(body).hexdigest())


def image_byte(run: Path) -> Path:
    with h5py.File(shard(run)) as file:
        place = file["images"].id.get_offset() + 5 * file["images"][0].size
    return flip(shard(run), place)


def other_sources(run: Path) -> Path:
    """Let the virtual file show one shard twice; its record knows."""
    folder = run / "shards"
    names = sorted(path.name for path in folder.glob("shard-*.h5"))
    shards.write_virtual(folder, [*names[:-1], names[0]], {"train": 1})
    record = json.loads((folder / "stage.json").read_text())
    record["files"]["dataset.h5"] = files.sha256(folder / "dataset.h5")
    (folder / "stage.json").write_text(json.dumps(record))
    return folder / "dataset.h5"


def removed(path: Path) -> Path:
    path.unlink()
    return path


def over(path: Path, other: Path) -> Path:
    shutil.copy(other, path)
    return path


def damaged_record(path: Path) -> Path:
    path.write_text("{")
    return path


def state_of(run: Path) -> Path:
    return flip(run / "checkpoints" / "step-00000006" / "state.npz", 200).parent


def manifest(run: Path) -> Path:
    return run / "checkpoints/step-00000006/manifest.json"


def position(run: Path) -> Path:
    path = manifest(run)
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 2'))
    return path.parent


def metrics(run: Path) -> Path:
    (run / "evaluation" / "metrics.json").write_text("{} ")
    return run / "evaluation" / "metrics.json"


DAMAGE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a byte of a response": (lambda run: flip(raw(run), 60_000), "checksum mismatch in view"),
    "a raw shard cut short": (lambda run: cut(raw(run)), "damaged raw shard"),
    "a raw shard lost": (lambda run: removed(raw(run)), "missing"),
    "a raw label": (lambda run: edit(raw(run), "labels", 7, [0, 0, 0, 1]), "labels of view"),
    "a raw time": (lambda run: edit(raw(run), "time_myr", 0, 3.5), "time_myr of view"),
    "a raw address": (lambda run: edit(raw(run), "url", 3, b"x"), "SHA-256 does not"),
    "a strange view": (lambda run: edit(raw(run), "view", 3, b"x"), "x is not in the catalogue"),
    "a picture of another size": (another_picture, "10 x 10 pixels, not 48 x 48"),
    "a byte of an image": (image_byte, "checksum mismatch in image 5"),
    "a byte of a header": (lambda run: flip(shard(run), 20), "damaged training shard"),
    "a shard cut short": (lambda run: cut(shard(run)), "damaged training shard"),
    "a shard lost": (lambda run: removed(shard(run)), "missing"),
    "a label": (lambda run: edit(shard(run), "labels", 7, [0, 0, 0, 1]), "labels of image 7"),
    "a label that is no number": (
        lambda run: edit(shard(run), "labels", 2, [np.nan] * 4), "a label is not finite"
    ),
    "a source": (
        lambda run: edit(shard(run), "source_sha256", 9, b"0" * 64), "image 9 was made from another"
    ),
    "a shard in another's place": (
        lambda run: over(shard(run), run / "shards" / "shard-00002.h5"), "another shard's"
    ),
    "a shard too many": (
        lambda run: over(run / "shards" / "shard-00099.h5", shard(run)), "no shard of this"
    ),
    "a split": (lambda run: edit(shard(run), "split", 4, 0), "split of image 4"),
    "a byte of the virtual file": (lambda run: flip(run / "shards/dataset.h5", 999), "SHA-256"),
    "other sources": (other_sources, "are not the shards of stage.json"),
    "a record": (lambda run: damaged_record(run / "shards/stage.json"), "damaged"),
    "a checkpoint": (state_of, "the SHA-256 of state.npz"),
    "a checkpoint's position": (position, "the SHA-256 of manifest.json"),
    "a checkpoint's manifest lost": (lambda run: removed(manifest(run)).parent, "damaged"),
    "an evaluation": (metrics, "SHA-256 does not match"),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.h5")}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_made_good(good: Path, config: Config, kind: str) -> None:
    inflict, word = DAMAGE[kind]
    run = config.run_dir
    bad = inflict(run)
    faults = check(config).faults
    assert {fault.path for fault in faults} == {bad}
    assert any(word in fault.why for fault in faults), faults
    existed = bad.exists()
    moved = set_aside(config, faults)
    assert list(moved) == ([bad] if existed else [])
    assert not bad.exists()
    assert all(new.name == bad.name + ".bad" for new in moved.values())
    if bad.parent.name == "raw":
        raw_record = StageRecord(run / "raw", config.inputs("scrape"))
        assert not raw_record.complete
        lost = sorted(held(good / "run" / "raw").keys() - held(run / "raw").keys())
        assert len(lost) == 30
    elif bad.parent.name == "shards":
        kept = {path: path.stat().st_ino for path in (run / "shards").glob("shard-*.h5")}
        preprocess(config)
        assert contents(run / "shards") == contents(good / "run" / "shards")
        assert {path: path.stat().st_ino for path in kept} == kept
    elif bad.parent.name == "checkpoints":
        loaded = checkpoint.load_latest(run / "checkpoints")
        assert loaded is not None
    if bad.parent.name not in ("raw", "evaluation"):
        assert check(config).faults == []


def test_the_command_checks_repairs_and_the_next_run_fetches_just_what_was_bad(
    good: Path, service: Service, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(good / "run", tmp_path / "run"))
    done = galmerhpc("check", str(run), ranks=2)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert ", 0 faults" in done.stdout
    bad = flip(raw(run), 60_000)
    done = galmerhpc("check", str(run), ranks=2)
    assert done.returncode == ExitCode.FAILED
    assert f"BAD {bad}: damaged raw shard (checksum mismatch in view " in done.stdout
    assert "--repair" in done.stdout
    assert "Traceback" not in done.stderr
    assert bad.exists()
    done = galmerhpc("check", str(run), "--repair")
    assert done.returncode == ExitCode.FAILED
    assert f"set aside: {bad} is now {bad.name}.bad" in done.stdout

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((run / "config.yaml").read_text()) | {
        "run_dir": str(run)
    }))  # fmt: skip
    before = service.asked.total()
    done = galmerhpc("scrape", str(path))
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert service.asked.total() - before == 30
    assert held(run / "raw") == held(good / "run" / "raw")
    done = galmerhpc("check", str(run))
    assert done.returncode == ExitCode.COMPLETE, done.stdout


def test_shards_made_from_what_came_otherwise_the_second_time_are_found(config: Config) -> None:
    folder = config.run_dir / "raw"
    chosen = sorted(folder.glob("*.h5"))[0]
    lost = set(held(folder))
    chosen.unlink()
    lost -= set(held(folder))
    writer = RawWriter(folder, 7, 1000)
    again = [view for view in Views(config.catalogue) if view.id in lost]
    writer.append([response(view, picture(view)) for view in again])
    writer.close()
    record = StageRecord(folder, config.inputs("scrape"))
    record.finish({path.name: files.sha256(path) for path in folder.glob("*.h5")})
    faults = check(config).faults
    assert faults
    assert all("was made from another response" in fault.why for fault in faults)
    set_aside(config, faults)
    preprocess(config)
    assert check(config).faults == []


@pytest.mark.parametrize(
    ("content", "word"), [(None, "missing"), (b"a,b\n1,2\n", "columns are not view, reason")]
)
def test_a_list_of_left_out_views_that_cannot_be_read_is_a_fault_of_its_own(
    config: Config, content: bytes | None, word: str
) -> None:
    folder = config.run_dir / "raw"
    record, path = StageRecord(folder, config.inputs("scrape")), list_path(folder)
    write(path, {"a view": "a reason"})
    record.finish({**record.files, path.name: files.sha256(path)})
    path.unlink()
    if content:
        path.write_bytes(content)
    done = galmerhpc("preprocess", str(config.run_dir / "config.yaml"), f"run_dir={config.run_dir}")
    assert done.returncode == ExitCode.WRONG_INPUT
    assert f"{path}: " in done.stderr
    assert f"galmerhpc check {config.run_dir} --repair" in done.stderr
    report = check(config)
    assert [fault.path for fault in report.faults] == [path]
    assert word in report.faults[0].why
    set_aside(config, report.faults)
    assert not path.exists()
    assert not StageRecord(folder, config.inputs("scrape")).complete


def test_a_leak_of_the_split_itself_is_found(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards are as the split says, so nothing but this can tell."""

    def leaky(views: ViewTable, split: Split, copies: int) -> Samples:
        samples = assign(views, split, copies)
        samples.split[np.flatnonzero(samples.split == TEST)[0]] = TRAIN
        return samples

    monkeypatch.setattr("galmerhpc.dataset.preprocess.assign", leaky)
    shutil.rmtree(config.run_dir / "shards")
    preprocess(config)
    faults = check(config).faults
    assert any("simulation=1 is in training and held out as well" in f.why for f in faults)
    assert not any(fault.repairable for fault in faults)


def test_what_is_unfinished_is_noted_and_nothing_bad(config: Config) -> None:
    (config.run_dir / "shards" / "dataset.h5").unlink()
    record = config.run_dir / "shards" / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"files": None}))
    report = check(config)
    assert report.faults == []
    assert any("shards: not finished" in note for note in report.notes)


def test_views_in_no_shard_are_named_though_the_record_is_happy(config: Config) -> None:
    folder = config.run_dir / "raw"
    sorted(folder.glob("*.h5"))[0].unlink()
    record = StageRecord(folder, config.inputs("scrape"))
    record.finish({path.name: files.sha256(path) for path in folder.glob("*.h5")})
    faults = [fault for fault in check(config).faults if fault.path.parent == folder]
    assert [fault.path.name for fault in faults] == ["stage.json"]
    assert "30 views are in no shard" in faults[0].why


def test_a_scraped_run_is_verified_whatever_its_split_and_the_order_of_its_labels(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, realisations=1, step=90)
    values = yaml.safe_load(path.read_text())
    for order, run in zip((1, -1), values["catalogue"]["runs"], strict=True):
        run["labels"] = dict([("mass_ratio", 2.0), ("pericentre_kpc", 8.0)][::order])
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    config = scraped(path)  # its default split, by realisation, is impossible
    assert check(config).faults == []
    bad = cut(sorted((config.run_dir / "raw").glob("*.h5"))[0])
    assert [fault.path for fault in check(config).faults] == [bad]


def test_shards_without_views_that_a_scrape_may_still_bring_are_left_alone(config: Config) -> None:
    path = config.run_dir / "shards" / RECORD
    record = json.loads(path.read_text())
    record["inputs"][LEFT_OUT] = "1 views"
    path.write_text(json.dumps(record))
    StageRecord(config.run_dir / "raw", config.inputs("scrape")).begin()
    report = check(config)
    assert report.faults == []
    assert any("verified once the scrape is finished" in note for note in report.notes)


def test_without_the_record_of_raw_the_pictures_are_kept_and_all_is_verified_later(
    good: Path, config: Config
) -> None:
    folder = config.run_dir / "raw"
    damaged_record(folder / "stage.json")
    report = check(config)
    assert [fault.path for fault in report.faults] == [folder / "stage.json"]
    assert any("training shards cannot be verified" in note for note in report.notes)
    set_aside(config, report.faults)
    assert held(folder) == held(good / "run" / "raw")
    record = StageRecord(folder, config.inputs("scrape"))
    assert not record.complete
    record.finish({path.name: files.sha256(path) for path in folder.glob("*.h5")})
    assert check(config).faults == []


def test_another_configurations_shards_are_named_and_left_alone(config: Config) -> None:
    changed = config.preprocess.model_copy(update={"image_size": 64})
    other = config.model_copy(update={"preprocess": changed})
    (fault,) = check(other).faults
    assert fault == Fault(config.run_dir / "shards" / "stage.json", fault.why, repairable=False)
    assert "preprocess.image_size" in fault.why
    assert set_aside(other, [fault]) == {}


def test_nothing_is_set_aside_under_a_job_that_is_at_work(config: Config) -> None:
    folder = config.run_dir / "shards"
    fault = Fault(flip(shard(config.run_dir), 20), "")
    with (
        files.lock(folder / "preprocess.lock"),
        pytest.raises(InputError, match="a job is at work in this folder"),
    ):
        set_aside(config, [fault])
    assert fault.path.exists()


def test_bad_files_of_one_name_do_not_replace_each_other(config: Config) -> None:
    for name in ("shard-00003.h5.bad", "shard-00003.h5.bad2"):
        (moved,) = set_aside(config, [Fault(flip(shard(config.run_dir), 20), "")]).values()
        assert moved.name == name
        preprocess(config)


@pytest.mark.parametrize("where", ["raw/raw-0000-00000.h5", "shards/shard-00000.h5"])
def test_a_shard_out_of_reach_is_not_called_damaged(config: Config, where: str) -> None:
    path = config.run_dir / where
    path.rename(config.run_dir / "elsewhere")
    path.mkdir()  # root is refused nothing else
    (fault,) = (fault for fault in check(config).faults if fault.path == path)
    assert fault.why.startswith("cannot be read: Is a directory")
    assert not fault.repairable
    assert set_aside(config, [fault]) == {}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = galmerhpc("check", str(tmp_path))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert f"{tmp_path}: not a run folder" in done.stderr


def test_shards_of_another_version_of_us_are_sound(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galmerhpc.dataset.shards.__version__", "99.0")
    assert check(config).faults == []
