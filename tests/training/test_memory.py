"""The memory that a training says it took."""

import subprocess
import sys

import numpy as np

SAY = "from galmerhpc.training.memory import peak_bytes; print(peak_bytes())"


def test_the_peak_is_this_program_s_own_and_not_of_what_started_it() -> None:
    held = np.ones(60_000_000)  # 480 MB, all of it touched
    done = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000_000 < held.nbytes


def test_what_was_given_back_stays_in_the_peak() -> None:
    again = f"import numpy as np; held = np.ones(60_000_000); del held; {SAY}"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 480_000_000
