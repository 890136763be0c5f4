"""The command: help that teaches, exit codes, and one line for a user's mistake."""

import argparse
import logging
import socket
import sys
from pathlib import Path

import pytest

from galmerhpc.cli import log_file, make_parser
from tests.conftest import write_run
from tests.support import ROOT, galmerhpc, run, unprivileged

DEMO = str(ROOT / "configs/demo.yaml")
COMMANDS = (
    "run",
    "simulate",
    "scrape",
    "preprocess",
    "train",
    "evaluate",
    "report",
    "predict",
    "real-pairs",
    "study",
    "catalogue",
    "images",
    "library",
    "check",
    "info",
    "mirror",
    "submit",
    "status",
    "cancel",
    "doctor",
)


def parsed(line: str) -> argparse.Namespace:
    return make_parser().parse_args(line.split())


def complaint(*arguments: str, code: int = 2, ranks: int = 1) -> str:
    """Return the one line that a wrong command prints."""
    done = galmerhpc(*arguments, ranks=ranks)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if "galmerhpc: " in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_help_names_every_command() -> None:
    text = galmerhpc("--help").stdout
    assert all(f"\n    {command}" in text for command in COMMANDS)
    assert "75" in text
    assert "mpirun -np 2 galmerhpc run" in galmerhpc("run", "--help").stdout
    assert "galmerhpc catalogue probe" in galmerhpc("catalogue", "probe", "--help").stdout
    assert "file,spin,inclination" in galmerhpc("images", "import", "--help").stdout
    assert "P_TYPE" in galmerhpc("library", "import", "--help").stdout


@pytest.mark.parametrize(
    "line",
    [
        "train CONFIG --dry-run a=1 --allow-change KEY b=2 --elastic",
        "train --allow-change KEY CONFIG a=1 b=2 --dry-run --elastic",
        "train --elastic --dry-run --allow-change KEY CONFIG a=1 b=2",
        "train CONFIG a=1 b=2 --elastic --allow-change KEY --dry-run",
    ],
)
def test_options_may_stand_before_among_and_after_a_command_s_arguments(line: str) -> None:
    given = parsed(line)
    assert (given.config, list(given.overrides)) == ("CONFIG", ["a=1", "b=2"])
    assert (given.dry_run, given.elastic, given.allow_change) == (True, True, ["KEY"])


def test_other_commands_take_their_options_in_any_order_too() -> None:
    assert parsed("catalogue probe A --snap-id 3 b=1").overrides == ["b=1"]
    assert parsed("submit A --nodes 2 b=1 --dry-run c=2").overrides == ["b=1", "c=2"]
    fits = parsed("library import a --table t b --output o c").fits
    assert fits == [Path("a"), Path("b"), Path("c")]
    assert parsed("check RUN --repair").run == "RUN"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train", "required: CONFIG"),
        ("train A --bogus b=1", "unrecognized arguments: --bogus"),
        ("status RUN b=1", "unrecognized arguments: b=1"),
        ("catalogue probe A b=1", "required: --snap-id"),
        ("catalogue", "required: COMMAND"),
    ],
)
def test_a_wrong_line_is_refused(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(line)
    assert expected in capsys.readouterr().err


def test_a_command_that_needs_no_mpi_does_not_load_it() -> None:
    code = """
import atexit, sys
from galmerhpc.cli import main
atexit.register(lambda: print({"mpi4py.MPI", "tensorflow"} & set(sys.modules)))
main(["evaluate", "nowhere"])
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 2
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run", DEMO, "training.epoch=3"], "training.epoch: unknown key (did you mean epochs?)"),
        (["scrape", DEMO, "preprocess.image_size=16"], "preprocess.image_size"),
        (["run", DEMO, "model.task=classification"], "training.loss: mae does not fit"),
        (["simulate", DEMO], "library: shipped is part of the package"),
        (["mirror", "--library", "nowhere.h5"], "nowhere.h5: no such snapshot library"),
        (["mirror", "--library", DEMO], "demo.yaml: damaged, or not a snapshot library at all"),
        (["evaluate", str(ROOT)], "not a run folder"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], expected: str) -> None:
    assert expected in complaint(*arguments)


def test_a_mistake_on_two_ranks_is_still_one_line() -> None:
    assert "did you mean epochs?" in complaint("run", DEMO, "training.epoch=3", ranks=2)


def test_ranks_that_mpi_does_not_know_of_keep_logs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "3"):
        monkeypatch.setenv("HOROVOD_RANK", rank)  # as horovodrun does with Gloo
        with log_file(tmp_path, "train"):
            logging.getLogger().warning("here is rank %s", rank)
    for rank in (0, 3):
        text = (tmp_path / "logs" / f"train-rank000{rank}.log").read_text()
        assert text.endswith(f"rank {rank} here is rank {rank}\n")


def test_output_that_is_not_read_to_its_end_is_one_line() -> None:
    command = f"{sys.executable} -m galmerhpc.cli catalogue show {DEMO}"
    done = run("sh", "-c", f"{{ {command}; echo $? >&2; }} | true")
    assert done.stderr.splitlines() == ["galmerhpc: standard output was closed", "1"]


def test_a_command_needs_no_standard_output() -> None:
    command = f"{sys.executable} -m galmerhpc.cli catalogue show"
    assert run("sh", "-c", f"{command} {DEMO} >&-").stderr == ""
    done = run("sh", "-c", f"{command} {DEMO}x >&- 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


def test_output_onto_a_full_disk_is_one_line() -> None:
    done = run("sh", "-c", f"{sys.executable} -m galmerhpc.cli catalogue show {DEMO} > /dev/full")
    assert done.returncode == 1
    assert "cannot write: [Errno 28] No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in complaint("mirror", "--port", port)


def test_a_missing_library_leaves_nothing_behind(tmp_path: Path) -> None:
    line = complaint("scrape", DEMO, "library=nowhere.h5", f"run_dir={tmp_path / 'run'}")
    assert "nowhere.h5: no such snapshot library" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    config = str(write_run(tmp_path))
    raw = tmp_path / "run" / "raw"
    raw.mkdir(parents=True, mode=0)
    done = run(*unprivileged(), sys.executable, "-m", "galmerhpc.cli", "scrape", config)
    raw.chmod(0o755)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"galmerhpc: [Errno 13] Permission denied: '{raw}/stage.json'"


def test_stages_out_of_order_say_which_comes_first(tmp_path: Path) -> None:
    config = str(write_run(tmp_path))
    assert "run galmerhpc scrape first" in complaint("preprocess", config)
    assert "galmerhpc preprocess" in complaint("train", config)
    assert "galmerhpc train" in complaint("evaluate", config)
    assert "galmerhpc evaluate" in complaint("report", config)


def test_a_run_folder_of_another_configuration_is_refused_by_each_stage(tiny_run: Path) -> None:
    config = str(tiny_run)
    assert "catalogue.render.zoom: 6.0 there, 5.0 now" in complaint(
        "scrape", config, "catalogue.render.zoom=5"
    )
    assert "preprocess.image_size: 32 there, 64 now" in complaint(
        "preprocess", config, "preprocess.image_size=64"
    )


def test_a_corrupt_shard_is_named(tiny_run: Path) -> None:
    shard = tiny_run.parent / "run/shards/shard-00001.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = complaint("train", str(tiny_run), ranks=2)
    assert "shard-00001.h5" in line
    assert "preprocess" in line
