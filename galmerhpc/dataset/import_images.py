"""Images from a folder into raw shards, as if scraped; the other stages follow as usual.

What comes in is what preprocessing will take: one still image of 8 bits per channel and of the
catalogue's size, its bytes untouched. docs/format.md describes the table of labels.
"""

import itertools
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from galmerhpc import files, parallel, provenance
from galmerhpc.catalogue import View, Views, ViewsById, require_classes
from galmerhpc.config import Config, require_catalogue
from galmerhpc.dataset.missing import list_path, write
from galmerhpc.dataset.pictures import PictureError, WrongSizeError, decode, is_blank
from galmerhpc.dataset.preprocess import require_split
from galmerhpc.dataset.raw import RawShard, RawWriter, Response, open_store, tidy
from galmerhpc.dataset.records import (
    IMAGE_TABLE,
    StageRecord,
    checksums,
    read_record,
    stage_inputs,
    stage_record,
)
from galmerhpc.errors import InputError, first_few
from galmerhpc.parameters import AZIMUTH, INCLINATION, VIEWING_ANGLE

log = logging.getLogger(__name__)

FEWEST_ROWS = 10
"""Fewest images whose angles are judged together."""

_TOGETHER = 64  # images between two waits for the disk


class Refused(NamedTuple):
    """An image that cannot be taken, and why."""

    view: str
    file: Path
    why: str


def import_images(config: Config) -> None:
    """Bring the catalogue's images into ``run_dir/raw``. Collective.

    Parameters
    ----------
    config : Config
        The run; its catalogue has a table of images.

    Raises
    ------
    InputError
        The catalogue has no table of images, the table is wrong, has labels without a class for
        `model.task` or cannot be split, the folder is another configuration's, or images are
        missing or refused: ``raw/missing.csv`` lists them, the others are kept.
    GalmerhpcError
        The disk is full.
    """
    catalogue = require_catalogue(config)
    if catalogue.images is None:
        raise InputError(
            "catalogue.images: missing; name the table of labels, or run galmerhpc scrape to "
            "fetch the runs of this catalogue"
        )
    folder, views = config.run_dir / "raw", Views(catalogue)
    require_classes(config, views)
    record = stage_record(config, "scrape")
    if parallel.broadcast(record.complete):
        log.info("import: complete, nothing to do")
        return
    require_split(config)
    if _are_small(views):
        log.warning(
            "%s: no inclination, azimuth or viewing angle exceeds 2 pi; they are read as degrees, "
            "and these look like radians",
            catalogue.images.table,
        )
    with files.job_lock(folder / "scrape.lock", parallel.rank()):  # no scrape beside it either
        _import(config, record, views)
    parallel.barrier()


def _import(config: Config, record: StageRecord, views: Views) -> None:
    """Read the images that are missing, and close the stage."""
    folder = config.run_dir / "raw"
    old, missing = parallel.from_rank_0(lambda: _take_stock(config, record, views))
    writer = RawWriter(folder, parallel.rank(), config.scrape.views_per_shard)
    refused: list[Refused] = []
    handfuls = [missing[k : k + _TOGETHER] for k in range(0, len(missing), _TOGETHER)]
    with parallel.progress_bar(total=len(missing), desc="import", unit="img") as bar:
        for handful in parallel.work(handfuls, lambda handful: bar.update(len(handful))):
            pictures = [_read(views[index]) for index in handful]
            writer.append([p for p in pictures if isinstance(p, Response)])
            refused += [p for p in pictures if isinstance(p, Refused)]
    writer.close()
    shards = [*old, *itertools.chain(*parallel.gather([path.name for path in writer.shards]))]
    bad = list(itertools.chain(*parallel.gather(refused)))
    if fault := parallel.broadcast(_report(folder, bad) if bad else ""):
        raise InputError(fault)
    sums = checksums(folder, parallel.broadcast(shards))
    if parallel.rank() == 0:
        _warn_of_contradictions(config, views, list(sums))
        record.finish(sums)
    log.info("import: %d images in %d raw shards", len(views), len(shards))


