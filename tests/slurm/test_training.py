"""Trainings on a real cluster, minutes each: whatever stops them, the weights end the same."""

import hashlib
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from galmerhpc.studies import table
from tests.conftest import write_run
from tests.slurm.cluster import NODES, Cluster, wait_until
from tests.slurm.conftest import Checkout
from tests.support import ROOT, galmerhpc

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

EPOCHS = 6
SEVERAL_MINUTES = "training.epochs=30"
PATIENCE_S = 1200

Stop = Callable[[Cluster, Checkout, str], None]


def weights(run_dir: Path) -> str:
    """Return the SHA-256 of weights and optimiser in a run's last checkpoint."""
    last = max((run_dir / "checkpoints").glob("step-*"))
    with np.load(last / "state.npz") as state:
        hasher = hashlib.sha256(last.name.encode())
        for name in sorted(state.files):
            hasher.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
    return hasher.hexdigest()


def checkpoints(run_dir: Path) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return sorted(int(p.name.split("-")[1]) for p in (run_dir / "checkpoints").glob("step-*"))


def stops_and_resumes(run_dir: Path) -> tuple[list[str], list[str]]:
    """Return where a training's attempts stopped with the work saved, and where they resumed."""
    (log,) = (run_dir / "logs").glob("train-*.out")
    text = log.read_text(errors="replace")
    place = r"after (epoch \d+, step \d+)"
    stops = re.findall(rf"^stopped by .+ {place}", text, re.MULTILINE)
    return stops, re.findall(rf"^resumed {place}", text, re.MULTILINE)


