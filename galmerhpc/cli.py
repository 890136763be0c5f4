"""The command ``galmerhpc``: one function per subcommand."""

import argparse
import contextlib
import errno
import io
import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from galmerhpc import __version__, files, parallel
from galmerhpc.cluster.stages import STAGES, report_path
from galmerhpc.config import (
    RESOLVED,
    Config,
    Render,
    Simulate,
    dump,
    load,
    load_catalogue,
    require_catalogue,
)
from galmerhpc.errors import ExitCode, GalmerhpcError, InputError, InterruptedRunError
from galmerhpc.studies.index import STUDIES

log = logging.getLogger("galmerhpc")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

MOST_SPLIT_VIEWS = 10_000_000
"""Most views for which `catalogue show` counts the splits: seconds of work."""

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
AddCommand: TypeAlias = Callable[..., argparse.ArgumentParser]
AddGroup: TypeAlias = Callable[..., Commands]

RUN_HELP = """
Do the whole job: scrape, preprocess, train, evaluate and report. Complete stages are skipped,
interrupted ones resume. On one process, or on many ranks; on a cluster, `submit` makes each stage a
job, so that only the training holds all the GPUs:

  mpirun -np 2 galmerhpc run configs/demo.yaml training.epochs=10
  galmerhpc submit configs/multi_node.yaml --nodes 4
"""

EVALUATE_HELP = """
Score the trained network on images that training never saw, beside a nearest-neighbour look-up in
the training images and the mean predictor: on clean images and on sky-like ones (evaluation.sky
sets the changes). Writes metrics.json, predictions.csv, intervals.json and figures into
RUN/evaluation; with --split or --data, into a folder named after them.

  galmerhpc evaluate runs/demo
  galmerhpc evaluate runs/demo evaluation.sky.noise=20 evaluation.sky.psf_fwhm_px=4
  galmerhpc evaluate runs/never_seen --data runs/inclinations --split all
"""

SHOW_HELP = """
Print a catalogue: runs and snapshots, views, labels with their values, number of requests. For a
configuration, also the sizes of its splits.

  galmerhpc catalogue show configs/catalogues/demo.yaml
  galmerhpc catalogue show configs/demo.yaml split.tile_deg=15
"""

PROBE_HELP = """
Fetch one preview, describe it and save it, to find out which snapshot a number means. The render
options are the catalogue's, if there is one. If the service sends a page instead of an image, the
page is quoted and the exit code is 1.

  galmerhpc catalogue probe configs/demo.yaml --snap-id 27436
  galmerhpc catalogue probe CONFIG scrape.source=http://galmer.obspm.fr --snap-id 27436 --theta 0
"""

LIBRARY_IMPORT_HELP = """
Make a snapshot library from GalMer's particle snapshots, for the mirror to draw: set `library` to
it. Each FITS file has a binary table with columns X Y Z VX VY VZ MASS M_GAS P_TYPE GAL; x-y is
taken as the orbital plane. What the files do not say is in a CSV table, one row per file:

  file,id,time_myr,spin,inclination_deg,simulation
  snap_010.fits,27436,100,retrograde,90,0

Prints the runs of these snapshots for a catalogue. Needs astropy: pip install 'galmerhpc[fits]'

  galmerhpc library import snap_*.fits --table snapshots.csv --output galmer.h5 > galmer.yaml
"""

IMAGES_IMPORT_HELP = """
Import a folder of images into a run instead of scraping; `galmerhpc run` does this itself. The
configuration names the CSV table that lies beside the images, and their size:

  catalogue: {images: {table: pictures/labels.csv}, render: {nbins: 256}}

  file,spin,inclination,azimuth,viewing_angle        (also: simulation,snapshot_id,time_myr)
  001.png,prograde,45,30,60

GIF, PNG or JPEG, square, all of one size, 8-bit grey, palette or RGB; see docs/format.md.
"""

