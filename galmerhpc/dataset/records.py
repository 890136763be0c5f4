"""Where each stage's files lie in a run folder, and the record of what they were made from."""

from collections.abc import Sequence
from typing import Any

from galmerhpc import files
from galmerhpc.config import Config, Stage, digest
from galmerhpc.dataset.missing import missing_views

FOLDERS: dict[str, str] = {
    "scrape": "raw",
    "preprocess": "shards",
    "train": "checkpoints",
    "evaluate": "evaluation",
}


def stage_inputs(config: Config, stage: Stage) -> dict[str, Any]:
    """Return what decides a stage's content: the configuration's keys, and the views left out.

    Raises
    ------
    InputError
        The list of these views is damaged.
    """
    inputs = config.inputs(stage)
    if stage == "preprocess" and (absent := missing_views(config.run_dir / FOLDERS["scrape"])):
        inputs["raw.left_out"] = f"{len(absent)} views, SHA-256 {digest(sorted(absent))}"
    return inputs


def stage_record(config: Config, stage: Stage, may_differ: Sequence[str] = ()) -> files.StageRecord:
    """Return a stage's record.

    Raises
    ------
    InputError
        The stage's folder was made from another configuration, or its record is damaged.
    """
    folder = config.run_dir / FOLDERS[stage]
    return files.StageRecord(folder, stage_inputs(config, stage), may_differ)
