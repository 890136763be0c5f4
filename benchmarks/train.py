"""Training in one process against Keras's model.fit, its parts separately, checkpoints, memory.

    python benchmarks/train.py [--sizes 64 400]

ResNet50 regression in float32. Against `model.fit`: the same arrays in memory, the same network and
batches of 32. Separately: reading alone, steps on a batch in memory, and both together as in
`galmerhpc train`. Every result is the median of 5 runs that alternate with those compared, and
every ratio the median of 5 ratios, since neighbouring runs share the state of the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from training import prepare

ROUNDS = 5
BATCH = {64: 32, 400: 4}
"""Images per step: one at 400 pixels costs as much as forty at 64."""
STEPS = {64: 6, 400: 2}
"""Steps per run."""
FIT_RATIO, FULL_RATIO, BLOCKED_SHARE, MEMORY_ERROR = 0.97, 0.98, 0.01, 0.3
CHECKPOINT_STEPS = 100
_VERDICT = {True: "pass", False: "FAIL"}


def alternating(*measured: Callable[[], float]) -> list[list[float]]:
    """Return the seconds of each, round by round, after one uncounted warm-up run each."""
    for measure in measured:
        measure()
    rounds = [[measure() for measure in measured] for _ in range(ROUNDS)]
    return [list(column) for column in zip(*rounds, strict=True)]


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(path: Path, size: int) -> dict[str, Any]:
    """Measure one image size, in a separate process so that memory can be measured."""
    from galmerhpc.config import load
    from galmerhpc.dataset.batches import training_batches
    from galmerhpc.dataset.shards import Dataset
    from galmerhpc.interrupt import StopRequest
    from galmerhpc.training.checkpoint import Writer
    from galmerhpc.training.dry_run import grown_bytes, memory_estimate
    from galmerhpc.training.memory import peak_bytes, resident_bytes
    from galmerhpc.training.train import Trainer
    from galmerhpc.training.watchdog import Watchdog

    config = load(path)
    batch_size, steps = config.training.batch_size, STEPS[size]
    import tensorflow as tf

    tf.constant(1.0)  # libraries do not count as memory of the training
    dataset = Dataset.open(config.run_dir / "shards")
    with Writer() as writer, Watchdog(3600) as watchdog, StopRequest() as stop:
        before = resident_bytes()
        trainer = Trainer(config, dataset, watchdog, writer)
        network, reader = trainer.network, trainer.reader

        def batches() -> Any:
            return training_batches(reader, 0, 0, batch_size, 0, 1)

        at_hand = next(batches())

        def synthetic() -> float:
            return timed(lambda: [network.step(at_hand, 0, k, stop=False) for k in range(steps)])

        def full() -> float:
            trainer.progress.step = trainer._steps - steps
            return timed(lambda: trainer.run_epoch(stop))

        def reading() -> float:
            whole = training_batches(reader, 0, 0, batch_size, 0, 1)
            return timed(lambda: [len(batch.images) for batch in whole])

        network.step(at_hand, 0, 0, stop=False)
        network.step(at_hand, 0, 1, stop=False)
        estimate = sum(memory_estimate(network.model, config.training).values()) / 1e9
        grown = grown_bytes(before) - reader.count * reader.image_bytes
        short = reader.count - (trainer._steps - steps) * batch_size
        synthetic_s, full_s, reading_s = alternating(synthetic, full, reading)
        figures = {
            "image_px": size,
            "batch": batch_size,
            "synthetic_per_s": steps * batch_size / statistics.median(synthetic_s),
            "full_per_s": short / statistics.median(full_s),
            "full_over_synthetic": ratio(synthetic_s, full_s) * short / (steps * batch_size),
            "io_only_per_s": reader.count / statistics.median(reading_s),
            "peak_memory_gb": peak_bytes() / 1e9,
            "memory_gb": grown / 1e9,
            "memory_estimate_gb": estimate,
        }
        if size != 64:
            return figures
        return (
            figures
            | against_fit(trainer, batch_size, steps)
            | checkpoints(trainer, writer, synthetic)
        )


def against_fit(trainer: Any, batch_size: int, steps: int) -> dict[str, float]:
    """Compare the loop, from arrays to updated weights and metrics, with Keras's."""
    import keras

    network = trainer.network
    images = np.concatenate([b.images for b in _first(trainer, steps)])
    labels = np.concatenate([b.labels for b in _first(trainer, steps)])
    targets = trainer._targets.encode(labels)
    clone = keras.models.clone_model(keras.Model(network.model.input, network.model.outputs[0]))
    clone.compile(keras.optimizers.Adam(1e-3), "mae", metrics=["mae"])

    def ours() -> float:
        def epoch() -> None:
            for batch in _first(trainer, steps):
                trainer._do_step(batch, False)
            trainer.progress.step = 0

        return timed(epoch)

    def fit() -> float:
        return timed(lambda: clone.fit(images, targets, batch_size=batch_size, verbose=0))

    ours_s, fit_s = alternating(ours, fit)
    count = steps * batch_size
    return {
        "loop_per_s": count / statistics.median(ours_s),
        "fit_per_s": count / statistics.median(fit_s),
        "loop_over_fit": ratio(fit_s, ours_s),
    }


