"""What the doctor makes of a job's ranks; `tests/slurm` runs it in a real job."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from galmerhpc.cluster.job_doctor import Findings, judge
from galmerhpc.errors import ExitCode
from tests.support import mpirun

FAST_S = 0.02


def ranks(nodes: int = 2, each: int = 2, **changes: object) -> list[Findings]:
    """Return what healthy ranks find, a GPU each."""
    return [
        replace(
            Findings(
                rank=node * each + k,
                local_rank=k,
                host=f"node{node}",
                cpus=8,
                node_cpus=16,
                versions="galmerhpc 1, tensorflow 2",
                device=str(k),
                gpus=each,
                granted=each,
                nccl=True,
                read_mb_s=900.0,
            ),
            **changes,
        )
        for node in range(nodes)
        for k in range(each)
    ]


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "GPUS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_wrong_with_a_healthy_job():
    report = judge(ranks(), FAST_S)
    assert not report.errors
    assert not report.notes
    assert "node0 (2), node1 (2)" in str(report)
    # 102.4 MB in 20 ms over 4 ranks: each sends 3/2 of them.
    assert "102 MB in 20 ms, 7.68 GB/s per rank" in str(report)


def test_no_gpus_are_nothing_wrong():
    assert not judge(ranks(device="", gpus=0, granted=0, nccl=False), 1.0).errors


@pytest.mark.parametrize(
    ("changes", "seconds", "message"),
    [
        ({"gpus": 0}, FAST_S, "SLURM gives it GPU 0, TensorFlow sees none on node0: install"),
        ({"device": "0"}, FAST_S, "2 ranks of node0 share GPU 0: start one task per GPU"),
        ({"gpus": 4}, FAST_S, "node1: ranks 2, GPUs 4: start one task per GPU, with sbatch --gpus"),
        ({"granted": 4}, FAST_S, "node0: ranks 2, GPUs 4: start one task per GPU"),
        (
            {"device": "", "gpus": 1, "granted": 0, "each": 1, "nccl": False},
            FAST_S,
            "Horovod has no NCCL on node0, node1, so that GPUs exchange gradients through the "
            "hosts' memory: pip uninstall horovod, then run scripts/install_horovod.sh --gpu",
        ),
        ({"cpus": 1}, FAST_S, "rank 0 has one CPU of 16: raise CPUS_PER_TASK"),
        ({}, 1.0, "all-reduce runs at 0.15 GB/s: set NETWORK_INTERFACE"),
        ({"read_mb_s": 3.0}, FAST_S, "rank 0 reads 3 MB/s: put the run folder on the parallel"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(changes, seconds, message):
    report = judge(ranks(**changes), seconds)
    assert any(message in line for line in report.errors + report.notes), report


def test_ranks_that_see_one_gpu_each_share_none():
    assert not judge(ranks(device="0", gpus=1), FAST_S).errors


@pytest.mark.parametrize("device", ["0", ""])
def test_a_node_whose_driver_shows_no_gpu_is_named_and_the_all_reduce_left_out(device):
    found = ranks(each=1, device=device)
    found[1] = replace(found[1], gpus=0)
    report = judge(found, None)
    assert "not measured, since only some ranks have a GPU" in str(report)
    (error,) = report.errors
    assert error.startswith("rank 1: ")
    assert "TensorFlow sees none on node1: install" in error


def test_one_rank_alone_needs_no_nccl():
    assert not judge(ranks(1, 1, nccl=False), None).errors


def test_gpus_of_the_site_that_the_job_did_not_get_are_an_error(monkeypatch):
    monkeypatch.setenv("GPUS_PER_NODE", "4")
    (error,) = judge(ranks(device="", gpus=0, granted=0), FAST_S).errors
    assert "GPUS_PER_NODE of slurm/site.sh is 4: ask for them with sbatch --gpus-per-node=" in error
    assert not judge(ranks(), FAST_S).errors


def test_a_node_with_other_versions_is_named():
    found = ranks()
    found[3] = replace(found[3], versions="galmerhpc 1, tensorflow 3")
    (error,) = judge(found, FAST_S).errors
    assert error.startswith("node1 has other versions than node0")


def test_tasks_that_mpi_does_not_know_are_an_error(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    (error,) = judge(ranks(1, 1), FAST_S).errors
    assert "SLURM started 4 tasks, MPI knows one: MPI_PLUGIN" in error


ONE_GPU = """
import sys
import tensorflow as tf
from galmerhpc import cli, parallel
if parallel.rank() == 0:
    tf.config.list_physical_devices = lambda kind: ["GPU:0"]
sys.exit(cli.main(["doctor", "--job", sys.argv[1]]))
"""


@pytest.mark.soak
def test_ranks_of_which_one_has_a_gpu_come_to_a_report(tmp_path: Path):
    done = mpirun(2, sys.executable, "-c", ONE_GPU, str(tmp_path), timeout=300)
    assert done.returncode == ExitCode.FAILED
    assert "ERROR: rank 1: other ranks have a GPU, TensorFlow sees none" in done.stdout
