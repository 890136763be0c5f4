"""Damaged files of every kind: no crash, no hang, no traceback, nothing bad accepted."""

import queue
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import pytest

from tests.fuzzing import KINDS
from tests.support import environment

PATIENCE_S = 120
"""A case takes milliseconds; one that takes this long does not end."""

SEED = 20261125


def judge(kind: str, folder: Path, count: int) -> int:
    """Judge so many damaged files in a process of its own; return how many were accepted."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.fuzzing", kind, str(folder), str(SEED), "0", str(count)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        errors: list[str] = []
        readers = [
            threading.Thread(target=lambda: [lines.put(x) for x in chain(process.stdout, [""])]),
            threading.Thread(target=lambda: errors.extend(process.stderr)),
        ]
        verdicts = []
        for reader in readers:
            reader.start()
        try:
            while line := lines.get(timeout=PATIENCE_S):
                verdicts.append(int(line.split()[1]))
        except queue.Empty:
            process.kill()
            pytest.fail(f"case {len(verdicts)} of {kind} does not end; the file is in {folder}")
        finally:
            for reader in readers:
                reader.join()
    message = f"case {len(verdicts)} of {kind} (in {folder}): {''.join(errors)[-2000:]}"
    assert process.returncode == 0, f"exit code {process.returncode}; {message}"
    assert len(verdicts) == count
    return sum(verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_by_name_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    assert judge(kind, tmp_path / kind, 60) < 60


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files(kind: str, tmp_path: Path) -> None:
    judge(kind, tmp_path / kind, 2000)
