"""Execution of studies: the points one by one, each an ordinary run, then table and figure.

``RUN/studies/NAME/POINT`` is a point's run folder. Beside these folders are ``config.yaml``, with
what the points have in common, and ``results.csv`` and ``figure``, rewritten after each point.
Images and shards that points share are made once: in the run's own ``raw`` and ``shards`` if its
configuration makes the same ones, otherwise in ``RUN/studies/raw`` and ``RUN/studies/shards``; a
point's folders are links to them.
"""

import contextlib
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from galmerhpc import files, parallel
from galmerhpc.config import RESOLVED, Config, Stage, digest, dump, replaced, require_catalogue
from galmerhpc.dataset.preprocess import require_split
from galmerhpc.dataset.records import refuse_other
from galmerhpc.errors import GalmerhpcError, InputError, InterruptedRunError
from galmerhpc.evaluation import facts
from galmerhpc.evaluation.evaluate import REPORT, folder_of, record_of
from galmerhpc.evaluation.summary import COLLISIONLESS, WHAT_IS_NEW
from galmerhpc.studies import figure, table
from galmerhpc.studies.study import Point, Study

log = logging.getLogger(__name__)

SHARED: dict[str, Stage] = {"raw": "scrape", "shards": "preprocess"}
"""Folders that points may share, and the stages that make them."""

Command = Callable[[str, Path], None]
"""Runs a galmerhpc command on a run folder: ``command("train", folder)``."""


def sweep(study: Study, config: Config, command: Command, number: int | None = None) -> None:
    """Run the unfinished points of a study. Collective.

    If a point fails identically on all ranks, for example because training diverges, it is reported
    and the other points are still run. A failure on a single rank ends the job, since the other
    ranks wait for it.

    Parameters
    ----------
    study : Study
        The study.
    config : Config
        Configuration that its points have in common.
    command : callable
        Runs a command on a point's run folder, on all ranks.
    number : int, optional
        Run only this point, counted from 1.

    Raises
    ------
    InputError
        The study has no such point, or the configuration does not fit it.
    GalmerhpcError
        Points failed; the message names them, and the class is that of the first failure.
    InterruptedRunError
        A signal or time limit interrupted the study; the same command resumes it.
    """
    points = point_configs(study, config)
    if number is not None and not 1 <= number <= len(points):
        raise InputError(f"--point {number}: the study {study.name} has points 1 to {len(points)}")
    if parallel.rank() == 0:
        check(study, points, number)
        open_study(study, config)
    consensus = parallel.Consensus()
    failures: dict[str, GalmerhpcError] = {}
    for k, (point, own) in enumerate(points, 1):
        if number not in (None, k):
            continue
        if parallel.from_rank_0(functools.partial(is_finished, own)):
            log.info("study %s: point %s is complete", study.name, point.name)
        else:
            log.info("== study %s: point %s, %d of %d", study.name, point.name, k, len(points))
            try:
                _do(study, config, own, command)
            except InterruptedRunError:
                raise
            except GalmerhpcError as error:
                failure = type(error)(f"{_place(study, point)}: {error}")
                if not consensus.is_unanimous(str(error)):
                    raise failure from None
                log.warning("%s", failure)  # shown by rank 0
                failures[point.name] = failure
                continue
        if parallel.rank() == 0:
            write_results(study, config)
    if failures:
        first, *_ = failures.values()
        raise type(first)(
            f"study {study.name}: of its {len(points)} points these failed: "
            f"{', '.join(failures)}; the reasons are given above"
        )


def _place(study: Study, point: Point) -> str:
    return f"study {study.name}, point {point.name}"


def check(study: Study, points: Sequence[tuple[Point, Config]], number: int | None = None) -> None:
    """Refuse points that are bound to fail, before hours are spent on earlier points.

    Parameters
    ----------
    study : Study
        The study.
    points : sequence of (Point, Config)
        All its points, none of which may have been made otherwise.
    number : int, optional
        The only point to be run, counted from 1; by default all unfinished ones.

    Raises
    ------
    InputError
        The message names each such point.
    """
    faults = [
        f"{_place(study, point)}: {fault}"
        for k, (point, own) in enumerate(points, 1)
        if (fault := _fault(own, is_run=number in (None, k)))
    ]
    if faults:
        raise InputError("\n".join(faults))


