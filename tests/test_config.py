"""The configuration: what is accepted, what is refused, and what the refusal says."""

import runpy
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.catalogue import Views
from galmerhpc.config import GSB, Config, differences, dump, load
from galmerhpc.errors import InputError
from tests.support import ROOT

OWN_IMAGES = ROOT / "configs/own_images.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RUN = {"spin": "prograde", "inclination_deg": 0, "first_id": 1}
CLASSIFIER = {"model": {"task": "classification"}, "training": {"loss": "binary_crossentropy"}}


def committed(path: Path, folder: Path) -> Config:
    """Return a committed configuration; the table of images that one of them names is a user's."""
    if path == OWN_IMAGES:
        (folder / "pictures").mkdir()
        (folder / "pictures/labels.csv").write_text(
            "file,spin,inclination,azimuth,viewing_angle,simulation\na.png,prograde,45,30,60,0\n"
        )
        path = Path(shutil.copy(path, folder))
    return load(path)


def write(folder: Path, **values: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refusal(folder: Path, *overrides: str, **values: object) -> str:
    with pytest.raises(InputError) as caught:
        load(write(folder, **values), overrides)
    return str(caught.value)


def test_the_page_of_all_keys_is_that_of_the_code() -> None:
    script = ROOT / "docs" / "configuration.py"
    page = runpy.run_path(str(script))["page"]()
    assert page == script.with_suffix(".md").read_text(), "run python docs/configuration.py"
    # What a reader looks for: a key of each level with its default and its meaning.
    assert "| `loss_weights` | `{}` | Weight of a parameter's loss by name" in page
    assert page.count("| `thumbnail_px` | `16` |") == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_committed_configuration_is_valid_and_says_what_launches_it(
    path: Path, tmp_path: Path
) -> None:
    config = committed(path, tmp_path)
    assert config.run_dir == Path("runs") / path.stem
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("#")
    assert "galmerhpc" in "".join(path.read_text().splitlines()[:6])


def test_the_paper_s_regression_has_the_paper_s_number_of_samples() -> None:
    config = load(ROOT / "configs/paper_regression.yaml")
    assert config.catalogue is not None
    assert len(Views(config.catalogue)) * (1 + config.preprocess.copies) == 263_536


def test_paths_are_expanded_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("NOWHERE", raising=False)
    data = {"stage_dir": "${SCRATCH}/b"}
    config = load(write(tmp_path, run_dir="~/runs/x", library="$SCRATCH/lib.h5", data=data))
    assert config.run_dir == Path("/home/a/runs/x")
    assert config.library == "/scratch/lib.h5"
    assert config.data.stage_dir == Path("/scratch/b")
    message = refusal(tmp_path, run_dir="$NOWHERE/x")
    assert "run_dir: $NOWHERE/x names an environment variable that is not set" in message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_resolved_file_reads_back_as_the_same_configuration(path: Path, tmp_path: Path) -> None:
    config = committed(path, tmp_path)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config


def test_a_run_folder_may_have_been_moved(tmp_path: Path) -> None:
    config = load(write(tmp_path, run_dir="runs/here"))
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/config.yaml").write_text(dump(config))
    assert load(tmp_path / "moved") == config.model_copy(update={"run_dir": tmp_path / "moved"})
    assert load(tmp_path / "moved", ["run_dir=elsewhere"]).run_dir == Path("elsewhere")


@pytest.mark.parametrize("resolved", [False, True])
def test_an_address_gets_the_polite_rate_unless_one_is_given(
    resolved: bool, tmp_path: Path
) -> None:
    path = write(tmp_path)
    if resolved:
        path.write_text(dump(load(path)))
    assert load(path).scrape.rate_per_s is None
    asked = "scrape.source=http://galmer.example"
    assert load(path, [asked]).scrape.rate_per_s == 2
    assert load(path, [asked, "scrape.rate_per_s=null"]).scrape.rate_per_s is None
    path.write_text(dump(load(path, [asked, "scrape.rate_per_s=null"])))
    assert load(path).scrape.rate_per_s is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"training": {"batch_siz": 3}},
            "training.batch_siz: unknown key (did you mean batch_size?)",
        ),
        ({"trainin": {}}, "trainin: unknown key (did you mean training?)"),
        ({"zzz": 1}, "allowed: run_dir, library"),
        (
            {"training": {"loss": "l1"}},
            "training.loss: input should be 'mae', 'mse', 'huber', ",
        ),
        (
            {"training": {"epochs": 0}},
            "training.epochs: input should be greater than or equal to 1, not 0",
        ),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
        ({"training": {"learning_rate": "fast"}}, "not 'fast'"),
        ({"training": {"seed": 2**32}}, "training.seed: input should be less than 4294967296"),
        ({"simulate": {"realisations": [2**31]}}, "simulate.realisations.0: input should be less"),
        ({"simulate": {"first_snapshot_id": 2**31}}, "first_snapshot_id: input should be less"),
        ({"training": {"patience": 3}}, "patience needs a best_metric"),
        (
            {"training": {"epochs": 2, "freeze_batchnorm_epochs": 2}},
            "freeze_batchnorm_epochs: must be less than epochs (2), not 2",
        ),
        (
            {"training": {"augment": {"mirror": True}}, "parameters": ["spin", "viewing_angle"]},
            "training.augment.mirror: a mirrored image has another viewing_angle; leave",
        ),
        (
            {"training": {"sync_batchnorm": True, "xla": True}},
            "sync_batchnorm cannot be combined with xla",
        ),
        (
            {"training": {"best_metric": "validation_accuracy"}},
            "no column validation_accuracy (available: validation_loss, validation_mae",
        ),
        ({"evaluation": {"levels": []}}, "evaluation.levels: must be non-empty"),
        (
            {"evaluation": {"levels": [0.9, 0.68]}},
            "strictly increasing",
        ),
        ({"evaluation": {"levels": [0.9, 0.9]}}, "strictly increasing"),
        (
            {"scrape": {"source": "galmer.obspm.fr"}},
            "scrape.source: must be 'mirror' or an address",
        ),
        ({"simulate": {"pair": ["gSa", "gE0"]}}, "no galaxy model 'gE0'"),
        ({"split": {"kind": "inclination"}}, "test_inclination_deg"),
        ({"split": {"validation_fraction": 0.5, "test_fraction": 0.5}}, "must be below 1"),
        ({"parameters": ["spin", "spin"]}, "without duplicates"),
        (
            {"model": {"task": "classification", "class_width_deg": 7}},
            "class width of 7 does not divide",
        ),
        (
            {"model": {"task": "classification"}},
            "training.loss: mae does not fit model.task: classification",
        ),
        (
            {"training": {"loss": "binary_crossentropy"}},
            "training.loss: binary_crossentropy does not fit model.task: regression",
        ),
        (
            {"model": {"task": "classification", "sine_cosine": ["azimuth"]}},
            "sine_cosine and spin apply only to task: regression",
        ),
        (
            {"model": {"task": "classification"}, "parameters": ["spin", "mass_ratio"]},
            "classification has no classes for mass_ratio",
        ),
        (
            {**CLASSIFIER, "catalogue": {"runs": [{**RUN, "inclination_deg": 60}]}},
            "no class for inclination 60 in the catalogue (only for 0, 45, 75, 90)",
        ),
        (
            {
                **CLASSIFIER,
                "catalogue": {
                    "runs": [RUN],
                    "views": {"theta_deg": {"start": 0, "stop": 120, "step": 5}},
                },
            },
            "no class for viewing_angle 120 in the catalogue (only for 0..90)",
        ),
        ({"training": {"loss_weights": {"phi": 2}}}, "training.loss_weights: phi is not among"),
        ({"model": {"sine_cosine": ["spin"]}}, "model.sine_cosine: spin is not an angle"),
        (
            {"model": {"spin": "probability"}, "parameters": ["azimuth"]},
            "model.spin: probability requires spin among the parameters",
        ),
        ({"training": {"optimizer": {"kind": "adamw"}}}, "kind: adamw, which needs one above 0"),
        (
            {"training": {"optimizer": {"weight_decay": 0.1}}},
            "training.optimizer: weight_decay applies only to kind: adamw",
        ),
        ({"training": {"optimizer": {"momentum": 0.9}}}, "momentum applies only to kind: sgd"),
        (
            {"simulate": {"galaxies": {"gSb": {**GSB.model_dump(), "buldge": {}}}}},
            "simulate.galaxies.gSb.buldge: unknown key (did you mean bulge?)",
        ),
        ({"catalogue": {"runs": []}}, "the catalogue is empty"),
        (
            {"catalogue": {"runs": [RUN], "render": {"halo": True}}},
            "catalogue.render.halo: the mirror draws only the surface",
        ),
        ({"catalogue": {"runs": [RUN, RUN]}}, "snapshot 1 is listed more than once"),
        (
            {"catalogue": {"runs": [{**RUN, "snapshts": 1}]}},
            "catalogue.runs.0.snapshts: unknown key (did you mean snapshots?)",
        ),
        ({"catalogue": {"runs": [{**RUN, "spin": "up"}]}}, "'prograde' or 'retrograde', not 'up'"),
        ({"catalogue": "nowhere.yaml"}, "nowhere.yaml: no such file"),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, values: dict[str, object], expected: str
) -> None:
    message = refusal(tmp_path, **values)
    assert expected in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "views",
    [
        {
            "theta_deg": {"start": -90, "stop": 90, "step": 45},
            "phi_deg": {"start": -180, "stop": 179, "step": 45},
        },
        {"phi_deg": {"start": -180, "stop": 180, "step": 90}},
    ],
)
def test_two_views_of_one_picture_are_refused_unless_asked_for(
    tmp_path: Path, views: dict[str, object]
) -> None:
    assert "gives the same image" in refusal(tmp_path, catalogue={"runs": [RUN], "views": views})
    accepted = {"runs": [RUN], "views": views, "allow_equivalent_views": True}
    assert load(write(tmp_path, catalogue=accepted)).catalogue is not None


