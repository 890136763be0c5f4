"""What every benchmark writes beside its figures: the machine, the versions, the date."""

import importlib.metadata
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("galmerhpc", "tensorflow-cpu", "tensorflow", "horovod", "mpi4py", "h5py", "numpy")


def machine() -> dict[str, Any]:
    """Return processor, cores, versions and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    distributions = importlib.metadata.distributions()
    installed = {d.name.lower().replace("_", "-"): d.version for d in distributions}
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in _PACKAGES if name in installed},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def write_results(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, "machine": machine()}, indent=2) + "\n")
    print(f"\n{path}")
