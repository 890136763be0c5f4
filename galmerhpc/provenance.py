"""When and on what something was made: the processor, and the versions that decide its numbers."""

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
    """Return the versions of Python, of this package and of those it stands on, where installed."""
    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    found = {"python": platform.python_version(), "galmerhpc": __version__}
    return found | {name: installed[name] for name in _PACKAGES if name in installed}


def processor() -> str:
    """Return the processor's name, or its kind where the system does not tell."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
