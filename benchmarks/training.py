"""Shared by the training benchmarks: a small run of real images, made by the actual stages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

# Encounters of the shipped library, 100 Myr after pericentre; 325 views of each.
RUNS = [
    {"spin": spin, "inclination_deg": i, "simulation": r, "snapshots": [{"id": k, "time_myr": 100}]}
    for spin, i, r, k in [
        ("prograde", 0, 0, 27415),
        ("retrograde", 90, 0, 27436),
        ("prograde", 0, 1, 27439),
    ]
]
VIEWS = {
    "theta_deg": {"start": 0, "stop": 90, "step": 7.5},
    "phi_deg": {"start": 0, "stop": 180, "step": 7.5},
}


def prepare(folder: Path, image_size: int, **training: Any) -> Path:
    """Write a configuration and make its shards; return its path. Scraped once per folder."""
    path = folder / f"run-{image_size}.yaml"
    run_dir = folder / f"run-{image_size}"
    path.write_text(
        yaml.safe_dump(
            {
                "run_dir": str(run_dir),
                "catalogue": {"runs": RUNS, "views": VIEWS},
                "preprocess": {"image_size": image_size},
                "split": {"tile_deg": 15, "validation_fraction": 0.02},
                "training": {"epochs": 1000, "ema_momentum": 0.0, **training},
            }
        )
    )
    for other in folder.glob("run-*/raw"):
        if not run_dir.exists():
            run_dir.mkdir()
            shutil.copytree(other, run_dir / "raw")
    for stage in ("scrape", "preprocess"):
        subprocess.run([sys.executable, "-m", "galmerhpc.cli", stage, str(path)], check=True)
    return path


def mpirun(ranks: int, *command: str, **variables: str) -> str:
    """Run a Python command on several ranks and return its output."""
    launcher = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if launcher is None:
        sys.exit("no mpirun beside this python or on PATH: load the site's MPI, or make setup")
    options = ["-np", str(ranks), "--oversubscribe", "--bind-to", "none"]
    done = subprocess.run(
        [launcher, *options, sys.executable, *command], check=False, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout
