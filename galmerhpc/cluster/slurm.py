"""SLURM's commands as functions: submit, look, cancel.

States come from squeue and scontrol, which every cluster has; sacct, where it exists, remembers
them longer.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from galmerhpc.errors import GalmerhpcError, InputError, brief

DEAD_DEPENDENCY = "DependencyNeverSatisfied"
COMPLETING = "COMPLETING"
"""A job that has ended, or goes back to the queue: SLURM does not say which until it is over."""

_TIME_LIMIT_S = 90.0
"""For a command: SLURM's own ask a controller that does not answer for up to a minute."""

_PATIENCE_S, _PAUSE_S = 60.0, 2.0
"""How long, and how often, a controller that does not answer is asked again as a job ends."""

_NO_ANSWER = re.compile(
    "Unable to contact|timed out|Unexpected message|Zero Bytes|standby|temporarily", re.IGNORECASE
)
"""What SLURM's commands say of a controller that is busy, restarting or unreachable."""

_OTHER_CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")

_FORGOTTEN = "Invalid job id"
_ANSWER = re.compile(r"(\d+)(?:;\S+)?")
"""What ``sbatch --parsable`` prints: the job's number, in a federation also its cluster."""


class NoAnswerError(GalmerhpcError):
    """SLURM's controller or database does not answer now."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job, or an array's task, as SLURM shows it.

    Attributes
    ----------
    id : str
        Number of the job; of the whole array for an array's task.
    name, state : str
        As SLURM has them; the state in capitals, as in ``PENDING``.
    reason : str
        Why it is pending or ended; empty if SLURM gives none.
    exit_code : str
        ``code:signal`` of an ended job, if known.
    restarts : int
        How often it went back to the queue.
    preempted : bool
        A more urgent job is taking its nodes.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    exit_code: str = ""
    restarts: int = 0
    preempted: bool = False


def require(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an environment without SLURM, or one whose jobs go to several clusters.

    Raises
    ------
    InputError
        The message says what is missing or must be unset.
    """
    if shutil.which("sbatch") is None:
        raise InputError("no sbatch on PATH: this is not a login node of a cluster with SLURM")
    for name in _OTHER_CLUSTERS:
        if environment.get(name):
            raise InputError(
                f"{name}={environment[name]}: the jobs of a run are looked for on one cluster; "
                "unset it and work on that cluster's login node"
            )


def submit(command: Sequence[str], environment: dict[str, str]) -> str:
    """Run an sbatch command with ``--parsable`` and return the job's number.

    Raises
    ------
    InputError
        SLURM refuses the job.
    GalmerhpcError
        What sbatch prints does not end in a job's number.
    """
    printed = _run(command, environment).strip()
    answer = _ANSWER.fullmatch(printed.rpartition("\n")[2])  # a site may print a banner first
    if answer is None:
        raise GalmerhpcError(
            f"sbatch printed no job number but {brief(printed)!r}: look for the job with "
            "squeue --me"
        )
    return answer[1]


def test(command: Sequence[str], environment: dict[str, str]) -> str:
    """Return why SLURM would not start the job of an sbatch command; empty where it would.

    Nothing is submitted. SLURM checks accounts, partitions, limits, and nodes that work now.
    """
    try:
        _run([command[0], "--test-only", *command[1:]], environment)
    except InputError as error:
        return str(error)
    return ""


def may_pass(fault: str, partition: str) -> bool:
    """Return whether what `test` returned is only due to nodes that are busy, down or drained.

    Without the name of a partition the nodes of all count.
    """
    if "nodes are busy" in fault:
        return True
    states = "--states=down,drain,fail,maint"
    return "node configuration is not available" in fault and bool(
        _run(["sinfo", "--noheader", *_among(partition), states, "--format=%D"]).strip()
    )


def minutes(limit: str) -> float:
    """Return in minutes a time limit as sbatch reads and sinfo prints it.

    Examples
    --------
    >>> minutes("30"), minutes("01:30:00"), minutes("2-12"), minutes("infinite")
    (30.0, 90.0, 3600.0, inf)
    """
    days, _, rest = limit.rpartition("-")
    try:
        parts = [float(part) for part in rest.split(":")]
    except ValueError:  # infinite, UNLIMITED
        return math.inf
    if days or len(parts) == 3:
        hours, mins, seconds = (*parts, 0.0, 0.0)[:3]  # the largest unit comes first
    else:
        hours, mins, seconds = (0.0, *parts, 0.0)[:3]
    return 1440 * float(days or 0) + 60 * hours + mins + seconds / 60