def test_overrides_win_and_wrong_ones_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, training={"epochs": 3})
    config = load(path, ["training.epochs=7", "preprocess.image_size=128", "run_dir=elsewhere"])
    assert (config.training.epochs, config.preprocess.image_size) == (7, 128)
    assert config.run_dir == Path("elsewhere")
    for override, expected in [
        ("training.epochs", "key=value"),
        ("training.epochs.more=1", "has no keys"),
        ("training.epoch=1", "did you mean epochs?"),
        ("training.epochs=[1", "not valid YAML"),
        ("training.epochs=2024-13-45", "not valid YAML"),
        ("training.epochs=!!int abc", "not valid YAML"),
        ("training={epochs: 1, epochs: 2}", "not valid YAML"),
        ('run_dir="a\\0b"', "not valid YAML"),
        ("training.epochs=true", "training.epochs: should be a number, not true"),
        ("preprocess.channels=true", "preprocess.channels: should be a number, not true"),
        ("preprocess.copies=true", "preprocess.copies: should be a number, not true"),
        ("training.learning_rate=true", "training.learning_rate: should be a number, not true"),
        ("preprocess.copies=100000000000", "preprocess.copies: .*1000"),
        ("scrape.source=http://joe:secret@host", "scrape.source: must not contain a password"),
        ("training.batch_size=032", "'032' without leading zeros"),
        ("training.batch_size=1:30", "'1:30' without leading zeros and colons"),
        ("split.test_simulations=[yes]", "should be a number, not true"),
        ("split.training_fraction=", "no value; write split.training_fraction=null"),
    ]:
        with pytest.raises(InputError, match=expected.replace("?", r"\?")):
            load(path, [override])