def _fault(own: Config, *, is_run: bool) -> str:
    """Return why an unfinished point is bound to fail; empty if no reason is known."""
    batch_size, ranks = own.training.batch_size, parallel.size()
    try:
        if is_finished(own):
            return ""
        refuse_other(own)
        if not is_run:
            return ""
        require_split(own)
    except InputError as error:
        return str(error)
    if batch_size < ranks:
        return (
            f"training.batch_size {batch_size} leaves some of the {ranks} ranks without images: "
            "leave out the point, or start fewer ranks"
        )
    return ""


def open_study(study: Study, config: Config) -> None:
    """Write the configuration that a study's points have in common into its folder.

    If the run folder has none, it is also written there, for `status` and `check`. An existing one
    is kept: it may be of the run itself, for example with another number of epochs.
    """
    files.write_text(study_folder(study, config) / RESOLVED, dump(config))
    if not (config.run_dir / RESOLVED).exists():
        files.write_text(config.run_dir / RESOLVED, dump(config))


def point_configs(study: Study, config: Config) -> list[tuple[Point, Config]]:
    """Return a study's points with their validated configurations.

    Raises
    ------
    InputError
        The configuration does not fit the study, or that of a point is invalid.
    """
    folder, points = study_folder(study, config), study.points(config)
    name, count = Counter(point.name for point in points).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"study {study.name}: {count} points are called {name}; leave out all but one"
        )
    return [
        (
            point,
            replaced(
                config,
                {**point.changes, "run_dir": str(folder / point.name)},
                _place(study, point),
            ),
        )
        for point in points
    ]


def study_folder(study: Study, config: Config) -> Path:
    """Return the folder of a study's points, table and figure."""
    return config.run_dir / "studies" / study.name


def is_finished(own: Config) -> bool:
    """Return whether a point has been evaluated and reported.

    Raises
    ------
    InputError
        It has been evaluated with another configuration.
    """
    return record_of(own).complete and (folder_of(own) / REPORT).exists()


def _do(study: Study, config: Config, own: Config, command: Command) -> None:
    """Run a point from its first stage to its report."""
    if parallel.rank() == 0:
        files.write_text(own.run_dir / RESOLVED, dump(own))
        _link_shared(config, own)
    parallel.barrier()
    with _one_at_a_time(config):
        if study.simulates:
            command("simulate", own.run_dir)
        command("images import" if require_catalogue(own).images else "scrape", own.run_dir)
        command("preprocess", own.run_dir)
    command("run", own.run_dir)


def _link_shared(config: Config, own: Config) -> None:
    """Make links in a point's folder to the images and shards that it needs."""
    for name, stage in SHARED.items():
        inputs = own.inputs(stage)
        home = config.run_dir / name
        if inputs != config.inputs(stage):
            home = config.run_dir / "studies" / name / digest(inputs)[:12]
        home.mkdir(parents=True, exist_ok=True)
        link = own.run_dir / name
        if not link.exists():
            link.unlink(missing_ok=True)  # it may be a dangling link
            link.symlink_to(os.path.relpath(home, own.run_dir), target_is_directory=True)


@contextlib.contextmanager
def _one_at_a_time(config: Config) -> Iterator[None]:
    """Let one task of a job array at a time make what points may share."""
    with contextlib.ExitStack() as stack:
        if parallel.rank() == 0:
            stack.enter_context(files.lock(config.run_dir / "studies" / "data.lock", wait=True))
        parallel.barrier()
        yield
        parallel.barrier()


def write_results(study: Study, config: Config) -> None:
    """Write table and figure of the finished points; called by rank 0."""
    folder = study_folder(study, config)
    with files.lock(folder / "results.lock", wait=True):
        points = point_configs(study, config)
        rows = [table.row_of(point, own.run_dir) for point, own in points if is_finished(own)]
        table.write(folder / "results.csv", rows)
        figure.draw(
            study, rows, config.parameters, folder / "figure", _note(config, rows, len(points))
        )
    log.info("%s\n\n%s", table.as_text(study.axis, rows), folder / "figure.png")


def _note(config: Config, rows: Sequence[table.Row], points: int) -> str:
    """Return the note below the figure: what was evaluated."""
    samples = {
        f"{row['evaluated_images']:,.0f} {row['evaluated']} images "
        f"(split {row['split']}: {WHAT_IS_NEW[row['split']]})"
        for row in rows
    }
    lines = [f"Evaluated on {'; '.join(sorted(samples))}."]
    if facts.shows_our_encounters(config):
        lines.append(f"Images: {COLLISIONLESS}.")
    if len(rows) < points:
        lines.append(f"{len(rows)} of {points} points are finished.")
    return "\n".join(lines)
