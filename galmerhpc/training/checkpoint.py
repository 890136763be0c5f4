"""Checkpoints: folders ``step-00000123`` that are whole and verified, or not there.

A folder holds ``state.npz`` (arrays, no pickle) and ``manifest.json`` (position, what it was made
from, SHA-256 of the state).
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc import files
from galmerhpc.errors import InputError

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

_STATE, _MANIFEST = "state.npz", "manifest.json"


def save(folder: Path, step: int, arrays: Arrays, meta: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, then remove the oldest ones beyond `keep`.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints``.
    step : int
        Steps done since the start of training.
    arrays : dict of ndarray
        The state.
    meta : dict
        JSON values: position and provenance.
    keep : int
        Checkpoints that stay.

    Raises
    ------
    GalmerhpcError
        It cannot be written; the earlier ones are as they were.
    """
    path = folder / f"step-{step:08d}"
    if path.exists():  # made before a kill, and the same by construction
        return
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        np.savez(temporary / _STATE, **arrays)  # type: ignore[arg-type]
        files.write_json(
            temporary / _MANIFEST, {**meta, "sha256": files.sha256(temporary / _STATE)}
        )
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


def load_latest(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Read the newest checkpoint that is whole; a damaged one is named and the one before is used.

    Returns
    -------
    tuple of (arrays, meta), or None
        None where there is no checkpoint.

    Raises
    ------
    InputError
        There are checkpoints, but all of them are damaged.
    """
    found = _all(folder)
    for path in reversed(found):
        try:
            meta = files.read_json(path / _MANIFEST)
            if files.sha256(path / _STATE) != meta["sha256"]:
                raise InputError(f"{path / _STATE}: its checksum is not the one in {_MANIFEST}")
            with np.load(path / _STATE, allow_pickle=False) as state:
                return {name: state[name] for name in state.files}, meta
        except (InputError, OSError, KeyError, TypeError, ValueError) as error:  # noqa: PERF203
            log.warning("%s: damaged (%s); the checkpoint before it is used", path, error)
    if found:
        raise InputError(
            f"{folder}: every checkpoint is damaged; remove the folder to train from the start"
        )
    return None


def _all(folder: Path) -> list[Path]:
    # Not what `galmerhpc check` has set aside as step-00000123.bad.
    return sorted(
        folder.glob("step-????????"), key=lambda path: int(path.name.removeprefix("step-"))
    )
