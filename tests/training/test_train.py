"""Training on real ranks: same weights, exact order, exact resume, and a clean end."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from galmerhpc import files
from galmerhpc.config import Config
from galmerhpc.dataset.batches import epoch_order
from galmerhpc.dataset.shards import Dataset
from galmerhpc.training import checkpoint
from galmerhpc.training.loss_scale import FIRST
from galmerhpc.training.train import warn_of_azimuth
from tests.conftest import catalogue_runs, write_run
from tests.support import BIN, ROOT, environment, galmerhpc, mpirun, mpirun_command, run, wait_for

WORKER = (sys.executable, "-m", "tests.training.workers")
TRAIN = (sys.executable, "-m", "galmerhpc.cli", "train")

# All that has a state, in a network that is built and traced in seconds.
SMALL = {
    "model": {"architecture": "table1_cnn", "dropout": 0.3},
    "training": {
        "augment": {"rotation_deg": 90, "noise": 5},
        "best_metric": "validation_mae",
        "checkpoint_every_steps": 1,
    },
}


def small_run(preprocessed: Path, folder: Path, **more: object) -> Path:
    """Return the configuration of a small run of one's own, ready to train."""
    shutil.copytree(preprocessed / "run", folder / "run")
    path = write_run(folder)
    set_keys(path, **SMALL)
    set_keys(path, training=more)
    return path


def set_keys(config: Path, **sections: dict[str, object]) -> None:
    """Replace keys of a configuration's sections."""
    values = yaml.safe_load(config.read_text())
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    config.write_text(yaml.safe_dump(values))


