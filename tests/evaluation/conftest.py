"""A network, and a run on which it has been evaluated."""

import sys
from pathlib import Path

import pytest

from galmerhpc.config import Config
from tests.evaluation.runs import MODEL, write_run
from tests.support import galmerhpc, run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model file; its predictions and a model that does not fit are beside it."""
    folder = tmp_path_factory.mktemp("model")
    made = run(sys.executable, "-m", "tests.evaluation.runs", str(folder))
    assert made.returncode == 0, made.stderr
    return folder / MODEL


@pytest.fixture(scope="session")
def evaluated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the configuration of a run that has been evaluated and reported."""
    config = write_run(tmp_path_factory.mktemp("evaluated"), model)
    for stage, argument in (("evaluate", "run.yaml"), ("report", "run")):  # file and run folder
        done = galmerhpc(stage, str(config.run_dir.parent / argument))
        assert done.returncode == 0, done.stderr
    return config