PREDICT_HELP = """
Estimate the parameters of your own images: JPEG, PNG, GIF, TIFF, NumPy arrays, and FITS with
astropy (pip install 'galmerhpc[fits]'). The pair should fill the middle of the image as it does in
the training images. A file that is not an image is reported and skipped; the exit code is then 2.

  galmerhpc predict runs/demo pictures/ 'more/*.png' array.npy
  galmerhpc predict runs/demo pictures/ --format csv > predictions.csv
  galmerhpc predict runs/demo pictures/ --montage pictures.png
"""

REAL_PAIRS_HELP = """
Estimate the inclination of real pairs and compare it with that from position angles and
inclinations on the sky (the paper's Eq. 3). The table has one row per pair; docs/format.md names
its columns. `--pairs paper` uses the paper's 15 pairs.

  galmerhpc real-pairs runs/real_sky --pairs pairs.csv --images photographs --explain steps
  galmerhpc real-pairs runs/real_sky --pairs paper --images sdss --fetch
"""

STUDY_HELP = """
Vary one quantity and keep everything else fixed. Each point is its own run in
RUN/studies/NAME/POINT, on this command's ranks; finished points are skipped. The section studies
of the configuration sets the points. Infeasible points are rejected before the first one starts;
failed ones are reported at the end. Writes results.csv and a figure. --point K does one point.

  galmerhpc study batch-size configs/random_split.yaml 'studies.batch_sizes=[16, 25, 64]'
  mpirun -np 2 galmerhpc study realisations configs/never_seen.yaml
  galmerhpc submit configs/never_seen.yaml --study realisations    # one task per point

studies:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (`errors.ExitCode`)."""
    for name in ("stdout", "stderr"):  # a command started with >&- has none
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    given = make_parser().parse_args(arguments)
    # Without most of TensorFlow's notes on its start, once per rank; its warnings stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # An elastic training may lose its first rank; another takes its place.
    speaks = parallel.launched_rank() == 0 or "HOROVOD_ELASTIC" in os.environ
    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.INFO if speaks else logging.ERROR)
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[shown])
    log.setLevel(logging.DEBUG)  # what is not shown may go to a rank's own file (`log_file`)
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given.function(given)
        sys.stdout.flush()
    except InterruptedRunError as stop:  # all ranks know, and each leaves by itself
        if speaks:
            print(stop, file=sys.stderr, flush=True)
        return stop.exit_code
    except GalmerhpcError as error:
        parallel.fail(f"galmerhpc: {error}", error.exit_code)
    except PermissionError as error:  # it names the file
        parallel.fail(f"galmerhpc: {error}", ExitCode.WRONG_INPUT)
    except BrokenPipeError:
        _drop_output()
        parallel.fail("galmerhpc: standard output was closed", ExitCode.FAILED)
    except KeyboardInterrupt:
        parallel.fail("galmerhpc: interrupted", ExitCode.FAILED)
    except Exception as error:  # noqa: BLE001 - leave no rank waiting
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _drop_output()
            parallel.fail(f"galmerhpc: cannot write: {error}", ExitCode.FAILED)
        parallel.fail(traceback.format_exc(), ExitCode.FAILED)  # a bug
    return ExitCode.COMPLETE


