"""The list of missing views: what was noted is read back, whatever a kill cut off."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc import files
from galmerhpc.dataset import missing
from galmerhpc.dataset.records import StageRecord, missing_views
from galmerhpc.dataset.slices import Slice
from galmerhpc.errors import InputError

# Views' ids and reasons are one printable line each.
LINES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=30)
ROWS = st.lists(st.tuples(LINES, LINES), max_size=8)


@given(portions=st.lists(ROWS, max_size=4), cut=st.floats(0, 1))
def test_whole_rows_survive_a_cut_anywhere(
    portions: list[list[tuple[str, str]]], cut: float
) -> None:
    with TemporaryDirectory() as name:
        path = missing.list_path(Path(name))
        ends = []
        for rows in portions:
            for row in rows:
                missing.append(path, [row])
                ends.append(path.stat().st_size)
        if not ends:
            return
        assert missing.read_failures(Path(name)) == dict(row for rows in portions for row in rows)
        size = int(cut * ends[-1])
        path.write_bytes(path.read_bytes()[:size])
        whole = [row for rows in portions for row in rows][: sum(end <= size for end in ends)]
        assert missing.read_failures(Path(name)) == dict(whole)


def test_lists_of_all_slices_count_and_the_latest_reason(tmp_path: Path) -> None:
    missing.append(missing.list_path(tmp_path, Slice(1, 2)), [("a", "x"), ("a", "y")])
    missing.append(missing.list_path(tmp_path, Slice(2, 2)), [("b", "z")])
    assert missing.read_failures(tmp_path) == {"a": "y", "b": "z"}
    missing.write(missing.list_path(tmp_path, Slice(2, 2)), {})
    assert {path.name for path in tmp_path.iterdir()} == {"missing-1of2.csv"}


def test_only_a_finished_scrape_leaves_views_out(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, {})
    missing.append(missing.list_path(tmp_path), [("a", "x")])
    assert missing_views(tmp_path) == {}
    record.begin()
    assert missing_views(tmp_path) == {}
    record.finish({})
    assert missing_views(tmp_path) == {}
    record.finish({"missing.csv": files.sha256(tmp_path / "missing.csv")})
    assert missing_views(tmp_path) == {"a": "x"}
    for damage in (b"", b"view,reason\n", b"\xff\n"):
        (tmp_path / "missing.csv").write_bytes(damage)
        with pytest.raises(InputError, match=r"missing\.csv: damaged .* scrape again"):
            missing_views(tmp_path)
    (tmp_path / "missing.csv").unlink()
    with pytest.raises(InputError, match=r"missing\.csv: missing; .* --repair, then"):
        missing_views(tmp_path)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "view,reason\n1,2,3\n"])
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "missing.csv").write_text(text)
    with pytest.raises(InputError, match=r"missing\.csv: damaged .* scrape again"):
        missing.read_failures(tmp_path)
