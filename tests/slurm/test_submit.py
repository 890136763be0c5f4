"""`galmerhpc submit`, `status` and `cancel` on a real cluster: what is refused, what is queued."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from galmerhpc.cluster.stages import STAGES
from galmerhpc.config import load
from galmerhpc.dataset.records import StageRecord
from galmerhpc.errors import ExitCode
from galmerhpc.simulate.library import library_path
from tests.conftest import write_run
from tests.slurm.cluster import GPU_TYPE, GPUS, Cluster, wait_until
from tests.slurm.conftest import Checkout, nothing_starts
from tests.support import BIN


@pytest.fixture
def tiny(checkout: Checkout) -> str:
    """Write the tiny run into the checkout and return its configuration's name."""
    return write_run(checkout.folder).name


def change(path: Path, **sections: object) -> None:
    """Change top-level keys of a configuration file."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))


def test_a_dry_run_prints_the_chain_and_leaves_no_trace(checkout, cluster, tiny):
    scratch = checkout.folder / "scratch"
    checkout.site(
        TRAIN_NODES=2, SCRAPE_TASKS=4, SCRAPE_AT_ONCE=2, MAIL_USER="a@b.org", RUNS_FOLDER=scratch,
        GPUS_PER_NODE=GPUS, GPU_TYPE=GPU_TYPE,
    )  # fmt: skip
    done = checkout.galmerhpc("submit", tiny, "training.epochs=5", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" slurm/")[1].split(".sbatch")[0] for line in lines] == list(STAGES)
    assert all(line.endswith(f"{tiny} training.epochs=5") for line in lines)
    assert "--array=1-4%2" in lines[0]
    assert "--nodes=2 --ntasks-per-node=2 --cpus-per-task=1 --gpus-per-node=fake:2" in lines[2]
    assert "6 images at once on a rank (training.batch_size 25 over 4 ranks" in done.stderr
    assert "--cpus-per-task=1 --gpus-per-node=fake:1" in lines[3]
    for line, before in zip(lines[1:], STAGES, strict=False):
        assert f"afterok:<{before}>" in line
        assert "--kill-on-invalid-dep=yes" in line
    assert all("--mail-user=a@b.org" in line for line in lines)
    assert not cluster.run("squeue", "--noheader")
    assert not (checkout.folder / "run").exists()
    assert (checkout.folder / "runs").readlink() == scratch


def test_nodes_are_chosen_by_words_for_sbatch_where_partitions_are_not(checkout, cluster, tiny):
    checkout.site(
        CPU_PARTITION="", CPU_SBATCH_OPTIONS="'-A cpus --comment=\"two words\"'",
        GPU_SBATCH_OPTIONS="--comment=gpu",
    )  # fmt: skip
    done = checkout.galmerhpc("submit", tiny, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--partition" not in done.stdout
    for line, words in zip(
        done.stdout.splitlines(), ["-A cpus '--comment=two words'"] * 2 + ["--comment=gpu"] * 2,
        strict=True,
    ):  # fmt: skip
        assert f" {words} slurm/" in line
    with nothing_starts(cluster):
        jobs = checkout.submit(tiny)
        assert cluster.job(jobs["train"])["Comment"] == "gpu"


def test_submitting_again_submits_nothing_and_cancel_ends_it(checkout, cluster, tiny):
    with nothing_starts(cluster):
        jobs = checkout.submit(tiny, "--nodes", "2")
        assert list(jobs) == list(STAGES)
        again = checkout.galmerhpc("submit", tiny, "--nodes", "2")
        assert again.stdout.count("is pending already") == len(STAGES)
        other = checkout.galmerhpc("submit", tiny, "training.epochs=9")
        assert other.returncode == ExitCode.WRONG_INPUT
        assert f"by another command (galmerhpc submit --nodes 2 {tiny}); " in other.stderr
        assert len(cluster.run("squeue", "--noheader").splitlines()) == len(STAGES)
        train = cluster.job(jobs["train"])
        assert train["NumNodes"] == "2-2"
        assert train["OverSubscribe"] == "NO"
        assert train["TimeLimit"] == "1-00:00:00"
        assert train["Requeue"] == "1"

        status = checkout.galmerhpc("status", "run")
        assert status.returncode == 0, status.stderr
        for stage in STAGES[1:]:
            assert f"{jobs[stage]}" in status.stdout
        assert status.stdout.count("PENDING (Dependency)") == 3
        assert "PENDING (PartitionDown)" in status.stdout

        # Another run folder's jobs are its own.
        other = checkout.submit(tiny, "run_dir=other")
        done = checkout.galmerhpc("cancel", "run")
        assert done.returncode == 0, done.stderr
        for number in jobs.values():
            assert cluster.states(number) == ["CANCELLED"]
        assert cluster.states(other["train"]) == ["PENDING"]
        assert "no job" in checkout.galmerhpc("cancel", "run").stdout
        assert list(checkout.submit(tiny)) == list(STAGES)


def test_two_submissions_at_once_make_one_chain(checkout, cluster, tiny):
    with nothing_starts(cluster):
        command = [str(BIN / "galmerhpc"), "submit", tiny]
        both = [
            subprocess.Popen(
                command, cwd=checkout.folder, env=checkout.environment, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for _ in range(2)
        ]  # fmt: skip
        for process in both:
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 0 or "in use by process" in said
        assert len(cluster.run("squeue", "--noheader").splitlines()) == len(STAGES)


def test_a_job_that_is_just_ending_is_waited_for(checkout, cluster, tiny):
    """It may have ended, or be on its way back into the queue: SLURM does not say."""
    jobs = checkout.submit(tiny)
    wait_until(lambda: cluster.states(jobs["scrape"]) == ["RUNNING"], "the scrape's start")
    node = cluster.job(jobs["scrape"])["BatchHost"]
    cluster.signal_daemon(node, signal.SIGSTOP)
    try:
        cluster.run("scancel", *jobs.values())
        wait_until(lambda: "COMPLETING" in cluster.run("squeue", "-ho", "%T"), "the end")
        done = checkout.galmerhpc("submit", tiny)
    finally:
        cluster.signal_daemon(node, signal.SIGCONT)
    assert done.returncode == ExitCode.FAILED
    assert f"run: job {jobs['scrape']} is just ending; submit again" in done.stderr
    wait_until(lambda: not cluster.run("squeue", "--noheader"), "an empty queue")
    with nothing_starts(cluster):
        assert list(checkout.submit(tiny)) == list(STAGES)


def test_a_run_folder_of_any_name_is_a_run(checkout, cluster, tiny):
    name = "50%_of, a|run"
    with nothing_starts(cluster):
        jobs = checkout.submit(tiny, f"run_dir={name}")
        assert checkout.submit(tiny, f"run_dir={name}") == {}
        assert cluster.job(jobs["train"])["JobName"].startswith("train-50-_of--a-run-")
        checkout.run("scancel", jobs["evaluate"])
        status = checkout.galmerhpc("status", name).stdout
        assert "not in the queue; continue evaluate with: galmerhpc submit" in status
        assert list(checkout.submit(tiny, f"run_dir={name}")) == ["evaluate"]


def module_of(checkout: Checkout) -> None:
    path = checkout.folder / "slurm" / "site.sh"
    text = path.read_text().replace("  # module load openmpi cuda", "  module load no-such/1.0")
    path.write_text(text)


@pytest.mark.parametrize(
    ("site", "arguments", "message"),
    [
        (
            {"CPU_PARTITION": "nosuch"},
            (),
            "SLURM refuses --partition=nosuch --array=1-1%1: allocation failure: Invalid part",
        ),
        (
            {"CPU_SBATCH_OPTIONS": "'--comment=x --constraint=none'"},
            (),
            "SLURM refuses --partition=batch --array=1-1%1 --comment=x --constraint=none: ",
        ),
        ({"GPU_SBATCH_OPTIONS": '"-C \'gpu"'}, (), "GPU_SBATCH_OPTIONS is not a list of words: "),
        ({"MPI_PLUGIN": ""}, (), "MPI_PLUGIN is empty"),
        ({"CPU_PARTITION": "'a b'"}, (), "CPU_PARTITION must be a name, not 'a b'"),
        ({"GPUS_PER_NODE": "two"}, (), "GPUS_PER_NODE must be an integer >= 0"),
        ({"TASKS_PER_NODE": 0}, (), "TASKS_PER_NODE must be an integer >= 1, not '0'"),
        ({"LAUNCHER": "mpiexec"}, (), "LAUNCHER must be srun or mpirun, not 'mpiexec'"),
        ({"MPI_PLUGIN": "pmix99"}, (), "MPI_PLUGIN pmix99: srun has no such plugin"),
        ({"GPUS_PER_NODE": 1, "GPU_TYPE": "h100"}, (), "SLURM refuses --partition=batch --nodes=1"),
        (
            {"SCRAPE_TASKS": 3},
            ("scrape.connections=2",),
            "scrape.connections 2 is less than one for each of 3 array tasks",
        ),
        ({"SCRAPE_TASKS": 1024}, ("scrape.connections=1024",), "Invalid job array specification"),
        ({"CONTINUATION": "hope"}, (), "CONTINUATION must be requeue or array"),
        ({"CPUS_PER_TASK": 99}, (), "Requested node configuration is not available"),
        ({}, ("--nodes", "9"), "Requested node configuration is not available"),
        ({}, ("--nodes", "0"), "must be a positive integer, not '0'"),
        (
            {"GPUS_PER_NODE": GPUS},
            ("--gpus-per-node", "3"),
            "a node has 2 (GPUS_PER_NODE of slurm/site.sh)",
        ),
        ({}, ("--from", "train"), "--from train: scrape of"),
        ({}, ("training.batch_size=1", "--nodes", "2"), "leaves some of 2 tasks without images"),
        (
            {},
            ("scrape.source=http://galmer.example",),
            "slurm/site.sh names no INTERNET_PARTITION: run galmerhpc scrape on a node with",
        ),
        (
            {},
            ("split.kind=inclination", "split.test_inclination_deg=30"),
            "split.test_inclination_deg: the catalogue has no inclination 30",
        ),
        ({}, ("library=none.h5",), "none.h5: no such snapshot library; make it with galmerhpc sim"),
        ({}, ("run_dir=run.yaml/run",), "run.yaml/run"),
        ({}, ("training.epoch=3",), "did you mean epochs?"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    checkout, cluster: Cluster, tiny: str, site: dict, arguments: tuple, message: str
):
    checkout.site(**site)
    done = checkout.galmerhpc("submit", tiny, *arguments)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if "usage:" not in done.stderr:
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not cluster.run("squeue", "--noheader")
    assert not (checkout.folder / "run").exists()


def test_a_missing_site_file_module_or_value_is_named(checkout, cluster, tiny):
    module_of(checkout)
    done = checkout.galmerhpc("submit", tiny)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "load_environment fails" in done.stderr
    assert "module" in done.stderr
    path = checkout.folder / "slurm" / "site.sh"
    path.write_text(path.read_text().replace("export MPI_PLUGIN=pmix", ""))
    done = checkout.galmerhpc("submit", tiny)
    assert "MPI_PLUGIN is missing; slurm/site.example.sh explains it" in done.stderr
    with path.open("a") as file:
        file.write("export MPI_PLUGIN=pmix SBATCH_CLUSTERS=other\n")
    done = checkout.galmerhpc("submit", tiny)
    assert "SBATCH_CLUSTERS=other: the jobs of a run are looked for on one cluster" in done.stderr
    path.write_text("export CPU_PARTITION=(\n")
    done = checkout.galmerhpc("submit", tiny)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "unexpected EOF" in done.stderr
    path.unlink()
    done = checkout.galmerhpc("submit", tiny)
    assert "copy slurm/site.example.sh to it and fill it in" in done.stderr
    assert not cluster.run("squeue", "--noheader")


def test_a_job_that_no_partition_would_ever_start_is_refused(checkout, cluster, tiny):
    cluster.run("scontrol", "update", "PartitionName=batch", "MaxTime=90")
    try:
        done = checkout.galmerhpc("submit", tiny)
        checkout.site(SBATCH_TIMELIMIT="1:30:00")
        fits = checkout.galmerhpc("submit", tiny, "--dry-run")
    finally:
        cluster.run("scontrol", "update", "PartitionName=batch", "MaxTime=INFINITE")
    assert done.returncode == ExitCode.WRONG_INPUT
    asked = "scrape: asks for a time of 24:00:00, but its partition allows 1:30:00"
    assert f"{asked}: set SBATCH_TIMELIMIT in slurm/site.sh" in done.stderr
    assert fits.returncode == 0, fits.stderr


def test_nodes_that_are_down_are_waited_for(checkout, cluster, tiny):
    cluster.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=test")
    try:
        done = checkout.galmerhpc("submit", tiny, "--nodes", "2", "--dry-run")
    finally:
        cluster.run("scontrol", "update", "NodeName=node1", "State=RESUME")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(STAGES)
    (note,) = done.stderr.splitlines()
    assert note.startswith("train: waits for nodes that are down or busy now (--partition=batch")


def test_a_stage_that_fails_ends_the_chain_and_the_mended_one_goes_on(checkout, cluster, tiny):
    library = checkout.folder / "library.h5"
    change(checkout.folder / tiny, library=library.name)
    shutil.copy(library_path("shipped"), library)
    with nothing_starts(cluster):
        jobs = checkout.submit(tiny)
        library.unlink()
    assert cluster.wait_for_end(jobs["scrape"]) == "FAILED"
    for stage in STAGES[1:]:
        assert cluster.wait_for_end(jobs[stage]) == "CANCELLED"
    status = checkout.galmerhpc("status", "run").stdout
    assert "FAILED" in status
    assert "library.h5: no such snapshot library" in status
    assert f"continue scrape with: galmerhpc submit {tiny}" in status

    shutil.copy(library_path("shipped"), library)
    jobs = checkout.submit(tiny)
    assert cluster.wait_for_end(jobs["preprocess"], timeout_s=120) == "COMPLETED"
    checkout.galmerhpc("cancel", "run")
    status = checkout.galmerhpc("status", "run").stdout
    assert "continue train with" in status
    assert [line.split()[2] for line in status.splitlines()[1:3]] == ["complete", "complete"]
    with nothing_starts(cluster):
        assert list(checkout.submit(tiny)) == ["train", "evaluate"]
        assert not checkout.submit(tiny, "--from", "train")


def test_views_that_failed_are_settled_by_an_option(checkout, cluster, tiny):
    options = ("--retry-failed", "--allow-missing")
    dry = checkout.galmerhpc("submit", tiny, *options, "--dry-run").stdout.splitlines()
    assert dry[0].endswith(f"slurm/scrape.sbatch {tiny} {' '.join(options)}")
    assert not any("--allow-missing" in line for line in dry[1:])
    script = checkout.sbatch("-p", "batch", "slurm/scrape.sbatch", tiny, *options)
    assert cluster.wait_for_end(script, timeout_s=120) == "COMPLETED"


def test_a_training_goes_on_with_a_key_that_is_named(checkout, cluster, tiny):
    inputs = load(checkout.folder / tiny).inputs("train")
    StageRecord(checkout.folder / "run" / "checkpoints", inputs).begin()
    more = (tiny, "training.epochs=9")
    done = checkout.galmerhpc("submit", *more)
    assert done.returncode == ExitCode.WRONG_INPUT
    assert "made with another training.epochs" in done.stderr
    done = checkout.galmerhpc("submit", tiny, "--allow-change", "split.seed")
    assert "--allow-change split.seed: it decides the data" in done.stderr

    change = ("--allow-change", "training.epochs")
    dry = checkout.galmerhpc("submit", *more, *change, "--dry-run")
    jobs = [line.split(" slurm/")[1] for line in dry.stdout.splitlines()]
    assert [job for job in jobs if "--allow-change" in job] == [
        f"train.sbatch {tiny} training.epochs=9 --allow-change training.epochs"
    ]
    with nothing_starts(cluster):
        checkout.submit(*more, *change)
        checkout.galmerhpc("cancel", "run")
        status = checkout.galmerhpc("status", "run").stdout
        assert f"with: galmerhpc submit {' '.join((*change, *more))}" in status


def test_a_job_that_slurm_has_forgotten_is_said_to_be(checkout, cluster, tiny):
    with nothing_starts(cluster):
        checkout.submit(tiny)
        checkout.galmerhpc("cancel", "run")
    path = checkout.folder / "run" / "jobs.json"
    path.write_text(path.read_text().replace('"train": "', '"train": "99999'))
    status = checkout.galmerhpc("status", "run")
    assert status.returncode == 0, status.stderr
    assert "forgotten by SLURM" in status.stdout
    path.write_text("[]")
    status = checkout.galmerhpc("status", "run")
    assert status.returncode == ExitCode.WRONG_INPUT
    assert "jobs.json: damaged; remove it" in status.stderr


def test_a_study_is_an_array_of_its_unfinished_points(checkout, cluster, tiny):
    sizes = "studies.batch_sizes=[5, 10, 25]"
    dry = checkout.galmerhpc("submit", tiny, sizes, "--study", "batch-size", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    (line,) = dry.stdout.splitlines()
    assert "--array=1,2,3" in line
    assert line.endswith(f"slurm/study.sbatch batch-size {tiny} '{sizes}'")
    assert not (checkout.folder / "run").exists()

    for option in (["--allow-missing"], ["--retry-failed"], ["--from", "train"]):
        done = checkout.galmerhpc("submit", tiny, "--study", "batch-size", *option, "--dry-run")
        assert done.returncode == ExitCode.WRONG_INPUT
        assert f"{option[0]} is for stages, not for --study" in done.stderr

    with nothing_starts(cluster):
        first = checkout.galmerhpc("submit", tiny, sizes, "--study", "batch-size")
        assert "job" in first.stdout, first.stderr
        assert "points 1, 2, 3" in first.stdout
        again = checkout.galmerhpc("submit", tiny, sizes, "--study", "batch-size")
        assert "is pending already" in again.stdout
        checkout.submit(tiny)  # the run's own jobs are others
        status = checkout.galmerhpc("status", "run").stdout
        assert "study-batch-size" in status
        assert "0 points evaluated" in status
        assert checkout.galmerhpc("cancel", "run").returncode == 0
        assert not cluster.run("squeue", "--noheader")

    few = checkout.galmerhpc("submit", tiny, "--study", "batch-size", "--nodes", "2",
                             "studies.batch_sizes=[1, 25]")  # fmt: skip
    assert few.returncode == ExitCode.WRONG_INPUT
    assert "training.batch_size 1 leaves some of 2 tasks" in few.stderr
    runs = [f"{{spin: prograde, inclination_deg: 0, first_id: {27414 + 24 * k}, count: 2, "
            f"simulation: {k}}}" for k in (0, 1)]  # fmt: skip
    archive = checkout.galmerhpc("submit", tiny, "--study", "time", "scrape.rate_per_s=2",
                                 "scrape.source=http://galmer.invalid",
                                 f"catalogue.runs=[{', '.join(runs)}]")  # fmt: skip
    assert archive.returncode == ExitCode.WRONG_INPUT
    assert "each point of the study time fetches images of its own" in archive.stderr
