"""The rooms' order of imports, which pyproject.toml writes down for import-linter."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import BIN, ROOT, run


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in a folder against the project's contracts."""
    config = str(ROOT / "pyproject.toml")
    command = [str(BIN / "lint-imports"), "--no-cache", "--no-logo", "--config", config]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_import_follows_the_order_of_the_rooms():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "imports", "broken"),
    [
        ("parameters", "galmerhpc.files", "A room imports only from the rooms before it"),
        ("errors", "galmerhpc.cli", "A room imports only from the rooms before it"),
        ("simulate/render", "galmerhpc.dataset.scrape", "A room imports only"),
        ("dataset/scrape", "galmerhpc.simulate.render", "A room imports only"),
        ("a_new_module", "sys", "A room imports only"),
        ("simulate/render", "galmerhpc.simulate.mirror", "No circle"),
        ("dataset/scrape", "tensorflow", "Simulating and scraping start without TensorFlow"),
        ("simulate/mirror", "keras", "Simulating and scraping start without TensorFlow"),
        ("models/build", "galmerhpc.parallel", "Models know nothing of MPI"),
        ("training/train", "horovod.tensorflow", "Horovod is imported in one file"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, imports: str, broken: str):
    shutil.copytree(ROOT / "galmerhpc", tmp_path / "galmerhpc")
    with (tmp_path / "galmerhpc" / f"{module}.py").open("a") as file:
        file.write(f"\nimport {imports}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert any(broken in line and "BROKEN" in line for line in done.stdout.splitlines()), (
        done.stdout
    )


def test_scraping_and_simulating_load_no_tensorflow_and_start_no_mpi():
    # The contracts see our imports; this sees also what the libraries load in turn.
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("simulate", "dataset")
        for path in sorted((ROOT / "galmerhpc" / room).glob("[a-z]*.py"))
    ]
    heavy = ("tensorflow", "keras", "horovod", "mpi4py.MPI")
    code = (
        f"import sys, galmerhpc.cli, {', '.join(modules)}; print(set({heavy}) & set(sys.modules))"
    )
    done = run(str(BIN / "python"), "-c", code)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
