"""Real processes for tests: the package's command and MPI ranks of it."""

import atexit
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]

# Open MPI refuses root, and waits in busy loops where there are more ranks than cores.
_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}

# An mpirun that is killed leaves its session's folder behind, named by its number, and the next one
# that gets this number from the system cannot start. So each has a place of its own.
_SESSIONS = tempfile.mkdtemp(prefix="mpi-")
atexit.register(shutil.rmtree, _SESSIONS, ignore_errors=True)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with the virtual environment's programs first."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        **_MPI,
        **_QUIET,
        "PRTE_MCA_prte_tmpdir_base": tempfile.mkdtemp(dir=_SESSIONS),
        **more,
    }


def mpirun_command(ranks: int, *command: str) -> list[str]:
    """Return the command line that starts `command` on so many ranks of this machine."""
    return [
        str(BIN / "mpirun"),
        "-np",
        str(ranks),
        "--oversubscribe",
        "--bind-to",
        "none",
        *command,
    ]


def mpirun(
    ranks: int, *command: str, timeout: float = 900, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on ranks and return what it printed and its exit code."""
    done = run(*mpirun_command(ranks, *command), timeout=timeout, env=env)
    # Now and then mpirun puts a zero byte of its own before a line, or a rule right behind it.
    done.stderr = re.sub(r"\0|(?<=[^-\n])-{70,}$", "", done.stderr, flags=re.MULTILINE)
    return done


def run(
    *command: str, timeout: float = 900, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed and its exit code."""
    return subprocess.run(
        command,
        env=environment(**(env or {})),
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def unprivileged() -> list[str]:
    """Return what stands before a command that may not read everything even as root."""
    if os.getuid() != 0:
        return []
    powers = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]


def galmerhpc(
    *arguments: str, ranks: int = 1, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `galmerhpc` with these arguments, under mpirun where there are several ranks."""
    command = (sys.executable, "-m", "galmerhpc.cli", *arguments)
    return (
        run(*command, timeout=timeout) if ranks == 1 else mpirun(ranks, *command, timeout=timeout)
    )


def wait_for(
    condition: Callable[[], bool], process: "subprocess.Popen[str]", timeout: float = 600
) -> None:
    """Return once a condition holds; fail where the process ends or the time is over before it."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()[0]}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def start(*arguments: str, ranks: int = 1) -> "subprocess.Popen[str]":
    """Start `galmerhpc` with these arguments as a job that goes on by itself."""
    command = [sys.executable, "-m", "galmerhpc.cli", *arguments]
    return subprocess.Popen(
        command if ranks == 1 else mpirun_command(ranks, *command),
        env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def at_work(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the running processes of a job that `start` started.

    They are known by their session: a rank has no parent any more where mpirun is gone, and a look
    at mpirun's children misses those that it is about to start.
    """
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == job.pid:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def ranks_of(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the processes of a job's ranks, but for a job without a launcher."""
    return [process for process in at_work(job) if process.pid != job.pid]


def kill(job: "subprocess.Popen[str]", victim: psutil.Process | None = None) -> None:
    """Kill one process of a job, or all of them; return once none is left."""
    end = time.monotonic() + 60
    victims = [victim] if victim else at_work(job)
    while victims or at_work(job):
        assert time.monotonic() < end, "waited too long"
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)
        victims = [] if victim else at_work(job)  # mpirun may have started ranks meanwhile
    job.communicate(timeout=60)
