"""``galmerhpc submit``: a run's stages as SLURM jobs, each waiting for the one before it.

With ``--study`` the points of a study instead, as the tasks of a job array.
"""

import contextlib
import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galmerhpc import files
from galmerhpc.cluster import slurm
from galmerhpc.cluster.site import SITE_FILE, Site, check_environment, read_site
from galmerhpc.cluster.stages import STAGES, is_complete, job_name
from galmerhpc.config import RESOLVED, Config, Stage, dump, require_catalogue
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.studies.index import STUDIES
from galmerhpc.training.checkpoint import check_changes

log = logging.getLogger(__name__)

JOBS_FILE = "jobs.json"
"""In the run folder: the command that submitted the jobs, and each stage's last job."""

_FROM_SITE = ("--partition", "--nodes", "--ntasks", "--cpus", "--gpus", "--array")
"""Prefixes of the sbatch options whose values come from the site file."""

_STUDY = "study"
"""Prefix of the names of studies' jobs."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    config_path : str
        The configuration file as given: jobs read it again.
    overrides : sequence of str
        ``key=value``.
    first : str
        Stage to start with; those before it must be complete.
    nodes, gpus_per_node : int or None
        Of the training; None for the site file's values.
    dry_run : bool
        Print the sbatch commands and submit nothing.
    allow_change : sequence of str
        Keys of `training` that may differ from the checkpoints'.
    retry_failed, allow_missing : bool
        Of the scrape: ask again for views that failed; finish without those that fail.
    """

    config_path: str
    overrides: Sequence[str] = ()
    first: Stage = "scrape"
    nodes: int | None = None
    gpus_per_node: int | None = None
    dry_run: bool = False
    allow_change: Sequence[str] = ()
    retry_failed: bool = False
    allow_missing: bool = False

    def arguments(self) -> list[str]:
        """Return the arguments of each job's galmerhpc."""
        return [self.config_path, *self.overrides]

    def changes(self) -> list[str]:
        """Return the options of the training."""
        return [word for key in self.allow_change for word in ("--allow-change", key)]

    def missing_views(self) -> list[str]:
        """Return the options of the scrape."""
        asked = {"--retry-failed": self.retry_failed, "--allow-missing": self.allow_missing}
        return [option for option, given in asked.items() if given]

    def command(self) -> str:
        """Return the command that submits these jobs, for the shell."""
        options = ["--nodes", str(self.nodes)] if self.nodes else []
        if self.gpus_per_node is not None:
            options += ["--gpus-per-node", str(self.gpus_per_node)]
        options += self.missing_views() + self.changes()
        return shlex.join(["galmerhpc", "submit", *options, *self.arguments()])


def submit(config: Config, request: Request) -> None:
    """Submit the stages that are neither complete nor queued, and print what happens to each.

    Every job is first tested on SLURM (``sbatch --test-only``): a value that it rejects is named
    before the first job is submitted.

    Raises
    ------
    InputError
        The site file, the run folder or the configuration does not allow it, or SLURM refuses.
    GalmerhpcError
        A job of the run is just ending.
    """
    # Imported here, so that `status` starts fast.
    from galmerhpc.dataset.preprocess import require_split
    from galmerhpc.training.train import warn_of_small_pieces

    if require_catalogue(config).images and not is_complete(config, "scrape"):
        raise InputError(
            "catalogue.images: images from a folder; run galmerhpc images import first, then submit"
        )
    check_changes(config, request.allow_change)
    require_split(config)
    if not is_complete(config, "scrape"):
        _require_library(config)
    slurm.require()
    site = read_site()
    slurm.require(site.environment)
    _check(config, request, site)
    waiting = queued_jobs(config.run_dir)  # first: what ends meanwhile will be seen as complete
    missing = _missing(config, request)
    queued = [waiting[stage] for stage in missing if stage in waiting]
    _refuse_ending(config, queued)
    if queued:
        _refuse_another(config, request)
    commands = {stage: sbatch_command(config, request, site, stage) for stage in missing}
    new = {stage: command for stage, command in commands.items() if stage not in waiting}
    if new:
        check_environment()
        _try(config, new, site)
    if "train" in new:
        warn_of_small_pieces(config.training, _training_tasks(request, site))
    with contextlib.ExitStack() as stack:
        if new and not request.dry_run:
            _prepare(config)
            stack.enter_context(files.lock(config.run_dir / "logs" / "submit.lock"))
            waiting = queued_jobs(config.run_dir)  # another submit may have been faster
        previous = ""
        for stage in STAGES[STAGES.index(request.first) :]:
            if stage not in missing:
                print(f"{stage}: complete")
            elif stage in waiting:
                previous = waiting[stage].id
                print(f"{stage}: job {previous} is {waiting[stage].state.lower()} already")
            elif request.dry_run:
                print(shlex.join(after(previous, commands[stage])))
                previous = f"<{stage}>"
            else:
                previous = slurm.submit(after(previous, commands[stage]), site.environment)
                _note(config.run_dir, request, stage, previous)
                print(f"{stage}: job {previous}", flush=True)


