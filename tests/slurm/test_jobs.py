"""Jobs on a real cluster: how ranks start, and how a stopped job resumes."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import yaml

from galmerhpc.dataset.raw import RawStore
from tests.servers import Reply, Service, gif, serve
from tests.slurm.cluster import GPU_TYPE, GPUS, GRACE_S, NODES, Cluster, wait_until
from tests.slurm.conftest import Checkout
from tests.support import ROOT

RANKS = str(ROOT / "tests" / "slurm" / "ranks.sbatch")


def ranks_of(checkout: Checkout, cluster: Cluster, *options: str) -> list[dict]:
    """Run a job and return what its ranks said of themselves, in order."""
    job = checkout.sbatch("--job-name=ranks", *options, RANKS)
    state = cluster.wait_for_end(job)
    text = (checkout.folder / "logs" / f"ranks-{job}.out").read_text()
    assert state == "COMPLETED", text
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("srun", ("--exclusive",)),  # whole nodes, as by hand
        ("srun", ("--exclusive", f"--gpus-per-node={GPUS}", "--ntasks-per-node=2")),
        ("mpirun", ("--exclusive", f"--gpus-per-node={GPU_TYPE}:{GPUS}")),
    ],
)
def test_one_task_a_gpu_each_with_its_own(checkout, cluster, launcher, options):
    checkout.site(LAUNCHER=launcher, GPUS_PER_NODE=GPUS)
    found = ranks_of(checkout, cluster, "--nodes=2", *options)
    assert [r["rank"] for r in found] == list(range(4))
    assert {r["size"] for r in found} == {4}
    assert {(r["node"], r["device"]) for r in found} == {(n, d) for n in NODES for d in "01"}
    assert {r["visible"] == ["0", "1"] for r in found} == {True}
    assert {r["threads"] for r in found} == {"2"}  # 4 CPUs over 2 tasks


def test_a_task_that_sees_one_gpu_takes_that(checkout, cluster):
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-task=1")
    found = ranks_of(checkout, cluster, *options)
    assert [(r["visible"], r["device"]) for r in found] == [(["0"], "0")] * 2


def test_the_doctor_looks_at_a_job(checkout, cluster):
    """Fake GPUs are there for SLURM and not for TensorFlow: it must say that."""
    job = checkout.sbatch("-p", "batch", "--gpus-per-node=1", "slurm/doctor.sbatch", ".")
    assert cluster.wait_for_end(job, timeout_s=300) == "FAILED"
    report = (checkout.folder / "logs" / f"doctor-{job}.out").read_text()
    assert "2 ranks" in report
    assert "GB/s per rank" in report
    for rank, node in ((0, "node1"), (1, "node2")):
        fault = f"rank {rank}: SLURM gives it GPU 0, TensorFlow sees none on {node}: install"
        assert fault in report
    assert report.count(" MB/s\n") == 2
    assert "Traceback" not in report


# --- jobs that are stopped ------------------------------------------------------------------------

FEW = 16
"""Views of the small harvest."""

BEFORE = 5
"""Views that are answered before the job is stopped."""


@contextmanager
def slow_service(cluster: Cluster) -> Iterator[tuple[Service, threading.Event]]:
    """Run a service that answers so many views and the others once its event is set."""
    go_on, answered, lock = threading.Event(), [0], threading.Lock()

    def behaviour(query: str, _attempt: int) -> Reply:
        with lock:
            answered[0] += 1
            first = answered[0] <= BEFORE
        if not first:
            go_on.wait(120)
        return Reply(gif(query))

    with serve(behaviour, cluster.address) as service:
        try:
            yield service, go_on
        finally:
            go_on.set()


def harvest(checkout: Checkout, url: str, step_deg: int = 30) -> str:
    """Write the configuration of a small harvest and return its name."""
    angles = {"start": 0, "stop": 90, "step": step_deg}
    run = {"spin": "prograde", "inclination_deg": 0, "snapshots": [{"id": 27415, "time_myr": 100}]}
    views = {"theta_deg": angles, "phi_deg": angles}
    values = {
        "run_dir": "run",
        "catalogue": {"runs": [run], "views": views, "render": {"nbins": 64}},
        "scrape": {"source": url, "connections": 2, "timeout_s": 100, "rate_per_s": None},
        "split": {"kind": "random"},
    }
    (checkout.folder / "harvest.yaml").write_text(yaml.safe_dump(values))
    return "harvest.yaml"


def by_the_time_limit(cluster: Cluster, job: str) -> None:
    cluster.run("scancel", "--batch", "--signal=USR1", job)


def by_preemption(cluster: Cluster, _job: str) -> None:
    cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
                "--wrap=true")  # fmt: skip


def by_preemption_without_grace(cluster: Cluster, job: str) -> None:
    """As is SLURM's default: srun ends the tasks at once, and SLURM itself requeues the job."""
    cluster.run("scontrol", "update", "PartitionName=batch", "GraceTime=0")
    by_preemption(cluster, job)