def train_outside(preprocessed: Path, folder: Path, *overrides: str) -> str:
    """Train on two ranks without SLURM and return the weights."""
    shutil.copytree(preprocessed / "run", folder / "run")
    done = galmerhpc("train", str(write_run(folder)), *overrides, ranks=2, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return weights(folder / "run")


@pytest.fixture(scope="session")
def undisturbed(preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the weights that the training ends with outside SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return train_outside(preprocessed, folder, f"training.epochs={EPOCHS}")


@pytest.fixture(scope="session")
def several_minutes(preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the weights that a longer one ends with."""
    return train_outside(preprocessed, tmp_path_factory.mktemp("longer"), SEVERAL_MINUTES)


@pytest.fixture
def tiny(checkout: Checkout, preprocessed: Path) -> str:
    """Put a preprocessed run into the checkout and return its configuration's name."""
    shutil.copytree(preprocessed / "run", checkout.folder / "run")
    path = write_run(checkout.folder)
    values = yaml.safe_load(path.read_text())
    # Keep all, so that tests can see what was made in which attempt.
    values["training"] |= {"epochs": EPOCHS, "checkpoint_every_steps": 1, "keep_checkpoints": 99}
    path.write_text(yaml.safe_dump(values))
    return path.name


def start(checkout: Checkout, config: str, *overrides: str, **site: object) -> str:
    """Submit the training over two nodes, without what follows it, and return the job's number."""
    checkout.site(TRAIN_NODES=2, **site)
    jobs = checkout.submit(config, *overrides, "--from", "train")
    checkout.run("scancel", jobs["evaluate"])
    return jobs["train"]


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_two_nodes_end_with_the_weights_of_two_ranks_outside(
    checkout: Checkout, cluster: Cluster, tiny: str, undisturbed: str, launcher: str
):
    job = start(checkout, tiny, LAUNCHER=launcher)
    assert cluster.wait_for_end(job, PATIENCE_S) == "COMPLETED"
    assert weights(checkout.folder / "run") == undisturbed
    assert cluster.restarts(job) == 0


def by_the_time_limit(cluster: Cluster, _: Checkout, job: str) -> None:
    cluster.run("scancel", "--batch", "--signal=USR1", job)


def by_preemption(cluster: Cluster, checkout: Checkout, _job: str) -> None:
    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive",
        f"--output={checkout.folder}/urgent.out", "--wrap=true",
    ).strip()  # fmt: skip
    assert cluster.wait_for_end(urgent, PATIENCE_S) == "COMPLETED"


def by_a_lost_node(cluster: Cluster, _: Checkout, job: str) -> None:
    cluster.run("scontrol", "update", f"NodeName={NODES[1]}", "State=DOWN", "Reason=test")
    wait_until(lambda: cluster.restarts(job) == 1, "the job back in the queue")
    cluster.run("scontrol", "update", f"NodeName={NODES[1]}", "State=RESUME")


def by_a_dead_daemon(cluster: Cluster, _: Checkout, job: str) -> None:
    cluster.signal_daemon(NODES[1], signal.SIGKILL)
    wait_until(lambda: cluster.restarts(job) == 1, "the job back in the queue", 300)
    cluster.start_node(NODES[1])
    wait_until(cluster.idle, "all nodes idle", 120)


def by_a_killed_rank(cluster: Cluster, _: Checkout, job: str) -> None:
    """One of two: the other waits for it in a collective operation."""
    its = {**cluster.environment, "SLURM_JOB_ID": job, "PMIX_RANK": "1"}
    (rank,) = [
        process
        for process in psutil.process_iter(["environ", "cmdline"])
        if "train" in (process.info["cmdline"] or ())
        and its.items() <= (process.info["environ"] or {}).items()
    ]
    rank.kill()


@pytest.mark.parametrize(
    ("stop", "loses"),
    [
        (by_the_time_limit, False),
        (by_preemption, False),
        (by_a_lost_node, True),
        (by_a_dead_daemon, True),
        (by_a_killed_rank, True),
    ],
)
def test_a_training_that_is_stopped_ends_with_the_same_weights(
    checkout: Checkout, cluster: Cluster, tiny: str, undisturbed: str, stop: Stop, loses: bool
):
    job = start(checkout, tiny, REQUEUE_FAILED="yes" if loses else "no")
    run_dir = checkout.folder / "run"
    wait_until(lambda: checkpoints(run_dir), "the first checkpoint", PATIENCE_S)
    stop(cluster, checkout, job)
    assert cluster.wait_for_end(job, PATIENCE_S) == "COMPLETED"
    assert cluster.restarts(job) == 1
    assert weights(run_dir) == undisturbed
    stops, resumes = stops_and_resumes(run_dir)
    assert len(resumes) == 1
    assert loses or resumes == stops


def test_a_killed_rank_fails_a_job_that_is_not_to_come_back(
    checkout: Checkout, cluster: Cluster, tiny: str
):
    job = start(checkout, tiny)
    wait_until(lambda: checkpoints(checkout.folder / "run"), "the first checkpoint", PATIENCE_S)
    by_a_killed_rank(cluster, checkout, job)
    assert cluster.wait_for_end(job, 120) == "FAILED"  # srun gives the other 30 s
    assert cluster.restarts(job) == 0


@pytest.mark.parametrize("continuation", ["requeue", "array"])
def test_a_training_of_several_time_limits_ends_with_the_same_weights(
    checkout: Checkout, cluster: Cluster, tiny: str, several_minutes: str, continuation: str,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Two minutes per attempt, part of which is TensorFlow's start; SLURM may signal early."""
    site = {"SBATCH_TIMELIMIT": 2, "SBATCH_SIGNAL": "B:USR1@10", "CONTINUATION": continuation}
    job = start(checkout, tiny, SEVERAL_MINUTES, **site)
    assert cluster.wait_for_end(job, 3000) == "COMPLETED"
    assert weights(checkout.folder / "run") == several_minutes
    stops, resumes = stops_and_resumes(checkout.folder / "run")
    assert stops
    assert resumes == stops  # no step was lost
    with capsys.disabled():
        print(f"\n{continuation}: {len(stops)} times back, 0 steps lost, stopped {stops}")


def test_the_demo_from_a_clean_clone(checkout: Checkout, cluster: Cluster):
    """`galmerhpc submit configs/demo.yaml` over two nodes, and the same command again."""
    assert (ROOT / "configs" / "demo.yaml").exists()
    checkout.site(TRAIN_NODES=2, PREPROCESS_TASKS=2, SCRAPE_TASKS=2, SCRAPE_AT_ONCE=2)
    jobs = checkout.submit("configs/demo.yaml")
    for job in jobs.values():
        assert cluster.wait_for_end(job, PATIENCE_S) == "COMPLETED"
        assert cluster.job(job)["ExitCode"] == "0:0"
    run_dir = checkout.folder / "runs" / "demo"
    assert (run_dir / "evaluation" / "report.html").exists()
    assert "node[1-2]" in cluster.job(jobs["train"])["NodeList"]
    assert checkout.submit("configs/demo.yaml") == {}
    assert "complete; the report:" in checkout.galmerhpc("status", "runs/demo").stdout


def test_the_demo_in_one_job(checkout: Checkout, cluster: Cluster):
    """Two tasks, of which one evaluates for longer than srun waits for it once the other left."""
    job = checkout.sbatch("-p", "batch", "slurm/demo.sbatch", "training.epochs=1")
    assert cluster.wait_for_end(job, PATIENCE_S) == "COMPLETED"
    assert (checkout.folder / "runs" / "demo" / "evaluation" / "report.html").exists()


def test_a_study_s_tasks_share_what_the_first_to_come_makes(checkout, cluster):
    path = write_run(checkout.folder)
    values = yaml.safe_load(path.read_text())
    values["model"] = {"architecture": "table1_cnn"}
    values["training"]["epochs"] = 1
    path.write_text(yaml.safe_dump(values))
    done = checkout.galmerhpc("submit", path.name, "--study", "dropout", "studies.dropout=[0, 0.5]")
    assert done.returncode == 0, done.stderr
    job = re.findall(r"job (\d+)", done.stdout)[0]
    for task in ("1", "2"):
        assert cluster.wait_for_end(f"{job}_{task}", timeout_s=PATIENCE_S) == "COMPLETED"
    study = checkout.folder / "run/studies/dropout"
    assert [row["value"] for row in table.read(study / "results.csv")] == [0, 0.5]
    links = {(study / point / "shards").resolve() for point in ("0", "0.5")}
    assert links == {checkout.folder / "run/shards"}
    logs = [checkout.read_log("run", f"study-dropout-{job}_{task}.out") for task in ("1", "2")]
    assert sum("scrape: complete, nothing to do\npreprocess: comp" in log for log in logs) >= 1
    assert "study-dropout" in checkout.galmerhpc("status", "run").stdout
    again = checkout.galmerhpc("submit", path.name, "--study", "dropout", "studies.dropout=[0,0.5]")
    assert "study-dropout: complete" in again.stdout
