"""Provenance: the time, processor and library versions."""

import importlib.metadata
import platform
from datetime import datetime, timezone
from pathlib import Path

from galmerhpc import __version__

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy", "scipy", "h5py", "mpi4py")
_CPUINFO = Path("/proc/cpuinfo")


def now() -> str:
    """Return this moment, ISO 8601 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and its installed numerical dependencies."""
    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    found = {"python": platform.python_version(), "galmerhpc": __version__}
    return found | {name: installed[name] for name in _PACKAGES if name in installed}


def processor() -> str:
    """Return the name of the processor, or its architecture if the name is unknown."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
