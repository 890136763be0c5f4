"""The report: self-contained, escaped, and honest about what a reader must know."""

import base64
import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from galmerhpc.config import Config
from galmerhpc.evaluation.conformal import Labels, halved_coverage
from galmerhpc.evaluation.gallery import CAPTIONS
from galmerhpc.evaluation.report import page, warnings
from galmerhpc.evaluation.scores import Scorer, breakdown, class_scores, sky_weights
from galmerhpc.evaluation.summary import describe_sample, interval, result_table, verdict
from galmerhpc.metrics import to_json
from galmerhpc.parameters import NAMES, encode_classes
from tests.browser import browser, require_browser

HOSTILE = "<script src=\"https://evil.example/x.js\">alert('&')</script><img src=x onerror=y>"
FIGURES = {name: f"png of {name}".encode() for name in CAPTIONS}
PAPER_WIDTH = 718
"""Pixels between the margins of A4, as a browser prints."""
SIMULATED = np.array([0.0, 45, 75, 90])


class Page(HTMLParser):
    """A page's elements and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", [""]
        self.feed(html)
        self.close()
        assert self._open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] != "style":
            self.text += data


def found(network: float, lookup: float) -> dict[str, Any]:
    """Return the results of a condition in which predictors have errors of these sizes."""
    random = np.random.default_rng(0)
    count = 160
    true = np.stack([random.uniform(0, high, count) for high in (1, 90, 180, 90)], axis=1)
    true[:, 0] = true[:, 0] > 0.5
    true[:, 1] = random.choice(SIMULATED, count)
    groups = np.arange(count) % 8
    unit = random.normal(0, 1, true.shape) * [0.01, 1, 1, 1]
    predicted = {k: true + size * unit for k, size in
                 (("network", network), ("lookup", lookup), ("mean", 40))}  # fmt: skip
    judge = Scorer(NAMES, true, sky_weights(true[:, 3], true[:, 1]), SIMULATED, groups, 50, 0)
    labels = Labels(NAMES, true, predicted["network"], predicted["network"][:, 0], groups)
    axes = {"inclination_deg": (true[:, 1], None), "theta_deg": (true[:, 3], 15.0)}
    shown = {name: predicted[name] for name in ("network", "lookup")}
    return {
        "scores": {name: judge.score(values) for name, values in predicted.items()},
        "against_lookup": judge.compare(predicted["network"], predicted["lookup"]),
        "by": breakdown(NAMES, true, shown, axes),
        "uncertainty": {
            "groups": 8, "configured_levels": 2, "carried": None,
            "halvings": halved_coverage(labels, (0.68, 0.9, 0.5), 5, 0),
        },
    }  # fmt: skip


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Return the content of a metrics.json in which the look-up wins on clean images."""
    return to_json(
        {
            "run": {
                "name": "demo", "architecture": "resnet50", "task": "regression",
                "parameters": list(NAMES), "image_shape": [64, 64, 3], "source": "the mirror",
                "our_encounters": True, "split": "simulation", "evaluated": "test",
                "samples": {"none": 9, "train": 1500, "validation": 50, "test": 160},
                "simulations": {"none": [0], "train": [0], "validation": [0], "test": [1]},
            },
            "data": None,
            "sample": {
                "images": 160, "groups": 8, "simulations": [1], "trained_encounters": 0.0,
                "never_trained_configurations": [],
                "nearest_training_view_deg": {"min": 0.1, "median": 2.3, "max": 3.5},
            },
            "training": {
                "epochs": 6, "steps": 282, "seconds": 270.0, "images_per_s": 94.0,
                "training_mae": 7.0, "training_mse": 130.0, "sky_like": False,
                "changes": "no change",
            },
            **found(9, 2),
            "sky": {"changes": "roll up to ±180°", **found(8, 20)},
            "repeat": {
                "split": None, "configuration": "c" * 64, "dataset": "d" * 64, "model": "e" * 64,
                "versions": {"python": "3.11"},
                "machine": {"cpu": "a CPU", "cpus": 2, "ranks": 2}, "date": "2026-01-01",
            },
        }
    )  # fmt: skip


