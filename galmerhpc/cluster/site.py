"""The facts of a cluster, from ``slurm/site.sh``: a bash file that people and job scripts source.

Bash runs it, as in the jobs, and its variables are checked here, so that a wrong value is named
before anything is submitted.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from galmerhpc.errors import InputError

SITE_FILE = Path("slurm/site.sh")
EXAMPLE_FILE = Path("slurm/site.example.sh")

_LOAD = f"""set -e; source {SITE_FILE}; load_environment
missing() {{ echo "no $1 on PATH after it" >&2; exit 1; }}
command -v galmerhpc > /dev/null || missing galmerhpc
python -c 'import galmerhpc' 2> /dev/null || missing 'python that has galmerhpc'
"""

_PRINT = f"set -ae; source {SITE_FILE} > /dev/null; env -0"

_NAME = re.compile(r"[\w.,-]*")


@dataclass(frozen=True, slots=True)
class Site:
    """The variables of `slurm/site.sh`, in lower case.

    Attributes
    ----------
    environment : dict
        All variables after sourcing it, among them sbatch's own defaults (SBATCH_...).
    """

    cpu_partition: str
    gpu_partition: str
    internet_partition: str
    cpu_sbatch_options: tuple[str, ...]
    gpu_sbatch_options: tuple[str, ...]
    gpus_per_node: int
    gpu_type: str
    tasks_per_node: int
    cpus_per_task: int
    train_nodes: int
    preprocess_tasks: int
    scrape_tasks: int
    scrape_at_once: int
    launcher: Literal["srun", "mpirun"]
    mpi_plugin: str
    network_interface: str
    continuation: Literal["requeue", "array"]
    continuation_tasks: int
    max_attempts: int
    requeue_failed: Literal["yes", "no"]
    runs_folder: str
    mail_user: str
    environment: dict[str, str]


_MAY_BE_ZERO = "gpus_per_node"
_MUST_BE_GIVEN = "mpi_plugin"


def read_site() -> Site:
    """Read the site file of the current folder, a checkout.

    Raises
    ------
    InputError
        It is missing or fails, or a value is missing or impossible; the message names the variable.

    Notes
    -----
    What the file writes to standard error is passed on.
    """
    if not SITE_FILE.exists():
        where = (
            f"copy {EXAMPLE_FILE} to it and fill it in"
            if EXAMPLE_FILE.exists()
            else "submit from the folder of galmerhpc's checkout"
        )
        raise InputError(f"{SITE_FILE}: no such file in {Path.cwd()}; {where}")
    printed, said = _bash(_PRINT)
    sys.stderr.write(said)
    # BASH_FUNC_...: functions that the user's shell exports.
    environment = dict(
        line.split("=", 1) for line in printed.split("\0") if "=" in line and line[0] != "="
    )
    names = [name for name in Site.__dataclass_fields__ if name != "environment"]
    return Site(
        **{name: _value(name, environment) for name in names},  # type: ignore[arg-type]
        environment=environment,
    )


def check_environment() -> None:
    """Run the site file's `load_environment`, as each job will.

    Raises
    ------
    InputError
        It fails, or there is no `galmerhpc`, or no `python` that has it, after it.
    """
    _bash(_LOAD, "load_environment fails: ")


def _value(name: str, environment: dict[str, str]) -> str | int | tuple[str, ...]:
    variable, kind = name.upper(), Site.__dataclass_fields__[name].type
    if name.endswith("_options"):  # a site file need not have them
        try:
            return tuple(shlex.split(environment.get(variable, "")))
        except ValueError as error:
            raise InputError(f"{SITE_FILE}: {variable} is not a list of words: {error}") from None
    if variable not in environment:
        raise InputError(f"{SITE_FILE}: {variable} is missing; {EXAMPLE_FILE} explains it")
    text = environment[variable].strip()
    if name == _MUST_BE_GIVEN and not text:
        raise InputError(f"{SITE_FILE}: {variable} is empty; {EXAMPLE_FILE} explains it")
    if kind is int:
        least = 0 if name == _MAY_BE_ZERO else 1
        if not re.fullmatch(r"\d{1,6}", text) or int(text) < least:
            raise InputError(f"{SITE_FILE}: {variable} must be an integer >= {least}, not {text!r}")
        return int(text)
    if allowed := get_args(kind):
        if text not in allowed:
            raise InputError(
                f"{SITE_FILE}: {variable} must be {' or '.join(allowed)}, not {text!r}"
            )
        return text
    # These become part of sbatch's options.
    if name.endswith(("_partition", "_type", "_plugin")) and not _NAME.fullmatch(text):
        raise InputError(f"{SITE_FILE}: {variable} must be a name, not {text!r}")
    return text


def _bash(script: str, what: str = "") -> tuple[str, str]:
    """Run a script and return what it printed, and what it wrote to standard error.

    Raises
    ------
    InputError
        It fails; the message begins with `what`.
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=_outside_jobs(),
        errors="surrogateescape",  # variables in another encoding than ours
    )  # fmt: skip
    if done.returncode:
        said = [
            line.strip().removeprefix(f"{SITE_FILE}: ")
            for line in done.stderr.splitlines()
            if line.strip()
        ]
        raise InputError(
            f"{SITE_FILE}: {what}{' '.join(said[:2]) or f'exit code {done.returncode}'}"
        )
    return done.stdout, done.stderr


def _outside_jobs() -> dict[str, str]:
    """Return this process's environment without the variables of a job that it runs in.

    A job submitted from there would inherit them: tasks and GPUs per node, memory.
    """
    inside = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if not (inside and name.startswith("SLURM_") and name != "SLURM_CONF")
    }
