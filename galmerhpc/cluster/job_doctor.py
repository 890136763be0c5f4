"""``galmerhpc doctor --job RUN``: what this job's tasks have, measurements, and what is wrong.

Runs on every rank under the job's launcher (``slurm/doctor.sbatch``). Rank 0 gathers the findings
and prints one report.
"""

import os
import socket
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from galmerhpc import devices, parallel, provenance
from galmerhpc.cluster.doctor import Report
from galmerhpc.errors import ExitCode, InputError
from galmerhpc.training import horovod

GRADIENT_BYTES = 102_400_000
"""Size of the all-reduce: ResNet50's gradient in float32, rounded."""

REPEATS = 5

READ_BYTES = 256_000_000
"""Read by each rank; more than disk caches, and under a minute at 10 MB/s per rank."""

SLOW_NETWORK_GB_S = 1.0
"""Between GPU nodes: anything slower is the management network."""

SLOW_READ_MB_S = 50.0
"""Per rank: a ResNet50 on a fast GPU reads 12 kB (64 px) a few thousand times per second."""

_STALL_LIMIT_S = 60.0
_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class Findings:
    """What one rank has.

    Attributes
    ----------
    rank, local_rank : int
        Its rank in the job and on its node.
    host : str
        Its node.
    cpus : int
        Its CPUs.
    node_cpus : int
        CPUs of the node.
    versions : str
        Of everything that must not differ between nodes.
    device : str
        Its entry of CUDA_VISIBLE_DEVICES; empty if there is none.
    gpus : int
        GPUs that TensorFlow sees.
    granted : int
        GPUs of its node that SLURM gave to the job; 0 if SLURM names none.
    nccl : bool
        Whether its Horovod has NCCL.
    read_mb_s : float
        Its read rate from the run folder, with all ranks reading.
    """

    rank: int
    local_rank: int
    host: str
    cpus: int
    node_cpus: int
    versions: str
    device: str
    gpus: int
    granted: int
    nccl: bool
    read_mb_s: float