def config_of(**values: Any) -> Config:
    return Config.model_validate({"run_dir": "runs/demo", **values})


def html_of(metrics: dict[str, Any], config: Config | None = None) -> str:
    return page(config or config_of(), metrics, FIGURES, {})


def test_a_rate_that_was_not_measured_is_left_out(metrics: dict[str, Any]) -> None:
    assert "4.5 minutes at 94 images/s; loss" in html_of(metrics)
    metrics["training"]["images_per_s"] = None
    assert "4.5 minutes; loss" in html_of(metrics)


def test_the_report_loads_nothing(metrics: dict[str, Any]) -> None:
    found = Page(html_of(metrics))
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "a"}
    links = [v for _, attrs in found.elements for k, v in attrs.items() if k in ("src", "href")]
    assert len(links) == len(FIGURES) + 1
    assert all(link and link.startswith("data:") for link in links)
    policies = [a["content"] for _, a in found.elements if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    pictures = [a["src"].partition(",")[2] for tag, a in found.elements if tag == "img"]
    assert [base64.b64decode(p) for p in pictures] == list(FIGURES.values())


def test_nothing_that_a_user_writes_becomes_html(metrics: dict[str, Any]) -> None:
    for part in (metrics, metrics["sky"]):
        for scores in part["scores"].values():
            scores["parameters"][HOSTILE] = scores["parameters"].pop("viewing_angle")
        part["against_lookup"][HOSTILE] = part["against_lookup"].pop("viewing_angle")
        for entry in (e for entries in part["by"].values() for e in entries):
            for predictor in ("network", "lookup"):
                entry[predictor][HOSTILE] = entry[predictor].pop("viewing_angle")
        held = part["uncertainty"]["halvings"]["parameters"]
        held[HOSTILE] = held.pop("viewing_angle")
    metrics["run"] |= {"name": HOSTILE, "source": HOSTILE, "architecture": HOSTILE,
                       "parameters": [*NAMES[:3], HOSTILE]}  # fmt: skip
    metrics["sample"]["never_trained_configurations"] = [HOSTILE]
    metrics["training"]["changes"] = metrics["sky"]["changes"] = HOSTILE
    metrics["repeat"]["machine"]["cpu"] = HOSTILE
    metrics["repeat"]["versions"] = {HOSTILE: HOSTILE}
    config = config_of(run_dir=HOSTILE, library=HOSTILE)
    found = Page(page(config, metrics, FIGURES, {HOSTILE: copy.deepcopy(metrics)}))
    assert "script" not in {tag for tag, _ in found.elements}
    assert len([tag for tag, _ in found.elements if tag == "img"]) == len(FIGURES)
    assert not any(key.startswith("on") for _, attrs in found.elements for key in attrs)
    assert not any("evil" in (v or "") for _, a in found.elements for v in a.values())
    assert found.text.count(HOSTILE.replace("_", " ")) > 20


def test_the_paper_s_figures_stand_beside_ours_with_the_difference_named(
    metrics: dict[str, Any],
) -> None:
    text = Page(html_of(metrics)).text
    for words in ("0.2012", "0.0833", "0.9986", "our collisionless N-body encounters, not GalMer",
                  "collisionless disc", "realisation 1", "galmerhpc run",
                  "c" * 64, "d" * 64, "e" * 64, "Guard band", "2.3° (median"):  # fmt: skip
        assert words in text
    metrics["run"] |= {"source": "http://galmer.obspm.fr", "our_encounters": False}
    text = Page(html_of(metrics)).text
    assert "collisionless" not in text
    assert "http://galmer.obspm.fr" in text


def test_another_run_s_network_stands_beside_this_one_s(metrics: dict[str, Any]) -> None:
    other = copy.deepcopy(metrics)
    other["scores"]["network"]["parameters"]["azimuth"]["mae"] = 77.7
    text = Page(page(config_of(), metrics, FIGURES, {"regressor": other})).text
    assert "network of regressor" in text
    assert "77.7 [" in text
    assert "on other images" not in text
    other["repeat"]["dataset"] = "f" * 64
    text = Page(page(config_of(), metrics, FIGURES, {"regressor": other})).text
    assert "network of regressor, on other images" in text


def test_sky_like_images_of_another_kind_are_other_images(metrics: dict[str, Any]) -> None:
    other = copy.deepcopy(metrics)
    other["sky"]["changes"] = "noise"
    text = Page(page(config_of(), metrics, FIGURES, {"regressor": other})).text
    assert text.count("network of regressor") == 2
    assert text.count("network of regressor, on other images") == 1


def test_images_of_another_data_set_are_not_called_what_the_split_is(
    metrics: dict[str, Any],
) -> None:
    metrics["run"] |= {"evaluated": "all", "split": "blocked"}
    metrics["sample"]["trained_encounters"] = 1.0
    metrics["data"] = {"name": "other", "folder": "runs/other", "samples": 999, "own": False,
                       "source": "the mirror", "our_encounters": True,
                       "drawn_otherwise": ["catalogue.render.zoom 4 (training: 6)"]}  # fmt: skip
    text = Page(html_of(metrics)).text
    assert "160 images of other (not the training's data set); the nearest" in text
    assert "never seen in training" not in text.split("What was trained")[0]
    assert "100 % of the evaluated images show encounters" in text
    assert "other is from the mirror and has 999 images" in text
    assert "drawn otherwise than those of training: catalogue.render.zoom 4 (training: 6)" in text


def test_the_paper_stands_only_beside_averages_over_its_parameters(
    metrics: dict[str, Any],
) -> None:
    assert "0.2012" in Page(html_of(metrics)).text
    metrics["run"]["parameters"] = ["inclination"]
    assert "0.2012" not in Page(html_of(metrics)).text


def test_the_commands_repeat_this_very_evaluation(metrics: dict[str, Any]) -> None:
    config = config_of(run_dir="runs/my run")
    metrics["repeat"]["split"] = "validation"
    text = Page(html_of(metrics, config)).text
    assert "galmerhpc evaluate 'runs/my run' --split val" in text
    metrics["data"] = {"name": "other", "folder": "runs/other", "samples": 9, "own": False,
                       "drawn_otherwise": []}  # fmt: skip
    metrics["data"] |= {"source": "http://galmer.obspm.fr", "our_encounters": False}
    metrics["repeat"]["split"] = None
    text = Page(html_of(metrics, config)).text
    assert "galmerhpc report 'runs/my run' --data runs/other\n" in text


def test_a_classification_s_classes_have_a_table_of_their_own(metrics: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    true = np.stack([random.integers(0, 2, 40), random.choice(SIMULATED, 40),
                     random.uniform(0, 180, 40), random.uniform(0, 90, 40)], axis=1)  # fmt: skip
    classes = to_json(class_scores(NAMES, true, encode_classes(true, 5), 5))
    assert json.loads(json.dumps(classes, allow_nan=False)) == classes  # as metrics.json holds it
    for part in (metrics, metrics["sky"]):
        for scores in part["scores"].values():
            scores["classes"] = classes
    text = Page(html_of(metrics)).text
    for words in ("93.63 %", "93.33 %", "always says no", "three most probable", "100.00 %"):
        assert words in text
    assert "always no gives 93.33 %" in result_table(metrics)
    # With fewer classes, the share of them that are right is no longer the paper's measure.
    for scores in metrics["scores"].values():
        scores["classes"] = to_json(class_scores(NAMES, true, encode_classes(true, 45), 45))
    text = Page(html_of(metrics | {"sky": None})).text
    assert "93.63 %" not in text
    assert "93.33 %" not in text


def test_transferred_coverage_is_of_the_level_that_it_stands_beside(
    metrics: dict[str, Any],
) -> None:
    coverage = {"inclination": [0.111, 0.222]}
    metrics["uncertainty"]["carried"] = {
        "from": "clean images of own", "levels": [0.5, 0.9], "coverage": coverage,
    }  # fmt: skip
    text = " ".join(Page(html_of(metrics)).text.split())
    rows = {level: text.split(f"inclination, {level} %")[1][:60] for level in (68, 90)}
    assert "22.20 %" in rows[90]
    assert "11.10 %" not in text
    assert "22.20 %" not in rows[68]


def test_warnings_come_where_they_are_due(metrics: dict[str, Any]) -> None:
    def said(part: str = "run", **values: Any) -> str:
        changed = copy.deepcopy(metrics)
        changed[part] |= values
        return " ".join(warnings(changed))

    assert "collisionless disc" in said()
    assert "collisionless" not in said(our_encounters=False)
    assert "1 realisation " in said()
    assert "sample is small" not in said("sample", simulations=[2, 3, 4, 5])
    assert "8 encounters" in said()
    assert "too few to be precise" not in said("sample", groups=32)
    assert "near-duplicates" not in said()
    assert "near-duplicates" in said(split="random")
    samples = {**metrics["run"]["samples"], "test": 0}
    assert "no test split" in said(split="random", evaluated="validation", samples=samples)
    assert "no test split" not in said(evaluated="validation")
    assert "include the training images" in said(evaluated="all")
    assert "25 % of the evaluated images" in said("sample", trained_encounters=0.25)
    assert "Never trained on: i = 60" in said("sample", never_trained_configurations=["i = 60"])
    assert "On clean images the network loses to the look-up on: spin, inclination" in said()
    assert "On sky-like images (roll up to ±180°) the network loses" not in said()
    assert "no better than always predicting the mean" not in said()
    metrics["scores"] = to_json(found(80, 2)["scores"])
    assert "On clean images the network is no better than always predicting the mean" in said()
    metrics["uncertainty"] = None
    assert "too few encounters to calibrate" in said()


def test_a_sample_is_described_as_what_it_is(metrics: dict[str, Any]) -> None:
    assert describe_sample(metrics) == (
        "160 test images (split simulation: realisations never seen in training)"
    )
    metrics["run"]["evaluated"] = "validation"  # tiles of the realisation that was trained on
    assert "tiles of views never seen in training" in describe_sample(metrics)
    metrics["run"]["simulations"]["validation"] = [2]
    assert "realisations never seen" in describe_sample(metrics)
    metrics["run"]["evaluated"] = "all"
    assert describe_sample(metrics) == "160 images, including the training images"
    metrics["data"] = {"name": "elsewhere", "own": False}
    assert describe_sample(metrics).startswith("160 images of elsewhere")


def test_the_verdict_says_who_wins_on_which_images(metrics: dict[str, Any]) -> None:
    text = verdict(metrics)
    assert text.startswith("On clean images the look-up beats the network on every parameter")
    assert "On sky-like images the network beats the look-up on every parameter" in text
    assert "6 epochs of 1,500 images" in text
    assert text.endswith("The network was not trained on sky-like images (training.augment).")
    for name in ("spin", "viewing_angle"):
        metrics["against_lookup"][name] = {"mae_difference": -1.0, "interval": [-2.0, 0.5]}
    assert (
        "On clean images the look-up beats the network on inclination and azimuth, and the network "
        "the look-up on spin and viewing angle (not clearly on spin and viewing angle)."
    ) in verdict(metrics)
    metrics |= to_json(found(1, 2)) | {"sky": None}
    assert verdict(metrics) == "On clean images the network beats the look-up on every parameter."
    assert not [w for w in warnings(metrics) if "look-up" in w]
    assert " ".join(result_table(metrics).split()).endswith(verdict(metrics))


def test_a_long_training_has_no_shortness_to_excuse_it(metrics: dict[str, Any]) -> None:
    assert "6 epochs of 1,500 images in 4 minutes" in verdict(metrics)
    metrics["training"] |= {"epochs": 500, "seconds": 30_000.0}
    assert "minutes" not in verdict(metrics)
    assert "After 500 epochs" in verdict(metrics)
    # Lost on one parameter, or on none clearly, it has learned something.
    better = {"mae_difference": -1.0, "interval": [-2.0, -0.5]}
    metrics["against_lookup"] |= dict.fromkeys(("inclination", "azimuth", "viewing_angle"), better)
    assert "After 500 epochs" not in verdict(metrics)
    metrics["training"]["epochs"] = 6
    assert "minutes" in verdict(metrics)
    metrics["against_lookup"]["spin"] = {"mae_difference": 1e-4, "interval": [-1.0, 1.0]}
    assert "minutes" not in verdict(metrics)


def test_one_encounter_is_no_clear_win(metrics: dict[str, Any]) -> None:
    better = {"mae_difference": -1.0, "interval": [None, None]}
    metrics["against_lookup"] = dict.fromkeys(metrics["against_lookup"], better)
    assert "not clearly on spin, inclination, azimuth and viewing angle" in verdict(metrics)


def test_what_is_not_defined_is_a_dash(metrics: dict[str, Any]) -> None:
    for part in metrics["scores"].values():
        part["parameters"]["inclination"]["r2"] = None
        part["parameters"]["inclination"]["interval"]["r2"] = [None, None]
    network = result_table(metrics).partition("\nR2")[2].splitlines()[1].split()
    assert network[:3] == ["network", network[1], "-"]
    assert ">-<" in html_of(metrics)


def test_an_interval_is_read_one_way_only() -> None:
    assert interval([9.42, 11.9], "mae") == "9.42\N{EN DASH}11.9"
    assert interval([-0.708, -0.002], "r2") == "-0.708, -0.002"
    assert interval([None, None], "r2") == "-"


def test_the_table_fits_a_terminal(metrics: dict[str, Any]) -> None:
    table = result_table(metrics)
    assert max(map(len, table.splitlines())) <= 100
    assert "On sky-like images (roll up to ±180°):" in table
    assert table.count("68 % intervals") == 2


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1400, 900)])
def test_a_browser_shows_it_all_and_asks_nobody(
    metrics: dict[str, Any], width: int, height: int, tmp_path: Path
) -> None:
    require_browser()
    metrics["run"]["name"] = HOSTILE
    pictures = {}
    for k, name in enumerate(CAPTIONS):
        picture = io.BytesIO()
        Image.new("RGB", (1300, 900), (9 * k, 120, 200)).save(picture, "PNG")
        pictures[name] = picture.getvalue()
    path = tmp_path / "report.html"
    path.write_text(page(config_of(library=HOSTILE), metrics, pictures, {}), encoding="utf-8")
    with browser(tmp_path / "profile") as shown:
        shown.open(path, width, height)
        images = "[...document.images].map(i => [i.complete, i.naturalWidth])"
        assert shown.evaluate(images) == [[True, 1300]] * len(CAPTIONS)
        # Wide tables and figures scroll by themselves; the page does not.
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # styled
        assert shown.print_pdf().startswith(b"%PDF")
        # On paper nothing is folded up, and nothing goes over the edge of A4 with its margins.
        shown.call("Emulation.setEmulatedMedia", media="print")
        tables = "[...document.querySelectorAll('table')]"
        seen = "t => t.checkVisibility({contentVisibilityAuto: true})"
        assert shown.evaluate(f"{tables}.every({seen})")
        if width < PAPER_WIDTH:  # in a wide window tables fill it
            assert shown.evaluate(f"Math.max(...{tables}.map(t => t.offsetWidth))") <= PAPER_WIDTH
        asked = [e["request"]["url"] for e in shown.of("Network.requestWillBeSent")]
        said = shown.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        failed = shown.of("Network.loadingFailed")
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert said == []
    assert failed == []