def _drop_output() -> None:
    """Leave nothing to write at exit, as in the documentation of the module signal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class CommandParser(argparse.ArgumentParser):
    """A command's parser; options may come before, among and after its arguments.

    Attributes
    ----------
    any_order : bool
        False for a command that only has subcommands.
    """

    any_order = True

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; argparse alone wants the arguments of a list next to each other."""
        if not self.any_order:
            return super().parse_known_args(args, namespace)
        self.any_order = False  # up to Python 3.11 the other method comes back to this one
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.any_order = True


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="galmerhpc",
        description="Distributed deep learning on simulated galaxy mergers.",
        epilog="Exit codes: 0 complete, 1 failed, 2 wrong input or configuration, 3 views missing, "
        "75 stopped with the work saved (run again).",
    )
    parser.add_argument("--version", action="version", version=f"galmerhpc {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=CommandParser
    )

    def add(
        name: str, function: object, summary: str, description: str = "", to: Commands = commands
    ) -> argparse.ArgumentParser:
        command = to.add_parser(
            name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(function=function)
        return command

    def add_stage(
        name: str, function: object, summary: str, description: str = "", what: str = "CONFIG",
        to: Commands = commands,
    ) -> argparse.ArgumentParser:  # fmt: skip
        command = add(name, function, summary, description, to)
        add_config(command, what)
        return command

    def group(name: str, summary: str) -> Commands:
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        command.any_order = False
        return command.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_stage_commands(add_stage)
    add_use_commands(add)
    add_study_command(add)
    add_data_commands(add, add_stage, group)
    add_cluster_commands(add, add_stage)
    return parser


def add_config(command: argparse.ArgumentParser, what: str = "CONFIG") -> None:
    """Add the configuration and its overrides."""
    run = "; or a run folder" if "RUN" in what else ""
    command.add_argument("config", metavar=what, help=f"configuration file{run}")
    command.add_argument(
        "overrides", metavar="key=value", nargs="*", default=(),
        help="replace a key of the file, as in training.epochs=3",
    )  # fmt: skip


def add_stage_commands(add_stage: AddCommand) -> None:
    """Add the stages of a run, and the command that does them all."""
    command = add_stage("run", run, "do the whole job, skipping complete stages", RUN_HELP)
    command.set_defaults(  # options of the stages' own commands
        slice="1/1", retry_failed=False, allow_missing=False, dry_run=False, allow_change=(),
        elastic=False, split=None, data=None, beside=(),
    )  # fmt: skip
    add_stage("simulate", simulate, "compute N-body encounters into a snapshot library (MPI)")
    add_scrape_options(
        add_stage("scrape", scrape, "fetch the catalogue's previews into raw shards (MPI)")
    )
    add_stage("preprocess", preprocess, "turn raw shards into training shards (MPI)")
    command = add_stage("train", train, "train the network (Horovod)")
    command.add_argument(
        "--dry-run", action="store_true",
        help="print network, memory and steps, and try one batch of the shards; write nothing",
    )  # fmt: skip
    add_allow_change(command)
    command.add_argument(
        "--elastic", action="store_true",
        help="continue with the remaining workers when some are lost (elastic horovodrun)",
    )  # fmt: skip
    command = add_stage(
        "evaluate", evaluate, "score the trained network on held-out images", EVALUATE_HELP,
        "CONFIG|RUN",
    )  # fmt: skip
    add_evaluation_options(command)
    command = add_stage("report", report, "write the evaluation as one HTML file", "", "CONFIG|RUN")
    add_evaluation_options(command)
    command.add_argument(
        "--beside", metavar="RUN", action="append", default=[],
        help="also show the network of another evaluated run; may be repeated",
    )  # fmt: skip


def add_study_command(add: AddCommand) -> None:
    """Add the command that does a study."""
    command = add(
        "study", study, "vary one quantity: one run per value, a table and a figure (Horovod)",
        STUDY_HELP + "\n".join(f"  {name:15} {one.summary}" for name, one in STUDIES.items()),
    )  # fmt: skip
    command.add_argument("name", metavar="NAME", choices=STUDIES, help="one of the studies above")
    add_config(command)
    command.add_argument(
        "--point", type=count, metavar="K", help="do only the K-th point, as a job array's task"
    )


def add_data_commands(add: AddCommand, add_stage: AddCommand, group: AddGroup) -> None:
    """Add the commands that look at a run's data, or bring some in from elsewhere."""
    show = group("catalogue", "look at a catalogue, or at one preview of its service")
    add_stage("show", catalogue_show, "print runs, views, labels and counts", SHOW_HELP, to=show)
    command = add_stage(
        "probe", catalogue_probe, "fetch one preview and describe it", PROBE_HELP, to=show
    )
    command.add_argument("--snap-id", type=int, required=True, help="the service's snapshot number")
    command.add_argument(
        "--theta", type=float, default=45, help="viewing angle, degrees (default: 45)"
    )
    command.add_argument("--phi", type=float, default=30, help="azimuth, degrees (default: 30)")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="image to write (default: snapshot-ID.gif)"
    )

    add_stage(
        "import", images_import, "import a folder of images into a run (MPI)", IMAGES_IMPORT_HELP,
        to=group("images", "images of your own"),
    )  # fmt: skip

    command = add(
        "import", library_import, "make a library from FITS snapshots", LIBRARY_IMPORT_HELP,
        to=group("library", "snapshot libraries"),
    )  # fmt: skip
    command.add_argument("fits", type=Path, metavar="FITS", nargs="+", help="particle snapshot")
    command.add_argument(
        "--table", type=Path, required=True, metavar="CSV", help="what each file is (see above)"
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="library to write"
    )
    command.add_argument(
        "--length-kpc", type=float, default=1.0, help="unit of X, Y, Z in kpc (default: 1)"
    )
    command.add_argument(
        "--mass-msun", type=float, default=2.3e9,
        help="unit of MASS in solar masses (default: 2.3e9)",
    )  # fmt: skip

    command = add(
        "check", check, "verify every file of a run (MPI)",
        "Verify every file of a run. Exit code 1 if anything is bad, set aside or not.",
    )  # fmt: skip
    command.add_argument("run", metavar="RUN", help="run folder")
    command.add_argument(
        "--repair", action="store_true",
        help="rename what is bad to *.bad, so that the next run makes only that again",
    )  # fmt: skip

    command = add("info", info, "print the contents of a shard, a spool or a snapshot library")
    command.add_argument("file", metavar="FILE", help="the file")

    command = add("mirror", mirror, "serve GalMer's preview protocol from a snapshot library")
    command.add_argument(
        "--library", metavar="FILE", default="shipped", help="library file (default: the package's)"
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: loopback only)"
    )
    command.add_argument(
        "--port", type=int, default=0, help="port to listen on (default: any free one)"
    )
    # For the process that `scrape` starts.
    command.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)


