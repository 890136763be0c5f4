"""``galmerhpc status`` and ``galmerhpc cancel``: a run's jobs, from SLURM and from its files."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from galmerhpc.cluster import slurm
from galmerhpc.cluster.stages import STAGES, is_complete, progress, report_path
from galmerhpc.cluster.submit import queued_jobs, read_jobs, study_stage
from galmerhpc.config import Config
from galmerhpc.studies.index import STUDIES
from galmerhpc.training.checkpoint import changeable

LOG_LINES = 6
"""Lines shown of the end of a job's log."""

_LOG_BYTES = 8192
"""End of the log in which these lines are looked for."""


def status(config: Config) -> str:
    """Return the state of a run's stages and studies, their last log lines, and what to do next.

    Parameters
    ----------
    config : Config
        The run, from its folder.

    Raises
    ------
    InputError
        There is no SLURM here, or the run folder is damaged.
    """
    slurm.require()
    record = read_jobs(config.run_dir)
    waiting = queued_jobs(config.run_dir)
    table = [("stage", "job", "state", "progress")]
    logs: list[str] = []
    missing = []
    for stage in STAGES:
        number = waiting[stage].id if stage in waiting else record["jobs"].get(stage, "")
        made = progress(config, stage)
        # Its folder may have the configuration of a training that continues with other keys.
        if is_complete(config, stage, changeable(config)):
            table.append((stage, number, "complete", made))
            continue
        missing.append(stage)
        state = describe(slurm.show(number)) or "forgotten by SLURM" if number else "not submitted"
        table.append((stage, number, state, made))
        if number:
            logs += last_lines(config.run_dir / "logs", f"{stage}-{number}")
    for name in STUDIES:
        job, folder = study_stage(name), config.run_dir / "studies" / name
        number = waiting[job].id if job in waiting else record["jobs"].get(job, "")
        if not number and not folder.is_dir():
            continue
        evaluated = len(list(folder.glob("*/evaluation/metrics.json")))
        state = describe(slurm.show(number)) or "forgotten by SLURM" if number else "not submitted"
        table.append((job, number, state, f"{evaluated} points evaluated"))
        if job in waiting:
            logs += last_lines(config.run_dir / "logs", f"{job}-{number}")
    widths = [max(len(row[k]) for row in table) + 2 for k in range(3)] + [0]
    text = [
        "".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    if logs:
        text += ["", *logs]
    if not missing:
        text += ["", f"complete; the report: {report_path(config)}"]
    elif stopped := [stage for stage in missing if stage not in waiting]:
        command = record["command"] or "galmerhpc submit CONFIG"
        text += ["", f"not in the queue; continue {stopped[0]} with: {command}"]
    return "\n".join(text)


def cancel(config: Config) -> list[str]:
    """Cancel the run's jobs and return their numbers."""
    slurm.require()
    numbers = [job.id for job in queued_jobs(config.run_dir).values()]
    if numbers:
        slurm.cancel(numbers)
    return numbers


def describe(jobs: Iterable[slurm.Job]) -> str:
    """Return the states of a job, or of an array's tasks, with their reasons.

    Examples
    --------
    >>> describe([slurm.Job("7", "train", "PENDING", "Dependency")])
    'PENDING (Dependency)'
    >>> describe([slurm.Job("7", "scrape", "RUNNING") for _ in range(3)])
    '3 RUNNING'
    >>> describe([slurm.Job("7", "train", "FAILED", "NonZeroExitCode", "2:0", 1)])
    'FAILED (NonZeroExitCode 2:0), attempt 2'
    """
    counts: Counter[str] = Counter()
    for job in jobs:
        why = job.reason
        if job.exit_code not in ("", "0:0"):
            why = f"{why} {job.exit_code}".lstrip()
        attempt = f", attempt {job.restarts + 1}" if job.restarts else ""
        counts[f"{job.state}{f' ({why})' if why else ''}{attempt}"] += 1
    return ", ".join(f"{n} {state}" if n > 1 else state for state, n in counts.items())


def last_lines(folder: Path, name: str) -> list[str]:
    """Return the path of a job's newest log and its last lines; empty without a log."""
    logs = [*folder.glob(f"{name}.out"), *folder.glob(f"{name}_*.out")]
    if not logs:
        return []
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    with newest.open("rb") as file:
        file.seek(max(0, newest.stat().st_size - _LOG_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return [f"{newest}:", *(f"  {line}" for line in lines[-LOG_LINES:])]
