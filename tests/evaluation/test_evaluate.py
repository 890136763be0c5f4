"""Evaluation end to end: real shards, a real Keras model, the real command."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from galmerhpc import files
from galmerhpc.config import Config
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import InputError
from galmerhpc.evaluation import conformal
from galmerhpc.evaluation.evaluate import evaluate, read_history, record_of, refuse_unfit_images
from galmerhpc.evaluation.report import report
from galmerhpc.evaluation.summary import describe_sample, result_table, verdict
from galmerhpc.parameters import NAMES
from tests.evaluation.runs import (
    EXPECTED,
    OTHER_MODEL,
    SIZE,
    training_and_unseen,
    write_run,
    write_shards,
)
from tests.support import galmerhpc


def metrics_of(config: Config) -> dict:
    return json.loads((config.run_dir / "evaluation/metrics.json").read_text())


def predictions_of(config: Config) -> list[dict[str, str]]:
    text = (config.run_dir / "evaluation/predictions.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_every_file_is_there_and_every_figure_is_a_picture(evaluated: Config) -> None:
    folder = evaluated.run_dir / "evaluation"
    made = files.read_json(folder / "stage.json")["files"]
    assert {p.name for p in folder.iterdir()} == {*made, "stage.json", "report.html"}
    assert {"metrics.json", "predictions.csv", "intervals.json", "coverage.pdf"} <= made.keys()
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(image.width * image.height) or []) > 10
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_json_holds_no_nan(evaluated: Config) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (evaluated.run_dir / "evaluation/metrics.json").read_text()
    json.loads(text, parse_constant=refuse)


def test_predictions_name_every_test_image_and_are_the_model_s(
    evaluated: Config, model: Path
) -> None:
    dataset = Dataset.open(evaluated.run_dir / "shards")
    found = predictions_of(evaluated)
    assert [row["view"] for row in found] == dataset.view[dataset.rows("test")].tolist()
    assert {row["split"] for row in found} == {"test"}
    assert {row["simulation"] for row in found} == {"1"}
    for name, key in (("azimuth", "phi_deg"), ("viewing_angle", "theta_deg")):
        assert all(row[key] == row[f"true_{name}"] for row in found)
    assert all(f"snap_id={row['snapshot_id']}&" in row["view"] for row in found)
    ours = [[float(row[f"predicted_{name}"]) for name in NAMES] for row in found]
    expected = np.load(model.with_name(EXPECTED))
    assert np.array(ours) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_metrics_follow_from_the_predictions(evaluated: Config) -> None:
    rows, network = predictions_of(evaluated), metrics_of(evaluated)["scores"]["network"]
    each = {}
    for name in NAMES:
        true, predicted = (
            np.array([float(row[f"{kind}_{name}"]) for row in rows])
            for kind in ("true", "predicted")
        )
        each[name] = {
            "mae": sklearn_metrics.mean_absolute_error(true, predicted),
            "mse": sklearn_metrics.mean_squared_error(true, predicted),
            "r2": sklearn_metrics.r2_score(true, predicted),
            "median_error": sklearn_metrics.median_absolute_error(true, predicted),
        }
        found = {metric: network["parameters"][name][metric] for metric in each[name]}
        assert found == pytest.approx(each[name], rel=1e-6)
        if name == "spin":
            accuracy = np.mean((predicted > 0.5) == (true == 1))
            assert network["parameters"]["spin"]["accuracy"] == pytest.approx(accuracy)
    for metric in ("mae", "mse", "r2"):
        average = np.mean([each[name][metric] for name in NAMES])
        assert network["average"][metric] == pytest.approx(average, rel=1e-6)


def test_baselines_are_built_on_the_training_images_alone(evaluated: Config) -> None:
    metrics = metrics_of(evaluated)
    dataset = Dataset.open(evaluated.run_dir / "shards")
    training, true = dataset.labels[dataset.rows("train")], dataset.labels[dataset.rows("test")]
    expected = np.abs(true - training.mean(axis=0, dtype=float)).mean(axis=0)
    mean, lookup = (metrics["scores"][k]["parameters"] for k in ("mean", "lookup"))
    assert [mean[name]["mae"] for name in NAMES] == pytest.approx(expected, rel=1e-5)
    assert all(lookup[name]["mae"] < 0.8 * mean[name]["mae"] for name in NAMES)
    samples = {name: len(dataset.rows(name)) for name in ("none", "train", "validation", "test")}
    assert metrics["run"]["samples"] == samples
    assert metrics["run"]["simulations"] == {
        "none": [0],
        "train": [0],
        "validation": [0],
        "test": [1],
    }


def test_every_condition_has_every_kind_of_result(evaluated: Config) -> None:
    metrics = metrics_of(evaluated)
    assert metrics["format"] == 5
    assert metrics["sample"]["images"] == len(predictions_of(evaluated))
    assert metrics["sample"]["groups"] == 8
    assert metrics["sample"]["trained_encounters"] == 0  # other realisations
    # The first views are in no training; they are all of that configuration.
    assert metrics["sample"]["never_trained_configurations"] == [
        "gSa-gSb, orbit 1, prograde, i = 0"
    ]
    # The unseen views lie midway between the trained ones, 30 degrees apart.
    assert 5 < metrics["sample"]["nearest_training_view_deg"]["min"] < 15
    for part in (metrics, metrics["sky"]):
        assert part["scores"].keys() == {"network", "lookup", "mean"}
        assert part["against_lookup"].keys() == set(NAMES)
        axes = {"theta_deg", "phi_deg", "inclination_deg", "time_myr", "simulation"}
        assert part["by"].keys() == axes
        for entries in part["by"].values():
            assert sum(e["images"] for e in entries) == metrics["sample"]["images"]
        held = part["uncertainty"]["halvings"]["parameters"]
        assert held.keys() == set(NAMES) - {"spin"}
        for name in NAMES:
            low, high = part["scores"]["network"]["parameters"][name]["interval"]["mae"]
            assert low <= part["scores"]["network"]["parameters"][name]["mae"] <= high
    assert metrics["uncertainty"]["carried"] is None
    assert metrics["sky"]["uncertainty"]["carried"]["from"] == "clean images"
    # What was done to them shows.
    clean, sky = (p["scores"]["lookup"]["average"]["mae"] for p in (metrics, metrics["sky"]))
    assert sky > 1.2 * clean


def test_intervals_are_saved_for_predictions_to_come(evaluated: Config) -> None:
    path = evaluated.run_dir / "evaluation/intervals.json"
    model = metrics_of(evaluated)["repeat"]["model"]
    rows = predictions_of(evaluated)
    true, predicted = (
        np.array([[float(row[f"{kind}_{name}"]) for name in NAMES] for row in rows])
        for kind in ("true", "predicted")
    )
    for condition in ("clean", "sky"):
        calibration = conformal.read_calibration(path, model, condition)
        assert calibration is not None
        assert calibration.groups == 8
        assert calibration.levels == evaluated.evaluation.levels
        assert calibration.spin is not None
    clean = conformal.read_calibration(path, model, "clean")
    held = clean.holds(NAMES, true, predicted)
    # The same images that it was calibrated on: at least what was promised.
    for inside in held.values():
        assert (inside.mean(axis=0) > np.array(clean.levels) - 0.05).all()


def test_other_data_and_other_switches_are_evaluated_beside(
    evaluated: Config, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated.run_dir.parent, tmp_path / "own", dirs_exist_ok=True)
    other = tmp_path / "run.yaml"
    rescrape(write_run(tmp_path, model), shade=0.9)
    own = (str(tmp_path / "own/run.yaml"), f"run_dir={tmp_path / 'own/run'}")
    switches = ("evaluation.sky.mirror=true", "evaluation.bootstrap=50")
    for stage in ("evaluate", "report"):
        done = galmerhpc(stage, *own, *switches, "--data", str(other), "--split", "all")
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "own/run/evaluation-on-run-all"
    metrics = json.loads((folder / "metrics.json").read_text())
    training, unseen = (len(labels) for labels in training_and_unseen())
    assert metrics["sample"]["images"] == training + unseen
    assert 0 < metrics["sample"]["trained_encounters"] < 1
    assert metrics["data"]["name"] == "run"
    assert metrics["data"]["drawn_otherwise"] == []
    assert "not the training's data set" in describe_sample(metrics)
    assert metrics["uncertainty"]["carried"]["from"] == "clean images of run"
    # A mirrored picture is of another azimuth and viewing angle.
    assert metrics["sky"]["scores"]["network"]["parameters"].keys() == {"spin", "inclination"}
    assert metrics["scores"]["network"]["parameters"].keys() == set(NAMES)
    assert "mirrored" in metrics["sky"]["changes"]
    columns = (folder / "predictions.csv").read_text().partition("\n")[0].split(",")
    assert {"predicted_azimuth", "sky_predicted_spin"} <= set(columns)
    assert "sky_predicted_azimuth" not in columns
    assert "--split all" in (folder / "report.html").read_text()
    before, after = (
        (run / "evaluation/metrics.json").read_bytes()
        for run in (evaluated.run_dir, tmp_path / "own/run")
    )
    assert before == after


def rescrape(config: Config, shade: float) -> None:
    """Replace a run's shards by those of other pictures, by the same configuration."""
    shutil.rmtree(config.run_dir / "shards")
    write_shards(config, shade)