def add_evaluation_options(command: argparse.ArgumentParser) -> None:
    """Add the options for the images that a network is evaluated on."""
    command.add_argument(
        "--split", choices=("test", "val", "all"),
        help="images to evaluate (default: test, or val if there is no test split)",
    )  # fmt: skip
    command.add_argument(
        "--data", metavar="CONFIG|RUN",
        help="evaluate on the preprocessed images of another run instead of the network's own",
    )  # fmt: skip


def add_allow_change(command: argparse._ActionsContainer) -> None:
    """Add the option with which a training continues with other keys."""
    command.add_argument(
        "--allow-change", metavar="KEY", action="append", default=[],
        help="a key of training that may differ from the checkpoints'; may be repeated",
    )  # fmt: skip


def add_missing_views(command: argparse.ArgumentParser) -> None:
    """Add the options for views that could not be fetched."""
    command.add_argument(
        "--retry-failed", action="store_true", help="ask again for views that failed before"
    )
    command.add_argument(
        "--allow-missing", action="store_true",
        help="finish without the views that failed, however many; raw/missing.csv lists them",
    )  # fmt: skip


def add_scrape_options(command: argparse.ArgumentParser) -> None:
    """Add the options for how much of the catalogue one `scrape` job fetches."""
    command.add_argument(
        "--slice", metavar="K/N", default="1/1",
        help="fetch views K, K+N, K+2N, ...; the N tasks share the run folder, the rate limit and "
        "the connections",
    )  # fmt: skip
    add_missing_views(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be fetched; fetch nothing"
    )


