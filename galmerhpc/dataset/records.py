"""Where each stage's files are in a run folder, and ``stage.json``: what they were made from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from galmerhpc import __version__, files, parallel
from galmerhpc.config import Config, Stage, default_inputs, digest
from galmerhpc.dataset import missing
from galmerhpc.errors import InputError

FOLDERS: dict[str, str] = {
    "scrape": "raw",
    "preprocess": "shards",
    "train": "checkpoints",
    "evaluate": "evaluation",
}

RECORD = "stage.json"

IMAGE_TABLE = "catalogue.images.sha256"
"""Among the inputs of `scrape`: the table of imported images."""

LEFT_OUT = "raw.left_out"
"""Among the inputs of `preprocess`: the views that the scrape finished without."""

_NAMED = 4  # keys that differ which the message names
_LONGEST = 60  # of a value in the message


class Recorded(NamedTuple):
    """What a stage's record says.

    Attributes
    ----------
    inputs : dict
        What the stage is made from, as `Config.inputs` returns it.
    files : dict of str to str, or None
        SHA-256 by file name, relative to the stage's folder; None until the stage is finished.
    """

    inputs: dict[str, Any]
    files: dict[str, str] | None


def read_record(folder: Path) -> Recorded | None:
    """Read the record in a stage's folder; None where it has none.

    Raises
    ------
    InputError
        It is damaged or cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    record = files.read_json(path)
    if not (
        isinstance(record, dict)
        and isinstance(record.get("inputs"), dict)
        and isinstance(record.get("files"), dict | None)
    ):
        raise InputError(f"{path}: damaged; remove it and run the stage again")
    return Recorded(record["inputs"], record.get("files"))


