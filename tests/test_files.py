"""Files are complete or absent, and a lock keeps other processes out."""

import errno
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc import files
from galmerhpc.errors import GalmerhpcError, InputError
from tests.support import environment, run


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with files.atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    files.write_text(path, "other")
    assert path.read_text() == "other"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with files.atomic_path(path) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text("whole")
    assert (path / "inner" / "file").read_text() == "whole"
    with (
        pytest.raises(GalmerhpcError, match=rf"{path}: cannot be written"),
        files.atomic_path(path) as temporary,
    ):
        (temporary / "inner").mkdir(parents=True)
    assert (path / "inner" / "file").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from galmerhpc import files
with files.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    assert run(sys.executable, "-c", KILLED, str(path)).returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(GalmerhpcError) as raised:
            files.write_text(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(raised.value) == (
        f"{path}: cannot be written: File too large; "
        "make room or choose another run_dir, then run again"
    )
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        GalmerhpcError, match=r"file/inner: cannot be written: (Not a dir|File exi)"
    ):
        files.write_text(tmp_path / "file" / "inner", "text")


def test_a_folder_that_only_its_server_can_sync_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_with(code: int, of_folders: bool) -> None:
        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    for code in (errno.EINVAL, errno.EOPNOTSUPP):
        fail_with(code, of_folders=True)
        files.write_text(tmp_path / "file", str(code))
        assert (tmp_path / "file").read_text() == str(code)
    for code, of_folders in ((errno.EIO, True), (errno.EINVAL, False)):
        fail_with(code, of_folders)
        with pytest.raises(GalmerhpcError, match=f"cannot be written: {os.strerror(code)}"):
            files.write_text(tmp_path / "file", "whole")


LOCKED = """
import logging, sys
from pathlib import Path
from galmerhpc import files
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
"""


def test_a_job_that_came_back_waits_for_the_lock_of_its_life_before(tmp_path: Path) -> None:
    path = tmp_path / "train.lock"
    its = environment(SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1")
    command = [sys.executable, "-c", LOCKED, str(path)]
    with path.open("w") as before:
        assert files.hold(before)
        before.write("process 1 on node7 (job 77)\n")
        before.flush()
        job = subprocess.Popen(command, env=its, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert (
            job.stdout.readline()
            == f"{path}: waiting for the lock of this job's previous attempt\n"
        )
    assert job.communicate(timeout=60)[0] == "held\n"
    assert job.returncode == 0


@pytest.mark.parametrize(("job", "restarts"), [("77", "0"), ("78", "1")])
def test_other_jobs_do_not_wait_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restarts: str
) -> None:
    path = tmp_path / "train.lock"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with files.lock(path):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(InputError, match=r"in use by process \d+ on .* \(job 77\)"):
            files.lock(path).__enter__()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(value=JSON)
def test_json_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


def test_json_without_a_meaning_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "value.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(InputError, match=r"value\.json: no such file"):
        files.read_json(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"value\.json: damaged .* run the stage again"):
        files.read_json(path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(files.UnreadableError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_checksum_is_sha256(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * size)
    assert files.sha256(path) == hashlib.sha256(b"a" * size).hexdigest()