def add_cluster_commands(add: AddCommand, add_stage: AddCommand) -> None:
    """Add the commands that talk to SLURM, and the doctor."""
    command = add_stage("submit", submit, "submit the stages as a chain of SLURM jobs")
    command.add_argument(
        "--from", dest="first", choices=STAGES, default=STAGES[0],
        help="start with this stage; those before it must be complete",
    )  # fmt: skip
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--study", metavar="NAME", choices=STUDIES,
        help="submit this study's points instead, as a job array: each has its own nodes",
    )  # fmt: skip
    add_allow_change(what)
    add_missing_views(command)
    command.add_argument("--nodes", type=count, help="nodes for the training")
    command.add_argument("--gpus-per-node", type=count, help="GPUs to use on each node")
    command.add_argument(
        "--dry-run", action="store_true", help="print the sbatch commands and submit nothing"
    )
    for name, function, summary in (
        ("status", status, "show a run's jobs, their progress, and how to continue"),
        ("cancel", cancel, "cancel a run's jobs; their results stay"),
    ):
        command = add(name, function, summary)
        command.add_argument("config", metavar="RUN", help="run folder")
        command.set_defaults(overrides=())

    command = add("doctor", doctor, "check this environment and report problems")
    command.add_argument(
        "--job", metavar="RUN", help="check the job that this runs in, and this run folder "
        "(srun --mpi=pmix galmerhpc doctor --job RUN)",
    )  # fmt: skip


def add_use_commands(add: AddCommand) -> None:
    """Add the commands that use a trained network."""
    command = add("predict", predict, "estimate the parameters of your own images", PREDICT_HELP)
    command.add_argument(
        "model", type=Path, metavar="MODEL",
        help="run folder, or a model.keras beside its run's config.yaml",
    )  # fmt: skip
    command.add_argument(
        "images", metavar="IMAGE", nargs="+", help="file, folder or quoted pattern"
    )
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.add_argument(
        "--condition", choices=("clean", "sky"),
        help="calibration used for the intervals (default: sky if training applied every "
        "augmentation in evaluation.sky, else clean)",
    )  # fmt: skip
    command.add_argument(
        "--montage",
        type=Path,
        metavar="FILE",
        help="draw the images with their labels, into FILE.png and FILE.pdf",
    )

    command = add(
        "real-pairs", real_pairs, "estimate the inclination of real pairs", REAL_PAIRS_HELP
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="as for predict")
    command.add_argument("--pairs", required=True, metavar="CSV", help="table of pairs, or paper")
    command.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of their images"
    )
    command.add_argument(
        "--fetch", action="store_true",
        help="fetch what the table and DIR lack: images, magnitudes and redshifts from SDSS, "
        "orientations from HyperLEDA",
    )  # fmt: skip
    for archive in ("--skyserver", "--hyperleda"):  # for tests: another address
        command.add_argument(archive, metavar="URL", help=argparse.SUPPRESS)
    command.add_argument(
        "--explain", type=Path, metavar="DIR",
        help="write every step from a photograph to the network's input",
    )  # fmt: skip


