"""Training on real ranks: same weights, exact order, exact resume, and a clean end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from galmerhpc.training import checkpoint
from tests.conftest import catalogue_runs, write_run
from tests.support import ROOT, environment, galmerhpc, mpirun, mpirun_command, run, wait_for
from tests.training.workers import CLIP_NORM, HUGE

WORKER = (sys.executable, "-m", "tests.training.workers")
TRAIN = (sys.executable, "-m", "galmerhpc.cli", "train")


def start(ranks: int, config: Path) -> "subprocess.Popen[str]":
    """Start a training in a process group of its own."""
    return subprocess.Popen(
        mpirun_command(ranks, *TRAIN, str(config)), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def ranks_of(job: "subprocess.Popen[str]") -> list[int]:
    """Return the process ids of a job's ranks, in rank order."""
    listed = run("pgrep", "-P", str(job.pid), "-f", "galmerhpc.cli train").stdout.split()
    places = {}
    for pid in map(int, listed):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        rank = text.partition("OMPI_COMM_WORLD_RANK=")[2].partition("\0")[0]
        places[int(rank)] = pid
    return [places[rank] for rank in sorted(places)]


def first_checkpoint(config: Path) -> bool:
    return any((config.parent / "run/checkpoints").glob("step-*"))


def final_state(config: Path) -> dict[str, np.ndarray]:
    found = checkpoint.load_latest(config.parent / "run/checkpoints")
    assert found
    assert found[1]["epoch"] == 3
    return found[0]


@pytest.fixture(scope="module")
def undisturbed(preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a run that two ranks trained to the end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(preprocessed / "run", folder / "run")
    config = write_run(folder)
    done = galmerhpc("train", str(config), ranks=2)
    assert done.returncode == 0, done.stderr
    return config


def test_the_model_needs_no_code_of_ours(undisturbed: Path) -> None:
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "labels = model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0)\n"
        "assert 'galmerhpc' not in sys.modules\n"
        "print(labels.shape, labels.dtype, float(abs(labels[0, 1:]).max()))"
    )
    done = run(sys.executable, "-c", code, str(undisturbed.parent / "run/model.keras"))
    assert done.returncode == 0, done.stderr
    shape, _, rest = done.stdout.strip().rpartition(" float32 ")
    assert shape == "(2, 4)"
    assert 1.0 < float(rest) < 360.0  # degrees, not standardised numbers


def test_a_finished_training_is_not_done_again(undisturbed: Path) -> None:
    model = undisturbed.parent / "run/model.keras"
    before = model.stat().st_mtime_ns
    done = galmerhpc("train", str(undisturbed))
    assert done.returncode == 0
    assert "complete" in done.stderr
    assert model.stat().st_mtime_ns == before


def test_the_history_has_a_row_an_epoch(undisturbed: Path) -> None:
    rows = list(csv.DictReader((undisturbed.parent / "run/metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    for name in ("training_loss", "validation_loss", "training_mae", "validation_mae_azimuth"):
        assert all(float(row[name]) > 0 for row in rows)
    assert float(rows[0]["seconds"]) < float(rows[2]["seconds"])


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param([0], id="rank 0", marks=pytest.mark.soak),
        pytest.param([1], id="rank 1"),
        pytest.param([0, 1], id="job", marks=pytest.mark.soak),
    ],
)
def test_a_killed_training_resumes_to_the_same_bits(
    undisturbed: Path, tiny_run: Path, victims: list[int]
) -> None:
    job = start(2, tiny_run)
    wait_for(lambda: first_checkpoint(tiny_run), job)
    for pid in [ranks_of(job)[k] for k in victims]:
        os.kill(pid, signal.SIGKILL)
    output, _ = job.communicate(timeout=600)
    assert job.returncode != 0
    assert "signal 9" in output
    assert "Traceback" not in output
    done = galmerhpc("train", str(tiny_run), ranks=2)
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stderr
    expected, state = final_state(undisturbed), final_state(tiny_run)
    assert expected.keys() == state.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    weights = [run_weights(path.parent / "run/model.keras") for path in (undisturbed, tiny_run)]
    assert weights[0] == weights[1]


def run_weights(model: Path) -> str:
    """Return a hash of the weights of an exported model."""
    code = (
        "import sys, keras, hashlib\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "print(hashlib.sha256(b''.join(w.tobytes() for w in model.get_weights())).hexdigest())"
    )
    done = run(sys.executable, "-c", code, str(model))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.soak)]
)
def test_a_signal_saves_the_work_and_another_number_of_ranks_goes_on(
    tiny_run: Path, number: signal.Signals
) -> None:
    job = start(2, tiny_run)
    wait_for(lambda: first_checkpoint(tiny_run), job)
    os.kill(ranks_of(job)[1], number)  # one rank is told: both must stop at the same step
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 75, output
    assert output.count("stopped by a signal") == 1
    done = galmerhpc("train", str(tiny_run), ranks=1)
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stderr
    assert (tiny_run.parent / "run/model.keras").exists()


