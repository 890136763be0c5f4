"""From raw shards to training shards: decode, resize, augment, split, on any number of ranks.

The list of samples and its division into shards depend on the configuration alone, so a shard has
the same bytes whichever rank makes it, and one that is finished is kept.
"""

import io
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from galmerhpc import files, hdf5, parallel
from galmerhpc.catalogue import Views, require_classes, views_to_make
from galmerhpc.config import Config, Preprocess, digest, require_catalogue
from galmerhpc.dataset import augment, shards
from galmerhpc.dataset.missing import list_path
from galmerhpc.dataset.pictures import PictureError, decode
from galmerhpc.dataset.raw import RawStore, open_store
from galmerhpc.dataset.records import missing_views, stage_inputs, stage_record
from galmerhpc.dataset.split import NONE, SPLITS, Samples, ViewTable, assign
from galmerhpc.errors import InputError, first_few

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to make; the same on every rank.

    Attributes
    ----------
    config : Config
        The run.
    inputs : dict
        What decides the shards' content (`stage_inputs`).
    views : Views
        The catalogue's views.
    raw : RawStore
        Their responses.
    rows : ndarray, shape (V,), int32
        Row of each view in `raw`; -1 where it is missing.
    samples : Samples
        Views and copies in order, with split and group.
    ends : ndarray, shape (S + 1,), int64
        Shard k holds the samples from ``ends[k]`` to ``ends[k + 1]``.
    id_width, group_width : int
        Bytes of the longest view's id and group's name: all shards have columns of one width.
    """

    config: Config
    inputs: dict[str, Any]
    views: Views
    raw: RawStore
    rows: NDArray[np.int32]
    samples: Samples
    ends: NDArray[np.int64]
    id_width: int
    group_width: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        settings = self.config.preprocess
        return settings.image_size, settings.image_size, settings.channels

    @property
    def shards(self) -> range:
        """Numbers of the shards."""
        return range(len(self.ends) - 1)

    def samples_of(self, number: int) -> slice:
        """Return which samples a shard holds."""
        return slice(int(self.ends[number]), int(self.ends[number + 1]))

    def place(self, number: int) -> tuple[str, int]:
        """Return a shard's `shards.Shard.place`, which is the same for every version of us."""
        return digest(self.inputs), int(self.ends[number])


def preprocess(config: Config) -> None:
    """Make the run's training shards in ``run_dir/shards``. Collective.

    After a kill only the shards that are not finished are made.

    Parameters
    ----------
    config : Config
        The run.

    Raises
    ------
    InputError
        Scraping is not finished, a raw shard or image is damaged, the split is impossible, the
        compression is not installed, the folder is another configuration's, or another job is at
        work in it.
    GalmerhpcError
        The disk is full.
    """
    folder = config.run_dir / "shards"
    record = parallel.from_rank_0(lambda: stage_record(config, "preprocess"))
    if parallel.broadcast(record.complete):
        log.info("preprocess: complete, nothing to do")
        return
    shards.filter_of(config.preprocess.compression)  # fails now if it is not installed
    plan = parallel.from_rank_0(lambda: make_plan(config))
    _report(plan)
    with files.job_lock(folder / "preprocess.lock", parallel.rank()):
        if parallel.rank() == 0:
            record.begin()
            files.remove_temporaries(folder)
        parallel.barrier()
        made = _make_shards(folder, plan)
        if parallel.rank() == 0:
            shards.write_virtual(folder, shards.in_order(made), plan.samples.counts())
            made[shards.VIRTUAL] = files.sha256(folder / shards.VIRTUAL)
            record.finish(dict(sorted(made.items())))
        parallel.barrier()


def require_split(config: Config) -> None:
    """Refuse an impossible split before anything is fetched for it; shards that exist are kept.

    Raises
    ------
    InputError
        The catalogue does not hold what the split names, or a split is empty.
    """
    if not stage_record(config, "preprocess").complete:
        views = ViewTable.of(views_to_make(require_catalogue(config)))
        assign(views, config.split, config.preprocess.copies)


def _make_shards(folder: Path, plan: Plan) -> dict[str, str]:
    """Make the shards that are missing or not intact; return SHA-256 by name on rank 0."""
    made = {}
    with parallel.progress_bar(desc="preprocess", total=len(plan.samples.view), unit="img") as bar:
        for number in parallel.work(plan.shards):
            path = folder / shards.shard_name(number)
            # Shards are handed out in order, so rank 0 shows how far all are.
            bar.update(int(plan.ends[number]) - bar.n)
            if not _is_finished(path, plan, number):
                _make_shard(path, plan, number, bar)
            made[path.name] = files.sha256(path)
    return parallel.gather_dict(made)


