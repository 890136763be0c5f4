"""The attempts of a job: ``slurm/job.sh`` runs this module when each begins and ends.

A job that must stop before its work is done (time limit, preemption, a lost node) goes back to the
queue and resumes from what it saved. The record of each attempt is what existed when it began: a
job that twice uses up its time without progress, or is started too often, is not started again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from galmerhpc import files
from galmerhpc.cluster import slurm
from galmerhpc.cluster.stages import STAGES, is_complete, progress
from galmerhpc.config import Config, load
from galmerhpc.errors import ExitCode, GalmerhpcError, InputError

PATIENCE = 2
"""Attempts without progress that end a job; those that SLURM cut short do not count."""

_TIME_LIMIT, _FAILED = "; time limit", "; failed"
"""Marks of attempts that count: a preemption or a lost node says nothing about the next one."""

_FINAL = (ExitCode.WRONG_INPUT, ExitCode.VIEWS_MISSING)
"""Exit codes that another attempt would only repeat."""

_SIGNALLED = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
"""Exit codes that bash gives to what SLURM's signals ended."""


class Attempts:
    """The record of one job's attempts, one line each, in the run folder's ``logs``.

    Parameters
    ----------
    config : Config
        The run.
    stage : str
        The galmerhpc command that the job runs.
    environment : mapping of str
        The job's: its number from SLURM, and the settings of ``slurm/site.sh``.
    allow_change : sequence of str
        Keys of `training` that may differ from the checkpoints'.
    """

    def __init__(
        self, config: Config, stage: str, environment: Mapping[str, str],
        allow_change: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._config, self._stage, self._environment = config, stage, environment
        self._allow_change = allow_change
        self._job, self._has_next = environment["SLURM_JOB_ID"], False
        number = self._job
        if array := environment.get("SLURM_ARRAY_JOB_ID"):
            task = environment["SLURM_ARRAY_TASK_ID"]
            # One task has the array's number as its own.
            self._job = f"{array}_{task}"
            # Tasks of scrape and study are separate jobs; those of a training are its attempts.
            number = array if stage == "train" else self._job
            self._has_next = stage == "train" and task != environment["SLURM_ARRAY_TASK_MAX"]
        self._path = config.run_dir / "logs" / f"{stage}-{number}.attempts"

    def begin(self) -> None:
        """Record a new attempt, unless the work is done, as in the last tasks of an array.

        Raises
        ------
        GalmerhpcError
            The job makes no progress, or has used all its attempts.
        """
        if self._stage in STAGES and is_complete(self._config, self._stage, self._allow_change):
            return
        made = progress(self._config, self._stage)
        self._check(made)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as record:
            record.write(f"{made}\n")

    def end(self, status: int, warned: bool) -> None:
        """Requeue the job if another attempt can finish it, or exit with its status.

        Parameters
        ----------
        status : int
            Exit code of the job's command, as bash gives it; not 0.
        warned : bool
            SLURM announced the time limit.
        """
        stopped = self._was_stopped(status, warned)
        if not stopped and (self._environment["REQUEUE_FAILED"] == "no" or status in _FINAL):
            sys.exit(status)
        if warned or not stopped:
            self._mark(_TIME_LIMIT if stopped else _FAILED)
        made = progress(self._config, self._stage)
        self._check(made)
        if self._environment["CONTINUATION"] == "requeue":
            self._requeue(made)
        elif self._has_next:
            say(f"stopped with {made}; the array's next task continues")
        else:
            say(f"stopped with {made}; submit again to continue")
            sys.exit(ExitCode.INTERRUPTED)

    def _was_stopped(self, status: int, warned: bool) -> bool:
        """Return whether SLURM stopped the work, which is then saved.

        A stage that saves as it works may be ended by the signal itself. But srun also exits with
        a signal's status after one task failed and it ended the others.
        """
        if status not in _SIGNALLED:
            return status == ExitCode.INTERRUPTED
        return warned or any(j.preempted for j in slurm.show(self._job))

    def _requeue(self, made: str) -> None:
        # SLURM would also requeue a job that is being cancelled.
        if not any(job.state == "RUNNING" for job in slurm.show(self._job)):
            say(f"stopped with {made}; SLURM ends the job: unless it requeues it, submit again")
            sys.exit(ExitCode.INTERRUPTED)
        say(f"stopped with {made}; requeued")
        try:
            slurm.requeue(self._job)
        except InputError as error:
            raise GalmerhpcError(
                f"SLURM refuses to requeue the job ({error}): submit again to continue, or set "
                "CONTINUATION=array in slurm/site.sh"
            ) from None

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def _mark(self, mark: str) -> None:
        """Record why this attempt ended."""
        if lines := self._lines():
            files.write_text(self._path, "\n".join(lines) + f"{mark}\n")

    def _check(self, made: str) -> None:
        before = self._lines()
        if len(before) >= int(self._environment["MAX_ATTEMPTS"]):
            raise GalmerhpcError(
                f"{self._stage} was started {len(before)} times (MAX_ATTEMPTS of slurm/site.sh): "
                f"submit again to continue (saved: {made})"
            )
        full = [line for line in before if line.endswith((_TIME_LIMIT, _FAILED))]
        if [line.rpartition(";")[0] for line in full[-PATIENCE:]] == [made] * PATIENCE:
            raise GalmerhpcError(
                f"{self._stage} made no progress in {PATIENCE} attempts ({made}): raise the job's "
                "time limit, or lower training.checkpoint_every_steps, and submit again"
            )


def say(message: str) -> None:
    """Write a line into the job's log."""
    print(f"galmerhpc: {message}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Begin or end an attempt of the job that this runs in."""
    parser = argparse.ArgumentParser(prog="galmerhpc.cluster.attempts")
    parser.add_argument("moment", choices=("begin", "end"))
    parser.add_argument("stage")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--allow-change", action="append", default=[])
    for option in ("--split", "--data"):  # of the stages' own commands, with no meaning here
        parser.add_argument(option)
    for flag in ("--retry-failed", "--allow-missing"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--warned", choices=("yes", "no"), default="no")
    given = parser.parse_intermixed_args(arguments)
    try:
        config = load(given.config, given.overrides)
        attempts = Attempts(config, given.stage, os.environ, given.allow_change)
        if given.moment == "begin":
            attempts.begin()
        else:
            attempts.end(given.status, given.warned == "yes")
    except InputError as error:
        say(str(error))
        sys.exit(ExitCode.WRONG_INPUT)
    except (GalmerhpcError, OSError) as error:  # the latter name the file
        say(str(error))
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
