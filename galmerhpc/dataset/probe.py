"""One preview from the service, looked at: how a user finds out what a snapshot number shows."""

import contextlib
from pathlib import Path

from galmerhpc import files
from galmerhpc.config import Config
from galmerhpc.dataset.client import Client, TryAgainError, ViewFailedError
from galmerhpc.dataset.pictures import decode
from galmerhpc.errors import GalmerhpcError
from galmerhpc.preview import Preview


def probe(config: Config, source: str, preview: Preview, output: Path | None) -> str:
    """Fetch one preview, save it, and say what it is.

    Parameters
    ----------
    config : Config
        Time-out and contact.
    source : str
        Address of the service, without the path.
    preview : Preview
        What to ask for.
    output : Path or None
        File to save it in; ``snapshot-<id>.gif`` (or .png, .jpg) in this folder by default.

    Returns
    -------
    str
        Address, content type, format, sizes and the file's name, one line each.

    Raises
    ------
    GalmerhpcError
        No image came, and why: a page is quoted. Or the file cannot be written or exists.
    """
    settings = config.scrape
    client = Client(
        source,
        connections=1,
        timeout_s=settings.timeout_s,
        contact=settings.contact,
    )
    with contextlib.closing(client):
        try:
            answer = client.fetch(preview)
        except (ViewFailedError, TryAgainError) as error:
            raise GalmerhpcError(
                f"snapshot {preview.snap_id} of {source}: no image that scraping would keep: "
                f"{error}; the query was {preview.query()}"
            ) from None
    picture = decode(answer.body, preview.nbins)
    kind, (width, height) = str(picture.format), picture.size
    suffix = "jpg" if kind == "JPEG" else kind.lower()
    saved = _save(output or Path(f"snapshot-{preview.snap_id}.{suffix}"), answer.body)
    return "\n".join(
        [
            f"address       {answer.url}",
            f"status        200, {answer.content_type or 'no content type'}",
            f"image         {kind}, {width} x {height} pixels, {len(answer.body):,} bytes",
            "verdict       scraping keeps it",
            f"saved as      {saved}",
        ]
    )


def _save(path: Path, body: bytes) -> Path:
    if path.exists():
        raise GalmerhpcError(f"{path}: already exists; name another file with --output")
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(body)
    return path