def longest(partition: str) -> str:
    """Return a partition's time limit as sinfo prints it; of several, the longest.

    Without the name of a partition it is the longest of all.
    """
    printed = _run(["sinfo", "--noheader", *_among(partition), "--format=%l"])
    return max(printed.split(), key=minutes, default="infinite")


def _among(partition: str) -> list[str]:
    return [f"--partition={partition}"] if partition else []


def takes_mpi(plugin: str) -> bool:
    """Return whether srun has this ``--mpi`` plugin."""
    printed = _run(["sh", "-c", "srun --mpi=list 2>&1"])  # some versions print it to standard error
    return plugin in re.findall(r"\w+", printed)


def queued(names: Sequence[str]) -> list[Job]:
    """Return this user's pending, running and completing jobs with these names."""
    printed = _run(
        ["squeue", "--me", "--noheader", f"--name={','.join(names)}", "--format=%i|%j|%T|%r"]
    )
    return [
        Job(_number(number), name, state, _reason(reason))
        for number, name, state, reason in _rows(printed)
    ]


def show(job_id: str) -> list[Job]:
    """Return what SLURM knows of a job, one entry per array task; nothing if it forgot."""
    try:
        printed = _ask(["scontrol", "show", "job", "--oneliner", job_id])
    except InputError as error:
        if _FORGOTTEN not in str(error):
            raise
        return _accounted(job_id)  # forgotten some minutes after its end
    return [_parse(line) for line in printed.splitlines() if line.startswith("JobId=")]


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs."""
    _run(["scancel", *job_ids])


def requeue(job_id: str) -> None:
    """Put a running job back into the queue."""
    _ask(["scontrol", "requeue", job_id])


def _parse(line: str) -> Job:
    facts: dict[str, str] = dict(re.findall(r"(\w+)=(\S*)", line))
    return Job(
        facts.get("ArrayJobId") or facts["JobId"],
        facts.get("JobName", ""),
        facts["JobState"],
        _reason(facts.get("Reason", "")),
        facts.get("ExitCode", ""),
        int(facts.get("Restarts", "0")),
        facts.get("PreemptTime", "None") != "None",
    )


def _accounted(job_id: str) -> list[Job]:
    if shutil.which("sacct") is None:
        return []
    command = ["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "JobID,JobName,State,ExitCode"]
    try:
        printed = _run(command)
    except GalmerhpcError:  # no accounting on this cluster, or its database is down
        return []
    return [
        Job(_number(number), name, (state.split() or ["UNKNOWN"])[0], "", exit_code)
        for number, name, state, exit_code in _rows(printed)
    ]


def _rows(printed: str) -> list[list[str]]:
    """Return a command's rows of four columns; a site's wrapper may print a banner around them."""
    rows = [line.split("|", 3) for line in printed.splitlines()]
    return [row for row in rows if len(row) == 4]


def _number(text: str) -> str:
    """Return the job's number of ``12``, ``12_3`` or ``12_[4-9%2]``."""
    return text.partition("_")[0]


def _reason(text: str) -> str:
    return "" if text in ("None", "(null)") else text


def _ask(command: Sequence[str]) -> str:
    """Run a command that may be repeated until the controller answers, for a minute."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _run(command)
        except NoAnswerError:  # noqa: PERF203
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE_S)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Run one of SLURM's commands and return what it printed.

    Raises
    ------
    InputError
        SLURM refuses.
    NoAnswerError
        It does not answer.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment,
            errors="surrogateescape", timeout=_TIME_LIMIT_S,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(f"no {command[0]} on PATH: this machine has no SLURM") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{command[0]}: no answer from SLURM within {_TIME_LIMIT_S:g} s; try again later"
        ) from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = said[-1] if said else f"{command[0]}: exit code {done.returncode}"
        if _NO_ANSWER.search(why):
            raise NoAnswerError(f"{command[0]}: SLURM does not answer ({why}); try again later")
        raise InputError(why)
    return done.stdout