def test_other_data_are_known_by_their_images_not_by_their_name(
    evaluated: Config, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated.run_dir.parent, tmp_path / "own")
    run, other, metrics = tmp_path / "own/run", write_run(tmp_path, model), []
    for shade in (1.0, 0.5):
        rescrape(other, shade)
        given = (str(tmp_path / "own/run.yaml"), f"run_dir={run}", "evaluation.bootstrap=50")
        done = galmerhpc("evaluate", *given, "--data", str(tmp_path / "run.yaml"))
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((run / "evaluation-on-run/metrics.json").read_text()))
    same, darker = metrics
    assert "of run (not the training's data set)" in describe_sample(darker)
    assert darker["uncertainty"]["carried"]["from"] == "clean images of run"
    assert "realisations never seen in training" in describe_sample(same)
    mae = [part["scores"]["network"]["average"]["mae"] for part in (same, metrics_of(evaluated))]
    assert mae[0] == mae[1]
    assert same["uncertainty"]["carried"] is None

    # The run's own intervals are made anew: their coverage of the other images is measured anew.
    done = galmerhpc("evaluate", *given, "evaluation.levels=[0.5]")
    assert done.returncode == 0, done.stderr
    done = galmerhpc("evaluate", *given, "--data", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    again = json.loads((run / "evaluation-on-run/metrics.json").read_text())
    assert darker["uncertainty"]["carried"]["levels"] == [0.68, 0.9]
    assert again["uncertainty"]["carried"]["levels"] == [0.5]


def test_an_evaluation_of_another_version_is_made_anew(
    evaluated: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(evaluated.run_dir.parent, tmp_path, dirs_exist_ok=True)
    config = evaluated.model_copy(update={"run_dir": tmp_path / "run"})
    monkeypatch.setattr("galmerhpc.evaluation.report.FORMAT", 99)
    with pytest.raises(InputError, match="another version of galmerhpc; run galmerhpc evaluate"):
        report(config)
    monkeypatch.setattr("galmerhpc.evaluation.evaluate.FORMAT", 99)
    (config.run_dir / "metrics.csv").unlink()  # it gets as far as reading again
    with pytest.raises(InputError, match="run galmerhpc train first"):
        evaluate(config)


def test_sky_like_images_are_looked_up_among_several_versions_of_each(
    evaluated: Config, tmp_path: Path
) -> None:
    shutil.copytree(evaluated.run_dir.parent, tmp_path / "own")
    own = (str(tmp_path / "own/run.yaml"), f"run_dir={tmp_path / 'own/run'}")
    done = galmerhpc("evaluate", *own, "evaluation.lookup.draws=1", "evaluation.bootstrap=50")
    assert done.returncode == 0, done.stderr
    once = json.loads((tmp_path / "own/run/evaluation/metrics.json").read_text())
    several = metrics_of(evaluated)
    mae = [part["scores"]["lookup"]["average"]["mae"] for part in (once, several)]
    assert mae[0] == mae[1]  # clean images have one version
    mae = [part["sky"]["scores"]["lookup"]["average"]["mae"] for part in (once, several)]
    assert mae[1] < mae[0]


def test_an_evaluation_with_other_keys_of_its_own_is_made_anew(evaluated: Config) -> None:
    changed = evaluated.evaluation.model_copy(update={"bootstrap": 50})
    assert record_of(evaluated).complete
    assert not record_of(evaluated.model_copy(update={"evaluation": changed})).complete
    longer = evaluated.training.model_copy(update={"epochs": evaluated.training.epochs + 1})
    assert not record_of(evaluated.model_copy(update={"training": longer})).complete


def test_what_repeats_the_run_is_written_down(evaluated: Config) -> None:
    repeat = metrics_of(evaluated)["repeat"]
    assert repeat["dataset"] == Dataset.open(evaluated.run_dir / "shards").fingerprint
    assert all(len(repeat[key]) == 64 for key in ("configuration", "dataset", "model"))
    assert {"python", "galmerhpc", "keras", "numpy", "scipy"} <= repeat["versions"].keys()
    assert any(name.startswith("tensorflow") for name in repeat["versions"])
    assert repeat["machine"]["cpu"]
    assert repeat["machine"]["ranks"] == 1


def test_the_same_model_is_not_evaluated_again(evaluated: Config) -> None:
    path = evaluated.run_dir / "evaluation/metrics.json"
    before = path.stat().st_mtime_ns
    evaluate(evaluated)
    assert path.stat().st_mtime_ns == before


def test_a_damaged_evaluation_is_not_reported_and_is_made_again(
    evaluated: Config, tmp_path: Path
) -> None:
    shutil.copytree(evaluated.run_dir.parent, tmp_path, dirs_exist_ok=True)
    config = evaluated.model_copy(update={"run_dir": tmp_path / "run"})
    (config.run_dir / "evaluation/metrics.json").write_text("{}")
    with pytest.raises(InputError, match="run galmerhpc evaluate first"):
        report(config)
    (config.run_dir / "metrics.csv").unlink()  # it gets as far as reading again
    with pytest.raises(InputError, match="run galmerhpc train first"):
        evaluate(config)


def test_the_table_and_the_report_show_the_same_figures(evaluated: Config) -> None:
    metrics = metrics_of(evaluated)
    table = result_table(metrics)
    lines = {line[:14].strip(): line.split() for line in table.splitlines() if line[:1].strip()}
    assert {"network", "look-up", "mean predictor"} <= lines.keys()
    assert max(map(len, table.splitlines())) <= 100
    html = (evaluated.run_dir / "evaluation/report.html").read_text()
    network = metrics["scores"]["network"]
    for value in (network["parameters"]["azimuth"]["mae"], network["average"]["mae"]):
        assert f"{value:.3g}" in table
        assert f">{value:.3g} [" in html
    assert table.replace("\n", " ").endswith(verdict(metrics))


def test_without_a_test_split_validation_serves_and_every_output_says_so(
    model: Path, tmp_path: Path
) -> None:
    split = {"kind": "random", "test_fraction": 0}
    config = write_run(tmp_path, model, split=split, evaluation={"sky": None})
    for stage in ("evaluate", "report"):
        done = galmerhpc(stage, str(tmp_path / "run.yaml"))
        assert done.returncode == 0, done.stderr
    metrics = metrics_of(config)
    assert metrics["run"]["evaluated"] == "validation"
    assert metrics["run"]["samples"]["test"] == 0
    assert {row["split"] for row in predictions_of(config)} == {"validation"}
    assert "used because there is no test split" in result_table(metrics)
    html = (config.run_dir / "evaluation/report.html").read_text()
    assert "There is no test split" in html
    assert "The split is random" in html


# --- what a user gets wrong: one line, nothing written --------------------------------------------


def refusal(config: Config) -> str:
    """Return what the command says, which must be one line."""
    done = galmerhpc("evaluate", str(config.run_dir.parent / "run.yaml"))
    assert done.returncode == 2, done.stderr
    assert not (config.run_dir / "evaluation").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("galmerhpc: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[0]


def test_no_model_says_to_train(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model)
    (config.run_dir / "model.keras").unlink()
    assert refusal(config).endswith("model.keras: no such file; run galmerhpc train first")


def test_a_damaged_model_says_to_train_again(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model)
    path = config.run_dir / "model.keras"
    path.write_bytes(path.read_bytes()[:-100])
    line = refusal(config)
    assert str(path) in line
    assert "train again" in line


def test_a_model_of_other_outputs_is_refused(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model)
    shutil.copy(model.with_name(OTHER_MODEL), config.run_dir / "model.keras")
    assert "needs (32, 32, 3) and (4,)" in refusal(config)


def test_labels_without_a_class_are_refused_not_counted_as_the_nearest(tmp_path: Path) -> None:
    config = Config(run_dir="run", model={"task": "classification"},
                    training={"loss": "binary_crossentropy"})  # fmt: skip
    dataset = SimpleNamespace(folder=tmp_path, image_shape=(SIZE, SIZE, 3))
    true = np.array([[0, 45, 90, 45], [1, 60, 90, 45]], float)
    refuse_unfit_images(config, dataset, SimpleNamespace(dataset=dataset, true=true[:1]))
    with pytest.raises(InputError, match=r"inclination 60, for which .* \(only for 0, 45, 75, 90"):
        refuse_unfit_images(config, dataset, SimpleNamespace(dataset=dataset, true=true))


def test_shards_of_another_configuration_are_refused(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model)
    path = tmp_path / "run.yaml"
    path.write_text(path.read_text().replace("image_size: 32", "image_size: 64"))
    line = refusal(config)
    assert "preprocess.image_size" in line
    assert "32 there, 64 now" in line


def test_a_report_needs_an_evaluation(model: Path, tmp_path: Path) -> None:
    write_run(tmp_path, model)
    done = galmerhpc("report", str(tmp_path / "run.yaml"))
    assert done.returncode == 2
    assert "run galmerhpc evaluate first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_history_is_named(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model)
    path = config.run_dir / "metrics.csv"
    whole = path.read_text()
    for broken in (
        "",
        "epoch\n",
        whole.replace("95", "fast", 1),
        whole.replace("training_mae", "x"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"metrics\.csv: damaged"):
            read_history(path, NAMES)
    shutil.rmtree(config.run_dir)
    with pytest.raises(InputError, match="run galmerhpc train first"):
        read_history(path, NAMES)