def test_a_key_that_is_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  epochs: 3\n  batch_size: 8\n  epochs: 7\n")
    with pytest.raises(InputError, match=r"run\.yaml:4: not valid YAML: the key 'epochs' is given"):
        load(path)


def test_numbers_of_another_base_are_refused_and_merged_keys_are_not(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("catalogue:\n  runs:\n  - {spin: prograde, inclination_deg: 045, first_id: 1}")
    with pytest.raises(InputError, match=r"run\.yaml:3: not valid YAML: write '045' without"):
        load(path)
    path.write_text(
        "simulate:\n  variants:\n    x: {particles: &c {halo: 1000}}\n"
        "    y: {particles: &b {<<: *c, halo: 2000}}\n  particles: {<<: *b, gas: 500}"
    )
    assert load(path).simulate.particles.halo == 2000
    path.write_text("run_dir: '010'")
    assert str(load(path).run_dir) == "010"


@pytest.mark.parametrize("name", ["", "simulation", "spin", "m1,m2", "mass ratio"])
def test_a_label_has_a_name_of_its_own_that_a_table_can_contain(tmp_path: Path, name: str) -> None:
    run = {"spin": "prograde", "inclination_deg": 0, "first_id": 1, "labels": {name: 1}}
    with pytest.raises(InputError, match="labels: "):
        load(write(tmp_path, catalogue={"runs": [run]}))


def test_differences_are_the_overrides_that_make_one_of_the_other(tmp_path: Path) -> None:
    path = write(tmp_path, training={"epochs": 3})
    keys = ["training.epochs=7", "evaluation.sky=null", "training.augment.noise=2.5"]
    assert differences(load(path), load(path)) == []
    changed = load(path, [*keys, 'run_dir="a b"'])
    assert load(path, differences(changed, load(path))) == changed
    assert load(path, ['run_dir="a b"', *differences(load(path), changed)]) == load(path)
    assert len(differences(changed, load(path))) == 4


def test_a_few_lines_that_stand_for_gigabytes_are_refused_in_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    lines = ["x0: &x0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 9)}]" for k in range(1, 30)]
    path.write_text("\n".join([*lines, "training: {epochs: *x29}"]))
    with pytest.raises(InputError) as caught:
        load(path)
    told = str(caught.value).splitlines()
    assert len(told) <= 21
    assert told[-1] == "and 11 more"
    assert any("training.epochs: input should be a valid integer" in line for line in told)
    assert max(map(len, told)) < 1000


def test_keys_of_a_catalogue_in_a_file_of_its_own_are_replaced_too(tmp_path: Path) -> None:
    for name, zoom in (("one.yaml", 5), ("two.yaml", 7)):
        (tmp_path / name).write_text(yaml.safe_dump({"runs": [RUN], "render": {"zoom": zoom}}))
    path = write(tmp_path, catalogue="one.yaml")
    config = load(path, ["catalogue.render.nbins=64", "catalogue=two.yaml"])
    assert config.catalogue is not None
    assert (config.catalogue.render.zoom, config.catalogue.render.nbins) == (7, 64)
    assert "two.yaml: render.zom: unknown key" in refusal(
        tmp_path, "catalogue.render.zom=1", catalogue="two.yaml"
    )


def test_a_fault_of_a_catalogue_s_own_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"runs": [{**RUN, "spin": "up"}]}))
    message = refusal(tmp_path, catalogue="mine.yaml")
    assert message.startswith(f"{tmp_path / 'mine.yaml'}: runs.0.spin: input should be")


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_bytes(content)
    refusal = str(path)
    try:
        load(path)
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal


def test_a_stage_depends_on_what_decides_its_result_and_on_nothing_else() -> None:
    config = load(ROOT / "configs/demo.yaml")
    faster = load(
        ROOT / "configs/demo.yaml",
        [
            "scrape.connections=99",
            "preprocess.images_in_memory=7",
            "training.threads=3",
            "run_dir=other",
        ],
    )
    smaller = load(ROOT / "configs/demo.yaml", ["preprocess.image_size=32"])
    rate = load(ROOT / "configs/demo.yaml", ["training.learning_rate=0.5"])
    for stage in ("scrape", "preprocess", "train", "evaluate"):
        assert config.inputs(stage) == faster.inputs(stage)
        assert (config.inputs(stage) == smaller.inputs(stage)) == (stage == "scrape")
        assert (config.inputs(stage) == rate.inputs(stage)) == (stage in ("scrape", "preprocess"))
