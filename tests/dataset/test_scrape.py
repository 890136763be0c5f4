"""Scraping with real ranks: the same content on any number, nothing lost, nothing fetched twice."""

import csv
import random
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml

from galmerhpc.catalogue import Views
from galmerhpc.config import load, require_catalogue
from galmerhpc.dataset.raw import RawStore, read_spool
from galmerhpc.errors import ExitCode
from galmerhpc.files import StageRecord, sha256
from tests.dataset.runs import galmerhpc_without_room
from tests.servers import Reply, gif, serve, well
from tests.support import environment, galmerhpc, mpirun_command, wait_for

CONNECTIONS = 6
PAGE = b"<html><body>Error: out of luck</body></html>"


def write_config(folder: Path, source: str, theta_step: float = 10, **scrape: object) -> Path:
    """Write a configuration of 19 views a theta, two runs."""
    views = {
        "theta_deg": {"start": 0, "stop": 90, "step": theta_step},
        "phi_deg": {"start": 0, "stop": 180, "step": 10},
    }
    runs = [
        {"spin": "prograde", "inclination_deg": 45, "first_id": 1, "labels": {"mass_ratio": 1.0}},
        {"spin": "retrograde", "inclination_deg": 90, "first_id": 2, "simulation": 1,
         "labels": {"mass_ratio": 2.0}},
    ]  # fmt: skip
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {"render": {"nbins": 16}, "views": views, "runs": runs},
        "scrape": {
            "source": source, "rate_per_s": None, "connections": CONNECTIONS, "attempts": 2,
            "backoff_s": 0.01, "views_per_shard": 64, **scrape,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def expected(path: Path) -> dict[str, bytes]:
    """Return what a run of this configuration must hold: picture by view."""
    views = Views(require_catalogue(load(path)))
    return {view.id: gif(view.preview.query()) for view in views}


def held(folder: Path) -> dict[str, bytes]:
    """Return what a raw folder holds: picture by view."""
    store = RawStore(folder)
    return {view: store.read(view) for view in store.ids()}


def one_line(stderr: str) -> str:
    """Return the message of a command that failed, which is one line and no traceback."""
    # mpirun may pass on a zero byte of its own; a rank may be first to see what is wrong for all.
    lines = [line for line in stderr.splitlines() if re.match(r"\0?(rank \d+: )?galmerhpc: ", line)]
    assert "Traceback" not in stderr, stderr
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_fetches_the_same_once(tmp_path: Path, ranks: int) -> None:
    with serve() as service:
        path = write_config(tmp_path, service.url)
        done = galmerhpc("scrape", str(path), ranks=ranks)
        again = galmerhpc("scrape", str(path))
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert "complete, nothing to do" in again.stderr
    raw = tmp_path / "run" / "raw"
    assert held(raw) == expected(path)
    assert set(service.asked.values()) == {1}
    assert service.connections <= CONNECTIONS
    config = load(path)
    record = StageRecord(raw, config.inputs("scrape"))
    assert record.complete
    assert record.files == {shard.name: sha256(shard) for shard in RawStore(raw).paths}
    assert {file.name for file in raw.iterdir()} == {*record.files, "stage.json"}


def test_the_mirror_gives_the_same_to_any_number_of_ranks(tmp_path: Path) -> None:
    contents = []
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        path = write_config(folder, "mirror", theta_step=90)
        values = yaml.safe_load(path.read_text())
        values["catalogue"]["runs"] = [
            {"spin": "retrograde", "inclination_deg": 90, "first_id": 27436}
        ]
        values["catalogue"]["render"] = {"nbins": 64, "zoom": 1}
        path.write_text(yaml.safe_dump(values))
        done = galmerhpc("scrape", str(path), ranks=ranks)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        contents.append(held(folder / "run" / "raw"))
    assert len(contents[0]) == 2 * 19
    assert contents[0] == contents[1] == contents[2]


class Fickle:
    """A behaviour that can be told to fail some views."""

    def __init__(self) -> None:
        self.failing = True

    def __call__(self, query: str, attempt: int) -> Reply:
        if self.failing and "theta=30&" in query:
            return Reply(PAGE, 200, "text/html")
        return well(query, attempt)


def test_failed_views_are_named_and_the_next_run_fetches_just_those(tmp_path: Path) -> None:
    behaviour = Fickle()
    with serve(behaviour) as service:
        path = write_config(tmp_path, service.url)
        done = galmerhpc("scrape", str(path), ranks=2)
        raw = tmp_path / "run" / "raw"
        truth = expected(path)
        lost = {view for view in truth if "theta=30&" in view}
        assert done.returncode == ExitCode.VIEWS_MISSING
        message = one_line(done.stderr)
        assert f"{len(lost)} of {len(truth)} views could not be fetched" in message
        assert "Error: out of luck" in message
        assert str(raw / "missing.csv") in message
        with (raw / "missing.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["view"] for row in rows} == lost
        assert all("Error: out of luck" in row["reason"] for row in rows)
        assert held(raw) == {view: body for view, body in truth.items() if view not in lost}

        behaviour.failing = False
        before = Counter(service.asked)
        again = galmerhpc("scrape", str(path))
        assert again.returncode == ExitCode.VIEWS_MISSING
        assert one_line(again.stderr) == message
        assert not service.asked - before
        done = galmerhpc("scrape", str(path), "--retry-failed", ranks=2)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert set(service.asked - before) == {view.partition("&")[2] for view in lost}
    assert held(raw) == truth
    assert not (raw / "missing.csv").exists()


def test_a_damaged_shard_is_named_and_its_views_are_fetched_again(tmp_path: Path) -> None:
    behaviour = Fickle()
    with serve(behaviour) as service:
        path = write_config(tmp_path, service.url)
        galmerhpc("scrape", str(path))
        raw = tmp_path / "run" / "raw"
        shard = RawStore(raw).paths[1]
        shard.write_bytes(shard.read_bytes()[:-1000])
        behaviour.failing = False
        before = service.asked.total()
        done = galmerhpc("scrape", str(path), ranks=2)
        assert done.returncode == ExitCode.WRONG_INPUT
        message = one_line(done.stderr)
        assert str(shard) in message
        assert "remove this file and run galmerhpc scrape again" in message
        assert service.asked.total() == before

        shard.unlink()
        done = galmerhpc("scrape", str(path), ranks=2)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert held(raw) == expected(path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_unreachable_host_is_one_line(tmp_path: Path, ranks: int) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    path = write_config(tmp_path, url)
    done = galmerhpc("scrape", str(path), ranks=ranks)
    assert done.returncode == ExitCode.FAILED
    assert f"{url}: cannot be reached (connection refused)" in one_line(done.stderr)
    assert [file.name for file in (tmp_path / "run" / "raw").iterdir()] == ["stage.json"]


def test_the_run_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    with serve() as service:
        path = write_config(tmp_path, service.url, theta_step=90)
        assert galmerhpc("scrape", str(path)).returncode == ExitCode.COMPLETE
        asked = service.asked.total()
        write_config(tmp_path, service.url, theta_step=45)
        done = galmerhpc("scrape", str(path), ranks=2)
        assert done.returncode == ExitCode.WRONG_INPUT
        assert "catalogue.views.theta_deg.step" in one_line(done.stderr)
        assert service.asked.total() == asked


def test_a_disk_that_is_full_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with serve() as service:
        path = write_config(tmp_path, service.url)
        done = galmerhpc_without_room(10_000, "scrape", str(path))
        assert done.returncode == ExitCode.FAILED
        message = one_line(done.stderr)
        assert "raw-0000-00000" in message
        assert "cannot be written" in message
        kept = set(finished(tmp_path / "run" / "raw", tmp_path))
        assert kept
        before = Counter(service.asked)
        done = galmerhpc("scrape", str(path))
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert not {view.partition("&")[2] for view in kept} & set(service.asked - before)
    assert held(tmp_path / "run" / "raw") == expected(path)


def finished(raw: Path, scratch: Path) -> set[str]:
    """Return the views that are on disk, packed or not, without touching the folder."""
    copy = scratch / "copy"
    shutil.copytree(raw, copy)
    views = RawStore(copy).ids()
    for spool in copy.glob("*.spool"):
        views |= {response.view for response in read_spool(spool)}
    shutil.rmtree(copy)
    return views


def kill(job: subprocess.Popen[str], victims: list[psutil.Process]) -> None:
    """Kill processes of a job at once, and return when the whole job is gone."""
    everyone = psutil.Process(job.pid).children(recursive=True)
    for process in victims:
        process.kill()
    job.communicate(timeout=60)
    psutil.wait_procs(everyone, timeout=60)
    assert not [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def ranks_of(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of the job's ranks."""
    return [p for p in psutil.Process(job.pid).children(recursive=True) if "scrape" in p.cmdline()]


@pytest.mark.parametrize("whole_job", [True, False], ids=["the whole job", "one rank"])
def test_a_kill_loses_at_most_what_was_in_flight(tmp_path: Path, whole_job: bool) -> None:
    draw = random.Random(7 + whole_job)
    with serve() as service:
        path = write_config(tmp_path, service.url, views_per_shard=20)
        truth, raw = expected(path), tmp_path / "run" / "raw"
        safe: set[str] = set()
        kills = 3
        for ranks in draw.sample([1, 2, 3], kills):
            left = len(truth) - len(safe)
            moment = service.asked.total() + draw.randrange(left // 2)
            command = [sys.executable, "-m", "galmerhpc.cli", "scrape", str(path)]
            job = subprocess.Popen(
                mpirun_command(ranks, *command), env=environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            wait_for(lambda until=moment: service.asked.total() > until, job)
            tasks = ranks_of(job)
            kill(job, [*tasks, psutil.Process(job.pid)] if whole_job else [draw.choice(tasks)])
            assert job.returncode != 0
            now = finished(raw, tmp_path)
            assert safe <= now
            safe = now
            # Every request but those in flight is on disk.
            assert service.asked.total() - len(safe) <= kills * CONNECTIONS
            before = Counter(service.asked)
        done = galmerhpc("scrape", str(path), ranks=2)
        assert done.returncode == ExitCode.COMPLETE, done.stderr
        assert not {view.partition("&")[2] for view in safe} & set(service.asked - before)
    assert held(raw) == truth
    assert not list(raw.glob("*.spool"))
    assert not list(raw.glob(".tmp*"))


def test_hostile_answers_are_never_stored(tmp_path: Path) -> None:
    def hostile(query: str, attempt: int) -> Reply:
        faults = [
            Reply(PAGE, 500, "text/html"),
            Reply(PAGE, 503, "text/html", {"Retry-After": "0"}),
            Reply(gif(query), cut=200),
            Reply(gif(query)[:-60]),
            Reply(b""),
        ]
        fault = sum(query.encode()) % (3 * len(faults))
        return faults[fault] if attempt == 0 and fault < len(faults) else well(query, attempt)

    with serve(hostile) as service:
        path = write_config(tmp_path, service.url)
        done = galmerhpc("scrape", str(path), ranks=2)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert held(tmp_path / "run" / "raw") == expected(path)
    assert service.asked.total() > len(expected(path))
