"""The doctor, on this environment and on broken ones."""

import sys
from pathlib import Path

import pytest

from galmerhpc import parallel
from galmerhpc.cluster import doctor
from galmerhpc.cluster.doctor import Answer, Report, ask, examine, supported_tensorflow
from galmerhpc.errors import ExitCode
from tests.support import BIN, galmerhpc, run

HEALTHY = {
    "mpi": {"vendor": "Open MPI", "version": "5.0.11", "mpi4py": "4.1.2", "library": "Open MPI"},
    "tensorflow": {"version": "2.21.0", "gpus": 0},
    "horovod": {"version": "0.28.1", "operations": ["mpi", "gloo"], "mpi_libraries": ["libmpi"]},
    "hdf5": {"version": "1.14.6", "h5py": "3.14.0"},
    "nbody": {"numba": "0.68", "pytreegrav": "1.5.0"},
    "library": {"path": "library.h5", "bytes": 7_000_000},
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """What the probes answer; change it to make something wrong."""
    answers = {name: Answer(facts=dict(facts)) for name, facts in HEALTHY.items()}
    names = {tuple(command): name for name, command in doctor.PROBES.items()}
    monkeypatch.setattr(doctor, "ask", lambda command: answers[names[tuple(command)]])
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: "/site/bin/mpirun")
    monkeypatch.setattr(doctor, "_first_line", lambda _: "mpirun (Open MPI) 5.0.11")
    monkeypatch.setattr(doctor, "_gpu_cards", lambda: 0)
    return answers


def test_this_environment_is_healthy():
    done = galmerhpc("doctor")
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    for name in ("MPI", "TensorFlow", "Horovod", "CPUs", "HDF5", "N-body", "Library", "Disk"):
        assert any(line.startswith(name) for line in done.stdout.splitlines())
    assert "missing" not in done.stdout
    assert done.stdout.endswith("No problems found.\n")


@pytest.mark.usefixtures("found")
def test_healthy_answers_make_no_remarks(capsys):
    assert doctor.doctor() == ExitCode.COMPLETE
    assert "No problems found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mpi", "tensorflow", "horovod", "hdf5", "library"])
def test_what_is_needed_and_broken_is_an_error(found, capsys, name):
    found[name] = Answer(fault="crashed with SIGSEGV")
    assert doctor.doctor() == ExitCode.FAILED
    (error,) = [li for li in capsys.readouterr().out.splitlines() if li.startswith("ERROR: ")]
    assert "crashed with SIGSEGV" in error
    assert any(word in error for word in ("install", "load the"))


def test_no_simulation_extra_is_a_note(found):
    found["nbody"] = Answer(fault="No module named 'numba'")
    report = examine()
    assert not report.errors
    assert "galmerhpc[simulate]" in report.notes[0]


@pytest.mark.usefixtures("found")
def test_the_launcher_of_another_mpi_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "_first_line", lambda _: "HYDRA build details:")
    (error,) = examine().errors
    assert error.startswith("/site/bin/mpirun is not the launcher of mpi4py's MPI (Open MPI)")


@pytest.mark.usefixtures("found")
def test_no_launcher_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    report = examine()
    assert not report.errors
    assert "srun --mpi=pmix" in report.notes[0]


@pytest.mark.parametrize("version", ["2.15.1", "3.0.0"])
def test_an_untested_tensorflow_is_a_note(found, version):
    found["tensorflow"].facts["version"] = version
    report = examine()
    assert not report.errors
    assert version in report.notes[0]
    assert supported_tensorflow() in report.notes[0]


@pytest.mark.usefixtures("found")
def test_gpus_that_tensorflow_does_not_see_are_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "_gpu_cards", lambda: 4)
    (error,) = examine().errors
    assert "4 NVIDIA GPUs, TensorFlow sees none" in error


def test_gpus_that_the_job_was_not_given_are_a_note(found, monkeypatch):
    monkeypatch.setattr(doctor, "_gpu_cards", lambda: 4)
    found["tensorflow"].facts["gpus"] = 1
    found["horovod"].facts["operations"] = ["mpi", "nccl"]
    report = examine()
    assert not report.errors
    assert report.notes == ["TensorFlow sees 1 of this node's 4 NVIDIA GPUs, as in part of a node"]


def test_gpus_without_nccl_are_a_note(found):
    found["tensorflow"].facts["gpus"] = 4
    (note,) = examine().notes
    assert "install_horovod.sh --gpu" in note


@pytest.mark.usefixtures("found")
def test_one_cpu_of_many_is_a_note(monkeypatch):
    monkeypatch.setattr(parallel, "cpu_count", lambda: 1)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    report = examine()
    assert "--bind-to none" in report.notes[0]
    assert ("CPUs", "1 of 64 usable, SLURM_CPUS_PER_TASK=1") in report.rows


@pytest.mark.usefixtures("found")
def test_little_disk_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_DISK_GB", 1e9)
    (note,) = examine().notes
    assert note.startswith(f"little space in {Path.cwd()}")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("raise SystemExit(7)", "exit code 7"),
    ],
)
def test_a_probe_that_fails_says_why_in_one_line(code, fault):
    assert ask([sys.executable, "-c", code]) == Answer(fault=fault)


def test_a_probe_that_hangs_is_given_up():
    code = "import signal; signal.pause()"
    assert ask([sys.executable, "-c", code], time_limit_s=0.5).fault == "no answer within 0.5 s"


def test_a_probe_may_print_before_its_facts():
    code = "print('a banner'); print('{\"version\": \"1\"}')"
    assert ask([sys.executable, "-c", code]) == Answer(facts={"version": "1"})


def test_a_probe_that_prints_after_its_facts_or_none_is_no_end_of_the_report():
    code = "print('{\"a\": 1}'); print('bye')"
    assert ask([sys.executable, "-c", code]).facts == {"a": 1}
    assert ask([sys.executable, "-c", "print(7)"]).fault == "it printed no facts"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 6)"
    assert ask([sys.executable, "-c", killed]).fault.startswith("crashed with signal ")


def test_a_launcher_that_does_not_start_is_reported():
    assert doctor._first_line(["/nonexistent/mpirun"]).startswith("does not start")


def test_the_horovod_probe_names_an_operation_that_was_not_built():
    done = run(str(BIN / "python"), "-m", "galmerhpc.cluster.horovod_probe", "mpi", "nccl")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Horovod was built without NCCL"


def test_a_report_lists_remarks_before_faults():
    report = Report(rows=[("MPI", "missing")], notes=["a note"], errors=["a fault"])
    assert str(report) == "MPI         missing\nnote: a note\nERROR: a fault"
