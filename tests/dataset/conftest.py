"""What tests of the data path share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from galmerhpc import parallel


@pytest.fixture
def local_storage(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on another file system than `tmp_path`: storage of the node's own."""
    with tempfile.TemporaryDirectory(dir=parallel.SHARED_MEMORY) as folder:
        assert Path(folder).stat().st_dev != tmp_path.stat().st_dev
        yield Path(folder)
