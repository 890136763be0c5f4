"""What memory this process has, and has had at most (Linux, proc(5))."""

from pathlib import Path


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the largest memory that this process has had.

    getrusage's ru_maxrss does not tell: a program inherits in it the peak of what started it.
    """
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(kib) * 1024
