"""Checkpoints: complete or absent, and a damaged one is never used."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.training import checkpoint

ARRAYS = {"shared/0": np.arange(6, dtype=np.float32).reshape(2, 3), "rank1/0": np.array(7)}


def fill(folder: Path, steps: range, keep: int, best: str | None = None) -> None:
    for step in steps:
        arrays = {**ARRAYS, "step": np.array(step)}
        name = checkpoint.checkpoint_name(step)
        checkpoint.save(folder, name, arrays, {"step": step}, keep, best)


@given(
    arrays=st.dictionaries(
        st.text("abc/0", min_size=1, max_size=5).filter(lambda n: "//" not in n and n.strip("/")),
        hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8]), hnp.array_shapes(max_side=4)),
        max_size=4,
    )
)
def test_what_is_saved_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(folder, "step-00000012", arrays, {"epoch": 1, "loss": 0.1}, 1, None)
    found = checkpoint.load_latest(folder)
    assert found is not None
    assert found[0].keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[0][name], array)
        assert found[0][name].dtype == array.dtype
    assert (found[1]["epoch"], found[1]["loss"]) == (1, 0.1)


def test_the_newest_ones_stay(tmp_path: Path) -> None:
    fill(tmp_path, range(8, 13), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000011", "step-00000012"]
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 12  # type: ignore[index]


def test_the_best_one_stays_beside_them(tmp_path: Path) -> None:
    fill(tmp_path, range(8, 13), keep=1, best="step-00000009")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000009", "step-00000012"]


def test_an_epoch_s_end_comes_after_its_last_step(tmp_path: Path) -> None:
    name = checkpoint.checkpoint_name(12, epoch=2)
    checkpoint.save(tmp_path, name, ARRAYS, {"step": "end of epoch"}, 3, None)
    fill(tmp_path, range(11, 13), keep=3)
    assert checkpoint.load_latest(tmp_path)[1]["step"] == "end of epoch"  # type: ignore[index]
    fill(tmp_path, range(13, 14), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000013"]


def test_an_epoch_s_end_replaces_its_last_step_and_pushes_no_other_out(tmp_path: Path) -> None:
    fill(tmp_path, range(11, 13), keep=3)
    name = checkpoint.checkpoint_name(12, epoch=2)
    checkpoint.save(tmp_path, name, ARRAYS, {"step": "end of epoch"}, 2, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000011", name]


def test_what_reads_back_differently_is_no_checkpoint_and_the_older_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, range(1, 3), keep=2)
    monkeypatch.setattr(checkpoint.files, "sha256", lambda _: "another")
    with pytest.raises(GalmerhpcError, match=r"step-00000003/state\.npz: reads back differently"):
        fill(tmp_path, range(3, 4), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_writer_writes_one_thing_at_a_time_and_brings_its_error() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def slow() -> None:
        go_on.wait()
        done.append(1)

    def fail() -> None:
        raise GalmerhpcError("no room")

    with checkpoint.Writer() as writer:
        writer.start(slow)
        writer.check()  # under way, and no error so far
        assert done == []
        go_on.set()
        writer.start(fail)
        assert done == [1]
        with pytest.raises(GalmerhpcError, match="no room"):
            writer.wait()
        writer.start(lambda: done.append(2))
    assert done == [1, 2]
    writer = checkpoint.Writer()
    writer.start(fail)
    writer.__exit__(ValueError, ValueError("another"), None)  # hides it not behind its own


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(1, 4), keep=3)
    state = tmp_path / "step-00000003/state.npz"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    (tmp_path / "step-00000002/manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    assert "step-00000003" in caplog.text
    assert "step-00000002" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000001", "step-00000002.bad", "step-00000003.bad",
    }  # fmt: skip


def test_a_manifest_that_says_another_position_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(1, 3), keep=2)
    manifest = tmp_path / "step-00000002/manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 1  # type: ignore[index]
    assert "the SHA-256 of manifest.json" in caplog.text


def test_a_checkpoint_that_cannot_be_read_now_keeps_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(1, 3), keep=2)
    state = tmp_path / "step-00000002/state.npz"
    state.unlink()
    state.symlink_to(state)  # the system refuses it, also to root
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 1  # type: ignore[index]
    assert f"{state}: cannot be read" in caplog.text
    assert state.parent.exists()
    (tmp_path / "step-00000001/state.npz").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load_latest(tmp_path)


def test_a_damaged_checkpoint_pushes_no_later_one_out(tmp_path: Path) -> None:
    fill(tmp_path, range(2, 5, 2), keep=2)
    (tmp_path / "step-00000004/state.npz").write_bytes(b"damaged")
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 2  # type: ignore[index]
    fill(tmp_path, range(3, 4), keep=1)
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 3  # type: ignore[index]
    fill(tmp_path, range(4, 5), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004", "step-00000004.bad",
    ]  # fmt: skip


def test_no_checkpoint_is_a_start_but_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    fill(tmp_path, range(1, 2), keep=1)
    (tmp_path / "step-00000001/state.npz").unlink()
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.load_latest(tmp_path)
    assert (tmp_path / "step-00000001").exists()  # set aside, it would be a start too


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 2), keep=1)
    (tmp_path / ".tmp-1-step-00000002").mkdir()
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 1  # type: ignore[index]
