"""New parameters need only labels in the catalogue and a line of YAML: a tiny giant-dwarf run."""

import csv
from pathlib import Path

import numpy as np
import yaml

from galmerhpc import files
from galmerhpc.config import load
from galmerhpc.dataset.shards import Dataset
from galmerhpc.simulate.encounters import tasks
from tests.support import ROOT, galmerhpc

CONFIG = ROOT / "configs/giant_dwarf.yaml"


def test_the_catalogue_carries_what_is_simulated() -> None:
    for name in ("giant_dwarf", "out_of_family"):
        config = load(ROOT / f"configs/{name}.yaml")
        everything, first = tasks(config.simulate), config.simulate.first_snapshot_id
        for k, (task, run) in enumerate(zip(everything, config.catalogue.runs, strict=True)):
            attributes = task.attributes()
            assert [s.id for s in run.all_snapshots()] == [first + k]
            assert (task.spin, task.realisation) == (run.spin, run.simulation)
            assert round(attributes["inclination_deg"], 6) == run.inclination_deg
            assert run.labels == {
                "mass_ratio": attributes["mass_ratio"],
                "pericentre_kpc": attributes["orbit.pericentre_kpc"],
            }


def test_a_fifth_and_a_sixth_label_go_all_the_way(tmp_path: Path) -> None:
    values = yaml.safe_load(CONFIG.read_text())
    catalogue = yaml.safe_load((CONFIG.parent / values["catalogue"]).read_text())
    # One spin, one orbit: four encounters of few particles, a handful of views.
    values["simulate"] |= {
        "spins": ["prograde"],
        "particles": {"halo": 300, "bulge": 200, "stars": 300, "gas": 100},
        "softening_kpc": 0.7,
        "max_energy_drift": 0.05,
        "snapshots": {"start_myr": 20, "stop_myr": 20, "step_myr": 10},
        "variants": {"giants": {}, "giant_dwarf": values["simulate"]["variants"]["giant_dwarf"]},
    }
    chosen = [r for r in catalogue["runs"] if r["labels"]["pericentre_kpc"] == 8]
    chosen = [r for r in chosen if r["spin"] == "prograde"]
    for k, run in enumerate(chosen):
        run["snapshots"] = [{"id": 30000 + k, "time_myr": 20}]
    catalogue = {
        "runs": chosen,
        "render": {"nbins": 64, "zoom": 1.0},
        "views": {axis: {"start": 0, "stop": 90, "step": 45} for axis in ("theta_deg", "phi_deg")},
    }
    values |= {
        "run_dir": str(tmp_path / "run"), "library": str(tmp_path / "library.h5"),
        "catalogue": catalogue, "model": {"architecture": "table1_cnn"},
        "preprocess": {"image_size": 32},
        "training": {"epochs": 1, "batch_size": 8, "threads": 1, "statistics_batches": 0},
    }  # fmt: skip
    values["split"] = {"kind": "random", "validation_fraction": 0.2, "test_fraction": 0.2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))  # variants are numbered in order
    for command in ("simulate", "run"):
        done = galmerhpc(command, str(path))
        assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "run/shards")
    assert list(dataset.parameters[4:]) == ["mass_ratio", "pericentre_kpc"]
    ratio = dataset.labels[:, 4]
    assert np.unique(ratio).tolist() == [1, 10]
    assert np.unique(dataset.labels[:, 5]).tolist() == [8]
    assert len(ratio) == len(chosen) * 9
    metrics = files.read_json(tmp_path / "run/evaluation/metrics.json")
    found = metrics["scores"]["network"]["parameters"]
    assert list(found) == values["parameters"]
    # The mean predictor's error is that of two values nine apart; the network's is a number.
    assert 3 < metrics["scores"]["mean"]["parameters"]["mass_ratio"]["mae"] < 6
    assert found["mass_ratio"]["mae"] >= 0
    assert metrics["scores"]["mean"]["parameters"]["pericentre_kpc"]["mae"] == 0
    with (tmp_path / "run/evaluation/predictions.csv").open() as file:
        assert {"true_mass_ratio", "predicted_pericentre_kpc"} <= set(next(csv.reader(file)))
