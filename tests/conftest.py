"""What several rooms' tests share: small runs made by the real stages."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from tests.support import galmerhpc

# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Snapshots of the shipped library, 100 Myr after pericentre: two encounters in two realisations.
SNAPSHOTS = [
    {"spin": spin, "inclination_deg": i, "simulation": simulation, "id": number}
    for spin, i, simulation, number in [
        ("prograde", 0, 0, 27415),
        ("retrograde", 90, 0, 27436),
        ("prograde", 0, 1, 27439),
        ("retrograde", 90, 1, 27460),
    ]
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a folder of real pairs, whose pictures are not ours to pass on."""
    parser.addoption("--real-pairs", metavar="DIR", help="pairs.csv and its images/")


@pytest.fixture(scope="session")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run whose small images are scraped and preprocessed, ready to train.

    Its `run.yaml` is the configuration; do not change it, take `tiny_run`.
    """
    folder = tmp_path_factory.mktemp("preprocessed")
    path = write_run(folder)
    for stage in ("scrape", "preprocess"):
        done = galmerhpc(stage, str(path))
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def tiny_run(preprocessed: Path, tmp_path: Path) -> Path:
    """Return the configuration file of a preprocessed run of one's own."""
    shutil.copytree(preprocessed / "run", tmp_path / "run")
    return write_run(tmp_path)


def catalogue_runs() -> list[dict[str, Any]]:
    """Return the runs of a catalogue of `SNAPSHOTS`."""
    return [
        {
            **{k: v for k, v in s.items() if k != "id"},
            "snapshots": [{"id": s["id"], "time_myr": 100}],
        }
        for s in SNAPSHOTS
    ]


def write_run(folder: Path) -> Path:
    """Write the tiny run's configuration into a folder and return its path."""
    views = {
        "theta_deg": {"start": 0, "stop": 90, "step": 30},
        "phi_deg": {"start": 0, "stop": 180, "step": 30},
    }
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {"runs": catalogue_runs(), "views": views},
        "preprocess": {"image_size": 32, "samples_per_shard": 32},
        "training": {
            "epochs": 3,
            "batch_size": 25,
            "ema_momentum": 0.5,
            "statistics_batches": 2,
            "deterministic": True,
            "threads": 1,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
