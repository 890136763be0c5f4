"""A folder of pictures with a table of labels becomes raw shards, and the run goes on."""

import csv
import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs
from zlib import compress, crc32

import h5py
import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from galmerhpc import files
from galmerhpc.catalogue import Views
from galmerhpc.config import Catalogue, Config, Images, dump, load
from galmerhpc.dataset.import_images import check, import_images
from galmerhpc.dataset.pictures import decode
from galmerhpc.dataset.preprocess import preprocess
from galmerhpc.dataset.shards import Dataset, read_columns
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.evaluation.sample import read_views
from tests.support import ROOT, galmerhpc

SIZE = 40
HEADER = "file,spin,inclination,azimuth,viewing_angle,simulation,snapshot_id,time_myr,mass_ratio"
KINDS = ("GIF", "PNG", "JPEG")


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (SIZE, SIZE), np.uint8)


def png_of_16_bits() -> bytes:
    """Return a PNG of 16 bits per channel in RGB, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0))
    lines = noise(1, SIZE, 1 + 6 * SIZE)
    lines[:, 0] = 0  # no filter
    data = chunk(b"IDAT", compress(lines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def turned() -> Image.Exif:
    """Return the EXIF data of a picture that is to be shown turned by a quarter."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def rows() -> list[str]:
    return [
        f"sub/{k}.{KINDS[k % 3].lower()},{('prograde', '1')[k % 2]},{(0, 45.5)[k % 2]},{3 * k},{k},"
        f"{k % 3},{k // 8},{50 * (k // 8)},{1 + k % 2}"
        for k in range(24)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with pictures of three kinds, grey and in colour, table and configuration."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    for k, row in enumerate(rows()):
        pixels = noise(k) if k % 2 else noise(k, SIZE, SIZE, 3)
        (pictures / row.split(",")[0]).write_bytes(encode(pixels, KINDS[k % 3]))
    (pictures / "labels.csv").write_text("\n".join([HEADER, *rows()]))
    write_config(tmp_path)
    return tmp_path


def write_config(folder: Path, **images: object) -> Path:
    table = {"table": "pictures/labels.csv", "labels": ["mass_ratio"], **images}
    values = {
        "run_dir": str(folder / "run"),
        "catalogue": {"images": table, "render": {"nbins": SIZE}},
        "parameters": ["spin", "azimuth", "mass_ratio"],
        "scrape": {"views_per_shard": 10},
        "preprocess": {"image_size": 40, "samples_per_shard": 9},
        "split": {"kind": "simulation"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_pictures_go_all_the_way_to_training_shards(folder: Path) -> None:
    config = load(folder / "run.yaml")
    import_images(config)
    shards = sorted((folder / "run/raw").glob("raw-*.h5"))
    assert len(shards) == 3
    with h5py.File(shards[0]) as shard:
        start, end = shard["offset"][:2]
        (name,) = parse_qs(shard["view"].asstr()[0])["file"]
        body = (folder / "pictures" / name).read_bytes()
        assert shard["response"][start:end].tobytes() == body
    preprocess(config)
    dataset = Dataset.open(folder / "run/shards")
    assert dataset.parameters == ("spin", "azimuth", "mass_ratio")
    wanted = [(k % 2, 3 * k, 1 + k % 2) for k in range(24)]
    assert np.array_equal(dataset.labels, wanted)
    columns = [
        read_columns(path, ["view", "simulation", "snapshot_id", "time_myr"])
        for path in sorted((folder / "run/shards").glob("shard-*.h5"))
    ]
    whole = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    names = [row.split(",")[0] for row in rows()]
    views = [parse_qs(view.decode()) for view in whole["view"].tolist()]
    assert [view["file"] for view in views] == [[name] for name in names]
    assert [view["phi"] for view in views] == [[str(3 * k)] for k in range(24)]
    assert whole["simulation"].tolist() == [k % 3 for k in range(24)]
    assert whole["time_myr"].tolist() == [50 * (k // 8) for k in range(24)]
    # PNG and GIF of grey pixels come through untouched.
    images = dataset.images(np.array([1, 3]))
    assert np.array_equal(images[0, :, :, 0], noise(1))
    assert np.array_equal(images[1, :, :, 0], noise(3))


def test_encounters_are_told_apart_by_the_table_not_by_the_labels_that_are_trained(
    folder: Path,
) -> None:
    config = load(folder / "run.yaml", ["parameters=[azimuth]"])
    import_images(config)
    preprocess(config)
    dataset = Dataset.open(folder / "run/shards")
    views = read_views(config, dataset, np.arange(24))
    assert views.spin.tolist() == [k % 2 for k in range(24)]
    assert views.inclination_deg.tolist() == [(0, 45.5)[k % 2] for k in range(24)]
    assert len(set(views.groups())) == 6  # two configurations of three realisations
    assert views.configuration[1].startswith("retrograde, i = 45.5, ")


def test_the_example_of_the_committed_configurations_imports_images(tmp_path: Path) -> None:
    config = load_example(tmp_path)
    import_images(config)
    preprocess(config)
    dataset = Dataset.open(tmp_path / "run/shards")
    assert dataset.image_shape == (64, 64, 1)
    assert [len(dataset.rows(split)) for split in ("train", "validation", "test")] == [4, 4, 4]


def load_example(folder: Path) -> Config:
    """Return configs/own_images.yaml, copied beside images as its first lines say."""
    pictures = folder / "pictures"
    pictures.mkdir()
    size = 256
    lines = ["file,spin,inclination,azimuth,viewing_angle,simulation"]
    for k in range(12):
        (pictures / f"{k}.png").write_bytes(encode(noise(k, size, size)))
        lines.append(f"{k}.png,prograde,45,{15 * k},60,{k % 3}")
    (pictures / "labels.csv").write_text("\n".join(lines))
    path = shutil.copy(ROOT / "configs/own_images.yaml", folder / "my_images.yaml")
    return load(path, [f"run_dir={folder / 'run'}"])


def test_times_that_the_table_does_not_know_stay_unknown(folder: Path) -> None:
    table = folder / "pictures/labels.csv"
    header, *lines = [line.split(",") for line in table.read_text().splitlines()]
    place = header.index("time_myr")
    for row in lines[::2]:
        row[place] = ""
    table.write_text("\n".join(map(",".join, [header, *lines])))
    import_images(load(folder / "run.yaml"))
    preprocess(load(folder / "run.yaml"))
    times = Dataset.open(folder / "run/shards").column("time_myr")
    assert np.array_equal(np.isnan(times), np.arange(24) % 2 == 0)
    assert times[1::2].tolist() == [50 * (k // 8) for k in range(1, 24, 2)]
    # Without the column no time is known.
    for row in (header, *lines):
        del row[place]
    table.write_text("\n".join(map(",".join, [header, *lines])))
    shutil.rmtree(folder / "run")
    config = load(folder / "run.yaml")
    import_images(config)
    preprocess(config)
    assert np.isnan(Dataset.open(folder / "run/shards").column("time_myr")).all()
    files.write_text(folder / "run/config.yaml", dump(config))
    done = galmerhpc("check", str(folder / "run"))
    assert done.returncode == 0, done.stdout
    for name in ("raw/raw-0000-00000.h5", "shards/dataset.h5"):
        lines = galmerhpc("info", str(folder / "run" / name)).stdout.splitlines()
        assert ["time_myr", "nan", "nan", "0"] in [line.split() for line in lines]


def test_what_was_imported_is_not_read_again_and_bad_pictures_are_listed(folder: Path) -> None:
    bad = {"sub/0.gif": encode(noise(0, 20, 20)), "sub/1.png": b"<html>", "sub/2.jpeg": None}
    for name, content in bad.items():
        (folder / "pictures" / name).unlink()
        if content is not None:
            (folder / "pictures" / name).write_bytes(content)
    done = galmerhpc("images", "import", str(folder / "run.yaml"), ranks=2)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "galmerhpc: " in line]
    assert "sub/0.gif: an image of 20 x 20 pixels, not 40 x 40" in line
    assert "sub/2.jpeg: No such file" in line
    listed = (folder / "run/raw/missing.csv").read_text().splitlines()[1:]
    assert sorted(row.split("&")[0] for row in listed) == [f"file={name}" for name in sorted(bad)]
    # Mended, only they are read: the others may even be gone.
    shutil.rmtree(folder / "pictures/sub")
    (folder / "pictures/sub").mkdir()
    for k, name in enumerate(bad):
        (folder / "pictures" / name).write_bytes(encode(noise(100 + k)))
    done = galmerhpc("images", "import", str(folder / "run.yaml"))
    assert done.returncode == 0, done.stderr
    assert not (folder / "run/raw/missing.csv").exists()
    preprocess(load(folder / "run.yaml"))


def test_an_unfinished_import_goes_on_with_the_corrected_table(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, raw = folder / "pictures/labels.csv", folder / "run/raw"
    good = table.read_text()
    table.write_text(good.replace("sub/23.jpeg", "sub/32.jpeg"))
    with pytest.raises(InputError, match=r"sub/32.jpeg: No such file .* images or the table"):
        import_images(load(folder / "run.yaml"))
    assert len(list(raw.glob("raw-*.h5"))) == 3
    # Another label, another line of sight: of images that were imported already.
    table.write_text(good.replace("sub/3.gif,1,45.5,9,3", "sub/3.gif,1,75,9,3"))
    import_images(load(folder / "run.yaml"))
    assert "made with another table (labels of view file=sub/3.gif" in caplog.text
    assert len(list(raw.glob("*.bad"))) == 1
    config = load(folder / "run.yaml")
    preprocess(config)
    files.write_text(folder / "run/config.yaml", dump(config))
    done = galmerhpc("check", str(folder / "run"))
    assert done.returncode == 0, done.stdout


def test_a_corrected_line_of_sight_takes_the_place_of_the_wrong_one(folder: Path) -> None:
    table = folder / "pictures/labels.csv"
    good = table.read_text()
    table.write_text(good.replace("45.5,9,3", "45.5,90,3").replace("sub/23.jpeg", "sub/32.jpeg"))
    with pytest.raises(InputError, match="No such file"):
        import_images(load(folder / "run.yaml"))
    table.write_text(good)
    assert galmerhpc("images", "import", str(folder / "run.yaml")).returncode == 0
    preprocess(load(folder / "run.yaml"))
    assert Dataset.open(folder / "run/shards").labels[3].tolist() == [1, 9, 2]
    done = galmerhpc("check", str(folder / "run"))
    assert done.returncode == 0, done.stdout


def test_a_split_that_the_table_does_not_allow_is_refused_before_any_image_is_read(
    folder: Path,
) -> None:
    table = folder / "pictures/labels.csv"
    header, *lines = [line.split(",") for line in table.read_text().splitlines()]
    place = header.index("simulation")
    for row in (header, *lines):
        del row[place]
    table.write_text("\n".join(map(",".join, [header, *lines])))
    done = galmerhpc("images", "import", str(folder / "run.yaml"))
    assert done.returncode == 2
    assert "split.kind: simulation needs two realisations or more" in done.stderr
    assert not list((folder / "run").glob("raw/raw-*"))
    assert (
        galmerhpc("images", "import", str(folder / "run.yaml"), "split.kind=random").returncode == 0
    )


def test_a_table_in_radians_and_images_with_two_labels_are_pointed_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, images = folder / "pictures/labels.csv", folder / "pictures/sub"
    (images / "4.png").write_bytes((images / "1.png").read_bytes())
    import_images(load(folder / "run.yaml"))
    assert "radians" not in caplog.text
    assert "identical images with different labels" in caplog.text
    assert "look alike: sub/1.png and sub/4.png\n" in caplog.text
    caplog.clear()
    good = [line.split(",") for line in table.read_text().splitlines()]
    radians = [[*r[:2], *(f"{float(a) / 57.3:.4f}" for a in r[2:5]), *r[5:]] for r in good[1:]]
    table.write_text("\n".join(map(",".join, [good[0], *radians])))
    import_images(load(folder / "run.yaml", [f"run_dir={folder / 'other'}", "parameters=[spin]"]))
    assert "labels.csv: no inclination, azimuth or viewing angle exceeds 2 pi" in caplog.text


@pytest.mark.parametrize(
    ("labels", "parameter", "expected"),
    [
        ("60,9", "inclination", "60 (it has them for 0, 45, 75, 90)"),
        ("45,-30", "azimuth", "-30 (it has them for 0..180)"),
    ],
)
def test_pictures_without_a_class_are_refused_where_classes_are_wanted(
    folder: Path, labels: str, parameter: str, expected: str
) -> None:
    table, path = folder / "pictures/labels.csv", folder / "run.yaml"
    good = table.read_text().replace("45.5", "45")
    table.write_text(good.replace("sub/3.gif,1,45,9", f"sub/3.gif,1,{labels}"))
    values = yaml.safe_load(path.read_text()) | {"parameters": ["spin", parameter]}
    path.write_text(yaml.safe_dump(values))
    import_images(load(path))  # for a regression they are good
    classes = {"model": {"task": "classification"}, "training": {"loss": "binary_crossentropy"}}
    path.write_text(yaml.safe_dump(values | classes))
    for stage in (import_images, preprocess):
        with pytest.raises(InputError) as caught:
            stage(load(path))
        assert f"{table}: sub/3.gif: " in str(caught.value)
        assert f"no class for {parameter} {expected}, as for 1 of 24 images" in str(caught.value)
    path.write_text(yaml.safe_dump(values | classes | {"parameters": ["spin"]}))
    preprocess(load(path))


def test_an_import_and_a_scrape_keep_off_each_other(folder: Path) -> None:
    with files.lock(folder / "run/raw/scrape.lock"):
        done = galmerhpc("images", "import", str(folder / "run.yaml"))
    assert done.returncode == 2
    assert "raw: in use by process" in done.stderr


def test_a_refused_configuration_does_not_replace_the_run_s(folder: Path) -> None:
    config = str(folder / "run.yaml")
    for stage in (["images", "import"], ["preprocess"]):
        assert galmerhpc(*stage, config).returncode == 0
    before = (folder / "run/config.yaml").read_bytes()
    for stage, key in (
        (["images", "import"], "catalogue.render.nbins=20"),
        (["preprocess"], "preprocess.image_size=32"),
        (["train"], "preprocess.image_size=32"),
    ):
        done = galmerhpc(*stage, config, key)
        assert done.returncode == 2
        assert key.partition("=")[0] in done.stderr
    assert (folder / "run/config.yaml").read_bytes() == before
    assert galmerhpc("check", str(folder / "run")).returncode == 0


def test_a_table_that_changed_is_noticed(folder: Path) -> None:
    config = load(folder / "run.yaml")
    import_images(config)
    table = folder / "pictures/labels.csv"
    table.write_text(table.read_text().replace("45.5", "75"))
    for step in (import_images, preprocess):
        with pytest.raises(InputError, match=r"labels.csv: has changed"):
            step(config)
        with pytest.raises(InputError, match=r"another catalogue.images.sha256"):
            step(load(folder / "run.yaml"))


def test_the_width_of_the_images_may_be_added_to_a_finished_run(folder: Path) -> None:
    import_images(load(folder / "run.yaml"))
    preprocess(load(folder / "run.yaml"))
    config = str(write_config(folder, field_kpc=64))
    done = galmerhpc("preprocess", config)
    assert done.returncode == 0, done.stderr
    assert "preprocess: complete, nothing to do" in done.stderr
    noted = load(folder / "run").catalogue
    assert noted.images.field_kpc == 64


def test_a_table_may_move_with_its_pictures(folder: Path) -> None:
    import_images(load(folder / "run.yaml"))
    (folder / "pictures").rename(folder / "elsewhere")
    preprocess(load(write_config(folder, table="elsewhere/labels.csv")))


def test_a_run_is_checked_also_without_its_table(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import_images(load(folder / "run.yaml"))
    enlarged = load(folder / "run.yaml", ["preprocess.image_size=64"])
    with caplog.at_level("WARNING"):
        preprocess(enlarged)
    assert "images of 40 pixels are enlarged to preprocess.image_size, 64" in caplog.text
    files.write_text(folder / "run/config.yaml", dump(enlarged))
    (folder / "pictures").rename(folder / "elsewhere")
    done = galmerhpc("check", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    assert "No such file or directory; until it is back, shards are only" in done.stdout
    for name in ("raw/raw-0000-00000.h5", "shards/shard-00001.h5"):
        (path,) = (folder / "run").glob(name)
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"damage" + content[middle + 6 :])
        done = galmerhpc("check", str(folder / "run"))
        assert done.returncode != 0
        assert path.name in done.stdout
        path.write_bytes(content)


def test_the_resolved_configuration_reads_back_from_the_run_folder(folder: Path) -> None:
    done = galmerhpc("images", "import", str(folder / "run.yaml"))
    assert done.returncode == 0, done.stderr
    resolved = load(folder / "run/config.yaml")
    assert resolved == load(folder / "run.yaml")
    assert len(Views(resolved.catalogue)) == 24
    assert "galmerhpc images import" in galmerhpc("scrape", str(folder / "run.yaml")).stderr


def test_any_name_of_a_file_is_an_id_that_can_be_read_back(tmp_path: Path) -> None:
    names = ["a b.png", "c&theta=3.png", "50%.png", "é+/x.png", '"q".png']
    table = tmp_path / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "spin", "inclination", "azimuth", "viewing_angle"])
        writer.writerows([name, 0, 45, 30.5, k] for k, name in enumerate(names))
    views = Views(Catalogue(images=Images(table=table)))
    assert list(views.ids()) == [view.id for view in views]
    for k, view in enumerate(views):
        assert parse_qs(view.id) == {"file": [names[k]], "phi": ["30.5"], "theta": [str(k)]}
        assert view.file == tmp_path / names[k]


def edit(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("azimuth", "azimut"), ":1: no column azimuth (is it 'azimut'?)"),
        (edit(",mass_ratio", ",seeing"), ":1: no column mass_ratio"),
        (edit("time_myr", "time"), ":1: unknown column 'time'"),
        (edit("snapshot_id", "spin"), ":1: duplicate column"),
        (edit("prograde", "up"), ":2: spin: 'up' is neither prograde (0) nor retrograde (1)"),
        (edit("45.5", "190"), ":3: inclination: 190 is outside 0..180"),
        (edit("45.5", "nan"), ":3: inclination: nan is outside 0..180"),
        (edit("45.5", "x"), ":3: inclination: 'x' is not a number"),
        (edit("sub/1.png", "sub/0.gif"), ": sub/0.gif is listed more than once"),
        (edit("sub/1.png", "./sub//0.gif"), ": sub/0.gif is listed more than once"),
        (edit("sub/1.png", "../a.png"), ":3: file: '../a.png' is not a file beside or below"),
        (edit("sub/1.png", "/etc/a.png"), ":3: file: '/etc/a.png' is not a file beside"),
        (edit("sub/1.png", "'a\0"), ":3: file: "),
        (edit("sub/1.png,", ""), ":3: 8 cells, but the header has 9"),
        (edit("0,0,0,0,0,1\n", "0,0,0,0,0,1e300\n"), ":2: mass_ratio: 1e300 is outside -1e+09.."),
        (edit("0,0,0,0,0,1\n", "0,0,0.5,0,0,1\n"), ":2: simulation: 0.5 is not a whole number"),
        (lambda _: "", ":0: no column file"),
        (lambda text: text.splitlines()[0], ": the table has no rows"),
        (lambda text: text + '\n"', ":26: "),
    ],
)
def test_a_wrong_table_is_named_with_its_line(
    folder: Path, change: Callable[[str], str], expected: str
) -> None:
    table = folder / "pictures/labels.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(InputError) as caught:
        import_images(load(folder / "run.yaml"))
    assert str(caught.value).startswith(f"{table}{expected}")
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "bytes that are not GIF or PNG or JPEG"),
        (encode(noise(1), "BMP"), "bytes that are not GIF or PNG or JPEG"),
        (encode(noise(1))[:-99], "a broken image"),
        (encode(noise(1, SIZE, SIZE + 1)), "41 x 40 pixels, not 40 x 40; all images are squares"),
        (encode(noise(1, 50, 50)), "50 x 50 pixels, not 40 x 40"),
        (encode(noise(1, SIZE, SIZE, 4)), "pixels of kind RGBA"),
        (encode(noise(1).astype(np.uint16) * 256), "pixels of kind I;16"),
        (png_of_16_bits(), "pixels of kind RGB, 16 bits per channel"),
        (encode(noise(1), transparency=3), "an image with a transparent colour"),
        (encode(np.full((SIZE, SIZE), 7, np.uint8)), "a blank image"),
        (encode(noise(1), "JPEG", exif=turned()), "an image that its EXIF data turn"),
        (encode(noise(1), exif=turned()), "an image that its EXIF data turn"),
        (
            encode(noise(1), "GIF", save_all=True, append_images=[Image.fromarray(noise(2))]),
            "an animated image",
        ),
    ],
    ids=[
        "nothing",
        "bmp",
        "cut",
        "oblong",
        "size",
        "alpha",
        "16 bit",
        "RGB of 16 bit",
        "transparent",
        "blank",
        "turned jpeg",
        "turned png",
        "animated",
    ],
)
def test_what_is_no_picture_to_train_on_is_refused(body: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check(body, SIZE)


def test_what_a_gifs_transparent_colour_covers_is_black() -> None:
    colours = Image.fromarray(noise(1, SIZE, SIZE, 3)).quantize(16)
    index = np.asarray(colours)
    buffer = io.BytesIO()
    colours.save(buffer, "GIF", transparency=int(index[0, 0]), optimize=False)
    assert check(buffer.getvalue(), SIZE) == "GIF"
    shown = np.asarray(decode(buffer.getvalue(), SIZE).convert("RGB"))
    covered = index == index[0, 0]
    assert not shown[covered].any()
    assert np.array_equal(shown[~covered], np.asarray(colours.convert("RGB"))[~covered])


def test_a_catalogue_has_runs_or_images(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    (tmp_path / "labels.csv").write_text("")
    images = "images: {table: labels.csv}"
    run = "{spin: prograde, inclination_deg: 0, first_id: 1}"
    for catalogue, expected in [
        (f"{images}, runs: [{run}]", "leave out runs and views"),
        (f"{images}, views: {{phi_deg: {{start: 0, stop: 9, step: 1}}}}", "leave out runs"),
        ("images: {table: nowhere.csv}", "nowhere.csv: cannot be read: No such file"),
        ("images: {table: labels.csv, labels: [spin]}", "spin: already defined"),
        (f"runs: [{run}]", "run galmerhpc scrape"),
    ]:
        config.write_text(f"catalogue: {{{catalogue}}}")
        with pytest.raises(GalmerhpcError, match=expected):
            import_images(load(config))
