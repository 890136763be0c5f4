"""Load Horovod beside mpi4py and print what it was built with; arguments: needed operations.

Runs in its own process, because an incompatible library ends the process that loads it. Both
``galmerhpc doctor`` and ``scripts/install_horovod.sh`` use it to check an installation; it imports
nothing from this package, so the script can run it before the package is installed.

MPI is loaded but not started: a login node may forbid that.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

# Open MPI, Intel MPI, MVAPICH and Cray name theirs libmpi or libmpi_<compiler>, MPICH libmpich too.
_MPI_LIBRARY = re.compile(r"(/\S*/libmpi(?:ch|_cray|_gnu\w*|_nvidia\w*|_intel\w*)?\.so\S*)")


def mpi_libraries(memory_map: str) -> list[str]:
    """Return the MPI libraries in a process's memory map, as ``/proc/self/maps`` lists it.

    Examples
    --------
    >>> mpi_libraries('''
    ... 7f00-7f01 r-xp 0 08:01 1  /opt/a/lib/libmpi.so.40
    ... 7f01-7f02 r--p 0 08:01 1  /opt/a/lib/libmpi.so.40
    ... 7f02-7f03 r-xp 0 08:01 2  /opt/a/lib/libmpi_mpifh.so.40
    ... ''')
    ['/opt/a/lib/libmpi.so.40']
    """
    return sorted(set(_MPI_LIBRARY.findall(memory_map)))


def probe() -> dict[str, Any]:
    """Load both and return Horovod's version and operations, and the MPI libraries loaded."""
    import mpi4py

    mpi4py.rc.initialize = False
    import horovod
    import horovod.tensorflow as hvd
    from mpi4py import MPI  # noqa: F401 - loads the library that mpi4py uses

    built = {"mpi": hvd.mpi_built(), "gloo": hvd.gloo_built(), "nccl": hvd.nccl_built()}
    return {
        "version": horovod.__version__,
        "operations": [name for name, present in built.items() if present],
        "mpi_libraries": mpi_libraries(Path("/proc/self/maps").read_text()),
    }


def main(needed: list[str]) -> None:
    """Print the facts as JSON, or exit with one line that says what is wrong."""
    facts = probe()
    for operation in needed:
        if operation not in facts["operations"]:
            sys.exit(f"Horovod was built without {operation.upper()}")
    if len(facts["mpi_libraries"]) > 1:
        both = " and ".join(facts["mpi_libraries"])
        sys.exit(f"mpi4py and Horovod use different MPI libraries: {both}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
