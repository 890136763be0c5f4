"""A first signal asks, a second one ends the process at once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from galmerhpc.interrupt import SIGNALS, StopRequest
from galmerhpc.training.checkpoint import load_latest
from tests.support import environment

# Asked once, it continues: one checkpoint is complete, and the next is being written.
ASKED = """
import sys, threading, time
from functools import partial
from pathlib import Path
import numpy as np
from galmerhpc.training import checkpoint
from galmerhpc.interrupt import StopRequest
folder, arrays = Path(sys.argv[1]), {"weights/0": np.ones(3)}
with StopRequest() as stop, checkpoint.Writer() as writer:
    checkpoint.save(folder, "step-00000001", arrays, {"epoch": 0}, keep=1, best=None)
    print("ready", flush=True)
    while not stop.reason:
        time.sleep(0.01)
    writer.start(lambda: (print(stop.reason, flush=True), threading.Event().wait()))
    writer.wait()
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_leaves_while_a_checkpoint_is_being_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(tmp_path)], env=environment(), text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    process.stdout.close()
    assert load_latest(tmp_path) is not None


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert stop.reason == ""
        signal.raise_signal(signal.SIGUSR1)
        assert stop.reason == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_time_limit_asks_too() -> None:
    assert StopRequest(time_limit_s=1e-9).reason == "the time limit"
    assert StopRequest(time_limit_s=1e9).reason == ""
