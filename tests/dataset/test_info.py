"""`galmerhpc info`: what is in each kind of file, and a clear word on any other."""

import shutil
from pathlib import Path

import pytest

from galmerhpc.catalogue import Views
from galmerhpc.config import load
from galmerhpc.dataset.info import describe
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.raw import RawWriter
from galmerhpc.errors import ExitCode, InputError
from galmerhpc.simulate.library import library_path
from tests.dataset.runs import held, response, scraped, write_config
from tests.dataset.test_shards import COLUMNS
from tests.support import galmerhpc


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder: 56 views of two realisations, in one raw and two training shards."""
    folder = tmp_path_factory.mktemp("info")
    preprocess(scraped(write_config(folder, step=45, preprocess={"compression": "gzip"})))
    return folder / "run"


def line(lines: list[str], name: str) -> list[str]:
    """Return the words of the line that begins with a name."""
    (found,) = [text.split() for text in lines if text.split()[:1] == [name]]
    return found


def test_a_raw_shard(run: Path) -> None:
    lines = describe(run / "raw" / "raw-0000-00000.h5")
    assert "galmerhpc raw" in lines[0]
    assert line(lines, "view")[1:3] == ["(60,)", "text"]
    assert line(lines, "azimuth") == ["azimuth", "0", "180", "5"]
    assert min(held(run / "raw")) in "\n".join(lines)


@pytest.mark.parametrize("name", ["shard-00000.h5", "dataset.h5"])
def test_a_training_shard_and_all_of_them(run: Path, name: str) -> None:
    lines = describe(run / "shards" / name)
    assert "galmerhpc training" in lines[0]
    assert ("virtual" in lines[0]) == (name == "dataset.h5")
    assert all(any(text.startswith(f"{column} ") for text in lines) for column in COLUMNS)
    if name == "dataset.h5":
        assert line(lines, "images")[-4:] == ["uint8", "in", "2", "files"]
        assert line(lines, "spin") == ["spin", "0", "1", "2"]
    else:
        assert "deflate" in " ".join(line(lines, "images"))
    assert sum(int(word.strip(",")) for word in line(lines, "samples")[4::2]) > 0


def test_a_missing_source_is_said(run: Path) -> None:
    shard = run / "shards" / "shard-00001.h5"
    moved = shard.rename(shard.with_suffix(".away"))
    try:
        lines = describe(run / "shards" / "dataset.h5")
    finally:
        moved.rename(shard)
    assert "shard-00001.h5 is missing and reads as zeros" in " ".join(line(lines, "images"))


def test_a_spool(run: Path, tmp_path: Path) -> None:
    config = load(run.parent / "run.yaml")
    views = Views(config.catalogue)
    writer = RawWriter(tmp_path, 0, 100)
    writer.append([response(view, b"12345") for view in views[:2]])
    (spool,) = tmp_path.glob("*.spool")
    left = shutil.copy(spool, tmp_path / "left.spool")
    writer.close()
    lines = describe(left)
    assert line(lines, "responses") == ["responses", "2,", "10", "B"]
    assert views[1].id in lines[-1]


def test_another_file_called_spool_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.spool").write_text("to be done\n")
    with pytest.raises(InputError, match=r"notes\.spool: not a shard, spool or library"):
        describe(tmp_path / "notes.spool")


def test_the_command_knows_libraries_too(run: Path) -> None:
    done = galmerhpc("info", str(library_path("shipped")))
    assert done.returncode == ExitCode.COMPLETE
    assert "retrograde-i90-r0" in done.stdout
    done = galmerhpc("info", str(run / "shards" / "stage.json"))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "stage.json: not a shard, spool or library" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.h5: no such file"):
        describe(tmp_path / "nothing.h5")
