"""From a photograph to an image like those trained on: sky, position, scale, other objects."""

import numpy as np
import pytest
from PIL import Image

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.evaluation import pair_image
from galmerhpc.evaluation.pairs import Disc, Pair

WIDTH, HEIGHT = 600, 500
PLACES = ((260.0, 210.0), (330.0, 240.0))
STAR, OTHER = (100, 400), (480, 120)


def config(**more: object) -> Config:
    return Config(run_dir="run", preprocess={"image_size": 64}, **more)


def pair(places: tuple = PLACES, **more: object) -> Pair:
    first, second = (Disc(pixel=place) for place in places)
    return Pair("a", "a.png", (first, second), **more)


def photograph(sky: float = 12.0) -> Image.Image:
    """Return two galaxies, a star, another galaxy and the noise of the sky."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def blob(place: tuple[float, float], peak: float, width: float) -> np.ndarray:
        square = (x - place[0]) ** 2 + (y - place[1]) ** 2
        return peak * np.exp(-square / (2 * width**2))

    light = blob(PLACES[0], 200, 25) + blob(PLACES[1], 150, 25) + blob(STAR, 240, 3)
    light += blob(OTHER, 100, 12)
    noise = np.random.default_rng(1).normal(sky, 2, light.shape)
    return Image.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8))


def test_the_pair_is_in_the_middle_at_its_scale_and_alone_on_a_black_sky() -> None:
    steps = pair_image.prepare(photograph(), pair(), config(), None)
    field = 400 / 6  # kpc
    apart = np.hypot(70, 30)
    scale = 64 * pair_image.TYPICAL_SEPARATION_KPC / field / apart  # network pixels a pixel
    image = steps.image[..., 0].astype(float)
    assert image.shape == (64, 64)
    for (x, y), level in zip(PLACES, (200, 150), strict=True):
        column, row = 31.5 + scale * (x - 295), 31.5 + scale * (y - 225)
        assert image[round(row), round(column)] == pytest.approx(level, abs=25)
    assert np.median(image[:6]) <= 1
    rows, columns = np.mgrid[:64, :64]
    centre = (image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()
    light = (200 * np.array(PLACES[0]) + 150 * np.array(PLACES[1])) / 350
    expected = 31.5 + scale * (light - (295, 225))
    assert centre == pytest.approx(expected, abs=1.5)
    # The star and the other galaxy lie in the field, and are gone.
    field_px = field / (pair_image.TYPICAL_SEPARATION_KPC / apart)
    for place in (STAR, OTHER):
        x, y = (np.array(place) - (295, 225)) * 256 / field_px + 127.5
        if 5 < x < 250 and 5 < y < 250:
            before, after = (
                np.asarray(step)[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
                for step in (steps.field, steps.alone)
            )
            assert before.max() > 50
            assert after.max() < 10
    assert steps.separation_kpc is None


def test_a_star_before_the_pair_is_filled_and_the_nuclei_stay() -> None:
    y, x = np.mgrid[:256, :256].astype(np.float32)
    disc = 100 * np.exp(-((x - 128) ** 2 + (y - 128) ** 2) / (2 * 40**2))
    nuclei = np.array([[100.0, 128.0], [156.0, 128.0]])
    levels = disc.copy()
    for column, row in [*nuclei, (128, 160)]:
        levels += 120 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * 1.5**2))
    cleaned = pair_image.without_others(levels.astype(np.float32), nuclei, 1.0)
    assert cleaned[160, 128] == pytest.approx(disc[160, 128], abs=8)
    for column, row in nuclei.astype(int):
        assert cleaned[row, column] == levels[row, column]


def test_a_photograph_is_made_as_bright_as_training_images() -> None:
    dim = photograph().point([level // 3 for level in range(256)])
    images = [pair_image.prepare(p, pair(), config(), 140.0).image for p in (photograph(), dim)]
    for image in images:
        assert np.percentile(image, 99) == pytest.approx(140, abs=3)
    assert np.abs(images[0].astype(float) - images[1]).mean() < 2


def test_the_sky_is_measured_within_a_black_frame() -> None:
    bare = photograph(sky=60.0)
    framed = Image.new("L", (WIDTH + 400, HEIGHT + 100))
    framed.paste(bare, (200, 50))
    places = tuple((x + 200, y + 50) for x, y in PLACES)
    without = pair_image.prepare(bare, pair(), config(), None).image
    within = pair_image.prepare(framed, pair(places), config(), None).image
    assert np.abs(within.astype(float) - without).max() <= 2


def test_a_redshift_tells_the_scale() -> None:
    with_redshift = pair(redshift=0.05, scale_arcsec_per_px=0.4)
    steps = pair_image.prepare(photograph(), with_redshift, config(), None)
    apart = np.hypot(70, 30) * 0.4 * pair_image.kpc_per_arcsec(0.05)
    assert steps.separation_kpc == pytest.approx(apart)
    image = steps.image[..., 0].astype(float)
    scale = 64 / (400 / 6) * 0.4 * pair_image.kpc_per_arcsec(0.05)
    column, row = 31.5 - scale * 35, 31.5 - scale * 15
    assert image[round(row), round(column)] == pytest.approx(200, abs=25)


def test_lengths_at_a_redshift_are_the_standard_ones() -> None:
    astropy = pytest.importorskip("astropy.cosmology")
    universe = astropy.FlatLambdaCDM(H0=70, Om0=0.3)
    for redshift in (0.005, 0.03, 0.1, 0.5):
        theirs = 1 / universe.arcsec_per_kpc_proper(redshift).value
        assert pair_image.kpc_per_arcsec(redshift) == pytest.approx(theirs, rel=2e-4)


def test_the_field_is_that_of_the_training_images() -> None:
    run = {"spin": "prograde", "inclination_deg": 0, "first_id": 1}
    catalogue = {"runs": [run], "render": {"nbins": 200, "zoom": 2}}
    assert pair_image.field_kpc(config(catalogue=catalogue)) == 100
    assert pair_image.field_kpc(config()) == pytest.approx(66.7, abs=0.1)


def test_the_field_of_imported_images_is_the_given_one_and_never_guessed() -> None:
    images = {"table": "labels.csv"}
    catalogue = {"images": images, "render": {"nbins": 200, "zoom": 2}}
    says = r"catalogue.images.field_kpc: missing; .* in kpc \(200, the pixels per side"
    with pytest.raises(InputError, match=says):
        pair_image.field_kpc(config(catalogue=catalogue))
    with pytest.raises(InputError, match=says):
        pair_image.prepare(photograph(), pair(), config(catalogue=catalogue), None)
    images["field_kpc"] = 50
    assert pair_image.field_kpc(config(catalogue=catalogue)) == 50


@pytest.mark.parametrize("side", [5_000.0, 9_000.0, 17_000.0])
def test_a_field_much_wider_than_the_picture_is_cut_at_its_place(side: float) -> None:
    dark, _ = pair_image.without_sky(np.asarray(photograph(), np.float32))
    field = pair_image.cut(dark, np.array([295.0, 225.0]), side).astype(float)
    assert field.sum() * (side / 256) ** 2 == pytest.approx(dark.sum(dtype=float), rel=0.1)

    def centre(levels: np.ndarray) -> np.ndarray:
        light = levels / levels.sum()
        return np.array([light.sum(axis=k) @ np.arange(light.shape[1 - k]) for k in (0, 1)])

    expected = (centre(dark.astype(float)) - (295, 225)) * 256 / side + 127.5
    assert centre(field) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(
    ("redshift", "scale", "apart"),
    [(0.5, 0.4, "186"), (0.0005, 0.4, "0.316"), (0.0005, 0.1, "0.079"), (0.02, 1e-300, "3.09")],
)
def test_a_pair_that_its_field_does_not_show_is_refused(
    redshift: float, scale: float, apart: str
) -> None:
    where = pair(redshift=redshift, scale_arcsec_per_px=scale)
    says = f"too little of the pair is left in its field of 67 kpc.* {apart}.* check redshift"
    for bright_level in (140.0, None):
        with pytest.raises(ValueError, match=says):
            pair_image.prepare(photograph(), where, config(), bright_level)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ((PLACES[0], (700.0, 20.0)), "outside the image of 600 x 500"),
        ((PLACES[0], PLACES[0]), "both galaxies are in the same place"),
        ((PLACES[0], (590.0, 490.0)), "nothing is detected at x2_px, y2_px = 590, 490"),
        ((PLACES[0], None), "no x1_px, y1_px, x2_px, y2_px"),
    ],
)
def test_wrong_places_are_refused(places: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pair_image.prepare(photograph(), pair(places), config(), None)
