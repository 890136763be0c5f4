"""Resident memory of this process, now and at its peak (Linux, proc(5))."""

from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the peak resident memory of this process.

    Not getrusage's ru_maxrss, in which a program inherits the peak of its parent.
    """
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(kib) * 1024
