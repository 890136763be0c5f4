import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from galmerhpc.config import Data
from galmerhpc.dataset.batches import SplitReader, training_batches
from galmerhpc.dataset.shards import Dataset, Shard
from galmerhpc.dataset.staging import stage_locally
from galmerhpc.errors import InputError
from tests.dataset.runs import write_dataset
from tests.support import environment, run, wait_for

COUNT = 120


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "shards", COUNT, per_shard=32)
    return tmp_path / "shards"


def data(local_storage: Path) -> Data:
    return Data(memory_gb=0, stage=True, stage_dir=local_storage)


def copies(local_storage: Path) -> list[Path]:
    return sorted(local_storage.glob("galmerhpc-*/*/shards/*"))


def test_a_staged_split_is_read_from_the_copy(source: Path, local_storage: Path) -> None:
    expected = images_of(SplitReader(Dataset.open(source), "train", Data(memory_gb=0)))
    reader = SplitReader(Dataset.open(source), "train", data(local_storage))
    assert [copy.name for copy in copies(local_storage)] == [f"shard-0000{k}.h5" for k in range(4)]
    shutil.rmtree(source)
    np.testing.assert_array_equal(images_of(reader), expected)


def images_of(reader: SplitReader) -> np.ndarray:
    return np.concatenate([b.images for b in training_batches(reader, 0, 0, 10, 0, 1)])


def test_what_fits_into_memory_is_not_copied(source: Path, local_storage: Path) -> None:
    in_memory = Data(stage=True, stage_dir=local_storage)
    assert SplitReader(Dataset.open(source), "train", in_memory).count == 40
    assert copies(local_storage) == []


def test_a_copy_is_used_again_and_made_again_where_it_is_not_whole(
    source: Path, local_storage: Path
) -> None:
    dataset = Dataset.open(source)
    folder = stage_locally(dataset, data(local_storage)).folder
    first = [copy.stat().st_ino for copy in copies(local_storage)]
    assert stage_locally(dataset, data(local_storage)).folder == folder
    assert [copy.stat().st_ino for copy in copies(local_storage)] == first
    os.truncate(copies(local_storage)[2], 1000)
    copies(local_storage)[1].unlink()
    # What a killed job left counts for nothing.
    leftover = folder.with_name(".tmp-1-shards")
    leftover.mkdir()
    (leftover / "shard-00000.h5").write_bytes(b"half of it")
    again = stage_locally(dataset, data(local_storage))
    np.testing.assert_array_equal(again.images(np.arange(COUNT)), dataset.images(np.arange(COUNT)))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lock", "shards"]


def test_another_data_set_has_a_copy_of_its_own(
    source: Path, tmp_path: Path, local_storage: Path
) -> None:
    write_dataset(tmp_path / "other", COUNT + 1, per_shard=32)
    one, other = Dataset.open(source), Dataset.open(tmp_path / "other")
    folders = {stage_locally(dataset, data(local_storage)).folder for dataset in (one, other, one)}
    assert len(folders) == 2


def test_what_lies_there_already_is_not_copied(source: Path, tmp_path: Path) -> None:
    assert stage_locally(Dataset.open(source), data(tmp_path)).folder == source


def test_a_damaged_copy_is_not_used_and_its_source_not_blamed(
    source: Path,
    local_storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = images_of(SplitReader(Dataset.open(source), "train", Data(memory_gb=0)))
    copyfile = shutil.copyfile

    def damage(shard: Path, made: Path) -> None:
        copyfile(shard, made)
        if made.name == "shard-00001.h5":
            os.truncate(made, 1000)

    monkeypatch.setattr(shutil, "copyfile", damage)
    reader = SplitReader(Dataset.open(source), "train", data(local_storage))
    np.testing.assert_array_equal(images_of(reader), expected)
    assert (
        f"no copy of the shards in {local_storage}: the SHA-256 of the copy of shard-00001.h5"
        in caplog.text
    )
    assert copies(local_storage) == []


def test_a_shard_damaged_at_the_source_is_named(source: Path, local_storage: Path) -> None:
    path = source / "shard-00001.h5"
    shard, content = Shard.open(path), bytearray(path.read_bytes())
    image = 5 * 4 * 3
    for start in range(shard.offset, shard.offset + len(shard) * image, image):
        content[start] ^= 1
    path.write_bytes(content)
    reader = SplitReader(Dataset.open(source), "train", data(local_storage))
    with pytest.raises(InputError, match=f"{path}: damaged training shard"):
        images_of(reader)
    assert copies(local_storage) == []


READ = """
import logging, resource, sys
from pathlib import Path
from galmerhpc.config import Data
from galmerhpc.dataset.batches import SplitReader, training_batches
from galmerhpc.dataset.shards import Dataset
logging.basicConfig(format="%(message)s", level=logging.INFO)
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
data = Data(memory_gb=0, stage=True, stage_dir=sys.argv[2])
reader = SplitReader(Dataset.open(Path(sys.argv[1])), "train", data)
print(sum(int(b.images.sum(dtype="int64")) for b in training_batches(reader, 0, 0, 10, 0, 1)))
"""


def total(folder: Path) -> int:
    dataset = Dataset.open(folder)
    return int(dataset.images(dataset.rows("train")).sum(dtype=np.int64))


def test_without_room_it_says_so_and_reads_from_the_source(
    source: Path, local_storage: Path
) -> None:
    done = run(sys.executable, "-c", READ, str(source), str(local_storage), "2000")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == total(source)
    line = next(line for line in done.stderr.splitlines() if "no copy" in line)
    assert str(local_storage) in line
    assert "File too large" in line
    assert f"read from {source}" in line
    assert copies(local_storage) == []


def test_in_a_folder_that_is_somebody_elses_or_no_folder_nothing_is_put(
    source: Path, local_storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = local_storage / f"galmerhpc-{os.getuid()}"
    theirs.symlink_to(tmp_path)
    (local_storage / "file").write_text("")
    for place in (local_storage, local_storage / "file"):
        caplog.clear()
        assert stage_locally(Dataset.open(source), data(place)).folder == source
        assert str(place) in caplog.text


def test_two_jobs_at_once_make_one_copy(source: Path, local_storage: Path) -> None:
    command = [sys.executable, "-c", READ, str(source), str(local_storage)]
    jobs = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert {int(answer) for answer in answers} == {total(source)}
    assert len(copies(local_storage)) == 4


def test_a_job_killed_while_it_copies_leaves_nothing_that_counts(
    tmp_path: Path, local_storage: Path
) -> None:
    source = tmp_path / "large"
    write_dataset(source, 3000, per_shard=500, image_shape=(100, 100, 1))
    command = [sys.executable, "-c", READ, str(source), str(local_storage)]
    job = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: any(local_storage.glob("galmerhpc-*/*/.tmp-*/*")), job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == total(source)
    assert "no copy" not in done.stderr
    assert not list(local_storage.glob("galmerhpc-*/*/.tmp-*"))
    assert len(copies(local_storage)) == 6
