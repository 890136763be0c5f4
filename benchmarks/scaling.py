"""Two ranks against one on this machine, and the cost of the all-reduce.

    python benchmarks/scaling.py [--cycle-times 1 5 20] [--fusion-mb 0]

ResNet50, 64 pixels, local batch 32, float32, one thread and core per rank. Measured alternately in
one session: the step of one rank while the other waits, steps of two concurrent ranks without
all-reduce, the all-reduce of the gradient's bytes alone, and training steps of two ranks; every
ratio is the median over 5 rounds. Then the all-reduce of messages of 1 to 200 MB, with a fit of
latency + bytes / bandwidth. All this is repeated for several Horovod cycle times, and with the best
of them for several sizes of the fusion buffer. docs/scaling.md draws conclusions for larger
machines.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from machine import write_results
from training import mpirun

ROUNDS, STEPS = 5, 3
LOCAL_BATCH, SIZE = 32, 64
FUSION_MB = 128
"""Horovod's default."""
MESSAGES_MB = (1, 2, 5, 10, 20, 50, 100, 200)
SHARE_OF_MODEL = 0.9
"""Measured efficiency over t_step / (t_step + t_allreduce)."""

RING = {
    "NVLink (within a node)": (5e-6, 200e9),
    "InfiniBand HDR": (10e-6, 20e9),
    "25 Gb Ethernet": (30e-6, 2.5e9),
}
"""Seconds per message, bytes/s: nominal values less a fifth; assumed, not measured."""
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
GPU_STEP_S = 0.05
"""Assumed step of ResNet50 with local batch 32 on one GPU."""


def measure() -> None:
    """Measure as a rank of a job; rank 0 prints JSON."""
    from galmerhpc import parallel
    from galmerhpc.config import Config
    from galmerhpc.dataset.batches import Batch
    from galmerhpc.models.targets import make_targets
    from galmerhpc.training import horovod
    from galmerhpc.training.network import Network

    horovod.init(600)
    rank, ranks = horovod.rank(), horovod.size()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[horovod.local_rank() % len(cores)]})
    config = Config.model_validate({"run_dir": "unused", "training": {"threads": 1}})
    draw = np.random.default_rng(rank)
    images = draw.integers(0, 256, (LOCAL_BATCH, SIZE, SIZE, 3), np.uint8)
    labels = draw.uniform(0, 90, (LOCAL_BATCH, 4)).astype(np.float32)
    batch = Batch(0, np.arange(LOCAL_BATCH), images, labels, ranks * LOCAL_BATCH)
    network = Network(config, (SIZE, SIZE, 3), make_targets(config, labels), 1000)
    gradient_mb = sum(v.numpy().nbytes for v in network.model.trainable_variables) / 1e6

    def one_after_another(work: Callable[[], Any], steps: int = STEPS) -> float:
        horovod.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            work()
        horovod.barrier()  # so that the slowest rank counts
        return (time.perf_counter() - start) / steps

    def step() -> None:
        network.step(batch, 0, 0, stop=False)

    # A second step of the same network without all-reduce of the gradients.
    alone = Network(config, (SIZE, SIZE, 3), make_targets(config, labels), 1000)

    def alone_step() -> None:
        alone.step(batch, 0, 0, stop=False)

    with mock.patch.object(horovod, "sum_tensors", lambda tensors, *_: list(tensors)):
        alone_step()

    def of_rank_0() -> None:
        if rank == 0:
            alone_step()
        parallel.barrier()

    import tensorflow as tf

    reduce_it = tf.function(lambda tensors: horovod.sum_tensors(tensors))
    gradient = [tf.zeros(v.shape) for v in network.model.trainable_variables]
    kinds = {
        "one rank alone": of_rank_0,
        "side by side": alone_step,
        "all-reduce alone": lambda: reduce_it(gradient),
        "two ranks": step,
    }
    for work in kinds.values():
        work()
    rounds = [[one_after_another(work) for work in kinds.values()] for _ in range(ROUNDS)]
    seconds = dict(zip(kinds, zip(*rounds, strict=True), strict=True))
    messages = {}
    for megabytes in MESSAGES_MB:
        message = [tf.zeros(int(megabytes * 1e6 / 4))]
        reduce_it(message)
        costs = [one_after_another(lambda m=message: reduce_it(m)) for _ in range(ROUNDS)]
        messages[megabytes] = statistics.median(costs)
    if rank == 0:
        print(json.dumps({"gradient_mb": gradient_mb, "seconds": seconds, "messages": messages}))