def by_a_lost_node(cluster: Cluster, job: str) -> None:
    node = cluster.job(job)["BatchHost"]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")


@pytest.fixture
def healed(cluster: Cluster) -> Iterator[None]:
    """Bring lost nodes and the grace time back."""
    yield
    cluster.run("scontrol", "update", "PartitionName=batch", f"GraceTime={GRACE_S}")
    for node in NODES:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    wait_until(cluster.idle, "all nodes idle")


@pytest.mark.usefixtures("healed")
@pytest.mark.parametrize(
    "stop", [by_the_time_limit, by_preemption, by_preemption_without_grace, by_a_lost_node]
)
def test_a_job_that_is_stopped_goes_on(
    checkout: Checkout, cluster: Cluster, stop: Callable[[Cluster, str], None]
):
    checkout.site(INTERNET_PARTITION="batch")
    with slow_service(cluster) as (service, go_on):
        config = harvest(checkout, service.url)
        job = checkout.submit(config)["scrape"]
        service.wait_for(BEFORE + 2)
        stop(cluster, job)
        wait_until(lambda: cluster.restarts(job) == 1, "the job back in the queue")
        go_on.set()
        assert cluster.wait_for_end(job, timeout_s=120) == "COMPLETED"
    store = RawStore(checkout.folder / "run" / "raw")
    assert len(store.ids()) == FEW
    # What had arrived was not asked for again; what was on its way may have been: one view of each
    # of the two connections, and where nobody was warned also one that was not yet on the disk.
    warned = stop in (by_the_time_limit, by_preemption)
    assert FEW <= service.asked.total() <= FEW + (2 if warned else 4)
    log = checkout.read_log("run", f"scrape-{job}_1.out")
    assert ("; requeued" in log) == warned


@pytest.mark.soak
def test_a_scrape_of_several_time_limits_asks_for_each_view_once(checkout, cluster):
    """SLURM's own signal, ahead of its own limit: it comes up to a minute early."""
    checkout.site(INTERNET_PARTITION="batch", SBATCH_TIMELIMIT=1, SBATCH_SIGNAL="B:USR1@10")
    with serve(host=cluster.address) as service:
        config = harvest(checkout, service.url, step_deg=9)
        job = checkout.submit(config, "scrape.rate_per_s=1.5")["scrape"]
        assert cluster.wait_for_end(job, timeout_s=600) == "COMPLETED"
    assert cluster.restarts(job) > 0
    assert service.asked.total() == len(service.asked) == 121


def test_a_task_of_an_array_that_is_stopped_comes_back_alone(checkout, cluster):
    """The last task has the array's number as its own."""
    checkout.site(INTERNET_PARTITION="batch", SCRAPE_TASKS=2, SCRAPE_AT_ONCE=2)
    with slow_service(cluster) as (service, go_on):
        job = checkout.submit(harvest(checkout, service.url), "scrape.connections=4")["scrape"]
        service.wait_for(BEFORE + 2)
        cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
        wait_until(lambda: cluster.restarts(f"{job}_2") == 1, "the task back in the queue")
        go_on.set()
        assert cluster.wait_for_end(job, timeout_s=120) == "COMPLETED"
    assert cluster.restarts(f"{job}_1") == 0
    assert cluster.states(job) == ["COMPLETED"] * 2
    assert len(RawStore(checkout.folder / "run" / "raw").ids()) == FEW


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[ -z "${SLURM_JOB_ID:-}" ]', "its load_environment fails on"),
        ('[ -z "$NEVER_SET" ]', ""),  # as modules and conda do
    ],
)
def test_load_environment_fails_where_a_line_of_it_does(checkout, cluster, line, said):
    path = checkout.folder / "slurm" / "site.sh"
    path.write_text(path.read_text().replace("  # module load", f"  {line}\n  # module load"))
    job = checkout.sbatch("--job-name=ranks", "--nodes=1", RANKS)
    assert cluster.wait_for_end(job) == ("FAILED" if said else "COMPLETED")
    assert said in (checkout.folder / "logs" / f"ranks-{job}.out").read_text()