def count(text: str) -> int:
    """Return a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def read_config(given: argparse.Namespace) -> Config:
    """Read the configuration given to a command, a file or a run folder."""
    return load(given.config, given.overrides)


def open_run(config: Config, may_differ: Sequence[str] = ()) -> Config:
    """Write the resolved configuration into the run folder, if it fits what is there.

    Parameters
    ----------
    config : Config
        The run.
    may_differ : sequence of str
        As for `records.refuse_other`.

    Raises
    ------
    InputError
        As from `records.refuse_other`.
    """
    from galmerhpc.dataset.records import refuse_other

    refuse_other(config, may_differ)
    if parallel.launched_rank() == 0:
        files.write_text(config.run_dir / RESOLVED, dump(config))
    return config


@contextlib.contextmanager
def log_file(run_dir: Path, stage: str) -> Iterator[None]:
    """Also write what this rank logs to ``logs/STAGE-rank0000.log`` of the run."""
    rank = parallel.launched_rank()
    path = run_dir / "logs" / f"{stage}-rank{rank:04d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        raise GalmerhpcError(f"{path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except GalmerhpcError as error:
        log.debug("%s", error)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def run(given: argparse.Namespace) -> None:
    """Do all stages."""
    from galmerhpc.dataset.preprocess import require_split

    config = read_config(given)
    if parallel.rank() == 0:
        require_split(config)
    of_images = config.catalogue is not None and config.catalogue.images is not None
    first = images_import if of_images else scrape
    for stage in (first, preprocess, train, evaluate, report):
        log.info("== %s", stage.__name__)
        stage(given)
    parallel.barrier()  # rank 0 evaluates alone, and srun would end it once the others left
    if parallel.rank() == 0:
        from galmerhpc.evaluation.summary import result_table

        path = report_path(config)
        print(result_table(files.read_json(path.parent / "metrics.json")))
        print(f"\nreport: {path}", flush=True)


def study(given: argparse.Namespace) -> None:
    """Do a study."""
    from galmerhpc.studies.sweep import sweep

    sweep(STUDIES[given.name], read_config(given), command_on, given.point)


def command_on(command: str, run_dir: Path) -> None:
    """Run a command on a run folder, as from the command line."""
    given = make_parser().parse_args([*command.split(), str(run_dir)])
    given.function(given)


def simulate(given: argparse.Namespace) -> None:
    """Compute the snapshot library."""
    from galmerhpc.simulate.encounters import simulate

    simulate(read_config(given))


def scrape(given: argparse.Namespace) -> None:
    """Fetch the previews, from a mirror of our own where the configuration says so."""
    from galmerhpc.dataset import scrape
    from galmerhpc.dataset.records import LEFT_OUT
    from galmerhpc.dataset.slices import Slice

    config, part = read_config(given), Slice.parse(given.slice)
    catalogue, raw = require_catalogue(config), config.run_dir / "raw"
    if catalogue.images:
        raise InputError("catalogue.images: images from a folder; run galmerhpc images import")
    done = parallel.from_rank_0(lambda: scrape.is_done(config, given.retry_failed))
    draws = config.scrape.source == "mirror" and parallel.rank() == 0
    if draws:
        from galmerhpc.simulate import agreement
    if done and not given.dry_run:  # it needs no library any more
        if draws and agreement.has_changed(raw, config.library, catalogue):
            log.warning("scrape: %s was drawn before %s was made again", raw, config.library)
        log.info("scrape: complete, nothing to do")
        return
    if draws and not done:
        agreement.require(raw, config.library, catalogue)
    if given.dry_run:
        if parallel.rank() == 0:
            print(scrape.forecast(config, part, given.retry_failed), flush=True)
        return
    # Views that come later than the shards that were made without them are fetched all the same.
    config = open_run(config, may_differ=[LEFT_OUT])
    if draws:
        with scrape.stage_lock(raw):
            agreement.note(raw, config.library, catalogue)
    with preview_service(config) as source:
        scrape.scrape(
            config,
            source,
            part=part,
            retry_failed=given.retry_failed,
            allow_missing=given.allow_missing,
        )


@contextlib.contextmanager
def preview_service(config: Config) -> Iterator[str]:
    """Give the address to fetch previews from; ``mirror`` starts one process per node."""
    if config.scrape.source != "mirror":
        yield config.scrape.source
        return
    with contextlib.ExitStack() as stack:
        address = (
            stack.enter_context(mirror_process(config.library))
            if parallel.local_rank() == 0
            else ""
        )
        yield parallel.node_broadcast(address)
        parallel.node_barrier()  # the node's other ranks may still be asking


@contextlib.contextmanager
def mirror_process(library: str) -> Iterator[str]:
    """Start a mirror and give its address; it ends with this process, however that ends."""
    from galmerhpc.simulate.library import Library, library_path

    Library(library_path(library)).close()  # says what is wrong with it before a mirror does
    # The mirror is no MPI rank: with the launcher's variables it would look like one.
    launcher = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    command = [
        sys.executable,
        "-m",
        "galmerhpc.cli",
        "mirror",
        "--library",
        library,
        "--until-stdin-closes",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            listening = process.stdout.readline() if process.stdout else ""
            if not listening:
                raise GalmerhpcError("the mirror did not start; its message is above")
            try:
                yield listening.split()[2]  # listening on ADDRESS (library FILE)
            except GalmerhpcError as error:
                code = process.poll()
                if code is None or error.exit_code != ExitCode.FAILED:
                    raise
                raise GalmerhpcError(
                    f"the mirror on {socket.gethostname()} ended with exit code {code}; run the "
                    "same command again"
                ) from error
        finally:
            process.terminate()


def preprocess(given: argparse.Namespace) -> None:
    """Make the training shards."""
    from galmerhpc.dataset.preprocess import preprocess

    preprocess(open_run(read_config(given)))


def train(given: argparse.Namespace) -> None:
    """Train."""
    config = read_config(given)
    if given.dry_run:
        from galmerhpc.training.dry_run import dry_run

        dry_run(config)
        return
    from galmerhpc.dataset.records import refuse_other
    from galmerhpc.training.checkpoint import check_changes
    from galmerhpc.training.train import train

    with log_file(config.run_dir, "train"):
        check_changes(config, given.allow_change)
        refuse_other(config, given.allow_change)
        stopped = train(config, given.allow_change, given.elastic)
    if stopped and given.function is run:
        raise InterruptedRunError(
            f"stopped by {stopped} after the training; the same command evaluates it"
        )


def evaluate(given: argparse.Namespace) -> None:
    """Evaluate on rank 0."""
    if parallel.rank() == 0:
        from galmerhpc.evaluation.evaluate import evaluate

        evaluate(read_config(given), *chosen_images(given))


def chosen_images(given: argparse.Namespace) -> tuple[str | None, Config | None]:
    """Return the split and the other run given to a command of evaluation."""
    split = "validation" if given.split == "val" else given.split
    return split, load(given.data) if given.data else None


def report(given: argparse.Namespace) -> None:
    """Write the report on rank 0."""
    if parallel.rank() == 0:
        from galmerhpc.evaluation.report import report

        beside = [load(run) for run in given.beside]
        report(read_config(given), *chosen_images(given), beside)


def predict(given: argparse.Namespace) -> None:
    """Estimate the parameters of images."""
    from galmerhpc.evaluation.predict import predict

    predict(given.model, given.images, given.format, given.montage, given.condition)


def real_pairs(given: argparse.Namespace) -> None:
    """Estimate the inclination of real pairs."""
    from galmerhpc.evaluation.archives import HYPERLEDA, SKYSERVER, Archives
    from galmerhpc.evaluation.real_pairs import PAPER_PAIRS, real_pairs

    archives = Archives(given.skyserver or SKYSERVER, given.hyperleda or HYPERLEDA)
    real_pairs(
        given.model, PAPER_PAIRS if given.pairs == "paper" else Path(given.pairs), given.images,
        archives if given.fetch else None, given.explain,
    )  # fmt: skip


def catalogue_show(given: argparse.Namespace) -> None:
    """Print a catalogue."""
    from galmerhpc.catalogue import Views, describe
    from galmerhpc.dataset.split import ViewTable, assign

    catalogue = load_catalogue(Path(given.config), given.overrides)
    if catalogue is not None:
        print(describe(catalogue))
        return
    config = read_config(given)
    catalogue = require_catalogue(config)
    print(describe(catalogue), flush=True)
    views = Views(catalogue)
    if len(views) > MOST_SPLIT_VIEWS:
        return
    counts = assign(ViewTable.of(views), config.split, config.preprocess.copies).counts()
    sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"split {config.split.kind}, samples with their copies: {sizes}")


def catalogue_probe(given: argparse.Namespace) -> None:
    """Fetch one preview."""
    from galmerhpc.catalogue import preview
    from galmerhpc.dataset.probe import probe
    from galmerhpc.preview import Preview

    config = read_config(given)
    render = config.catalogue.render if config.catalogue else Render()
    wanted = preview(render, given.snap_id, given.theta, given.phi)
    try:
        Preview.parse(wanted.query())
    except (ValueError, OverflowError) as error:  # the latter of an infinite angle
        raise InputError(f"--snap-id, --theta, --phi: {error}") from None
    with preview_service(config) as source:
        print(probe(config, source, wanted, given.output))


def images_import(given: argparse.Namespace) -> None:
    """Bring a folder of pictures into a run."""
    from galmerhpc.dataset.import_images import import_images

    config = read_config(given)
    import_images(open_run(config))


def library_import(given: argparse.Namespace) -> None:
    """Make a snapshot library of FITS files."""
    from galmerhpc.simulate.import_fits import import_fits

    runs = import_fits(
        given.fits,
        given.table,
        given.output,
        length_kpc=given.length_kpc,
        mass_msun=given.mass_msun,
        neighbours=Simulate().smoothing_neighbours,
    )
    print(runs, end="")


def check(given: argparse.Namespace) -> None:
    """Verify a run folder; set aside what is bad where that was asked for."""
    from galmerhpc.check import check, set_aside

    folder = Path(given.run)
    if not folder.is_dir():
        raise InputError(f"{folder}: not a run folder")
    config = load(folder)
    report = check(config)
    if parallel.rank() == 0:
        for note in report.notes:
            print(note)
        for fault in report.faults:
            print(f"BAD {fault.path}: {fault.why}")
        if given.repair:
            for old, new in set_aside(config, report.faults).items():
                print(f"set aside: {old} is now {new.name}")
            if report.faults:
                print("run the stages again: they make only these files again")
        elif report.faults:
            print(f"galmerhpc check {folder} --repair sets aside what can be made again")
        print(f"{report.verified} files verified, {len(report.faults)} faults", flush=True)
    if report.faults:
        sys.exit(ExitCode.FAILED)


def info(given: argparse.Namespace) -> None:
    """Print what is inside a file."""
    from galmerhpc.dataset.info import describe
    from galmerhpc.simulate import library

    path = Path(given.file)
    print("\n".join(library.describe(path) if library.is_library(path) else describe(path)))


def mirror(given: argparse.Namespace) -> None:
    """Serve previews until stopped."""
    from galmerhpc.simulate.library import library_path
    from galmerhpc.simulate.mirror import serve

    serve(
        library_path(given.library),
        given.host,
        given.port,
        until_stdin_closes=given.until_stdin_closes,
    )


def submit(given: argparse.Namespace) -> None:
    """Submit the stages."""
    from galmerhpc.cluster.submit import Request, submit, submit_study

    request = Request(
        given.config,
        tuple(given.overrides),
        given.first,
        given.nodes,
        given.gpus_per_node,
        given.dry_run,
        given.allow_change,
        given.retry_failed,
        given.allow_missing,
    )
    if given.study:
        refuse_with_study(given)
        submit_study(read_config(given), request, given.study)
    else:
        submit(read_config(given), request)


def refuse_with_study(given: argparse.Namespace) -> None:
    """Refuse options of the stages, which a study's points would not get.

    Raises
    ------
    InputError
        There is one.
    """
    options = {
        "--from": given.first != STAGES[0],
        "--retry-failed": given.retry_failed,
        "--allow-missing": given.allow_missing,
    }
    if chosen := [name for name, is_given in options.items() if is_given]:
        raise InputError(
            f"{chosen[0]} is for stages, not for --study; fetch the images first, with "
            f"galmerhpc submit {given.config} {chosen[0]} ..."
        )


def status(given: argparse.Namespace) -> None:
    """Print the state of a run's jobs."""
    from galmerhpc.cluster.status import status

    print(status(read_config(given)))


def cancel(given: argparse.Namespace) -> None:
    """Cancel a run's jobs."""
    from galmerhpc.cluster.status import cancel

    numbers = cancel(read_config(given))
    print(f"cancelled: {', '.join(numbers)}" if numbers else "no job of this run is queued")


def doctor(given: argparse.Namespace) -> None:
    """Print the state of this environment, or of this job."""
    if given.job is None:
        from galmerhpc.cluster.doctor import doctor

        exit_code = doctor()
    else:
        from galmerhpc.cluster.job_doctor import doctor_job

        exit_code = doctor_job(Path(given.job))
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    sys.exit(main())