def submit_study(config: Config, request: Request, name: str) -> None:
    """Submit the unfinished points of a study as one job array.

    Raises
    ------
    InputError
        The site file, the run folder or the configuration does not allow it, or SLURM refuses.
    """
    from galmerhpc.studies.sweep import check, is_finished, open_study, point_configs
    from galmerhpc.training.train import warn_of_small_pieces

    slurm.require()
    site, stage = read_site(), study_stage(name)
    slurm.require(site.environment)
    points = point_configs(STUDIES[name], config)
    if config.scrape.source != "mirror":
        if any(own.inputs("scrape") != config.inputs("scrape") for _, own in points):
            raise InputError(
                f"scrape.source is {config.scrape.source}: each point of the study {name} fetches "
                "images of its own, and nodes may have no internet; run galmerhpc study where "
                "there is, or use scrape.source: mirror"
            )
        if not is_complete(config, "scrape"):
            raise InputError(
                f"scrape.source is {config.scrape.source}: scrape the run itself first"
            )
    check(STUDIES[name], points)
    for _, own in points:
        shared = config if own.inputs("scrape") == config.inputs("scrape") else own
        if not (STUDIES[name].simulates or is_complete(shared, "scrape")):
            _require_library(own)
    _check_training([own for _, own in points], request, site)
    left = [k for k, (_, own) in enumerate(points, 1) if not is_finished(own)]
    if not left:
        print(f"{stage}: complete")
        return
    if _is_queued(config, stage):
        return
    command = study_command(config, request, site, name, left)
    check_environment()
    _try(config, {stage: command}, site)
    trained = [points[k - 1][1].training for k in left]
    warn_of_small_pieces(min(trained, key=lambda t: t.batch_size), _training_tasks(request, site))
    if request.dry_run:
        print(shlex.join(command))
        return
    _make_folder(config)
    open_study(STUDIES[name], config)
    with files.lock(config.run_dir / "logs" / "submit.lock"):
        if _is_queued(config, stage):  # another submit was faster
            return
        number = slurm.submit(command, site.environment)
        _note(config.run_dir, request, stage, number)
    print(f"{stage}: job {number}, points {', '.join(map(str, left))}", flush=True)


def _require_library(config: Config) -> None:
    """Refuse images of a mirror that has no library for them, as the scrape would."""
    from galmerhpc.simulate import agreement

    catalogue = require_catalogue(config)
    if config.scrape.source == "mirror" and not catalogue.images:
        agreement.require(config.run_dir / "raw", config.library, catalogue)


def _is_queued(config: Config, stage: str) -> bool:
    """Return whether a study's job is queued; if so, print it."""
    job = queued_jobs(config.run_dir).get(stage)
    if job:
        _refuse_ending(config, [job])
        print(f"{stage}: job {job.id} is {job.state.lower()} already")
    return job is not None


def after(previous: str, command: list[str]) -> list[str]:
    """Return an sbatch command that waits for a job, and leaves the queue if that job fails."""
    if not previous:
        return command
    waiting = [f"--dependency=afterok:{previous}", "--kill-on-invalid-dep=yes"]
    return [command[0], *waiting, *command[1:]]


def _missing(config: Config, request: Request) -> list[Stage]:
    """Return the incomplete stages from the first one on; those before it must be complete."""
    missing = [stage for stage in STAGES if not is_complete(config, stage, request.allow_change)]
    begin = STAGES.index(request.first)
    for stage in missing:
        if STAGES.index(stage) < begin:
            raise InputError(f"--from {request.first}: {stage} of {config.run_dir} is not complete")
    return missing


def _refuse_ending(config: Config, jobs: Sequence[slurm.Job]) -> None:
    for job in jobs:
        if job.state == slurm.COMPLETING:
            raise GalmerhpcError(
                f"{config.run_dir}: job {job.id} is just ending; submit again when galmerhpc "
                f"status {config.run_dir} shows it as ended or pending"
            )


