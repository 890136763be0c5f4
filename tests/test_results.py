"""The lines of docs/results.md: their commands exist, and the page agrees with its JSON."""

import re
import shlex
from pathlib import Path

import pytest

from galmerhpc import files
from galmerhpc.cli import make_parser
from galmerhpc.config import load
from results.lines import LINES, Bar, Found, Line
from results.make import (
    cell,
    configurations,
    duration,
    is_made,
    json_path,
    markdown,
    write_page,
)
from tests.support import ROOT


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"line {line.number}")
def test_commands_and_their_configurations_exist(line) -> None:
    for command in line.commands:
        words = shlex.split(command)
        given = make_parser().parse_args(words[words.index("galmerhpc") + 1 :])
        assert given.function
    assert configurations(line, ROOT)


def test_a_configuration_is_told_by_its_overrides() -> None:
    (line,) = (line for line in LINES if line.number == 3)
    found = configurations(line, ROOT)
    assert any("training.epochs=2" in name for name in found)
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    "change", ["training: {epochs: 9}", "simulate: {step_myr: 0.5}", "studies: {dropout: [0.2]}"]
)
def test_a_line_is_made_until_its_configuration_or_its_commands_change(
    tmp_path: Path, change: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("library: l.h5\n")
    line, other = (
        Line(1, "A line", (f"galmerhpc {command} c.yaml",), lambda _: Found([]))
        for command in ("study dropout", "run")
    )
    made = {"commands": line.commands, "configurations": configurations(line, tmp_path)}
    assert not is_made(line, tmp_path)
    files.write_json(json_path(line, tmp_path), made)
    assert is_made(line, tmp_path)
    assert not is_made(other, tmp_path)
    config.write_text(f"library: l.h5\n{change}\n")
    assert not is_made(line, tmp_path)


def test_the_page_is_what_the_json_says(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").glob("*.json"):
        (tmp_path / "results" / path.name).write_text(path.read_text())
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_page(LINES, tmp_path)
    written = (tmp_path / "docs/results.md").read_text()
    assert written == (ROOT / "docs/results.md").read_text(), "run: make results LINES=--page"
    assert [int(n) for n in re.findall(r"(?m)^## (\d+)\.", written)] == [n.number for n in LINES]


def test_what_is_evaluated_elsewhere_has_images_of_the_same_size() -> None:
    network = load(ROOT / "configs/never_seen.yaml").preprocess
    for name in ("inclinations", "out_of_family"):
        other = load(ROOT / f"configs/{name}.yaml").preprocess
        assert (other.image_size, other.channels) == (network.image_size, network.channels)


def test_the_tested_realisations_and_directions_are_never_trained() -> None:
    config = load(ROOT / "configs/never_seen.yaml")
    tested = {*config.split.test_simulations, *config.split.validation_simulations}
    trained = [run for run in config.catalogue.runs if run.simulation not in tested]
    assert len({run.simulation for run in trained}) == 12
    between = {run.views for run in config.catalogue.runs if run.simulation in tested}
    (views,) = between
    for run in trained:
        for axis in ("theta_deg", "phi_deg"):
            shown = {round(v, 6) for v in getattr(run.views, axis).values()}
            assert not shown & {round(v, 6) for v in getattr(views, axis).values()}


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (Bar("x", 2.3, "<=", 2.3), True),
        (Bar("x", 2.4, "<=", 2.3), False),
        (Bar("x", 0.98, ">=", 0.98), True),
        (Bar("x", 0.97, ">=", 0.98), False),
    ],
)
def test_a_bar_is_met_or_missed(bar: Bar, met: bool) -> None:
    assert bar.met == met


def test_numbers_are_written_for_readers() -> None:
    assert [cell(v) for v in (None, 0.17436, 2.25, 40, 237182, "CNN ", 0.0)] == [
        "", "0.1744", "2.25", "40", "237,182", "CNN", "0.0000",
    ]  # fmt: skip
    assert [duration(s) for s in (89, 7140, 3600)] == ["1 min", "1 h 59 min", "1 h 0 min"]
    assert cell("|bias|") == "\\|bias\\|"
    assert markdown([{"a": 1, "b": 2}, {"a": 3}]) == [
        "| a | b |", "| --- | --- |", "| 1 | 2 |", "| 3 |  |",
    ]  # fmt: skip
