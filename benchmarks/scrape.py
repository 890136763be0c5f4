"""Scraping against alternative tools, and the rate budget as seen by the server.

    python benchmarks/scrape.py [--views 3200] [--runs 5] [--only PART]
        [--cache FOLDER] [--json FILE]

A server with the mirror's protocol sends images of 400 x 400 drawn beforehand, a different one for
each view, after an added latency:

- budget: two ranks with `scrape.rate_per_s: 200`, latency 100 ms;
- latency: no budget, 32 connections in all, latency 100 ms: two ranks of ours, `aria2c`,
  `img2dataset` (two processes of 16 threads, no re-encoding) and a serial urllib loop on the same
  addresses. Ours also decodes, checks, checksums, syncs and packs what the others only store;
- core: the same without latency, per CPU second of all processes.

A rate is the number of images over the time from the first request to the end of the last process,
which excludes start-up. Runs alternate; medians are reported. img2dataset gets its own environment
in the cache folder; aria2c is Debian's.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from galmerhpc.catalogue import Views
from galmerhpc.config import load, require_catalogue
from galmerhpc.files import read_json, write_json
from galmerhpc.preview import Preview

BUDGET, LEAST_USED, MOST_IN_A_SECOND = 200, 0.95, 210
CONNECTIONS, LATENCY_S = 32, 0.1
LEAST_OVER_SERIAL, LEAST_OVER_PEERS = 20, 0.95
SERIAL_VIEWS = 60
DRAWN = 64  # images that are drawn; each view gets its own comment
IMG2DATASET = "img2dataset==1.47.0"

# The previews show an encounter of the shipped library.
RUN = {"spin": "retrograde", "inclination_deg": 90, "snapshots": [{"id": 27436, "time_myr": 100}]}

# --- the server -----------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One persistent connection: an image for every request, after the latency."""

    def __init__(self, pictures: list[bytes], arrivals: list[float], latency: list[float]) -> None:
        self._pictures, self._arrivals, self._latency = pictures, arrivals, latency
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        """Keep the connection."""
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            request, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            target = request.split(b" ", 2)[1]
            path, _, query = target.partition(b"?")
            if path == b"/arrivals":  # and start again, with this latency
                body = json.dumps(self._arrivals).encode()
                self._arrivals.clear()
                self._latency[0] = float(query)
                self._send(b"application/json", body)
                continue
            self._arrivals.append(time.monotonic())
            picture = self._pictures[hash(query) % len(self._pictures)]
            comment = b"\x21\xfe" + bytes([len(query)]) + query + b"\x00"
            body = picture[:-1] + comment + picture[-1:]
            if self._latency[0]:
                loop = asyncio.get_running_loop()
                loop.call_later(self._latency[0], self._send, b"image/gif", body)
            else:
                self._send(b"image/gif", body)

    def _send(self, kind: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(head % (kind, len(body)) + body)


def serve(folder: Path) -> None:
    """Serve until terminated; print the port."""
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.gif"))]
    arrivals: list[float] = []
    latency = [0.0]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(pictures, arrivals, latency), "127.0.0.1", 0, backlog=256
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def draw(folder: Path) -> None:
    """Draw images of the shipped library's encounters as the mirror sends them."""
    from galmerhpc.simulate.library import Library, library_path
    from galmerhpc.simulate.mirror import _gif

    with Library(library_path("shipped")) as library:
        snapshot = library.snapshot(27436)
        for k in range(DRAWN):
            phi, theta = float(37 * k % 181), float(23 * k % 91)
            view = Preview(400, 27436, phi, theta, 1 / 6, 4, 0, 0, True, True, False, 0)
            (folder / f"{k:03d}.gif").write_bytes(_gif(view, snapshot))


def arrivals(url: str, latency_s: float) -> list[float]:
    """Return the times of requests since the last call, and set the latency."""
    with urllib.request.urlopen(f"{url}/arrivals?{latency_s}") as answer:
        return sorted(json.load(answer))


def server_limit(url: str, query: str, seconds: float = 2.0) -> float:
    """Return images per second that the server sends to one connection that only reads."""
    address = url.removeprefix("http://").split(":")
    request = f"GET /get_preview.cgi?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    done, end = 0, time.monotonic() + seconds
    with socket.create_connection((address[0], int(address[1]))) as line:
        buffer = memoryview(bytearray(1 << 20))
        while time.monotonic() < end:
            line.sendall(request)
            got = line.recv_into(buffer)
            head = bytes(buffer[:got]).partition(b"\r\n\r\n")[0]
            whole = len(head) + 4 + int(head.rpartition(b" ")[2])
            while got < whole:
                got += line.recv_into(buffer[got:])
            done += 1
    return done / seconds


# --- who fetches ----------------------------------------------------------------------------------


@dataclass
class Job:
    """The addresses of a run folder, and commands that fetch them."""

    folder: Path
    url: str
    views: int
    peers: Path

    def config(self, rate: float | None) -> Path:
        """Write our configuration."""
        phi = {"start": 0, "stop": 179, "step": 180 / 80}
        theta = {"start": 0, "stop": 90 * (1 - 1e-9), "step": 90 / (self.views / 80)}
        values = {
            "run_dir": str(self.folder / "ours"),
            "catalogue": {
                "views": {"theta_deg": theta, "phi_deg": phi},
                "runs": [RUN],
            },
            "scrape": {"source": self.url, "rate_per_s": rate, "connections": CONNECTIONS},
        }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def addresses(self) -> list[str]:
        """Return the addresses that ours requests, for the other tools."""
        views = Views(require_catalogue(load(self.config(None))))
        assert len(views) == self.views, len(views)
        return [f"{self.url}/get_preview.cgi?{view.preview.query()}" for view in views]

    def ours(self, rate: float | None = None) -> list[str]:
        """Return our command, on two ranks."""
        mpirun = [str(Path(sys.executable).parent / "mpirun"), "-np", "2", "--oversubscribe"]
        scrape = [sys.executable, "-m", "galmerhpc.cli", "scrape", str(self.config(rate))]
        return [*mpirun, "--bind-to", "none", *scrape]

    def aria2c(self) -> list[str]:
        """Return aria2c's command."""
        lines = [f"{a}\n  out={k:06d}.gif\n" for k, a in enumerate(self.addresses())]
        (self.folder / "aria2.txt").write_text("".join(lines))
        return [
            "aria2c", "--quiet", f"--input-file={self.folder / 'aria2.txt'}",
            f"--dir={self.folder / 'aria2'}", f"--max-concurrent-downloads={CONNECTIONS}",
            "--max-connection-per-server=1", "--file-allocation=none", "--no-conf",
        ]  # fmt: skip

    def img2dataset(self) -> list[str]:
        """Return img2dataset's command."""
        (self.folder / "urls.txt").write_text("\n".join(self.addresses()))
        return [
            str(self.peers / "bin" / "img2dataset"), f"--url_list={self.folder / 'urls.txt'}",
            f"--output_folder={self.folder / 'img2dataset'}", "--processes_count=2",
            f"--thread_count={CONNECTIONS // 2}", "--resize_mode=no",
            "--disable_all_reencoding=True", "--output_format=webdataset",
            f"--number_sample_per_shard={self.views // 2}", "--enable_wandb=False",
        ]  # fmt: skip

    def urllib(self) -> list[str]:
        """Return the command of a serial loop over some of the addresses."""
        (self.folder / "urls.txt").write_text("\n".join(self.addresses()[:SERIAL_VIEWS]))
        code = (
            "import sys, pathlib, urllib.request\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "for k, url in enumerate((folder / 'urls.txt').read_text().split()):\n"
            "    with urllib.request.urlopen(url) as answer:\n"
            "        (folder / f'{k}.gif').write_bytes(answer.read())\n"
        )
        return [sys.executable, "-c", code, str(self.folder)]


@dataclass
class Measured:
    """Result of a run: images per second, per CPU second, and times of requests."""

    rate: float
    per_core: float
    moments: list[float]


def measure(job: Job, command: Callable[[Job], list[str]], latency_s: float) -> Measured:
    """Run a command in a fresh folder."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir()
    line = command(job)
    arrivals(job.url, latency_s)
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1", "no_proxy": "*",
    }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    end = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, f"{line[0]}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    moments = arrivals(job.url, 0)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(len(moments) / (end - moments[0]), len(moments) / cpu, moments)


def most_in_a_second(moments: list[float]) -> int:
    """Return the largest number of requests in any window of one second."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def environment_of_peers(cache: Path) -> Path:
    """Return img2dataset's environment, after creating it if it is missing."""
    place = cache / "img2dataset"
    if not (place / "bin" / "img2dataset").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", IMG2DATASET], check=True)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=3200, help="a multiple of 80")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=("budget", "latency", "core"))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "galmerhpc-benchmarks"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scrape.json"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    if not shutil.which("aria2c"):
        sys.exit("aria2c is missing: apt-get install aria2")
    peers = environment_of_peers(given.cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        draw(folder / "pictures")
        command = [sys.executable, __file__, "--serve", str(folder / "pictures")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            try:
                results = compare(Job(folder / "job", url, given.views, peers), given)
            finally:
                server.terminate()
    if given.only and given.json.exists():
        before = read_json(given.json)  # of the other parts, measured earlier
        for section in ("figures", "bars"):
            results[section] = before[section] | results[section]
    print_table(results)
    write_json(given.json, results)
    print(f"\n{given.json}")


def compare(job: Job, given: argparse.Namespace) -> dict[str, Any]:
    """Measure all tools alternately."""
    everybody = {"ours": Job.ours, "aria2c": Job.aria2c, "img2dataset": Job.img2dataset}
    runs: dict[str, list[Measured]] = {}
    for _ in range(given.runs):
        if given.only in (None, "budget"):
            made = measure(job, lambda job: job.ours(BUDGET), LATENCY_S)
            runs.setdefault("budget", []).append(made)
        if given.only in (None, "latency"):
            for name, command in {**everybody, "urllib": Job.urllib}.items():
                runs.setdefault(f"latency {name}", []).append(measure(job, command, LATENCY_S))
        if given.only in (None, "core"):
            for name, command in everybody.items():
                runs.setdefault(f"core {name}", []).append(measure(job, command, 0))
    job.folder.mkdir(exist_ok=True)
    query = job.addresses()[0].partition("?")[2]
    results: dict[str, Any] = {
        "machine": {"cpus": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(), "galmerhpc": version("galmerhpc"),
            "urllib3": version("urllib3"), "img2dataset": IMG2DATASET.partition("==")[2],
            "aria2c": subprocess.check_output(["aria2c", "--version"], text=True).split()[2],
        },
        "views": job.views,
        "runs": given.runs,
        "server_limit_per_s": server_limit(job.url, query),
        "figures": {},
        "bars": {},
    }  # fmt: skip
    figures, bars = results["figures"], results["bars"]
    for name, made in runs.items():
        figures[name] = {
            "images_per_s": [round(m.rate, 1) for m in made],
            "images_per_cpu_s": [round(m.per_core, 1) for m in made],
        }

    def bar(name: str, figure: float, threshold: float, at_least: bool = True) -> None:
        passed = figure >= threshold if at_least else figure <= threshold
        bars[name] = {"figure": round(figure, 3), "threshold": threshold, "pass": passed}

    if "budget" in runs:
        used = [(len(m.moments) - 1) / (m.moments[-1] - m.moments[0]) for m in runs["budget"]]
        most = [most_in_a_second(m.moments) for m in runs["budget"]]
        figures["budget"] |= {"requests_per_s": used, "most_in_a_second": most}
        bar("share of the budget used", statistics.median(used) / BUDGET, LEAST_USED)
        bar("most requests in any second", max(most), MOST_IN_A_SECOND, at_least=False)
    if "latency ours" in runs:
        for name, least in (
            ("urllib", LEAST_OVER_SERIAL),
            ("aria2c", LEAST_OVER_PEERS),
            ("img2dataset", LEAST_OVER_PEERS),
        ):
            ratio = median(runs["latency ours"]) / median(runs[f"latency {name}"])
            bar(f"ours / {name}", ratio, least)
    return results


def median(runs: list[Measured]) -> float:
    return statistics.median(m.rate for m in runs)


def print_table(results: dict[str, Any]) -> None:
    print(f"{'':24} {'images/s':>10} {'per CPU s':>10}   runs")
    for name, figures in results["figures"].items():
        rates, per_core = figures["images_per_s"], figures["images_per_cpu_s"]
        print(
            f"{name:24} {statistics.median(rates):10.1f} {statistics.median(per_core):10.1f}   "
            f"{' '.join(f'{rate:.0f}' for rate in rates)}"
        )
    print(f"{'server alone':24} {results['server_limit_per_s']:10.1f}")
    print()
    for name, bar in results["bars"].items():
        print(
            f"{name:32} {bar['figure']:8.3f}  bar {bar['threshold']:<6} "
            f"{'pass' if bar['pass'] else 'FAIL'}"
        )


if __name__ == "__main__":
    main()
