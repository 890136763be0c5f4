"""What every benchmark adds to its results: machine, versions, date."""

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from galmerhpc import provenance

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return processor, cores, versions and date."""
    return {
        "processor": provenance.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": provenance.versions(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def write_results(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` in the folder of the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, "machine": machine()}, indent=2) + "\n")
    print(f"\n{path}")