def make_plan(config: Config) -> Plan:
    """Lay out samples and shards over the responses of a finished scrape.

    Raises
    ------
    InputError
        Scraping is not finished, a view is in no raw shard or has no class, or the split is
        impossible.
    """
    folder = config.run_dir / "raw"
    fetch = "images import" if require_catalogue(config).images else "scrape"
    if not stage_record(config, "scrape").complete:
        raise InputError(f"{folder}: not complete; run galmerhpc {fetch} first")
    plan = lay_out(config, open_store(config))
    require_classes(config, plan.views)
    missing = np.unique(plan.samples.view[plan.rows[plan.samples.view] < 0])
    if len(missing):
        raise InputError(
            f"{folder}: {len(missing)} of {len(plan.views)} views are missing, "
            f"{plan.views[int(missing[0])].id} is the first; remove its stage.json and run "
            f"galmerhpc {fetch} again"
        )
    return plan


def lay_out(config: Config, store: RawStore) -> Plan:
    """Lay out samples and shards, even if some responses are missing.

    Views that the scrape left out have no samples; the other views' samples are what they would be
    without that.

    Raises
    ------
    InputError
        The split is impossible, or a part of it has lost all its views.
    """
    folder = config.run_dir / "raw"
    views, absent = views_to_make(require_catalogue(config)), missing_views(folder)
    samples = assign(ViewTable.of(views), config.split, config.preprocess.copies)
    if absent:
        present = np.fromiter((view not in absent for view in views.ids()), bool, len(views))
        planned, samples = samples.counts(), samples.where(present[samples.view])
        for split, left in samples.counts().items():
            if planned[split] and not left and split != SPLITS[NONE]:
                raise InputError(
                    f"{list_path(folder)}: all views of the {split} split are left out; run "
                    "galmerhpc scrape --retry-failed, or divide the views otherwise (split.kind)"
                )
    count = len(samples.view)
    number = math.ceil(count / config.preprocess.samples_per_shard)
    return Plan(
        config=config,
        inputs=stage_inputs(config, "preprocess"),
        views=views,
        raw=store,
        rows=store.find(views.ids(), len(views)).astype(np.int32),
        samples=samples,
        ends=np.arange(number + 1) * count // number,
        id_width=max(map(len, views.ids())),
        group_width=max(map(len, samples.group_names)),
    )


def _report(plan: Plan) -> None:
    """Log the sizes of the splits, and which views are left out."""
    counts = plan.samples.counts()
    log.info(
        "preprocess: %d samples for training, %d for validation, %d for test; "
        "%d in the guard band, in no split",
        counts["train"], counts["validation"], counts["test"], counts["none"],
    )  # fmt: skip
    fetched = require_catalogue(plan.config).render.nbins
    if plan.config.preprocess.image_size > fetched:
        log.warning(
            "preprocess: images of %d pixels are enlarged to preprocess.image_size, %d, which "
            "adds nothing to them",
            fetched,
            plan.config.preprocess.image_size,
        )
    absent = np.flatnonzero(plan.rows < 0).tolist()
    if absent:
        log.warning(
            "preprocess: %d of %d views are left out, since they could not be fetched: %s "
            "(raw/missing.csv lists them all)",
            len(absent),
            len(plan.views),
            first_few([plan.views[index].id for index in absent]),
        )


# --- a shard --------------------------------------------------------------------------------------


def _is_finished(path: Path, plan: Plan, number: int) -> bool:
    """Return whether an earlier job made this very shard from the present responses, intact."""
    if not path.exists():
        return False
    try:
        shard = shards.Shard.open(path)
        shard.check_all()
        sources = shards.read_columns(path, ["source_sha256"])["source_sha256"]
    except InputError as error:
        log.warning("%s: made again", error)
        return False
    samples = plan.samples_of(number)
    return (
        shard.place == plan.place(number)
        and shard.shape == (samples.stop - samples.start, *plan.image_shape)
        and sources.tolist() == sources_of(plan, samples)
    )


def sources_of(plan: Plan, samples: slice) -> list[bytes]:
    """Return the SHA-256 of the responses that samples are made from."""
    return plan.raw.sha256(plan.rows[plan.samples.view[samples]])