def _refuse_another(config: Config, request: Request) -> None:
    """Refuse a command if another one submitted the run's queued jobs."""
    earlier = read_jobs(config.run_dir).get("command")
    if earlier and earlier != request.command():
        raise InputError(
            f"{config.run_dir}: its queued jobs were submitted by another command ({earlier}); "
            f"run galmerhpc cancel {config.run_dir} first, or repeat that command"
        )


def _try(config: Config, commands: Mapping[Any, list[str]], site: Site) -> None:
    """Refuse what SLURM would refuse or never start."""
    for stage, command in commands.items():
        partition = _partition(config, site, stage)
        if fault := slurm.test(command, site.environment):
            words = _sbatch_options(site, stage)
            asked = " ".join(o for o in command if o.startswith(_FROM_SITE) or o in words)
            if not slurm.may_pass(fault, partition):
                raise InputError(f"{stage}: SLURM refuses {asked}: {fault} (see {SITE_FILE})")
            log.warning(
                "%s: waits for nodes that are down or busy now (%s: %s)", stage, asked, fault
            )
        # Unless EnforcePartLimits is set, SLURM would accept the job and never start it.
        asked, given = _time(stage, site), slurm.longest(partition)
        if slurm.minutes(asked) > slurm.minutes(given):
            raise InputError(
                f"{stage}: asks for a time of {asked}, but its partition allows {given}: "
                f"set SBATCH_TIMELIMIT in {SITE_FILE}"
            )


def _time(stage: str, site: Site) -> str:
    """Return the time limit of a stage's job; 0 (SLURM's "any") if it has none."""
    script = Path(_script(stage)).read_text(encoding="utf-8")
    own = re.search(r"^#SBATCH --time=(\S+)", script, re.MULTILINE)
    return site.environment.get("SBATCH_TIMELIMIT") or (own[1] if own else "0")


def queued_jobs(run_dir: Path) -> dict[str, slurm.Job]:
    """Return the run's queued and running jobs by stage; a study's is ``study-NAME``.

    A job whose dependency has failed stays in the queue for some seconds, and is left out. An
    array's tasks count as one job, which is completing when all of them are.
    """
    stages = {job_name(run_dir, stage): stage for stage in (*STAGES, *map(study_stage, STUDIES))}
    jobs = sorted(slurm.queued(list(stages)), key=lambda job: job.state != slurm.COMPLETING)
    return {stages[job.name]: job for job in jobs if job.reason != slurm.DEAD_DEPENDENCY}


def sbatch_command(config: Config, request: Request, site: Site, stage: Stage) -> list[str]:
    """Return the sbatch command of a stage, without its dependency."""
    number, job = "%j", request.arguments()
    options: list[str]
    match stage:
        case "scrape":
            options = [f"--array=1-{site.scrape_tasks}%{site.scrape_at_once}"]
            number = "%A_%a"
            job += request.missing_views()
        case "preprocess":
            options = [f"--ntasks={site.preprocess_tasks}"]
        case "train":
            options = _training_options(request, site)
            job += request.changes()
            if site.continuation == "array":
                options.append(f"--array=1-{site.continuation_tasks}%1")
                number = "%A"  # its tasks are one training's attempts: one log
        case "evaluate":
            options = [
                f"--cpus-per-task={site.cpus_per_task}",
                *_gpu_options(site, min(1, _gpus_per_node(request, site))),
            ]
    return _sbatch(config, site, stage, number, options, job)


def study_command(
    config: Config, request: Request, site: Site, name: str, points: Sequence[int]
) -> list[str]:
    """Return the sbatch command of a study's points, numbered from 1."""
    options = [f"--array={','.join(map(str, points))}", *_training_options(request, site)]
    job = [name, *request.arguments()]
    return _sbatch(config, site, study_stage(name), "%A_%a", options, job)


def study_stage(name: str) -> str:
    """Return a study's name among the stages of a run."""
    return f"{_STUDY}-{name}"


def _script(stage: str) -> str:
    return f"slurm/{_STUDY if stage.startswith(_STUDY) else stage}.sbatch"


def _has_gpus(stage: str) -> bool:
    return stage in ("train", "evaluate") or stage.startswith(_STUDY)


def _sbatch_options(site: Site, stage: str) -> tuple[str, ...]:
    return site.gpu_sbatch_options if _has_gpus(stage) else site.cpu_sbatch_options


def _partition(config: Config, site: Site, stage: str) -> str:
    """Return a stage's partition; empty for the one that SLURM chooses."""
    if _has_gpus(stage):
        return site.gpu_partition or site.cpu_partition
    if stage == "scrape" and config.scrape.source != "mirror":
        return site.internet_partition
    return site.cpu_partition