def _first(trainer: Any, steps: int) -> Any:
    """Yield the first batches of an epoch."""
    batches = trainer._batches(0)
    for _ in range(steps):
        yield next(batches)
    batches.close()


def checkpoints(trainer: Any, writer: Any, work: Callable[[], float]) -> dict[str, float]:
    """Measure the cost of a checkpoint: seconds that it blocks, and total seconds."""
    blocked: list[float] = []

    def with_checkpoint() -> float:
        before = trainer.saving_s
        trainer.progress.epoch += 1  # so that its name is new
        start = time.perf_counter()
        trainer.save()
        work()
        blocked.append(trainer.saving_s - before)
        writer.wait()
        return time.perf_counter() - start

    plain_s, saving_s = alternating(work, with_checkpoint)
    period = CHECKPOINT_STEPS * statistics.median(plain_s) / STEPS[64]
    total = statistics.median(a - b for a, b in zip(saving_s, plain_s, strict=True))
    return {
        "checkpoint_blocked_s": statistics.median(blocked),
        "checkpoint_blocked_share": statistics.median(blocked) / period,
        "checkpoint_total_s": total,
        "checkpoint_total_share": total / period,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 400])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure[0]), int(given.measure[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in given.sizes:
            path = prepare(Path(folder), size, batch_size=BATCH[size])
            command = [sys.executable, __file__, "--measure", str(path), str(size)]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(report(rows[-1]), flush=True)
    write_results("train", {"sizes": rows, "pass": all(r["pass"] for r in rows)})


def report(row: dict[str, Any]) -> str:
    """Compare the results for one size with the targets; return its lines of the table."""
    bars = {
        "full over synthetic": (row["full_over_synthetic"], ">=", FULL_RATIO),
        "memory estimate over measured": (
            row["memory_estimate_gb"] / row["memory_gb"], "within", MEMORY_ERROR,
        ),
    }  # fmt: skip
    if "loop_over_fit" in row:
        bars["loop over model.fit"] = (row["loop_over_fit"], ">=", FIT_RATIO)
        share = row["checkpoint_blocked_share"]
        bars["share blocked by checkpoints"] = (share, "<", BLOCKED_SHARE)
    judged = {
        ">=": lambda value, bar: value >= bar,
        "<": lambda value, bar: value < bar,
        "within": lambda value, bar: abs(value - 1) <= bar,
    }
    row["bars"] = {
        name: {"value": value, "threshold": f"{kind} {bar}", "pass": bool(judged[kind](value, bar))}
        for name, (value, kind, bar) in bars.items()
    }
    row["pass"] = all(bar["pass"] for bar in row["bars"].values())
    figures = [f"{k:<28} {v:>10.4g}" for k, v in row.items() if isinstance(v, int | float)]
    verdicts = [
        f"{name:<30} {bar['value']:>8.4f} {bar['threshold']:>12} {_VERDICT[bar['pass']]}"
        for name, bar in row["bars"].items()
    ]
    return "\n".join(["", *figures, *verdicts])


if __name__ == "__main__":
    main()