def _take_stock(config: Config, record: StageRecord, views: Views) -> tuple[list[str], list[int]]:
    """Tidy up after killed jobs; return the existing shards and the missing views."""
    folder = config.run_dir / "raw"
    tidy(folder)
    begun, inputs = read_record(folder), stage_inputs(config, "scrape")
    if begun and begun.inputs.get(IMAGE_TABLE) != inputs[IMAGE_TABLE]:
        _set_aside_others(folder, views)
    record.begin()
    list_path(folder).unlink(missing_ok=True)
    store = open_store(config)
    missing = np.flatnonzero(store.find(views.ids(), len(views)) < 0).tolist()
    return [path.name for path in store.paths], missing


def _set_aside_others(folder: Path, views: Views) -> None:
    """Set aside the shards with an image that the table described otherwise before.

    All of their images are then missing and imported again.
    """
    catalogue = ViewsById(views)
    for path in sorted(folder.glob("raw-*.h5")):
        shard = RawShard.open(path)
        if why := shard.misfit(catalogue.find(shard.texts("view"))):
            name = files.set_aside(path).name
            log.warning("%s: made with another table (%s); now %s, not needed", path, why, name)


def _read(view: View) -> Response | Refused:
    assert view.file is not None
    try:
        body = view.file.read_bytes()
        kind = check(body, view.render.nbins)
    except OSError as error:
        return Refused(view.id, view.file, str(error.strerror))
    except PictureError as error:
        return Refused(view.id, view.file, str(error))
    url, content_type = view.file.as_uri(), f"image/{kind.lower()}"
    return Response.of(view, url, content_type, provenance.now(), body)


def check(body: bytes, nbins: int) -> str:
    """Return the format of an image that is good to train on.

    Parameters
    ----------
    body : bytes
        The file.
    nbins : int
        Width and height of all images of the catalogue, pixels.

    Raises
    ------
    PictureError
        It is not; the message says why.
    """
    try:
        picture = decode(body, nbins, still=True)
    except WrongSizeError as error:
        raise PictureError(
            f"{error}; all images are squares of one size, that of catalogue.render.nbins"
        ) from None
    if is_blank(picture):
        raise PictureError("a blank image")
    return str(picture.format)


def _report(folder: Path, bad: list[Refused]) -> str:
    """Write the list of refused images; return the message that names the first ones."""
    write(list_path(folder), {refused.view: refused.why for refused in bad})
    first = first_few([f"{refused.file}: {refused.why}" for refused in bad], "; ")
    return (
        f"{first} (all in {list_path(folder)}); mend the images or the table and run the same "
        "command again"
    )


# --- a table that may be wrong --------------------------------------------------------------------


def _are_small(views: Views) -> bool:
    """Return whether all angles could be radians."""
    angles = [views.column(p.name) for p in (INCLINATION, AZIMUTH, VIEWING_ANGLE)]
    largest = np.abs(angles).max()
    return len(views) >= FEWEST_ROWS and 0 < largest <= 2 * math.pi


def _warn_of_contradictions(config: Config, views: Views, shards: list[str]) -> None:
    """Name identical images with different labels, of which the network can learn only one.

    They are accepted, since two views may really look alike.
    """
    store = open_store(config, shards)
    labels = np.stack([views.column(name) for name in config.parameters], axis=1)  # (V, P)
    rows_of = defaultdict(list)
    for row, sha256 in enumerate(store.sha256(store.find(views.ids(), len(views)))):
        rows_of[sha256].append(row)
    pairs = []
    for rows in rows_of.values():
        differ = (labels[rows] != labels[rows[0]]).any(axis=1)
        if differ.any():
            pairs.append(f"{views[rows[0]].name} and {views[rows[int(differ.argmax())]].name}")
    if pairs:
        log.warning(
            "import: identical images with different labels, one of which is wrong unless both "
            "views look alike: %s",
            first_few(pairs, "; "),
        )