def _make_shard(path: Path, plan: Plan, number: int, bar: "tqdm[None]") -> None:
    samples = plan.samples_of(number)
    columns = columns_of(plan, samples)
    ids = [view.decode() for view in columns["view"].tolist()]
    shards.write_shard(
        path,
        shards.attributes(*plan.place(number)),
        plan.config.parameters,
        plan.image_shape,
        columns,
        _pictures(plan, samples, ids, bar),
        plan.config.preprocess.compression,
    )


def columns_of(plan: Plan, samples: slice) -> shards.Table:
    """Return all that is known of samples before their images are looked at."""
    chosen = plan.samples
    views = [plan.views[index] for index in chosen.view[samples].tolist()]
    groups = [chosen.group_names[index] for index in chosen.group[samples].tolist()]
    labels = [[view.labels[name] for name in plan.config.parameters] for view in views]
    return {
        "labels": np.array(labels, np.float32),
        "view": hdf5.text_column([view.id for view in views], plan.id_width),
        "group": hdf5.text_column(groups, plan.group_width),
        "split": chosen.split[samples],
        "copy": chosen.copy[samples],
        "simulation": np.array([view.run.simulation for view in views], np.int64),
        "snapshot_id": np.array([view.snapshot.id for view in views], np.int64),
        "time_myr": np.array([view.snapshot.time_myr for view in views], np.float64),
    }


def _pictures(
    plan: Plan, samples: slice, ids: list[str], bar: "tqdm[None]"
) -> Iterator[tuple[shards.Images, list[str]]]:
    """Yield blocks of finished images and the SHA-256 of the responses they were made from."""
    step = plan.config.preprocess.images_in_memory
    for first in range(samples.start, samples.stop, step):
        block = slice(first, min(first + step, samples.stop))
        here = slice(first - samples.start, block.stop - samples.start)
        yield _block(plan, block, ids[here], bar)


def _block(
    plan: Plan, samples: slice, ids: list[str], bar: "tqdm[None]"
) -> tuple[shards.Images, list[str]]:
    settings = plan.config.preprocess
    nbins = require_catalogue(plan.config).render.nbins
    copies = plan.samples.copy[samples].tolist()
    # A view's samples follow each other, so that its image is decoded once.
    views, first = np.unique(plan.samples.view[samples], return_index=True)
    ends = [*first[1:].tolist(), len(copies)]
    images = np.empty((len(copies), *plan.image_shape), np.uint8)
    sources = [""] * len(copies)
    view_ids = [ids[sample] for sample in first.tolist()]
    for k, body, sha256 in plan.raw.read(plan.rows[views], view_ids):
        try:
            original = picture_of(body, nbins, settings)
        except PictureError as error:
            raise InputError(
                f"{plan.raw.path_of(plan.rows[views[k]])}: view {view_ids[k]}: {error}; "
                "remove this file and run galmerhpc scrape again"
            ) from None
        for sample in range(first[k], ends[k]):
            if copy := copies[sample]:
                change = augment.draw(settings.augment, view_ids[k], copy)
                pixels = augment.apply(change, original)
            else:
                pixels = np.asarray(original)
            images[sample] = pixels.reshape(plan.image_shape)
            sources[sample] = sha256
        bar.update(ends[k] - first[k])
    return images, sources


def picture_of(body: bytes, nbins: int, settings: Preprocess) -> Image.Image:
    """Decode a response and bring it into the form of a training image.

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
    PictureError
        It does not decode or has another size.
    """
    return finished(decode(body, nbins), settings)


def finished(picture: Image.Image, settings: Preprocess) -> Image.Image:
    """Bring a square image into the form of a training image.

    It is resized with Lanczos's filter, whose support grows with the reduction, so that nothing
    finer than the new pixels is left to alias.

    Parameters
    ----------
    picture : Image
        Of any mode without transparency.
    settings : Preprocess
        Size, channels and JPEG quality.
    """
    final = (settings.image_size, settings.image_size)
    # One channel is resized sooner than three, to the same bytes where all is grey.
    picture = picture.convert("L" if settings.channels == 1 or _is_grey(picture) else "RGB")
    if picture.size != final:
        picture = picture.resize(final, Image.Resampling.LANCZOS)
    if settings.channels == 3:
        picture = picture.convert("RGB")
    if settings.jpeg_quality is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=settings.jpeg_quality)
        picture = Image.open(buffer)
        picture.load()
    return picture


def _is_grey(image: Image.Image) -> bool:
    """Return whether an image can show nothing but grey, by its mode and palette."""
    if image.mode != "P":
        return image.mode == "L"
    palette = image.getpalette("RGB") or []
    return palette[0::3] == palette[1::3] == palette[2::3]
