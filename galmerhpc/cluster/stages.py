"""The stages of a run as jobs: order and names, whether one is complete, its progress."""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from galmerhpc import files
from galmerhpc.config import Config, Stage
from galmerhpc.dataset.records import FOLDERS, stage_record
from galmerhpc.errors import InputError
from galmerhpc.training.checkpoint import changeable, step_of

STAGES: tuple[Stage, ...] = ("scrape", "preprocess", "train", "evaluate")
"""One job each; each needs the output of the one before."""

_MADE = {"scrape": "raw-*", "preprocess": "*.h5", "train": "step-*", "evaluate": "*.html"}
"""What a stage adds to its folder as it progresses."""

_NO_NAME = re.compile(r"[^\w.-]")
"""Characters with which squeue would see several names, or scontrol print several words."""


def job_name(run_dir: Path, stage: str) -> str:
    """Return the name of a stage's job, unique to the run folder."""
    place = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    return f"{stage}-{_NO_NAME.sub('-', run_dir.name)}-{place}"


def is_complete(config: Config, stage: Stage, allow_change: Sequence[str] = ()) -> bool:
    """Return whether a stage is complete; an evaluation only if it is of the run's present model.

    Parameters
    ----------
    config : Config
        The run.
    stage : str
        The stage.
    allow_change : sequence of str
        Keys of `training` that may differ from the checkpoints'; the training is then not
        complete.

    Raises
    ------
    InputError
        Its folder was made from another configuration, or is damaged.
    """
    # An evaluation with other keys of its own is made again, as is one of a resumed training.
    own = ("evaluation.", "training.") if stage == "evaluate" else ()
    may_differ = [*allow_change, *(k for k in config.inputs(stage) if k.startswith(own))]
    record = stage_record(config, stage, may_differ)
    if stage != "evaluate":
        return record.complete
    trained = stage_record(config, "train", changeable(config))
    return (
        record.complete
        and trained.complete
        and report_path(config).exists()
        and _evaluated_model(config) == trained.files.get("../model.keras")  # from checkpoints/
    )


def _evaluated_model(config: Config) -> str:
    """Return the SHA-256 of the model that was evaluated."""
    metrics = files.read_json(config.run_dir / FOLDERS["evaluate"] / "metrics.json")
    try:
        return str(metrics["repeat"]["model"])
    except (KeyError, TypeError):
        return ""


def report_path(config: Config) -> Path:
    """Return the path of the run's report."""
    return config.run_dir / FOLDERS["evaluate"] / "report.html"


def progress(config: Config, command: str) -> str:
    """Return what a command has made so far, in a few words that change as it progresses.

    Parameters
    ----------
    config : Config
        The run.
    command : str
        A stage, ``simulate``, ``study`` (all studies of the run) or ``run`` (all stages).
    """
    if command == "study":
        return _progress_of_studies(config)
    if command == "run":
        return "; ".join(f"{stage}: {progress(config, stage)}" for stage in STAGES)
    if command == "simulate":
        made = _encounters(config)
    else:
        stage = "evaluate" if command == "report" else command
        made = sorted((config.run_dir / FOLDERS[stage]).glob(_MADE[stage]))
    if command == "train":
        made = [path for path in made if step_of(path) is not None]  # not what was set aside
    if not made:
        return "nothing yet"
    if command == "train":
        return _position(made[-1])
    sizes = list(_sizes(made))
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.3f} MB"


def _sizes(paths: Iterable[Path]) -> Iterator[int]:
    """Yield the files' sizes; a task that packs files removes them, and they are left out."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path.stat().st_size


def _encounters(config: Config) -> list[Path]:
    """Return the simulated encounters that are yet to become the run's library."""
    return list(Path(f"{config.library}.parts").glob("*.h5"))


_DATA_OF_STUDIES = (
    "studies/libraries/*.h5.parts/*.h5",
    "studies/libraries/*.h5",
    "raw/raw-*",
    "shards/*.h5",
    "studies/raw/*/raw-*",
    "studies/shards/*/*.h5",
)


def _progress_of_studies(config: Config) -> str:
    """Return the progress of all points; other tasks work on them, so nothing is opened."""
    run_dir = config.run_dir
    data = [path for pattern in _DATA_OF_STUDIES for path in run_dir.glob(pattern)]
    data += _encounters(config)
    steps = [step_of(path) or 0 for path in run_dir.glob("studies/*/*/checkpoints/step-*")]
    evaluated = list(run_dir.glob("studies/*/*/evaluation/metrics.json"))
    return f"{len(data)} files of data, {sum(steps)} steps, {len(evaluated)} points evaluated"


def _position(checkpoint: Path) -> str:
    """Return the position of the training's newest checkpoint."""
    step = step_of(checkpoint)
    try:
        epochs = files.read_json(checkpoint / "manifest.json")["epoch"]
    except (InputError, KeyError, TypeError):  # being replaced, or damaged: training says so
        return f"step {step}"
    return f"step {step}, {epochs} epochs finished"
