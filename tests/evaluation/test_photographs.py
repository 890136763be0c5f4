"""Images from users: what is read, what is refused, and what the network sees."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from galmerhpc.config import Config, load
from galmerhpc.dataset.import_images import import_images
from galmerhpc.dataset.preprocess import picture_of, preprocess
from galmerhpc.errors import InputError
from galmerhpc.evaluation import photographs
from tests.evaluation.pictures import (
    SIDE,
    bad_files,
    encode,
    grey,
    odd_files,
    scene,
    write_nuisances,
)
from tests.support import run, unprivileged


def config(size: int = 48, **more: object) -> Config:
    return Config(run_dir="run", preprocess={"image_size": size}, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of `odd_files` and `bad_files`, and more bad ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in (odd_files() | bad_files()).items():
        (folder / name).write_bytes(content)
    write_nuisances(folder)
    return folder


@pytest.mark.parametrize("name", odd_files())
def test_an_odd_picture_is_read_and_shows_the_scene(folder: Path, name: str) -> None:
    picture = photographs.read(folder / name)
    assert picture.mode in ("L", "RGB")
    image = photographs.training_form(picture, config(SIDE))
    assert image.shape == (SIDE, SIDE, 3)
    assert image.dtype == np.uint8
    assert image.max() > 150 or name == "red.png"
    if picture.size == (SIDE, SIDE) and not name.startswith(("turned", "holes")):
        shown = image[::-1, :, 0] if name.endswith(".fits") else image[..., 0]  # rows count upwards
        assert np.corrcoef(shown.ravel(), grey().ravel())[0, 1] > 0.6


@pytest.mark.parametrize("name", ["turned.jpg", "turned_sixteen.png"])
def test_a_camera_s_turn_is_undone(folder: Path, name: str) -> None:
    image = photographs.training_form(photographs.read(folder / name), config(SIDE))[..., 0]
    turned = np.rot90(grey(), -1)
    assert np.corrcoef(image.ravel(), turned.ravel())[0, 1] > 0.6


def test_what_is_transparent_shows_black_in_arrays_as_in_pictures(folder: Path) -> None:
    array, picture = (photographs.read(folder / f"alpha.{kind}") for kind in ("npy", "png"))
    assert (np.asarray(array) == np.asarray(picture)).all()


@pytest.mark.parametrize("name", bad_files())
def test_what_is_no_picture_is_refused_in_a_short_line(folder: Path, name: str) -> None:
    with pytest.raises(ValueError) as refusal:
        photographs.read(folder / name)
    text = str(refusal.value)
    assert 5 < len(text) < 250
    assert "\n" not in text


def test_folders_pipes_and_dead_links_are_refused(tmp_path: Path) -> None:
    for path in write_nuisances(tmp_path):
        with pytest.raises(ValueError):
            photographs.read(path)


def test_a_picture_is_treated_as_a_training_image_is() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (400, 400), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), "GIF")
    for channels, quality in ((1, None), (3, None), (3, 80)):
        settings = {"image_size": 64, "channels": channels, "jpeg_quality": quality}
        run = Config(run_dir="run", preprocess=settings)
        ours = photographs.training_form(Image.open(io.BytesIO(content)), run)
        theirs = np.asarray(picture_of(content, 400, run.preprocess)).reshape(ours.shape)
        assert ours.tobytes() == theirs.tobytes()


def test_colours_become_grey_where_training_images_are_grey() -> None:
    red = Image.fromarray(np.stack([grey(), 0 * grey(), 0 * grey()], axis=2))
    drawn = photographs.training_form(red, config())
    assert (drawn == drawn[..., :1]).all()
    fetched = photographs.training_form(red, config(scrape={"source": "http://127.0.0.1"}))
    assert fetched[..., 0].max() > 200
    assert fetched[..., 1:].max() == 0


def test_colours_become_grey_where_the_imported_images_are_grey(tmp_path: Path) -> None:
    red = Image.fromarray(np.stack([grey(), 0 * grey(), 0 * grey()], axis=2))
    shown = {}
    for kind, coloured in (("grey", 0), ("mixed", 1)):
        folder = tmp_path / kind
        folder.mkdir()
        lines = ["file,spin,inclination,azimuth,viewing_angle,simulation"]
        for k in range(12):
            light = np.roll(grey(), k)
            pixels = np.stack([light, light // (1 + (k < coloured)), light], axis=2)
            Image.fromarray(pixels).save(folder / f"{k}.png")
            lines.append(f"{k}.png,0,45,{15 * k},{9 * k},{k % 3}")
        (folder / "labels.csv").write_text("\n".join(lines))
        values = {
            "run_dir": str(folder / "run"),
            "catalogue": {"images": {"table": "labels.csv"}, "render": {"nbins": SIDE}},
            "preprocess": {"image_size": 48, "samples_per_shard": 5},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(values))
        imported = load(folder / "run.yaml")
        import_images(imported)
        preprocess(imported)
        shutil.rmtree(folder / "run/raw")
        shown[kind] = photographs.training_form(red, imported)
    assert (shown["grey"] == shown["grey"][..., :1]).all()
    assert shown["grey"].max() > 50
    assert shown["mixed"][..., 0].max() > 200
    assert shown["mixed"][..., 1:].max() == 0


def test_the_middle_of_a_picture_is_what_counts() -> None:
    pixels = np.zeros((50, 150), np.uint8)
    pixels[:, :50], pixels[:, 50:100], pixels[:, 100:] = 10, 20, 30
    image = photographs.training_form(Image.fromarray(pixels), config())
    assert (image == 20).all()


def test_stretching_makes_the_sky_black_the_brightest_white_and_keeps_the_order() -> None:
    random = np.random.default_rng(2)
    light = 500 + 4000 * scene(200, 200) + random.normal(0, 5, (200, 200))
    levels = photographs.stretched(light)
    assert np.median(levels[scene(200, 200) < 1e-6]) <= 1
    assert levels.max() == 255
    brighter = np.argsort(light.ravel())[-2000:]
    assert (np.diff(levels.ravel()[brighter].astype(int)) >= 0).all()
    # Faint light is lifted: a hundredth of the brightest is much more than a hundredth of white.
    faint = levels[np.abs(scene(200, 200) - 0.05) < 0.01].mean()
    assert faint > 50


@given(scale=st.floats(1e-6, 1e6), offset=st.floats(-1e3, 1e3))
def test_the_unit_and_the_sky_of_linear_data_do_not_matter(scale: float, offset: float) -> None:
    random = np.random.default_rng(3)
    light = scene() + random.normal(0, 0.01, (SIDE, SIDE))
    levels = photographs.stretched(light).astype(int)
    others = photographs.stretched(scale * (light + offset)).astype(int)
    assert np.abs(others - levels).max() <= 1


def test_noise_stays_dark() -> None:
    random = np.random.default_rng(5)
    levels = photographs.stretched(scene(200, 200) + random.normal(0, 0.05, (200, 200)))
    assert levels[scene(200, 200) < 1e-6].std() < 40


def test_folders_and_patterns_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c.fits", "[x].png"):
        (tmp_path / name).touch()
    names = [path.name for path in photographs.paths_of([str(tmp_path)])]
    assert names == ["[x].png", "a.JPG", "b.png", "c.fits"]
    assert [p.name for p in photographs.paths_of([f"{tmp_path}/?.[pf]*"])] == ["b.png", "c.fits"]
    assert photographs.paths_of([f"{tmp_path}/[x].png"]) == [tmp_path / "[x].png"]
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png/e.png").touch()
    assert [path.name for path in photographs.paths_of([str(tmp_path)])] == names
    for pattern in ("**.png", "**/*.png"):
        found = photographs.paths_of([f"{tmp_path}/{pattern}"])
        assert [path.name for path in found] == ["[x].png", "b.png", "e.png"]
    assert [path.name for path in photographs.paths_of([str(tmp_path), f"{tmp_path}/*.png"])] == [
        *names, "e.png",
    ]  # fmt: skip


def test_a_pattern_does_not_follow_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/.hidden").mkdir()
    places = ("a.png", "in/b.png", "in/deep/c.png", "in/.hidden/d.png", "in/e.txt")
    for place in places:
        (tmp_path / place).touch()
    for name in ("back", "again"):
        (tmp_path / "in" / name).symlink_to(tmp_path)
    expected = [tmp_path / place for place in places[:3]]
    assert photographs.paths_of([f"{tmp_path}/**/*.png"]) == expected
    assert photographs.paths_of([f"{tmp_path}/i*/**/*.png"]) == expected[1:]
    assert photographs.paths_of([f"{tmp_path}/**/deep/**/*.png"]) == expected[2:]


def test_patterns_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").touch()
    assert photographs.paths_of(["**/*.png"]) == [Path("a/b.png")]
    with pytest.raises(InputError, match="name is empty"):
        photographs.paths_of(["a", ""])


def test_a_name_that_stands_for_no_picture_is_refused_by_that_name(tmp_path: Path) -> None:
    """Root can read everything, unless it gives up that capability."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/a.png").touch()
    names = {
        "not/there.png": "no such file",
        "*.tiff": "no such file",
        "**.tiff": "no such file",
        "empty": "a folder with no readable image",
        "n" * 300: "cannot be read",
        "closed": "a folder with no readable image",
        "closed/a.png": "cannot be read",
    }
    code = """
import sys
from galmerhpc.evaluation import photographs
for path in photographs.paths_of(sys.argv[1:]):
    try:
        photographs.read(path)
    except ValueError as error:
        print(path, error, sep=": ")
"""
    (tmp_path / "closed").chmod(0)
    done = run(*unprivileged(), sys.executable, "-c", code, *(f"{tmp_path}/{n}" for n in names))
    (tmp_path / "closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    for line, (name, why) in zip(done.stdout.splitlines(), names.items(), strict=True):
        assert line.startswith(f"{tmp_path}/{name}: {why}")