def judged(cycle_ms: float, fusion_mb: float) -> dict[str, Any]:
    """Measure with these Horovod settings, print a line of the table and return its results."""
    output = mpirun(
        2, __file__, "--measure", HOROVOD_CYCLE_TIME=str(cycle_ms),
        HOROVOD_FUSION_THRESHOLD=str(int(fusion_mb * 2**20)),
    )  # fmt: skip
    row = json.loads(output.splitlines()[-1]) | {"cycle_ms": cycle_ms, "fusion_mb": fusion_mb}
    rounds = list(zip(*row["seconds"].values(), strict=True))
    # Each rank has its own images.
    row["efficiency"] = statistics.median(alone / both for alone, _, _, both in rounds)
    row["model"] = statistics.median(beside / (beside + sums) for _, beside, sums, _ in rounds)
    row["pass"] = row["efficiency"] >= SHARE_OF_MODEL * row["model"]
    row["latency_s"], row["bytes_per_s"] = fit(row["messages"])
    row["seconds"] = {kind: statistics.median(each) for kind, each in row["seconds"].items()}
    seconds = "".join(f" {each:>8.3f}" for each in row["seconds"].values())
    print(
        f"{cycle_ms:>6g} {fusion_mb:>7g}{seconds} {row['efficiency']:>11.3f} {row['model']:>6.3f} "
        f"{row['efficiency'] / row['model']:>6.3f}",
        flush=True,
    )
    return row


def fit(messages: dict[str, float]) -> tuple[float, float]:
    """Return latency, s, and bandwidth, bytes/s, with equal weight for all sizes."""
    sizes = np.array([float(m) * 1e6 for m in messages])
    costs = np.array(list(messages.values()))
    slope, latency = np.polyfit(sizes, costs, 1, w=1 / costs)
    return float(latency), float(1 / slope)


def ring(gradient_bytes: float, gpus: int, latency_s: float, bandwidth: float) -> float:
    """Return seconds of a ring all-reduce: 2 (P - 1) messages of a P-th of the bytes."""
    return 2 * (gpus - 1) * (latency_s + gradient_bytes / gpus / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycle-times", type=float, nargs="+", default=[1, 5, 20], metavar="MS")
    parser.add_argument("--fusion-mb", type=float, nargs="*", default=[0], metavar="MB")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure()
        return
    heads = [f"{head:>8}" for head in ("alone", "beside", "reduce", "two")]
    print(" cycle  fusion", *heads, " efficiency  model  share", flush=True)
    rows = [judged(cycle, FUSION_MB) for cycle in given.cycle_times]
    best = max(rows, key=lambda row: row["efficiency"])
    rows += [judged(best["cycle_ms"], fusion) for fusion in given.fusion_mb]
    best = max(rows, key=lambda row: row["efficiency"])
    print(f"\nall-reduce, 2 ranks: {best['latency_s'] * 1e3:.2f} ms + bytes / ", end="")
    print(f"{best['bytes_per_s'] / 1e9:.2f} GB/s")
    for megabytes, cost in best["messages"].items():
        print(f"{megabytes:>6} MB {cost * 1e3:>8.2f} ms")
    gradient = best["gradient_mb"] * 1e6
    model = {
        link: {p: GPU_STEP_S / (GPU_STEP_S + ring(gradient, p, *cost)) for p in GPUS}
        for link, cost in RING.items()
    }
    print(f"\nmodel, not measured: efficiency with a step of {GPU_STEP_S * 1e3:g} ms")
    print(f"{'GPUs':<24}" + "".join(f"{p:>7}" for p in GPUS))
    for link, efficiency in model.items():
        print(f"{link:<24}" + "".join(f"{e:>7.2f}" for e in efficiency.values()))
    rates = [p * LOCAL_BATCH / GPU_STEP_S for p in GPUS]
    print(f"{'images/s at efficiency 1':<24}" + "".join(f"{r:>7.0f}" for r in rates))
    write_results("scaling", {"runs": rows, "best": best, "model": model, "pass": best["pass"]})


if __name__ == "__main__":
    sys.exit(main())
