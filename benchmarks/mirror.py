"""The mirror's images per second and core against its limits: drawing and Pillow's GIF encoding.

    python benchmarks/mirror.py [--library FILE] [--seconds 10]

One run measures in turn drawing and encoding alone, each in one thread, and the mirror, as a
process pinned to one core with the client on the others. Rates are per second of CPU time, which
other processes on the machine hardly affect; the mirror's rate in wall-clock time, with one
connection and with four, is given as well.
"""

import argparse
import http.client
import io
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from galmerhpc.preview import PATH, Preview
from galmerhpc.simulate.library import Library, library_path
from galmerhpc.simulate.render import render

# The service's default image, and the same field at the size used for training.
SIZES = {400: 1 / 6, 64: 400 / 6 / 64}
WANTED = 50  # images/s per core at 400 x 400


def views(snap_id: int, nbins: int) -> Iterator[Preview]:
    """Yield directions all over the quarter sphere, forever."""
    first = Preview(nbins, snap_id, 0, 0, SIZES[nbins], 4, 0, 0, True, True, False, 0)
    for k in itertools.count():
        yield replace(first, theta=float(37 * k % 91), phi=float(101 * k % 181))


def rate(action: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Return calls per second of the clock, without the first call."""
    action()
    calls, start, end = 0, clock(), time.monotonic() + seconds
    while time.monotonic() < end:
        action()
        calls += 1
    return calls / (clock() - start)


def mirror_rates(
    process: subprocess.Popen[str], port: int, snap_id: int, nbins: int, seconds: float, lines: int
) -> tuple[float, float]:
    """Return images per second of the mirror's CPU time and of the clock, over `lines` clients."""
    done = [0] * lines
    end = time.monotonic() + seconds

    def ask(line: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for view in itertools.islice(views(snap_id, nbins), line, None, lines):
            connection.request("GET", f"{PATH}?{view.query()}")
            answer = connection.getresponse()
            assert answer.read().startswith(b"GIF8"), "the mirror sent no picture"
            done[line] += 1
            if time.monotonic() > end:
                return

    threads = [threading.Thread(target=ask, args=(line,)) for line in range(lines)]
    cpu, start = cpu_seconds(process.pid), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    return sum(done) / (cpu_seconds(process.pid) - cpu), sum(done) / elapsed


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "GIF", optimize=False, interlace=False)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", default="shipped")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    given = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0))
    with Library(library_path(given.library)) as library:
        snapshot = library.snapshot(library.snapshot_ids[0])
    command = [sys.executable, "-m", "galmerhpc.cli", "mirror", "--library", given.library]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]),
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline().split()[2].rstrip("/").rpartition(":")[2])
        os.sched_setaffinity(0, cores[1:] or cores)
        print(f"{len(snapshot.mass):,} luminous particles, images/s of one core")
        print("| size | drawing | Pillow GIF | both | mirror, CPU | of both | 1 line | 4 lines |")
        print("|---|---|---|---|---|---|---|---|")
        for nbins in SIZES:
            sights = views(snapshot.snapshot_id, nbins)
            picture = Image.fromarray(render(snapshot, next(sights)))
            draw = rate(lambda: render(snapshot, next(sights)), given.seconds, time.process_time)  # noqa: B023
            gif = rate(lambda: encode(picture), given.seconds, time.process_time)  # noqa: B023
            both = 1 / (1 / draw + 1 / gif)
            one, four = (
                mirror_rates(process, port, snapshot.snapshot_id, nbins, given.seconds, lines)
                for lines in (1, 4)
            )
            print(
                f"| {nbins} | {draw:.0f} | {gif:.0f} | {both:.0f} | {four[0]:.0f} "
                f"| {four[0] / both:.2f} | {one[1]:.0f} | {four[1]:.0f} |"
            )
            if nbins == max(SIZES):
                verdict = "met" if four[0] >= WANTED else "MISSED"
        process.terminate()
    print(f"target: {WANTED} images/s per core at {max(SIZES)} x {max(SIZES)}: {verdict}")


if __name__ == "__main__":
    main()