def _training_options(request: Request, site: Site) -> list[str]:
    gpus = _gpus_per_node(request, site)
    return [
        f"--nodes={request.nodes or site.train_nodes}",
        f"--ntasks-per-node={gpus or site.tasks_per_node}",
        f"--cpus-per-task={site.cpus_per_task}",
        *_gpu_options(site, gpus),
    ]


def _sbatch(
    config: Config, site: Site, stage: str, number: str, options: Sequence[str],
    job: Sequence[str],
) -> list[str]:  # fmt: skip
    """Return an sbatch command: the options of all jobs, and those of one."""
    logs = str(config.run_dir / "logs").replace("%", "%%")  # not a pattern for sbatch
    mail = [f"--mail-user={site.mail_user}", "--mail-type=END,FAIL"] if site.mail_user else []
    partition = _partition(config, site, stage)
    return [
        "sbatch", "--parsable", f"--job-name={job_name(config.run_dir, stage)}",
        *([f"--partition={partition}"] if partition else []),
        f"--output={logs}/{stage}-{number}.out", *options, *_sbatch_options(site, stage), *mail,
        _script(stage), *job,
    ]  # fmt: skip


def read_jobs(run_dir: Path) -> dict[str, Any]:
    """Read `JOBS_FILE`: ``command`` and ``jobs``, the last job's number by stage."""
    path = run_dir / JOBS_FILE
    if not path.exists():
        return {"command": "", "jobs": {}}
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("jobs"), dict):
        raise InputError(f"{path}: damaged; remove it (the jobs themselves are not touched)")
    return record


def _gpus_per_node(request: Request, site: Site) -> int:
    return site.gpus_per_node if request.gpus_per_node is None else request.gpus_per_node


def _training_tasks(request: Request, site: Site) -> int:
    nodes = request.nodes or site.train_nodes
    return nodes * (_gpus_per_node(request, site) or site.tasks_per_node)


def _gpu_options(site: Site, number: int) -> list[str]:
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    return [f"--gpus-per-node={kind}{number}"] if number else []


def _check(config: Config, request: Request, site: Site) -> None:
    scraped = is_complete(config, "scrape")
    if not scraped and config.scrape.connections < site.scrape_tasks:
        raise InputError(
            f"scrape.connections {config.scrape.connections} is less than one for each of "
            f"{site.scrape_tasks} array tasks: raise it, or lower SCRAPE_TASKS in {SITE_FILE}"
        )
    if not scraped and config.scrape.source != "mirror" and not site.internet_partition:
        raise InputError(
            f"scrape.source is {config.scrape.source}, but {SITE_FILE} names no "
            "INTERNET_PARTITION: run galmerhpc scrape on a node with internet, then submit"
        )
    _check_training([config], request, site)


def _check_training(configs: Iterable[Config], request: Request, site: Site) -> None:
    if _gpus_per_node(request, site) > site.gpus_per_node:
        raise InputError(
            f"--gpus-per-node {request.gpus_per_node}: a node has {site.gpus_per_node} "
            f"(GPUS_PER_NODE of {SITE_FILE})"
        )
    if site.launcher == "srun" and not slurm.takes_mpi(site.mpi_plugin):
        raise InputError(
            f"{SITE_FILE}: MPI_PLUGIN {site.mpi_plugin}: srun has no such plugin (srun "
            "--mpi=list); choose another, or LAUNCHER=mpirun"
        )
    tasks = _training_tasks(request, site)
    if (smallest := min(config.training.batch_size for config in configs)) < tasks:
        raise InputError(
            f"training.batch_size {smallest} leaves some of {tasks} tasks "
            "without images: raise it, or use fewer --nodes"
        )


def _prepare(config: Config) -> None:
    """Make the run folder, with the configuration for `status`."""
    _make_folder(config)
    files.write_text(config.run_dir / RESOLVED, dump(config))


def _make_folder(config: Config) -> None:
    """Make the run folder, with a folder for the jobs' logs."""
    try:
        (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{config.run_dir}: cannot be made: {error.strerror}") from None


def _note(run_dir: Path, request: Request, stage: str, job_id: str) -> None:
    """Record a submitted job."""
    try:
        record = read_jobs(run_dir)
        if stage in STAGES:  # a study has a command of its own
            record["command"] = request.command()
        record["jobs"][stage] = job_id
        files.write_json(run_dir / JOBS_FILE, record)
    except GalmerhpcError as error:
        raise GalmerhpcError(f"job {job_id} of {stage} was submitted, but: {error}") from error
