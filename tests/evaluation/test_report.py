"""The report: self-contained, escaped, and honest about what a reader must know."""

import base64
import copy
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from galmerhpc.config import Config
from galmerhpc.evaluation.evaluate import result_table, verdict
from galmerhpc.evaluation.report import CAPTIONS, page, warnings
from galmerhpc.evaluation.scores import score, sky_weights
from galmerhpc.metrics import to_json
from galmerhpc.parameters import NAMES

HOSTILE = "<script src=\"https://evil.example/x.js\">alert('&')</script><img src=x onerror=y>"
FIGURES = {name: f"png of {name}".encode() for name in CAPTIONS}


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
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] != "style":
            self.text += data


def scores(noise: float) -> dict[str, Any]:
    random = np.random.default_rng(0)
    true = np.stack([random.uniform(0, high, 100) for high in (1, 90, 180, 90)], axis=1)
    true[:, 0] = true[:, 0] > 0.5
    true[:, 1] = random.choice([0, 45, 75, 90], 100)
    predicted = true + random.normal(0, noise, true.shape) * [0.01, 1, 1, 1]
    weights = sky_weights(true[:, 3], true[:, 1])
    return score(NAMES, true, predicted, weights, np.array([0.0, 45, 75, 90]))


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Return the content of a metrics.json in which the look-up wins."""
    return to_json(
        {
            "run": {
                "name": "demo", "architecture": "resnet50", "parameters": list(NAMES),
                "image_shape": [64, 64, 3], "source": "mirror", "split": "simulation",
                "evaluated": "test",
                "samples": {"none": 9, "train": 1500, "validation": 50, "test": 100},
                "simulations": {"none": [0], "train": [0], "validation": [0], "test": [1]},
            },
            "training": {
                "epochs": 6, "steps": 282, "seconds": 270.0, "images_per_s": 94.0,
                "training_mae": 7.0, "training_mse": 130.0,
            },
            "scores": {"network": scores(9), "lookup": scores(2), "mean": scores(40)},
            "repeat": {
                "configuration": "c" * 64, "dataset": "d" * 64, "model": "e" * 64,
                "versions": {"python": "3.11"},
                "machine": {"cpu": "a CPU", "cpus": 2, "ranks": 2}, "date": "2026-01-01",
            },
        }
    )  # fmt: skip


def config_of(**values: Any) -> Config:
    return Config.model_validate({"run_dir": "runs/demo", **values})


def test_the_report_loads_nothing(metrics: dict[str, Any]) -> None:
    found = Page(page(config_of(), metrics, FIGURES))
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    links = [v for _, attrs in found.elements for k, v in attrs.items() if k in ("src", "href")]
    assert len(links) == len(FIGURES)
    pictures = [
        base64.b64decode((link or "").removeprefix("data:image/png;base64,")) for link in links
    ]
    assert pictures == list(FIGURES.values())
    assert all(attrs.get("alt") for tag, attrs in found.elements if tag == "img")
    policy = next(a["content"] for t, a in found.elements if t == "meta" and "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'")


def test_hostile_strings_are_shown_and_not_obeyed(metrics: dict[str, Any]) -> None:
    # A parameter's name comes from a catalogue, the others from a configuration or a machine.
    for part in metrics["scores"].values():
        part["parameters"][HOSTILE] = part["parameters"].pop("viewing_angle")
    metrics["run"] |= {"name": HOSTILE, "source": HOSTILE, "architecture": HOSTILE,
                       "parameters": [*NAMES[:3], HOSTILE]}  # fmt: skip
    metrics["repeat"]["machine"]["cpu"] = HOSTILE
    metrics["repeat"]["versions"] = {HOSTILE: HOSTILE}
    found = Page(page(config_of(run_dir=HOSTILE, library=HOSTILE), metrics, FIGURES))
    assert "script" not in {tag for tag, _ in found.elements}
    assert len([tag for tag, _ in found.elements if tag == "img"]) == len(FIGURES)
    assert not any(key.startswith("on") for _, attrs in found.elements for key in attrs)
    assert not any("evil" in (v or "") for _, a in found.elements for v in a.values())
    assert found.text.count(HOSTILE.replace("_", " ")) > 8


def test_the_paper_s_figures_stand_beside_ours_with_the_difference_named(
    metrics: dict[str, Any],
) -> None:
    text = Page(page(config_of(), metrics, FIGURES)).text
    for words in ("0.2012", "0.0833", "0.9986", "our collisionless N-body, not GalMer",
                  "collisionless disc", "realisation 1", "mpirun -np 2 galmerhpc run",
                  "c" * 64, "d" * 64, "e" * 64, "Guard band"):  # fmt: skip
        assert words in text
    metrics["run"]["source"] = "http://galmer.obspm.fr"
    text = Page(page(config_of(), metrics, FIGURES)).text
    assert "collisionless" not in text
    assert "http://galmer.obspm.fr" in text


def test_warnings_come_where_they_are_due(metrics: dict[str, Any]) -> None:
    def said(**run: Any) -> str:
        changed = copy.deepcopy(metrics)
        changed["run"] |= run
        return " ".join(warnings(changed))

    many = {"none": [], "train": [0], "validation": [1], "test": [2, 3, 4, 5]}
    assert "collisionless disc" in said()
    assert "collisionless" not in said(source="http://galmer.obspm.fr")
    assert "1 realisation " in said()
    assert "realisation" not in said(simulations=many)
    assert "random" not in said()
    assert "near-copies" in said(split="random")
    assert "no test split" in said(split="random", evaluated="validation")
    assert "loses to a look-up" in said()
    assert "no better than always answering the mean" not in said()
    metrics["scores"]["network"] = scores(80)
    assert "no better than always answering the mean on: spin" in said()


def test_the_verdict_says_who_wins(metrics: dict[str, Any]) -> None:
    assert verdict(metrics).startswith("The look-up beats the network on every parameter: ")
    assert verdict(metrics).count(".") == 1
    by_name = metrics["scores"]["network"]["parameters"]
    for name in ("spin", "viewing_angle"):
        by_name[name]["mae"] = 0.0
    assert "beats the network on inclination and azimuth: " in verdict(metrics)
    metrics["scores"]["network"] = scores(1)
    assert verdict(metrics) == "The network beats the look-up on every parameter."
    assert not [w for w in warnings(metrics) if "look-up" in w]
    assert result_table(metrics).endswith(verdict(metrics))


def test_a_long_training_has_no_shortness_to_excuse_it(metrics: dict[str, Any]) -> None:
    assert "minutes (6 epochs of 1,500 images)" in verdict(metrics)
    metrics["training"] |= {"epochs": 500, "seconds": 30_000.0}
    assert "minutes" not in verdict(metrics)
    assert "after 500 epochs" in verdict(metrics)
    assert verdict(metrics).count(".") == 1


def test_what_is_not_defined_is_a_dash(metrics: dict[str, Any]) -> None:
    for part in metrics["scores"].values():
        part["parameters"]["inclination"]["r2"] = None
    network = result_table(metrics).partition("\nR2")[2].splitlines()[1].split()
    assert network[:3] == ["network", network[1], "-"]
    assert ">-<" in page(config_of(), metrics, FIGURES)