def doctor_job(run_dir: Path) -> ExitCode:
    """Check this job, print the report on rank 0 and return the exit code.

    Raises
    ------
    InputError
        The folder does not exist, or no launcher started this.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such folder; give the run folder, or any on its disk")
    parallel.communicator()  # refuses tasks that srun started without MPI
    horovod.init(_STALL_LIMIT_S)
    mine = examine_rank(run_dir)
    # With GPUs on some ranks only, it would crash or hang.
    alike = parallel.agree(mine.gpus > 0) or parallel.agree(mine.gpus == 0)
    seconds = time_all_reduce(mine.local_rank) if alike else None
    found = parallel.gather(mine)
    if parallel.rank() > 0:
        return ExitCode.COMPLETE
    report = judge(found, seconds)
    print(report, flush=True)
    return ExitCode.FAILED if report.errors else ExitCode.COMPLETE


def examine_rank(run_dir: Path) -> Findings:
    """Return what this rank has; collective, since all ranks read at once."""
    import tensorflow as tf

    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    local_rank = parallel.local_rank()  # collective: also without a GPU to choose
    gpus = len(tf.config.list_physical_devices("GPU"))
    parallel.barrier()
    return Findings(
        rank=parallel.rank(),
        local_rank=local_rank,
        host=socket.gethostname(),
        cpus=parallel.cpus_per_rank(parallel.local_size()),
        node_cpus=os.cpu_count() or 1,
        versions=", ".join(f"{name} {v}" for name, v in provenance.versions().items()),
        device=parallel.own_device(visible, local_rank) if visible else "",
        gpus=gpus,
        granted=_count("SLURM_GPUS_ON_NODE"),
        nccl=horovod.has_nccl(),
        read_mb_s=read_rate(run_dir) / 1e6,
    )


def _count(variable: str) -> int:
    """Return an environment variable as a number; 0 if it is not one."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def time_all_reduce(local_rank: int) -> float:
    """Return the median seconds of the sum of a ResNet50's gradient over all ranks."""
    import tensorflow as tf

    devices.take_gpu(local_rank)
    gradient = tf.ones(GRADIENT_BYTES // 4)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        (total,) = horovod.sum_tensors([gradient])
        total[0].numpy()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first one makes the connections


def read_rate(run_dir: Path) -> float:
    """Return this rank's read rate from the folder's disk, past the cache, in bytes/s.

    It reads the run's data or, if there is too little, a file that it writes and removes again.
    """
    files = sorted(run_dir.rglob("*.h5"))
    if sum(path.stat().st_size for path in files) >= READ_BYTES:
        # Each rank starts at another file, so that none reads from another's cache.
        first = parallel.rank() * len(files) // parallel.size()
        return _read(files[first:] + files[:first])
    scratch = run_dir / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        with scratch.open("wb") as file:
            block = np.random.default_rng(parallel.rank()).bytes(_BLOCK)
            for _ in range(READ_BYTES // _BLOCK):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        parallel.barrier()
        return _read([scratch])
    except OSError as error:
        raise InputError(f"{scratch}: cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)


def _read(files: list[Path]) -> float:
    done, start = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while done < READ_BYTES and (block := file.read(_BLOCK)):
                done += len(block)
    return done / (time.perf_counter() - start)


def judge(found: list[Findings], all_reduce_s: float | None) -> Report:
    """Return the report on all ranks' findings.

    Parameters
    ----------
    found : list of Findings
        In rank order.
    all_reduce_s : float or None
        Seconds of the sum of `GRADIENT_BYTES` over all ranks; None if only some have a GPU.
    """
    report = Report()
    hosts = Counter(f.host for f in found)
    report.row("job", f"{os.environ.get('SLURM_JOB_ID', 'none')}, {len(found)} ranks")
    report.row("nodes", ", ".join(f"{host} ({count})" for host, count in hosts.items()))
    report.row("versions", found[0].versions)
    for f in found:
        device = f", GPU {f.device}" if f.device else ""
        report.row(
            f"rank {f.rank}",
            f"{f.host}, {f.cpus} of {f.node_cpus} CPUs{device}, reads {f.read_mb_s:.0f} MB/s",
        )
    if len(found) > 1:
        _judge_all_reduce(report, found, all_reduce_s)
    _judge_ranks(report, found)
    _judge_gpus(report, found)
    slowest = min(found, key=lambda f: f.read_mb_s)
    if slowest.read_mb_s < SLOW_READ_MB_S:
        report.notes.append(
            f"rank {slowest.rank} reads {slowest.read_mb_s:.0f} MB/s: put the run folder on the "
            "parallel file system (RUNS_FOLDER of slurm/site.sh)"
        )
    return report


def _judge_all_reduce(report: Report, found: list[Findings], seconds: float | None) -> None:
    if seconds is None:
        report.row("all-reduce", "not measured, since only some ranks have a GPU")
        return
    # What each rank sends and receives in a ring (Patarasuk & Yuan 2009), to be comparable with the
    # network's rate for any number of ranks.
    ring = 2 * (len(found) - 1) / len(found) * GRADIENT_BYTES / seconds / 1e9
    report.row(
        "all-reduce",
        f"{GRADIENT_BYTES / 1e6:.0f} MB in {seconds * 1e3:.0f} ms, {ring:.2f} GB/s per rank",
    )
    several_nodes = len({f.host for f in found}) > 1
    if any(f.gpus for f in found) and several_nodes and ring < SLOW_NETWORK_GB_S:
        report.notes.append(
            f"all-reduce runs at {ring:.2f} GB/s: set NETWORK_INTERFACE in slurm/site.sh to the "
            "fast network's, and look at NCCL_DEBUG=INFO"
        )


def _judge_gpus(report: Report, found: list[Findings]) -> None:
    """Judge the GPUs of each node, and what Horovod does with them."""
    on_site = _count("GPUS_PER_NODE")  # from slurm/site.sh, by slurm/job.sh
    if on_site and not any(f.gpus or f.device for f in found):
        report.errors.append(
            f"no rank has a GPU, but GPUS_PER_NODE of slurm/site.sh is {on_site}: ask for them "
            f"with sbatch --gpus-per-node={on_site}, in a partition whose nodes have them"
        )
    for host in dict.fromkeys(f.host for f in found):
        here = [f for f in found if f.host == host]
        gpus = max(max(f.gpus, f.granted) for f in here)
        # With --gpus-per-task each rank sees its own GPU under the same number.
        alone = all(f.gpus == 1 for f in here) and len(here) > 1
        if alone or not all(f.gpus for f in here):
            continue
        if len(here) != gpus:
            report.errors.append(
                f"{host}: ranks {len(here)}, GPUs {gpus}: start one task per GPU, with sbatch "
                f"--gpus-per-node={gpus}, or with TASKS_PER_NODE={gpus} in slurm/site.sh where "
                "SLURM does not list GPUs"
            )
            continue
        for device, count in Counter(f.device for f in here if f.device).items():
            if count > 1:
                report.errors.append(
                    f"{count} ranks of {host} share GPU {device}: start one task per GPU"
                )
    without = dict.fromkeys(f.host for f in found if not f.nccl)
    if len(found) > 1 and without and any(f.gpus for f in found):
        report.errors.append(
            f"Horovod has no NCCL on {', '.join(without)}, so that GPUs exchange gradients through "
            "the hosts' memory: pip uninstall horovod, then run scripts/install_horovod.sh --gpu"
        )


def _judge_ranks(report: Report, found: list[Findings]) -> None:
    tasks = int(os.environ.get("SLURM_NTASKS", len(found)))
    some_have_gpus = any(f.gpus for f in found)
    if len(found) == 1 < tasks:
        report.errors.append(
            f"SLURM started {tasks} tasks, MPI knows one: MPI_PLUGIN of slurm/site.sh is not the "
            "one that this MPI was built for (srun --mpi=list); change it, or set LAUNCHER=mpirun"
        )
    for f in found:
        if f.versions != found[0].versions:
            report.errors.append(f"{f.host} has other versions than {found[0].host}: {f.versions}")
        if f.cpus == 1 < f.node_cpus // max(1, sum(g.host == f.host for g in found)):
            report.notes.append(
                f"rank {f.rank} has one CPU of {f.node_cpus}: raise CPUS_PER_TASK in slurm/site.sh"
            )
        if not f.gpus and (f.device or some_have_gpus):
            given = f"SLURM gives it GPU {f.device}" if f.device else "other ranks have a GPU"
            report.errors.append(
                f"rank {f.rank}: {given}, TensorFlow sees none on {f.host}: install "
                "galmerhpc[gpu], and look for the driver with nvidia-smi"
            )