class StageRecord:
    """The record of a stage in its folder, ``stage.json``: what it was made from, and what it made.

    Parameters
    ----------
    folder : Path
        Folder of the stage's files.
    inputs : dict
        ``Config.inputs`` of the stage: flat keys and JSON values.
    may_differ : sequence of str
        Keys that may have had another value; the stage is then not complete.

    Raises
    ------
    InputError
        The folder was made from other inputs, and the message names the keys that differ; or the
        record is damaged.
    """

    def __init__(
        self, folder: Path, inputs: dict[str, Any], may_differ: Sequence[str] = ()
    ) -> None:
        self._path = folder / RECORD
        # Through JSON, so that a tuple equals the list that was read back.
        self._inputs = json.loads(json.dumps(inputs))
        self._files: dict[str, str] | None = None
        if recorded := read_record(folder):
            made_from = self._completed(recorded.inputs)
            self._compare(made_from, may_differ)
            self._files = recorded.files if made_from == self._inputs else None

    def _completed(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """Return recorded inputs with the defaults of keys that were introduced after them."""
        defaults = json.loads(json.dumps(default_inputs()))
        new = {
            key: defaults[key]
            for key in self._inputs
            if key in defaults and not any(f"{key}.".startswith(f"{old}.") for old in recorded)
        }
        return new | recorded

    def _compare(self, recorded: dict[str, Any], may_differ: Sequence[str]) -> None:
        keys = sorted(
            k
            for k in recorded.keys() | self._inputs.keys()
            if recorded.get(k) != self._inputs.get(k) and k not in may_differ
        )
        if not keys:
            return
        first, *others = keys
        more = f"{', '.join(others[: _NAMED - 1])}{' ...' if len(keys) > _NAMED else ''}"
        raise InputError(
            f"{self._path.parent}: made with another {first}{f' (and {more})' if more else ''}: "
            f"{_short(recorded.get(first))} there, {_short(self._inputs.get(first))} now; "
            "choose another run_dir or remove that folder"
        )

    @property
    def complete(self) -> bool:
        """Whether the stage is finished and its files still exist."""
        return self._files is not None and all(
            (self._path.parent / name).is_file() for name in self._files
        )

    @property
    def files(self) -> dict[str, str]:
        """The finished stage's files and their SHA-256."""
        return dict(self._files or {})

    def begin(self) -> None:
        """Write down the inputs before the first file is made."""
        self._write(None)

    def finish(self, made: dict[str, str]) -> None:
        """Declare the stage complete.

        Parameters
        ----------
        made : dict
            SHA-256 by file name, relative to the stage's folder.
        """
        self._write(made)

    def _write(self, made: dict[str, str] | None) -> None:
        self._files = made
        record = {"version": __version__, "inputs": self._inputs, "files": made}
        files.write_json(self._path, record)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files, by name, on rank 0. Collective: the ranks share the work."""
    with parallel.progress_bar(total=len(names), desc="checksums", unit="file", leave=False) as bar:
        mine = {
            name: files.sha256(folder / name)
            for name in parallel.work(names, lambda _: bar.update())
        }
    return parallel.gather_dict(mine)


# --- the stages of a run --------------------------------------------------------------------------


def missing_views(raw: Path) -> dict[str, str]:
    """Return the views that a finished scrape left out, and why.

    Parameters
    ----------
    raw : Path
        The run's ``raw`` folder.

    Returns
    -------
    reasons : dict of str to str
        By view; empty unless ``galmerhpc scrape --allow-missing`` finished without some.

    Raises
    ------
    InputError
        The list is missing or damaged, or ``stage.json`` is damaged.
    """
    path, record = missing.list_path(raw), read_record(raw)
    if record is None or path.name not in (record.files or ()):
        return {}
    # Scraping is complete and would not begin again by itself.
    remedy = f"run galmerhpc check {raw.parent} --repair, then galmerhpc scrape again"
    if not (views := missing.read(path, remedy)):
        raise InputError(f"{path}: damaged (it names no view); {remedy}")
    return views


def stage_inputs(config: Config, stage: Stage) -> dict[str, Any]:
    """Return what decides a stage's content: the configuration's keys, and the views left out.

    Raises
    ------
    InputError
        The list of these views is damaged.
    """
    inputs = config.inputs(stage)
    if stage == "preprocess" and (absent := missing_views(config.run_dir / FOLDERS["scrape"])):
        inputs[LEFT_OUT] = f"{len(absent)} views, SHA-256 {digest(sorted(absent))}"
    return inputs


def stage_record(config: Config, stage: Stage, may_differ: Sequence[str] = ()) -> StageRecord:
    """Return a stage's record.

    While the scrape is not finished, it is not known which views it will leave out: preprocessing
    is then not complete, but shards that lack views are not another configuration's either. A
    scrape that fetched nothing, from a mistyped address for example, may begin with any other, and
    an import that is not finished may go on with a corrected table (`import_images`).

    Raises
    ------
    InputError
        The stage's folder was made from another configuration, or its record is damaged.
    """
    if stage == "preprocess":
        scraped = read_record(config.run_dir / FOLDERS["scrape"])
        if scraped is None or scraped.files is None:
            may_differ = (*may_differ, LEFT_OUT)
    folder, inputs = config.run_dir / FOLDERS[stage], stage_inputs(config, stage)
    if stage == "scrape" and (begun := read_record(folder)) and begun.files is None:
        may_differ = (*may_differ, IMAGE_TABLE)
        if _has_fetched_nothing(folder):
            may_differ = (*may_differ, *inputs, *begun.inputs)
    return StageRecord(folder, inputs, may_differ)


def _has_fetched_nothing(raw: Path) -> bool:
    return not any(path for pattern in ("raw-*", "missing*.csv") for path in raw.glob(pattern))


def refuse_other(config: Config, may_differ: Sequence[str] = ()) -> None:
    """Refuse a configuration from which a stage in its run folder was not made.

    Parameters
    ----------
    config : Config
        The run.
    may_differ : sequence of str
        Keys with which a stage there may have been made otherwise.

    Raises
    ------
    InputError
        A stage there was made from another one, to which the folder's configuration belongs.
    """
    stages: tuple[Stage, ...] = ("scrape", "preprocess", "train")
    for stage in stages:
        stage_record(config, stage, may_differ)