def test_uneven_shares_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    changes = []
    for ranks in (1, 2):  # 25; 13 + 12
        out = tmp_path / f"{ranks}.npz"
        done = mpirun(ranks, *WORKER, "gradients", str(out))
        assert done.returncode == 0, done.stderr
        changes.append({name: c.astype(np.float64) for name, c in np.load(out).items()})
    for name in ("whole", "clipped"):
        one, two = (change[name] for change in changes)
        assert np.linalg.norm(two - one) < 1e-6 * np.linalg.norm(one)
    # It is the gradient of the whole batch that is cut, not a rank's share of it.
    assert np.linalg.norm(changes[1]["clipped"]) == pytest.approx(HUGE * CLIP_NORM, rel=1e-5)


def test_the_order_of_samples_does_not_depend_on_the_ranks(tiny_run: Path) -> None:
    orders = []
    for ranks in (1, 2):
        out = tiny_run.parent / f"{ranks}.json"
        done = mpirun(ranks, *WORKER, "order", str(out))
        assert done.returncode == 0, done.stderr
        orders.append(json.loads(out.read_text()))
    assert orders[0] == orders[1]
    half = len(orders[0]) // 2
    first, second = (
        [row for step in steps for row in step] for steps in (orders[0][:half], orders[0][half:])
    )
    assert sorted(first) == sorted(set(first)) == sorted(second)
    assert first != second


def test_too_many_ranks_for_the_batch_is_one_clear_message(tiny_run: Path) -> None:
    done = galmerhpc("train", str(tiny_run), "training.batch_size=1", ranks=2)
    assert done.returncode == 2
    assert done.stderr.count("leaves some of the 2 ranks without images") == 1
    assert "Traceback" not in done.stderr


def test_another_configuration_is_refused_with_the_key(undisturbed: Path) -> None:
    done = galmerhpc("train", str(undisturbed), "training.learning_rate=0.5")
    assert done.returncode == 2
    assert "training.learning_rate: 0.001 there, 0.5 now" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_ends_all_ranks_with_one_message(tiny_run: Path) -> None:
    done = galmerhpc(
        "train",
        str(tiny_run),
        "training.learning_rate=1e38",
        "training.schedule.warmup_steps=0",
        ranks=2,
    )
    assert done.returncode == 1
    assert "lower training.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


# Twelve directions of the tiny run's snapshots, as an override of a committed configuration.
FEW_VIEWS = {
    "runs": catalogue_runs(),
    "views": {
        "theta_deg": {"start": 0, "stop": 90, "step": 45},
        "phi_deg": {"start": 0, "stop": 180, "step": 60},
    },
}


def test_the_paper_s_classification_runs_from_scrape_to_report(tmp_path: Path) -> None:
    done = galmerhpc(
        "run", str(ROOT / "configs/paper_classification.yaml"),
        f"run_dir={tmp_path / 'run'}", f"catalogue={json.dumps(FEW_VIEWS)}", "training.epochs=2",
        "training.augment.rotation_deg=180", "training.augment.noise=5", ranks=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(always no: 93.33 %)") == 2  # one line an epoch, from rank 0
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for split in ("training", "validation"):
        assert all(0.5 < float(row[f"{split}_binary_accuracy"]) <= 1 for row in rows)
        assert all(0 <= float(row[f"{split}_all_accuracy"]) <= 1 for row in rows)
    assert 0 <= float(rows[0]["validation_accuracy_azimuth"]) <= 1
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    for predictor in ("network", "lookup", "mean"):
        classes = metrics["scores"][predictor]["classes"]
        assert classes["trivial_binary_accuracy"] == pytest.approx(56 / 60)
        assert classes["accuracy"].keys() == metrics["scores"][predictor]["parameters"].keys()
    assert "always no is 93.33 %" in done.stdout
    report = (tmp_path / "run/evaluation/report.html").read_text()
    assert "93.63 %" in report
    assert "a network that always says no has 93.33 %" in report


def test_every_option_of_the_regression_trains_together(tiny_run: Path) -> None:
    done = galmerhpc(
        "train", str(tiny_run), "model.architecture=table1_cnn", "model.dropout=0.1",
        "model.spin=probability", "model.sine_cosine=[azimuth]",
        "training.loss=huber", "training.loss_weights={spin: 2}",
        "training.optimizer={kind: adamw, weight_decay: 0.01, clip_norm: 1}",
        "training.schedule={batch_scaling: sqrt}",
        "training.augment={rotation_deg: 90, intensity: 0.2, psf_fwhm_px: 2, blur_px: 1, noise: 5}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tiny_run.parent / "run/metrics.csv").read_text().splitlines()))
    assert float(rows[2]["training_loss"]) < float(rows[0]["training_loss"])
    assert float(rows[2]["validation_mae_azimuth"]) < 180  # degrees, decoded
