"""A stage's folder belongs to one configuration, and its record says whether it is complete."""

import json
from pathlib import Path

import pytest

from galmerhpc import files
from galmerhpc.config import Config
from galmerhpc.dataset.records import StageRecord
from galmerhpc.errors import InputError

INPUTS = {"catalogue.render.nbins": 400, "scrape.source": "mirror", "catalogue.runs": [1, 2]}


def test_a_stage_is_complete_while_its_files_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    record = StageRecord(folder, INPUTS)
    assert not record.complete
    record.begin()
    assert not StageRecord(folder, INPUTS).complete
    files.write_text(folder / "a.h5", "a")
    sums = {"a.h5": files.sha256(folder / "a.h5")}
    record.finish(sums)
    assert record.complete
    again = StageRecord(folder, {**INPUTS, "catalogue.runs": (1, 2)})
    assert again.complete
    assert again.files == sums
    (folder / "a.h5").unlink()
    assert not again.complete
    again.begin()
    assert not StageRecord(folder, INPUTS).complete


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"scrape.source": "http://a"},
            'made with another scrape.source: "mirror" there, "http://a" now',
        ),
        (
            {"catalogue.render.nbins": 64},
            "made with another catalogue.render.nbins: 400 there, 64 now",
        ),
        ({"new": 1}, "made with another new: null there, 1 now"),
        (
            {"scrape.source": "http://a", "catalogue.render.nbins": 64},
            "made with another catalogue.render.nbins (and scrape.source): 400 there, 64 now",
        ),
    ],
)
def test_a_folder_made_from_other_inputs_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    StageRecord(tmp_path, INPUTS).begin()
    with pytest.raises(InputError) as raised:
        StageRecord(tmp_path, INPUTS | changed)
    assert str(raised.value).startswith(f"{tmp_path}: {message}")
    assert str(raised.value).endswith("choose another run_dir or remove that folder")


def test_a_record_from_before_a_key_existed_holds_with_its_default(tmp_path: Path) -> None:
    inputs = Config(run_dir=tmp_path).inputs("evaluate")
    old = {key: value for key, value in inputs.items() if key != "training.ema_momentum"}
    StageRecord(tmp_path, old).finish({})
    assert StageRecord(tmp_path, inputs).complete
    with pytest.raises(InputError, match=r"training.ema_momentum: 0.0 there, 0.5 now"):
        StageRecord(tmp_path, inputs | {"training.ema_momentum": 0.5})
    # What was null as a whole had no keys below: their defaults say nothing of it.
    without = {k: v for k, v in inputs.items() if not k.startswith("evaluation.sky")}
    StageRecord(tmp_path / "sky", {**without, "evaluation.sky": None}).finish({})
    with pytest.raises(InputError, match=r"evaluation.sky"):
        StageRecord(tmp_path / "sky", inputs)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"inputs": 3}', '{"inputs": {}, "files": [', '{"inputs": {}, "files": 7}'],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(InputError, match=r"stage\.json: damaged"):
        _ = StageRecord(tmp_path, {}).complete


def test_a_record_says_which_version_made_it(tmp_path: Path) -> None:
    StageRecord(tmp_path, INPUTS).begin()
    record = json.loads((tmp_path / "stage.json").read_text())
    assert record["inputs"] == INPUTS
    assert record["version"]