def test_a_job_whose_tasks_fail_does_not_come_back(checkout, cluster):
    """The task that finds the fault ends the others, by the signal that a preemption sends too."""
    config = harvest(checkout, "mirror")
    (checkout.folder / "run" / "logs").mkdir(parents=True)
    job = checkout.sbatch("-p", "batch", "--ntasks=4", "slurm/preprocess.sbatch", config)
    assert cluster.wait_for_end(job) == "FAILED"
    assert cluster.restarts(job) == 0
    assert "scrape" in (checkout.folder / "logs" / f"preprocess-{job}.out").read_text()


def test_a_cancelled_job_stays_cancelled(checkout, cluster):
    checkout.site(INTERNET_PARTITION="batch")
    with slow_service(cluster) as (service, _):
        config = harvest(checkout, service.url)
        jobs = checkout.submit(config)
        service.wait_for(BEFORE + 2)
        checkout.galmerhpc("cancel", "run")
        for job in jobs.values():
            assert cluster.wait_for_end(job) == "CANCELLED"
    assert cluster.restarts(jobs["scrape"]) == 0


@pytest.mark.soak
def test_a_killed_rank_fails_the_job_or_brings_it_back_as_the_site_says(checkout, cluster):
    for requeued, state in (("no", "FAILED"), ("yes", "COMPLETED")):
        checkout.site(INTERNET_PARTITION="batch", REQUEUE_FAILED=requeued)
        with slow_service(cluster) as (service, go_on):
            config = harvest(checkout, service.url)
            job = checkout.submit(config, f"run_dir=run-{requeued}")["scrape"]
            service.wait_for(BEFORE + 2)
            cluster.run("scancel", "--signal=KILL", f"{job}.0")
            if requeued == "yes":
                wait_until(lambda j=job: cluster.restarts(j) == 1, "the job back in the queue")
            go_on.set()
            assert cluster.wait_for_end(job) == state
        assert cluster.restarts(job) == (requeued == "yes")


RATE = 8


def test_tasks_of_an_array_share_the_views_and_the_rate(checkout, cluster):
    checkout.site(INTERNET_PARTITION="batch", SCRAPE_TASKS=4, SCRAPE_AT_ONCE=2)
    with serve(host=cluster.address) as service:
        config = harvest(checkout, service.url)
        job = checkout.submit(config, f"scrape.rate_per_s={RATE}", "scrape.connections=4")["scrape"]
        assert cluster.wait_for_end(job, timeout_s=120) == "COMPLETED"
    assert cluster.states(job) == ["COMPLETED"] * 4
    assert service.asked.total() == len(service.asked) == FEW
    assert len(RawStore(checkout.folder / "run" / "raw").ids()) == FEW
    at_once = [sum(t <= other < t + 1 for other in service.arrivals) for t in service.arrivals]
    assert max(at_once) <= RATE + 1


KILLS = 8


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_an_array_whose_tasks_are_killed_at_random_fetches_each_view(checkout, cluster, seed):
    checkout.site(INTERNET_PARTITION="batch", SCRAPE_TASKS=4, SCRAPE_AT_ONCE=2)
    draw = random.Random(seed)
    with serve(host=cluster.address) as service:
        config = harvest(checkout, service.url, step_deg=6)
        views, killed = 256, 0
        options = ("scrape.rate_per_s=40", "scrape.connections=4")
        while "scrape" in (jobs := checkout.submit(config, *options)):
            job, undisturbed = jobs["scrape"], killed == KILLS
            while killed < KILLS and not is_over(cluster, job):
                aim = service.asked.total() + draw.randrange(10, 40)
                wait_until(
                    lambda n=aim, j=job: service.asked.total() >= n or is_over(cluster, j),
                    "requests",
                    120,
                )
                task = draw.randrange(1, 5)
                cluster.run("scancel", "--signal=KILL", f"{job}_{task}.0", check=False)
                killed += 1
            cluster.wait_for_end(job, timeout_s=240)
            assert not undisturbed or set(cluster.states(job)) == {"COMPLETED"}
    store = RawStore(checkout.folder / "run" / "raw")
    assert len(store.ids()) == len(service.asked) == views
    at_once = [sum(t <= other < t + 1 for other in service.arrivals) for t in service.arrivals]
    assert max(at_once) <= 40 * 1.05


def is_over(cluster: Cluster, job: str) -> bool:
    """Return whether no task of an array runs or waits any more."""
    return not {"PENDING", "RUNNING", "COMPLETING"} & set(cluster.states(job))