def start(ranks: int, config: Path, *more: str) -> "subprocess.Popen[str]":
    """Start a training."""
    return subprocess.Popen(
        mpirun_command(ranks, *TRAIN, str(config), *more), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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


def checkpoints(config: Path) -> list[str]:
    return sorted(path.name for path in (config.parent / "run/checkpoints").glob("step-*"))


def final_state(config: Path) -> dict[str, bytes]:
    """Return the bits of the last checkpoint's arrays: weights, averages, optimiser ..."""
    found = checkpoint.load_latest(config.parent / "run/checkpoints")
    assert found
    assert found[1]["epoch"] == 3
    return {name: array.tobytes() for name, array in found[0].items()}


def history(config: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((config.parent / "run/metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def undisturbed(preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a run that two ranks trained to the end."""
    config = small_run(preprocessed, tmp_path_factory.mktemp("undisturbed"))
    done = galmerhpc("train", str(config), ranks=2)
    assert done.returncode == 0, done.stderr
    return config


# --- what a finished training leaves --------------------------------------------------------------


def test_a_finished_training_is_not_done_again(undisturbed: Path) -> None:
    model = undisturbed.parent / "run/model.keras"
    before = model.stat().st_mtime_ns
    done = galmerhpc("train", str(undisturbed))
    assert done.returncode == 0
    assert "complete" in done.stderr
    assert model.stat().st_mtime_ns == before


def test_the_history_has_a_row_an_epoch(undisturbed: Path) -> None:
    rows = history(undisturbed)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    for split in ("training", "validation"):
        for name in ("loss", "mae", "mse", "mae_azimuth", "mse_azimuth"):
            assert all(float(row[f"{split}_{name}"]) > 0 for row in rows)
        assert all(float(row[f"{split}_r2_azimuth"]) < 1 for row in rows)
    assert float(rows[0]["seconds"]) < float(rows[2]["seconds"])


def test_the_newest_checkpoints_and_the_best_one_stay(undisturbed: Path) -> None:
    errors = [float(row["validation_mae"]) for row in history(undisturbed)]
    best = 1 + errors.index(min(errors))
    expected = {"step-00000005", "step-00000006-epoch-0003"}
    assert set(checkpoints(undisturbed)) == expected | {f"step-{2 * best:08d}-epoch-{best:04d}"}


def test_each_rank_logs_into_a_file_of_its_own(undisturbed: Path) -> None:
    logs = undisturbed.parent / "run/logs"
    assert " rank 0 epoch 3/3: loss " in (logs / "train-rank0000.log").read_text()
    assert " rank 0 " not in (logs / "train-rank0001.log").read_text()


def test_tensorboard_has_each_epoch_once_with_a_picture(undisturbed: Path) -> None:
    code = (
        "import sys, json, tensorflow as tf\n"
        "for path in sys.argv[1:]:\n"
        "    for record in tf.data.TFRecordDataset(path):\n"
        "        event = tf.compat.v1.Event.FromString(record.numpy())\n"
        "        shape = [tf.io.decode_png(v.image.encoded_image_string).shape.as_list()\n"
        "                 for v in event.summary.value if v.HasField('image')]\n"
        "        tags = {v.tag: v.simple_value for v in event.summary.value}\n"
        "        print(json.dumps([event.step, tags.get('validation/loss'), shape]))"
    )
    paths = sorted((undisturbed.parent / "run/tensorboard").iterdir())
    done = run(sys.executable, "-c", code, *map(str, paths))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    losses = [float(row["validation_loss"]) for row in history(undisturbed)]
    assert [event for event in events if event[1]] == [
        [2 * k, pytest.approx(loss), [[96, 192, 3]]] for k, loss in enumerate(losses, 1)
    ]


# --- interruption ---------------------------------------------------------------------------------


def test_four_kills_end_in_the_same_bits(
    undisturbed: Path, preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path)
    (tmp_path / "rows").mkdir()
    for fault in ("step:2:1:0", "write:2:0:0", "evaluation:1:all:0", "step:1:all:0", ""):
        done = mpirun(2, *WORKER, "train", str(tmp_path / "rows"), str(config), fault)
        assert (done.returncode == 0) == (not fault), done.stderr
        assert "Traceback" not in done.stderr
    assert "resumed" in done.stderr
    assert final_state(config) == final_state(undisturbed)
    assert weights_of(config) == weights_of(undisturbed)


def weights_of(config: Path) -> str:
    """Return a hash of the weights of an exported model, which needs no code of ours."""
    code = (
        "import sys, keras, hashlib, numpy as np\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "labels = model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0)\n"
        "assert 'galmerhpc' not in sys.modules\n"
        "assert labels.shape == (2, 4) and labels.dtype == np.float32\n"
        "assert 1 < abs(labels[0, 1:]).max() < 360  # degrees, not standardised numbers\n"
        "print(hashlib.sha256(b''.join(w.tobytes() for w in model.get_weights())).hexdigest())"
    )
    done = run(sys.executable, "-c", code, str(config.parent / "run/model.keras"))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ["table1_cnn", "resnet50"])
@pytest.mark.parametrize("victims", [("0", "1"), ("all",)], ids=["one rank", "all ranks"])
def test_twenty_random_kills_end_in_the_same_bits(
    preprocessed: Path, tmp_path: Path, victims: tuple[str, ...], architecture: str
) -> None:
    draw = np.random.default_rng(len(victims))
    runs = [small_run(preprocessed, tmp_path / name) for name in "ab"]
    for config in runs:
        set_keys(config, model={"architecture": architecture})
    assert galmerhpc("train", str(runs[0]), ranks=2, timeout=1800).returncode == 0
    expected, kills = (final_state(runs[0]), weights_of(runs[0])), 0
    (tmp_path / "rows").mkdir()
    while kills < 20 or not finished(runs[1]):
        # In the midst of a step, of the writing of a checkpoint, or of an evaluation.
        moment, number = draw.choice(["step", "save", "evaluation"]), draw.integers(1, 3)
        fault = f"{moment}:{number}:{draw.choice(victims)}:{draw.uniform(0, 1):.3f}"
        arguments = ("train", str(tmp_path / "rows"), str(runs[1]), fault if kills < 20 else "")
        done = mpirun(2, *WORKER, *arguments, timeout=1800)
        assert "Traceback" not in done.stderr, (fault, done.stderr)
        kills += done.returncode != 0
        if finished(runs[1]):
            assert (final_state(runs[1]), weights_of(runs[1])) == expected, fault
            if kills < 20:
                shutil.rmtree(runs[1].parent / "run/checkpoints")


def finished(config: Path) -> bool:
    """Return whether the training is complete."""
    record = config.parent / "run/checkpoints/stage.json"
    return record.exists() and json.loads(record.read_text())["files"] is not None


def test_a_signal_stops_all_ranks_and_another_number_goes_on_in_the_same_order(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path, batch_size=10)
    rows = tmp_path / "rows"
    rows.mkdir()
    job = subprocess.Popen(
        mpirun_command(2, *WORKER, "train", str(rows), str(config)), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(lambda: bool(checkpoints(config)), job)
    os.kill(int(sorted(rows.iterdir())[1].stem.split("-")[1]), signal.SIGTERM)  # one rank is told
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 75, output
    assert output.count("stopped by ") == 1
    done = mpirun(3, *WORKER, "train", str(rows), str(config))
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch" in done.stderr
    seen, ranks = steps_of(rows)
    assert seen == expected_steps(config, 10, epochs=3)
    assert set(ranks) == {2, 3}


def steps_of(rows: Path) -> tuple[list[list[int]], list[int]]:
    """Return the rows of every global step, and how many ranks did it, from what workers told."""
    steps: dict[int, dict[int, list[int]]] = {}
    for path in rows.iterdir():
        for step, rank, share in map(json.loads, path.read_text().splitlines()):
            assert rank not in steps.setdefault(step, {})  # no step is done twice
            steps[step][rank] = share
    assert sorted(steps) == list(range(len(steps)))
    seen = [[row for r in sorted(steps[k]) for row in steps[k][r]] for k in sorted(steps)]
    return seen, [len(steps[k]) for k in sorted(steps)]


def expected_steps(config: Path, batch_size: int, epochs: int) -> list[list[int]]:
    """Return the rows of every global step in the order of rule 1."""
    train = Dataset.open(config.parent / "run/shards").rows("train")
    order = [train[epoch_order(len(train), 0, epoch)].tolist() for epoch in range(epochs)]
    return [rows[k : k + batch_size] for rows in order for k in range(0, len(rows), batch_size)]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_any_number_of_ranks_that_changes_in_mid_epoch_sees_the_same_steps(
    preprocessed: Path, tmp_path: Path
) -> None:
    shutil.copytree(preprocessed / "run/raw", tmp_path / "run/raw")
    config = write_run(tmp_path)
    set_keys(config, **SMALL, preprocess={"copies": 3})
    set_keys(config, training={"epochs": 1})
    assert galmerhpc("preprocess", str(config)).returncode == 0
    for batch_size in (25, 64):
        set_keys(config, training={"batch_size": batch_size})
        expected = expected_steps(config, batch_size, epochs=1)
        plans = [[ranks] for ranks in (1, 2, 3, 4)] if batch_size == 25 else []
        # A session of the last kind stops after its first step, and other ranks go on.
        for plan in [*plans, [k % 4 + 1 for k in range(len(expected) + 1)]]:
            rows = tmp_path / f"rows-{batch_size}-{len(plan)}-{plan[0]}"
            rows.mkdir()
            more = ["training.time_limit_s=0.001"] * (len(plan) > 1)
            for ranks in plan:
                done = mpirun(ranks, *WORKER, "train", str(rows), str(config), "", *more)
                assert done.returncode in (0, 75), done.stderr
            assert finished(config)
            seen, _ = steps_of(rows)
            assert seen == expected
            shutil.rmtree(tmp_path / "run/checkpoints")


@pytest.mark.soak
def test_an_elastic_training_goes_on_with_the_worker_that_is_left(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path, checkpoint_every_steps=2, batch_size=10)
    rows, hosts = tmp_path / "rows", tmp_path / "hosts.sh"
    rows.mkdir()
    hosts.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    hosts.chmod(0o755)
    done = run(
        str(BIN / "horovodrun"), "-np", "2", "--min-np", "1", "--host-discovery-script", str(hosts),
        "--network-interface", "lo", *WORKER, "train", str(rows), str(config), "step:4:1:0",
        "--elastic",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["epoch"] for row in history(config)] == ["1", "2", "3"]
    assert (config.parent / "run/model.keras").exists()
    lines = {path: list(map(json.loads, path.read_text().splitlines())) for path in rows.iterdir()}
    dead, left = sorted(lines.values(), key=len)
    assert [step for step, *_ in dead] == [0, 1, 2, 3]
    # It resumes from the commit after the second step, with full batches, in the order of rule 1.
    assert [step for step, *_ in left] == [0, 1, 2, 3, *range(2, 3 * 5)]
    expected = expected_steps(config, 10, epochs=3)
    assert [seen for _, _, seen in left[4:]] == expected[2:]


def test_a_kill_in_a_validation_costs_no_step(preprocessed: Path, tmp_path: Path) -> None:
    config = small_run(
        preprocessed, tmp_path, epochs=1, checkpoint_every_steps=None, keep_checkpoints=1
    )
    rows = tmp_path / "rows"
    rows.mkdir()
    killed = run(*WORKER, "train", str(rows), str(config), "saved:1:all:0")
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints(config) == ["step-00000002"]
    done = run(*WORKER, "train", str(rows), str(config))
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 0, step 2" in done.stderr
    assert steps_of(rows)[0] == expected_steps(config, 25, epochs=1)
    assert checkpoints(config) == ["step-00000002-epoch-0001"]
    # Where no step was done nothing is said of their rate.
    assert history(config)[0]["images_per_s"] == ""
    line = r"epoch 1/1: loss .*, MAE [\d.]+ \([\d.]+\), steps 0 s, .*, done$"
    assert re.search(line, done.stderr, re.MULTILINE)


SLOW_VALIDATION = """
import sys, time
from galmerhpc import cli
from galmerhpc.training.train import Trainer
validate = Trainer._validate
def slow(trainer):
    if trainer.progress.epoch:
        raise KeyboardInterrupt
    time.sleep(3)
    return validate(trainer)
Trainer._validate = slow
cli.main(["train", *sys.argv[1:]])
"""


def test_the_time_left_includes_validation(preprocessed: Path, tmp_path: Path) -> None:
    config = small_run(preprocessed, tmp_path, epochs=200)
    done = run(sys.executable, "-c", SLOW_VALIDATION, str(config))
    line = r"epoch 1/200: .* steps \d+ s, checkpoints \d+ s, validation (\d+) s, (\d+) min left$"
    found = re.search(line, done.stderr, re.MULTILINE)
    assert found, done.stderr
    assert int(found[1]) >= 3
    assert int(found[2]) >= 199 * 3 // 60


def test_the_time_limit_saves_the_work(preprocessed: Path, tmp_path: Path) -> None:
    config = small_run(preprocessed, tmp_path)
    done = galmerhpc("train", str(config), "training.time_limit_s=0.001")
    assert done.returncode == 75
    assert "stopped by the time limit after epoch 0, step 1" in done.stderr
    assert checkpoints(config) == ["step-00000001"]


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_ends_the_job(preprocessed: Path, tmp_path: Path, rank: int) -> None:
    config = small_run(preprocessed, tmp_path, epochs=100_000, stall_limit_s=60)
    job = start(2, config)
    wait_for(lambda: bool(checkpoints(config)), job)
    os.kill(ranks_of(job)[rank], signal.SIGSTOP)
    output, _ = job.communicate(timeout=600)
    assert job.returncode != 0
    assert output.count("another rank hangs") == 1


def test_a_loss_that_is_not_finite_ends_all_ranks_naming_rank_and_views(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path, checkpoint_every_steps=None)
    # Weights of 1e9 are infinite in float16.
    wild = ("learning_rate=1e9", "schedule.warmup_steps=0", "precision=mixed_float16")
    done = galmerhpc("train", str(config), *(f"training.{key}" for key in wild), ranks=2)
    assert done.returncode == 1
    assert done.stderr.count("loss or gradient is not finite at epoch") == 1
    assert "(rank 0: views " in done.stderr
    assert "; rank 1: views " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prediction_that_is_not_finite_is_named_and_its_epoch_is_not_gone_on_from(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(
        preprocessed, tmp_path, epochs=1, batch_size=100, checkpoint_every_steps=None,
        precision="mixed_float16", schedule={"kind": "constant", "warmup_steps": 0},
    )  # fmt: skip
    assert galmerhpc("train", str(config)).returncode == 0
    made = checkpoints(config)
    # An epoch of one step: its weights of 1e9 are finite, but not in float16.
    changes = {"epochs": "2", "learning_rate": "1e9"}
    allowed = [word for key in changes for word in ("--allow-change", f"training.{key}")]
    wild = [f"training.{key}={value}" for key, value in changes.items()]
    for ranks in (1, 2):
        done = galmerhpc("train", *allowed, str(config), *wild, ranks=ranks)
        assert done.returncode == 1
        assert done.stderr.count("a prediction is not finite in the validation of epoch 2") == 1
        assert f"rank {ranks - 1}: views " in done.stderr
        assert "a lower training.learning_rate" in done.stderr
        assert "Traceback" not in done.stderr
        assert checkpoints(config) == made


def test_gpus_that_tensorflow_does_not_see_end_a_training_but_no_evaluation(
    undisturbed: Path, tiny_run: Path
) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "0"}
    done = run(*TRAIN, str(tiny_run), "--dry-run", env=hidden)
    assert done.returncode == 2
    assert "CUDA_VISIBLE_DEVICES is 0, but TensorFlow sees no GPU" in done.stderr
    command = (sys.executable, "-m", "galmerhpc.cli", "evaluate", str(undisturbed))
    done = run(*command, env=hidden)
    assert done.returncode == 0, done.stderr


# --- what may change ------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_the_key_unless_it_may_change(
    undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.parent, tmp_path / "copy")
    config = tmp_path / "copy" / undisturbed.name
    more = (f"run_dir={tmp_path / 'copy/run'}", "training.epochs=4")
    done = galmerhpc("train", str(config), *more)
    assert done.returncode == 2
    assert "training.epochs: 3 there, 4 now" in done.stderr
    assert "Traceback" not in done.stderr
    done = galmerhpc("train", "--allow-change", "training.epochs", str(config), *more)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 3, step 0" in done.stderr
    assert [row["epoch"] for row in history(config)] == ["1", "2", "3", "4"]
    done = galmerhpc("train", "--allow-change", "training.batch_size", str(config))
    assert done.returncode == 2
    assert "--allow-change training.batch_size: it decides the data, their order" in done.stderr


def test_a_refused_training_leaves_the_run_as_it_was(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.parent / "run", tmp_path / "run")
    run_dir, written = tmp_path / "run", tmp_path / "run/config.yaml"
    before = written.read_bytes()
    for key, value in (("preprocess.image_size", "48"), ("training.batch_size", "7")):
        more = (f"{key}={value}", f"run_dir={run_dir}", "--allow-change", key)
        done = galmerhpc("train", str(undisturbed), *more)
        assert done.returncode == 2
        assert f"--allow-change {key}: it decides the data" in done.stderr
    with files.lock(run_dir / "checkpoints/train.lock"):
        more = ("training.epochs=77", f"run_dir={run_dir}", "--allow-change", "training.epochs")
        assert "in use by" in galmerhpc("train", str(undisturbed), *more).stderr
    assert written.read_bytes() == before


def test_a_loss_scale_is_that_of_the_present_precision(preprocessed: Path, tmp_path: Path) -> None:
    config, scales = small_run(preprocessed, tmp_path, epochs=1), []
    changing = ("training.epochs", "training.compression")
    allowed = [word for key in changing for word in ("--allow-change", key)]
    for epochs, compression in enumerate(("fp16", "none", "fp16"), 1):
        more = (f"training.epochs={epochs}", f"training.compression={compression}")
        done = galmerhpc("train", str(config), *more, *allowed)
        assert done.returncode == 0, done.stderr
        newest = tmp_path / "run/checkpoints" / checkpoints(config)[-1]
        with np.load(newest / "state.npz") as state:
            scales.append(float(state["loss_scale/0"]))
    assert scales == [FIRST, 1, FIRST]


def test_averages_may_begin_with_a_training_that_goes_on(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path, epochs=1, ema_momentum=0.0)
    assert galmerhpc("train", str(config)).returncode == 0
    changed = {"training.epochs": 2, "training.ema_momentum": 0.9}
    allowed = [word for key in changed for word in ("--allow-change", key)]
    values = [f"{key}={value}" for key, value in changed.items()]
    done = galmerhpc("train", str(config), *values, *allowed)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 1" in done.stderr


def test_a_measure_that_is_undefined_is_not_taken_for_the_best(
    preprocessed: Path, tmp_path: Path
) -> None:
    """The tiny run's validation images have one viewing angle."""
    metric = {"best_metric": "validation_r2_viewing_angle", "patience": 1}
    config = small_run(preprocessed, tmp_path, epochs=2, **metric)
    left = tmp_path / "run/.tmp-elsewhere-77-model.keras"
    left.touch()
    done = galmerhpc("train", str(config))
    assert done.returncode == 2
    assert "validation_r2_viewing_angle is undefined" in done.stderr
    more = ("training.best_metric=validation_r2", "--allow-change", "training.best_metric")
    done = galmerhpc("train", str(config), *more)
    assert done.returncode == 0, done.stderr
    assert len(history(config)) == 2
    assert all(row["validation_r2"] for row in history(config))  # of the other parameters
    assert not left.exists()


INTERRUPTED = """
import os, signal, sys
from galmerhpc import cli
from galmerhpc.training.train import Trainer
finish_epoch = Trainer.finish_epoch
def interrupted(self):
    os.kill(os.getpid(), signal.SIGTERM)
    finish_epoch(self)
Trainer.finish_epoch = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_signal_in_the_last_validation_ends_a_run_after_the_training(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path, epochs=1)
    done = run(sys.executable, "-c", INTERRUPTED, "run", str(config))
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGTERM after the training" in done.stderr
    assert (tmp_path / "run/model.keras").exists()
    assert not (tmp_path / "run/evaluation").exists()
    # A training that is finished is complete.
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert run(sys.executable, "-c", INTERRUPTED, "train", str(config)).returncode == 0


def test_a_second_training_of_the_same_run_is_refused(preprocessed: Path, tmp_path: Path) -> None:
    config = small_run(preprocessed, tmp_path)
    with files.lock(tmp_path / "run/checkpoints/train.lock"):
        done = galmerhpc("train", str(config))
    assert done.returncode == 2
    assert f"checkpoints: in use by process {os.getpid()} on " in done.stderr
    assert checkpoints(config) == []


def test_too_many_ranks_for_the_batch_is_one_clear_message(
    preprocessed: Path, tmp_path: Path
) -> None:
    config = small_run(preprocessed, tmp_path)
    done = galmerhpc("train", str(config), "training.batch_size=1", ranks=2)
    assert done.returncode == 2
    assert done.stderr.count("leaves some of the 2 ranks without images") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sections", "azimuths", "warned"),
    [
        ({}, np.arange(-180, 180, 10), True),
        ({}, np.arange(0, 181, 10), False),
        ({"model": {"sine_cosine": ["azimuth"]}}, np.arange(-180, 180, 10), False),
        ({"parameters": ["spin", "inclination"]}, np.arange(-180, 180, 10), False),
    ],
)
def test_an_azimuth_that_goes_round_as_a_plain_number_is_pointed_out(
    sections: dict[str, object],
    azimuths: np.ndarray,
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = Config(run_dir="run", **sections)
    labels = np.zeros((len(azimuths), len(config.parameters)), np.float32)
    labels[:, -2] = azimuths
    warn_of_azimuth(config, labels)
    assert ("set model.sine_cosine: [azimuth]" in caplog.text) is warned


def test_errors_of_an_azimuth_that_goes_round_are_those_on_the_circle(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    around = {"start": -180, "stop": 150, "step": 30}
    runs = yaml.safe_load(path.read_text())["catalogue"]["runs"]
    views = {"theta_deg": {"start": 30, "stop": 60, "step": 30}, "phi_deg": around}
    set_keys(
        path, catalogue={"runs": runs, "views": views}, split={"kind": "random"},
        model={"architecture": "table1_cnn", "sine_cosine": ["azimuth"]},
    )  # fmt: skip
    for stage in ("scrape", "preprocess", "train"):
        done = galmerhpc(stage, str(path))
        assert done.returncode == 0, done.stderr
    done = galmerhpc("evaluate", str(path), "--split", "val", "evaluation.sky=null")
    assert done.returncode == 0, done.stderr
    metrics = files.read_json(tmp_path / "run/evaluation-validation/metrics.json")
    found = metrics["scores"]["network"]["parameters"]["azimuth"]
    assert found["mae"] == pytest.approx(found["circular_mae"])
    assert found["rmse"] <= 180
    last = history(path)[-1]
    assert float(last["validation_mae_azimuth"]) == pytest.approx(found["mae"], rel=1e-4)
    assert float(last["validation_mse_azimuth"]) == pytest.approx(found["mse"], rel=1e-4)


# --- networks and ways to train them --------------------------------------------------------------


def test_resnet50_trains_with_all_that_saves_memory_and_messages(tiny_run: Path) -> None:
    done = galmerhpc(
        "train", str(tiny_run), "training.epochs=1", "training.sync_batchnorm=true",
        "training.precision=mixed_bfloat16", "training.compression=fp16",
        "training.micro_batch=8", "training.batch_size=23", ranks=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(weights_of(tiny_run)) == 64
    found = checkpoint.load_latest(tiny_run.parent / "run/checkpoints")
    assert found
    assert found[0]["loss_scale/0"] > 1
    # Synchronised statistics are the same on all ranks.
    for name in [name for name in found[0] if name.startswith("rank0/")]:
        other = found[0][name.replace("rank0", "rank1")]
        np.testing.assert_array_equal(found[0][name], other)


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
    assert "always no gives 93.33 %" in done.stdout
    report = (tmp_path / "run/evaluation/report.html").read_text()
    assert "93.63 %" in report
    assert "network that always says no reaches 93.33 %" in report


def test_every_option_of_the_regression_trains_together_until_patience_ends(
    tiny_run: Path,
) -> None:
    done = galmerhpc(
        "train", str(tiny_run), "model.architecture=table1_cnn", "model.dropout=0.1",
        "model.spin=probability", "model.sine_cosine=[azimuth]",
        "training.loss=huber", "training.loss_weights={spin: 2}",
        "training.optimizer={kind: adamw, weight_decay: 0.01, clip_norm: 1}",
        "training.schedule={batch_scaling: sqrt}", "training.precision=mixed_float16",
        "training.augment={rotation_deg: 90, intensity: 0.2, psf_fwhm_px: 2, blur_px: 1, noise: 5}",
        "training.epochs=50", "training.best_metric=validation_r2_spin", "training.patience=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = history(tiny_run)
    assert float(rows[2]["validation_mae_azimuth"]) < 180  # degrees, decoded
    r2 = [float(row["validation_r2_spin"]) for row in rows]
    assert len(rows) == 50 or len(rows) == 1 + r2.index(max(r2)) + 3


def test_a_damaged_best_checkpoint_is_named_with_a_way_to_do_without(tiny_run: Path) -> None:
    set_keys(
        tiny_run, model={"architecture": "table1_cnn"},
        training={"epochs": 12, "best_metric": "validation_r2_spin", "patience": 1},
    )  # fmt: skip
    assert galmerhpc("train", str(tiny_run)).returncode == 0
    folder = tiny_run.parent / "run/checkpoints"
    best, last = checkpoints(tiny_run)[0], checkpoints(tiny_run)[-1]
    assert best != last  # one epoch without a better one ended it
    (folder / best / "state.npz").write_bytes(b"damaged")
    (folder.parent / "model.keras").unlink()  # as if it had ended before it was written

    done = galmerhpc("train", str(tiny_run))
    assert done.returncode == 2
    assert f"{best}: damaged" in done.stderr
    assert "holds the best epoch" in done.stderr
    named = re.search(
        r"galmerhpc train (--allow-change .*) CONFIG (.*)$", done.stderr, re.MULTILINE
    )
    assert named
    done = galmerhpc("train", *named[1].split(), str(tiny_run), *named[2].split())
    assert done.returncode == 0, done.stderr
    assert (folder.parent / "model.keras").exists()


def test_patience_begins_again_with_another_metric(tiny_run: Path) -> None:
    set_keys(
        tiny_run, model={"architecture": "table1_cnn"},
        training={"epochs": 3, "best_metric": None, "patience": None},
    )  # fmt: skip
    assert galmerhpc("train", str(tiny_run)).returncode == 0
    changed = {"epochs": "5", "best_metric": "validation_mae", "patience": "2"}
    allowed = [word for key in changed for word in ("--allow-change", f"training.{key}")]
    values = [f"training.{key}={value}" for key, value in changed.items()]
    done = galmerhpc("train", *allowed, str(tiny_run), *values)
    assert done.returncode == 0, done.stderr
    assert len(history(tiny_run)) == 5


def test_a_checkpoint_names_the_tensorflow_it_was_made_with(tiny_run: Path) -> None:
    set_keys(tiny_run, model={"architecture": "table1_cnn"}, training={"epochs": 1})
    assert galmerhpc("train", str(tiny_run)).returncode == 0
    newest = tiny_run.parent / "run/checkpoints" / checkpoints(tiny_run)[-1]
    made_with = files.read_json(newest / "manifest.json")["versions"]
    assert {"tensorflow", "tensorflow-cpu"} & made_with.keys()
