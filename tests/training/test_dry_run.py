"""``galmerhpc train --dry-run``: what a training would be, and what it would take."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import write_run
from tests.support import galmerhpc, run


def assert_estimate_is_near(printed: str) -> None:
    """Compare the memory that was estimated with the memory that one batch took."""
    estimated = re.search(r"estimated memory per rank: ([\d.]+) GB", printed)
    measured = re.search(r"memory measured: ([\d.]+) GB", printed)
    assert estimated
    assert measured
    assert float(estimated[1]) == pytest.approx(float(measured[1]), rel=0.3)


def test_a_dry_run_says_what_would_be_and_writes_nothing(tiny_run: Path) -> None:
    # As a user starts it: tests otherwise silence TensorFlow.
    command = (sys.executable, "-m", "galmerhpc.cli", "train", str(tiny_run), "--dry-run")
    unset = ("env", "--unset=TF_CPP_MIN_LOG_LEVEL")
    done = run(*unset, *command, "model.architecture=table1_cnn")
    assert done.returncode == 0, done.stderr
    assert "rebuild TensorFlow" not in done.stderr
    assert "Total params" in done.stdout
    assert re.search(r"training images: 2 steps per epoch of 25 images over 1 ranks", done.stdout)
    assert "gradients finite" in done.stdout
    assert "training on 1 ranks: no GPU and 1 threads each" in done.stderr
    assert "few for batch normalisation" not in done.stderr
    assert_estimate_is_near(done.stdout)
    assert {path.name for path in tiny_run.parent.glob("run/*")} == {"config.yaml", "raw", "shards"}
    small = ("model.architecture=table1_cnn", "training.micro_batch=4")
    done = galmerhpc("train", str(tiny_run), "--dry-run", *small)
    assert "4 images at once on a rank" in done.stderr
    done = galmerhpc("train", str(tiny_run), "--dry-run", *small, "training.sync_batchnorm=true")
    assert done.returncode == 0, done.stderr
    assert "images at once" not in done.stderr
    done = galmerhpc("train", str(tiny_run), "training.batch_size=1", "--dry-run", ranks=2)
    assert done.returncode == 2
    assert "leaves some of the 2 ranks without images" in done.stderr


def test_a_dry_run_refuses_shards_of_another_configuration(tiny_run: Path) -> None:
    done = galmerhpc("train", str(tiny_run), "--dry-run", "preprocess.image_size=64")
    assert done.returncode == 2
    assert "made with another preprocess.image_size: 32 there, 64 now" in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [64, 128])
def test_the_memory_estimate_is_near_what_is_measured(
    preprocessed: Path, tmp_path: Path, size: int
) -> None:
    shutil.copytree(preprocessed / "run/raw", tmp_path / "run/raw")
    config, image_size = str(write_run(tmp_path)), f"preprocess.image_size={size}"
    assert galmerhpc("preprocess", config, image_size).returncode == 0
    for architecture in ("resnet50", "table1_cnn"):
        for batch_size in (8, 32):
            done = galmerhpc(
                "train", config, "--dry-run", image_size, f"model.architecture={architecture}",
                f"training.batch_size={batch_size}", "training.threads=2",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert_estimate_is_near(done.stdout)
