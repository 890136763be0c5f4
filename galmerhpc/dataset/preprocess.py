"""From raw shards to training shards: decode, resize, copy, split, on any number of ranks.

The list of samples and its division into shards follow from the configuration alone, so a shard
has the same bytes whichever rank makes it, and whoever finds it finished keeps it.
"""

import functools
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from galmerhpc import files, parallel
from galmerhpc.catalogue import View, Views
from galmerhpc.config import Config, Preprocess, digest, require_catalogue
from galmerhpc.dataset import augment, shards
from galmerhpc.dataset.client import FORMATS
from galmerhpc.dataset.raw import RawStore, open_store
from galmerhpc.dataset.split import Samples, ViewTable, assign
from galmerhpc.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be made; the same on every rank.

    Attributes
    ----------
    config : Config
        The run.
    views : Views
        Its views.
    samples : Samples
        Views and copies in order, with split and group.
    ends : ndarray, shape (S + 1,), int64
        Shard k holds the samples from ``ends[k]`` to ``ends[k + 1]``.
    id_width : int
        Bytes of the longest view's id: all shards have columns of one width.
    """

    config: Config
    views: Views
    samples: Samples
    ends: NDArray[np.int64]
    id_width: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        settings = self.config.preprocess
        return settings.image_size, settings.image_size, settings.channels


def preprocess(config: Config) -> None:
    """Make the run's training shards in ``run_dir/shards``. Collective.

    A job that was killed goes on with the shards that are not finished.

    Parameters
    ----------
    config : Config
        The run.

    Raises
    ------
    InputError
        Scraping is not finished, a raw shard or picture is damaged, the split is impossible, or
        the folder is another configuration's.
    GalmerhpcError
        The disk is full.
    """
    folder = config.run_dir / "shards"
    record = files.StageRecord(folder, config.inputs("preprocess"))
    if parallel.broadcast(record.complete):
        log.info("preprocess: complete, nothing to do")
        return
    raw = _open_raw(config)
    plan = make_plan(config, raw)
    counts = plan.samples.counts()
    log.info(
        "preprocess: %d samples for training, %d for validation, %d for test; "
        "%d in the guard band, in no split",
        counts["train"], counts["validation"], counts["test"], counts["none"],
    )  # fmt: skip
    if parallel.rank() == 0:
        record.begin()
        files.remove_temporaries(folder)
    parallel.barrier()

    made = {}
    bar = tqdm(
        desc="preprocess", total=len(plan.samples.view), unit="img",
        disable=None if parallel.rank() == 0 else True,
    )  # fmt: skip
    with bar:
        for number in parallel.work(range(len(plan.ends) - 1)):
            path = folder / shards.shard_name(number)
            # Shards are handed out in order: where rank 0 is, the others are too.
            bar.update(int(plan.ends[number]) - bar.n)
            if not _is_finished(path, plan, number):
                _make_shard(path, plan, number, raw, bar)
            made[path.name] = files.sha256(path)
    gathered = parallel.gather(made)
    if parallel.rank() == 0:
        made = dict(sorted(pair for part in gathered for pair in part.items()))
        shards.write_virtual(folder, list(made), counts)
        record.finish(made | {shards.VIRTUAL: files.sha256(folder / shards.VIRTUAL)})
    parallel.barrier()


def _open_raw(config: Config) -> RawStore:
    """Open the raw shards of a finished scrape."""
    folder = config.run_dir / "raw"
    if not files.StageRecord(folder, config.inputs("scrape")).complete:
        raise InputError(f"{folder}: not complete; run galmerhpc scrape first")
    return open_store(config)


def make_plan(config: Config, raw: RawStore) -> Plan:
    """Lay out samples and shards.

    Raises
    ------
    InputError
        A view is in no raw shard, or the split is impossible.
    """
    views = Views(require_catalogue(config))
    present = raw.ids()
    if len(present) < len(views):
        missing = next(view.id for view in views if view.id not in present)
        raise InputError(
            f"{config.run_dir / 'raw'}: {len(views) - len(present)} of {len(views)} views are "
            f"missing, {missing} is the first; remove its stage.json and run galmerhpc scrape again"
        )
    samples = assign(_table(views), config.split, config.preprocess.copies)
    count = len(samples.view)
    number = -(-count // config.preprocess.samples_per_shard)
    ends = np.arange(number + 1) * count // number
    return Plan(config, views, samples, ends, max(map(len, present)))


def _table(views: Views) -> ViewTable:
    rows = [(v.run.simulation, v.run.inclination_deg, v.theta, v.phi) for v in views]
    simulation, inclination, theta, phi = zip(*rows, strict=True)
    return ViewTable(
        np.array(simulation, np.int64), np.array(inclination), np.array(theta), np.array(phi)
    )


# --- a shard --------------------------------------------------------------------------------------


def _identity(plan: Plan, number: int) -> dict[str, object]:
    configuration = digest(plan.config.inputs("preprocess"))
    return shards.attributes(configuration, int(plan.ends[number]))


def _is_finished(path: Path, plan: Plan, number: int) -> bool:
    """Tell whether an earlier job made this very shard, whole."""
    if not path.exists():
        return False
    try:
        shard = shards.Shard.open(path)
        shard.check_all()
    except InputError as error:
        log.warning("%s: made anew", error)
        return False
    shape = (int(plan.ends[number + 1] - plan.ends[number]), *plan.image_shape)
    return shard.identity == _identity(plan, number) and shard.shape == shape


def _make_shard(path: Path, plan: Plan, number: int, raw: RawStore, bar: "tqdm[None]") -> None:
    start, stop = (int(end) for end in plan.ends[number : number + 2])
    shards.write_shard(
        path,
        _identity(plan, number),
        plan.config.parameters,
        plan.image_shape,
        _columns(plan, slice(start, stop)),
        _pictures(plan, start, stop, raw, bar),
    )


def _columns(plan: Plan, rows: slice) -> shards.Table:
    """Return all that is known of samples before their pictures are looked at."""
    samples = plan.samples
    views = [plan.views[index] for index in samples.view[rows].tolist()]
    groups = [samples.group_names[index] for index in samples.group[rows].tolist()]
    labels = [[view.labels[name] for name in plan.config.parameters] for view in views]
    return {
        "labels": np.array(labels, np.float32),
        "view": shards.text_column([view.id for view in views], plan.id_width),
        "group": shards.text_column(groups, max(map(len, samples.group_names))),
        "split": samples.split[rows],
        "copy": samples.copy[rows],
        "simulation": np.array([view.run.simulation for view in views], np.int64),
        "snapshot_id": np.array([view.snapshot.id for view in views], np.int64),
        "time_myr": np.array([view.snapshot.time_myr for view in views], np.float64),
    }


def _pictures(
    plan: Plan, start: int, stop: int, raw: RawStore, bar: "tqdm[None]"
) -> Iterator[tuple[shards.Images, list[str]]]:
    """Yield blocks of finished images and the SHA-256 of the responses they were made from."""
    settings = plan.config.preprocess

    @functools.lru_cache(maxsize=1)  # a view's copies follow it
    def original(index: int) -> tuple[Image.Image, str]:
        return _original(plan.views[index], raw, settings)

    for first, count in shards.blocks(stop - start, plan.image_shape):
        images = np.empty((count, *plan.image_shape), np.uint8)
        sources = []
        for k, sample in enumerate(range(start + first, start + first + count)):
            index, copy = int(plan.samples.view[sample]), int(plan.samples.copy[sample])
            picture, source_sha256 = original(index)
            pixels = np.asarray(picture)
            if copy:
                change = augment.draw(settings.augment, plan.views[index].id, copy)
                pixels = augment.apply(change, picture)
            images[k] = pixels.reshape(plan.image_shape)
            sources.append(source_sha256)
            bar.update()
        yield images, sources


def _original(view: View, raw: RawStore, settings: Preprocess) -> tuple[Image.Image, str]:
    """Return a view's picture in its final form, and its response's SHA-256."""
    body = raw.read(view.id)
    try:
        picture = picture_of(body, view.render.nbins, settings)
    except ValueError as error:
        shard = raw.path_of(view.id)
        raise InputError(
            f"{shard}: view {view.id}: {error}; remove this file and run galmerhpc scrape again"
        ) from None
    return picture, hashlib.sha256(body).hexdigest()


def picture_of(body: bytes, nbins: int, settings: Preprocess) -> Image.Image:
    """Decode a response and bring it into the form of a training image.

    It is resized with Lanczos's filter, whose support grows with the reduction, so that nothing
    finer than the new pixels is left to alias.

    Parameters
    ----------
    body : bytes
        GIF, PNG or JPEG.
    nbins : int
        Width and height that were asked for, pixels.
    settings : Preprocess
        Size, channels and JPEG quality.

    Raises
    ------
    ValueError
        It does not decode or has another size.
    """
    mode = "L" if settings.channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            size = image.size
            # Only a picture of the right size is decoded: a bomb is told by its header.
            picture = image.convert(mode) if size == (nbins, nbins) else None
    except UnidentifiedImageError:
        raise ValueError(f"no {', '.join(FORMATS)} picture") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        raise ValueError(f"a broken picture ({' '.join(str(error).split())[:120]})") from None
    if picture is None:
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels, not {nbins} x {nbins}")
    final = (settings.image_size, settings.image_size)
    if size != final:
        picture = picture.resize(final, Image.Resampling.LANCZOS)
    if settings.jpeg_quality is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=settings.jpeg_quality)
        picture = Image.open(buffer)
        picture.load()
    return picture
