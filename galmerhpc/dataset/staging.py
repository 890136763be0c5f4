"""A copy of the training shards on a node's own storage: made once, verified, and used again.

It lies in ``<folder>/galmerhpc-<user>/<fingerprint>/shards``, which appears only once all of it is
copied and verified. A lock keeps jobs on one node apart: the second waits, and finds the copy.
"""

import errno
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from galmerhpc import files, parallel
from galmerhpc.config import Data
from galmerhpc.dataset.shards import Dataset, Shard
from galmerhpc.errors import GalmerhpcError

log = logging.getLogger(__name__)


def stage_locally(dataset: Dataset, data: Data) -> Dataset:
    """Return the data set on node-local storage. Collective; one rank of each node copies.

    Where the copy cannot be made, for want of room or of permission, or is not what stage.json
    says, rank 0 logs it for each such node, which then uses the data set as given: its images are
    verified as they are read, and a damaged shard is named then.

    Parameters
    ----------
    dataset : Dataset
        The data set at its source.
    data : Data
        Its `stage_dir` and `threads` count.
    """
    folder, fault = None, ""
    if parallel.local_rank() == 0:
        place = data.stage_dir or Path(tempfile.gettempdir())
        try:
            folder = _copy(dataset, place, data.threads)
        except (OSError, GalmerhpcError) as error:
            fault = (
                f"{socket.gethostname()}: no copy of the shards in {place}: "
                f"{_why(error)}; they are read from {dataset.folder}; set data.stage_dir, or make "
                f"room: copies of other data sets in {_home(place)} may be removed"
            )
    for line in filter(None, parallel.gather(fault)):
        log.warning("%s", line)
    folder = parallel.node_broadcast(folder)
    return dataset.at(folder) if folder else dataset


def _home(place: Path) -> Path:
    return place / f"galmerhpc-{os.getuid()}"


def _copy(dataset: Dataset, place: Path, threads: int) -> Path:
    """Return the folder of the verified copy, which is made if it is not there.

    Raises
    ------
    OSError, GalmerhpcError
        It cannot be made.
    """
    home = _home(place)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():  # anybody may write to /tmp
        raise PermissionError(errno.EPERM, f"{home} belongs to somebody else")
    if home.stat().st_dev == dataset.folder.stat().st_dev:
        return dataset.folder  # it lies there already
    folder = home / dataset.fingerprint
    folder.mkdir(exist_ok=True)
    target = folder / "shards"
    with _locked(folder / "lock"):
        if not all(_is_copied(shard, target) for shard in dataset.shards):
            shutil.rmtree(target, ignore_errors=True)  # a cleaner of /tmp has been at it
            files.remove_temporaries(folder)  # of jobs that were killed: we hold the lock
            _copy_all(dataset, target, threads)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
    with path.open("w") as file:
        if not files.hold(file):
            log.info("another job copies the shards to %s: waiting for it", path.parent)
            files.hold(file, wait=True)
        yield


def _is_copied(shard: Shard, target: Path) -> bool:
    copy = target / shard.path.name
    return copy.is_file() and copy.stat().st_size == shard.path.stat().st_size


def _copy_all(dataset: Dataset, target: Path, threads: int) -> None:
    """Copy and verify all shards; the folder gets its name when the last one is right."""
    needed = sum(shard.path.stat().st_size for shard in dataset.shards)
    if needed > shutil.disk_usage(target.parent).free:
        raise OSError(errno.ENOSPC, f"no room for {needed / 1e9:.1f} GB")

    def copy(shard: Shard) -> int:
        made = temporary / shard.path.name
        shutil.copyfile(shard.path, made)
        if files.sha256(made) != dataset.sha256[shard.path.name]:
            why = f"the SHA-256 of the copy of {made.name} does not match stage.json"
            raise OSError(errno.EIO, why)
        return made.stat().st_size

    bar = parallel.progress_bar(desc="stage", total=needed, unit="B", unit_scale=True, leave=False)
    with files.atomic_path(target) as temporary, bar, ThreadPoolExecutor(threads) as pool:
        temporary.mkdir()
        try:
            for copied in as_completed([pool.submit(copy, shard) for shard in dataset.shards]):
                bar.update(copied.result())
        finally:
            pool.shutdown(cancel_futures=True)  # where one has no room, no other is tried


def _why(error: Exception) -> str:
    """Return the system's reason, which `files.atomic_path` wraps."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return getattr(cause, "strerror", None) or str(cause)
