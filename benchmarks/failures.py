"""Seconds from the failure of a rank to the end of the job, against the promised limits.

    python benchmarks/failures.py [--stall-limit 60]

Two ranks train ResNet50 on a few small images of the shipped library. After the first checkpoint,
one of them raises an exception, is killed, or is stopped so that it hangs; the time is measured
from then to the end of mpirun. Each fault is tested on rank 0 and on rank 1.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import yaml
from machine import write_results

LIMIT_S = 15.0
"""Limit for exception and kill; for a hang, in addition to the stall limit."""

# A four-hundredth of the demo: two encounters, 56 views, 32 pixels.
RUNS = [
    {"spin": spin, "inclination_deg": i, "simulation": r, "snapshots": [{"id": k, "time_myr": 100}]}
    for spin, i, r, k in [
        ("prograde", 0, 0, 27415),
        ("prograde", 0, 1, 27439),
    ]
]
VIEWS = {
    "theta_deg": {"start": 0, "stop": 90, "step": 30},
    "phi_deg": {"start": 0, "stop": 180, "step": 30},
}


def prepare(folder: Path, stall_limit_s: float) -> Path:
    """Write a configuration and make its shards; return its path."""
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run_dir": str(folder / "run"),
                "catalogue": {"runs": RUNS, "views": VIEWS},
                "preprocess": {"image_size": 32},
                "split": {"tile_deg": 30},
                "training": {
                    "epochs": 100_000,
                    "batch_size": 16,
                    "statistics_batches": 1,
                    "stall_limit_s": stall_limit_s,
                },
            }
        )
    )
    for stage in ("scrape", "preprocess"):
        subprocess.run([sys.executable, "-m", "galmerhpc.cli", stage, str(path)], check=True)
    return path


def train_and_raise(config: str, raising_rank: int, told: Path) -> None:
    """Train as a rank of the job; one rank raises in its third epoch and records the time."""
    from galmerhpc import cli
    from galmerhpc.training import horovod
    from galmerhpc.training.train import Trainer

    finish = Trainer.finish_epoch

    def fail(trainer: Trainer) -> None:
        if horovod.rank() == raising_rank and trainer.progress.epoch == 2:
            told.write_text(repr(time.time()))
            raise RuntimeError("an exception of one rank")
        finish(trainer)

    with mock.patch.object(Trainer, "finish_epoch", fail):
        sys.exit(cli.main(["train", config]))


def start(*command: str) -> "subprocess.Popen[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mpirun = shutil.which("mpirun", path=path)
    if mpirun is None:
        sys.exit("no mpirun beside this python or on PATH: load the site's MPI, or make setup")
    launcher = [mpirun, "-np", "2", "--oversubscribe", "--bind-to", "none"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [*launcher, sys.executable, *command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def rank_process(job: "subprocess.Popen[str]", rank: int) -> int:
    """Return the process id of a rank."""
    for task in Path(f"/proc/{job.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables:
                return int(child)
    raise ProcessLookupError(f"no rank {rank}")


def wait_until(condition: Callable[[], bool], job: "subprocess.Popen[str]") -> None:
    while not condition():
        if job.poll() is not None:
            sys.exit(f"the training ended too early:\n{job.communicate()[0]}")
        time.sleep(0.01)


def measure(config: Path, fault: str, rank: int) -> tuple[float, int, str]:
    """Return seconds to the end, exit code, and the last line of output."""
    checkpoints = config.parent / "run/checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    if fault == "exception":
        told = config.parent / f"told-{rank}"
        job = start(__file__, "--train", str(config), str(rank), str(told))
        output, _ = job.communicate()
        end = time.time()
        if not told.exists():
            sys.exit(f"the training ended too early:\n{output}")
        began = float(told.read_text())
    else:
        job = start("-m", "galmerhpc.cli", "train", str(config))
        wait_until(lambda: any(checkpoints.glob("step-*")), job)
        began = time.time()
        os.kill(rank_process(job, rank), getattr(signal, fault))
        output, _ = job.communicate()
        end = time.time()
    said = [line for line in output.splitlines() if line.strip()]
    return end - began, job.returncode, "\n".join(said[-12:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stall-limit", type=float, default=60.0, metavar="S")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--verbose", action="store_true", help="show what each job said at its end")
    given = parser.parse_args()
    if given.train:
        train_and_raise(given.train[0], int(given.train[1]), Path(given.train[2]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder), given.stall_limit)
        print(f"{'fault':<10} {'rank':>4} {'seconds':>8} {'limit':>6} {'exit code':>9}")
        for fault in ("exception", "SIGKILL", "SIGSTOP"):
            limit = LIMIT_S + (given.stall_limit if fault == "SIGSTOP" else 0)
            for rank in (0, 1):
                seconds, code, said = measure(config, fault, rank)
                print(f"{fault:<10} {rank:>4} {seconds:>8.1f} {limit:>6.0f} {code:>9}", flush=True)
                if given.verbose:
                    print(said)
                rows.append(
                    {"fault": fault, "rank": rank, "seconds": seconds, "limit_s": limit,
                     "exit_code": code, "pass": seconds <= limit and code != 0}
                )  # fmt: skip
    write_results("failures", {"stall_limit_s": given.stall_limit, "faults": rows})


if __name__ == "__main__":
    main()
