"""`galmerhpc catalogue probe` and `show`: what a user sees of a service and of a catalogue."""

from pathlib import Path

import pytest
import yaml

from tests.servers import Behaviour, Reply, gif, serve
from tests.support import ROOT, galmerhpc


def write_config(folder: Path, url: str, **render: object) -> str:
    run = {"spin": "prograde", "inclination_deg": 0, "first_id": 1}
    values = {
        "scrape": {"source": url, "attempts": 1},
        "catalogue": {"runs": [run], "render": {"nbins": 48, **render}},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_picture_is_described_and_saved_but_never_over_another(tmp_path: Path) -> None:
    with serve() as service:
        config = write_config(tmp_path, service.url, zoom=3)
        picture = tmp_path / "here.gif"
        command = ["catalogue", "probe", config, "--snap-id", "5", "--output", str(picture)]
        done = galmerhpc(*command, "--theta", "10")
        assert done.returncode == 0, done.stderr
        (query,) = service.asked
        assert "snap_id=5&phi=30&theta=10&bins=0.3333333333333333" in query
        assert picture.read_bytes() == gif(query)
        size = picture.stat().st_size
        assert f"GIF, 48 x 48 pixels, {size:,} bytes" in done.stdout
        assert "image/gif" in done.stdout
        again = galmerhpc(*command, "--theta", "80")
        assert again.returncode == 1
        assert f"{picture}: already exists" in again.stderr
        assert picture.read_bytes() == gif(query)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (
            lambda *_: Reply(b"<html><p>No such snapshot</p></html>", content_type="text/html"),
            'a page instead of an image "No such snapshot"',
        ),
        (lambda *_: Reply(b"gone", status=404), 'HTTP 404 "gone"'),
        (lambda query, _: Reply(gif(query, 32)), "an image of 32 x 32 pixels, not 48 x 48"),
    ],
    ids=["page", "404", "size"],
)
def test_what_is_no_picture_is_quoted(behaviour: Behaviour, expected: str, tmp_path: Path) -> None:
    with serve(behaviour) as service:
        config = write_config(tmp_path, service.url)
        picture = tmp_path / "here.gif"
        done = galmerhpc("catalogue", "probe", config, "--snap-id", "5", "--output", str(picture))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert "snapshot 5" in line
    assert not picture.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--snap-id", "-1"], "--snap-id"),
        (["--snap-id", "1", "--theta", "200"], "--theta"),
        (["--snap-id", "1", "--phi", "nan"], "--phi"),
        (["--snap-id", "1", "--phi", "inf"], "--phi"),
    ],
)
def test_a_view_that_no_service_has_is_refused(options: list[str], expected: str) -> None:
    done = galmerhpc("catalogue", "probe", str(ROOT / "configs/demo.yaml"), *options)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_catalogue_is_shown_alone_and_as_part_of_a_configuration() -> None:
    alone = galmerhpc("catalogue", "show", str(ROOT / "configs/catalogues/demo.yaml"))
    assert alone.returncode == 0, alone.stderr
    assert "3,896 views, as many requests" in alone.stdout
    assert "split" not in alone.stdout
    whole = galmerhpc("catalogue", "show", str(ROOT / "configs/demo.yaml"), "preprocess.copies=1")
    assert whole.stdout.startswith(alone.stdout)
    assert "train 5,008, validation 48, test 1,296" in whole.stdout
