# Every target sets up what it needs by itself: a venv, pinned dependencies, the text recognisers.
PYTHON ?= python3
PROFILE ?= miniature
REWARD ?= hpsv3
SLOTS ?= 2
BIN := .venv/bin
# The stamp is of contents: what a checkout or a copy does to times says nothing.
PINS := $(shell cat requirements.lock pyproject.toml | { sha256sum || shasum -a 256; } 2>/dev/null | cut -c1-16)
READY := .venv/.ready-$(PINS)

.DEFAULT_GOAL := help
.PHONY: own-venv reward-env check-reward-parity help setup reproduce-paper report figures shards study sweep gpu-check bench test test-docs test-newest-python faults test-slurm test-postgres audit test-processors coverage lint typecheck dist docs notebook lock clean clean-venv

help:  ## list the targets
	@grep -E '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z -]+):.*## */\1\t/' | column -t -s "$$(printf '\t')"

setup: $(READY)  ## make the venv, install pinned dependencies, fetch the text recognisers

# Two checkouts that share a venv would run each other's code.
own-venv:
	@for installed in .venv/lib/python*/site-packages/adagrpo-*.dist-info/direct_url.json; do \
	  test ! -e "$$installed" || \
	    grep -qF "\"$$($(PYTHON) -c 'import pathlib; print(pathlib.Path.cwd().as_uri())')\"" "$$installed" || { \
	    echo ".venv has another checkout installed ($$(sed 's/.*"file:\/\/\([^"]*\)".*/\1/' "$$installed")), whose code" \
	      "would run: make clean-venv, then again" >&2; exit 2; }; \
	done

$(READY): | own-venv
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else f"adagrpo needs Python 3.11 to 3.14, but $(PYTHON) is {v[0]}.{v[1]}: set PYTHON=python3.13")'
	@echo "setting up .venv: about two minutes and 2 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@$(BIN)/adagrpo fetch-assets
	@rm -f .venv/.ready*
	@touch $@

reproduce-paper: $(READY)  ## train the grid of PROFILE (default: miniature) and write its report
	@$(BIN)/adagrpo reproduce --profile $(PROFILE)

report: $(READY)  ## write tables, figures and the page of PROFILE from its runs so far, without training
	@$(BIN)/adagrpo report --runs results/runs/$(PROFILE) --output results/reports/$(PROFILE)

figures: $(READY)  ## the same from the committed outcome in results/PROFILE: the same files every time
	@$(BIN)/adagrpo report --runs results/$(PROFILE)/runs --output results/$(PROFILE) \
	  $(if $(filter miniature study,$(PROFILE)),--readme README.md)

shards: $(READY)  ## keep the finished runs of PROFILE as small files in results/PROFILE, to be committed
	@$(BIN)/adagrpo shards results/runs/$(PROFILE) --output results/$(PROFILE)/runs

reward-env: .venvs/$(REWARD)/.ready  ## make the environment of REWARD's package (hpsv2, hpsv3, imagereward)

# torch brings what its build for this machine needs; all else is pinned and comes without what it asks for.
.venvs/%/.ready: harness/rewards/remote/environments/%.txt | $(READY)
	@echo "setting up .venvs/$*: a few minutes, 1 to 2 GB without a GPU"
	@test -x .venvs/$*/bin/python || $(PYTHON) -m venv .venvs/$*
	@.venvs/$*/bin/python -m pip install -qq --disable-pip-version-check $$(grep '^torch==' $<)
	@.venvs/$*/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r $<
	@touch $@

check-reward-parity: $(READY) .venvs/hpsv2/.ready .venvs/hpsv3/.ready  ## score random checkpoints with the packages and here
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m tests.parity --output docs/reward-parity.md

study: $(READY)  ## run the study's experiments that have no committed shard; then tables, figures, page, README
	@$(BIN)/adagrpo study
	@$(MAKE) --no-print-directory figures PROFILE=study

sweep: $(READY)  ## search EMA decay and fusion weight on the miniature with Optuna
	@$(BIN)/adagrpo sweep experiments/sweeps/ema_fusion.yaml --slots $(SLOTS)

gpu-check: $(READY)  ## the first ten minutes on a GPU: numbers, memory, speed (OPTIONS="--tiny --device cpu" anywhere)
	@$(BIN)/adagrpo gpu-check $(OPTIONS)

bench: $(READY)  ## time an iteration against a plain loop; needs a quiet machine
	@$(BIN)/python -m tests.benchmarks

# They train: minutes of their own.
DOCUMENTED := tests/harness/test_docs_commands.py tests/test_notebook.py

test: $(READY)  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(DOCUMENTED:%=--ignore=%)

test-docs: $(READY)  ## execute the notebook, and the commands of README and docs that take no hours, GPU or weights
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(DOCUMENTED)

# Names and places of interpreters, newest first; a shim of pyenv may be there and not work.
PYTHONS := $(foreach v,3.14 3.13 3.12,python$(v) $(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python))
FAST := tests/analysis/test_statistics.py tests/analysis/test_tables.py tests/test_directions.py $(addprefix tests/harness/test_,\
  adagrpo.py transitions.py objective.py config.py places.py prompts.py policies.py export.py)

test-newest-python: $(READY)  ## run the fast tests on the newest Python up to 3.14 that is here, in .venvs/newest
	@for python in $(PYTHONS); do if $$python -c "" 2>/dev/null; then newest=$$python; break; fi; done; \
	  if test -z "$$newest"; then echo "no Python newer than 3.11 here: nothing tested"; exit 0; fi; \
	  echo "fast tests on $$($$newest --version)"; \
	  test -f .venvs/newest/$(PINS) || { rm -rf .venvs/newest && $$newest -m venv .venvs/newest && \
	    .venvs/newest/bin/python -m pip install -qq --disable-pip-version-check -r requirements.lock && \
	    .venvs/newest/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e . && \
	    touch .venvs/newest/$(PINS); } && \
	  OMP_NUM_THREADS=1 .venvs/newest/bin/python -m pytest -q -n 2 $(FAST)

faults: $(READY)  ## kill everything at random moments, hours; then 2,000 bad requests and configurations and 800 files
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --output docs/faults.md
	@OMP_NUM_THREADS=1 ADAGRPO_FUZZ=1 $(BIN)/python -m pytest -q tests/harness/test_fuzz.py

audit: $(READY)  ## compare pinned packages with known weaknesses (says so without a network); list their licences
	@test -x .venvs/audit/bin/pip-audit || { $(PYTHON) -m venv .venvs/audit && \
	  .venvs/audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit; }
	@$(BIN)/python -m tests.audit .venvs/audit/bin/pip-audit

test-slurm: $(READY)  ## run a grid and a sweep on a Slurm of this machine, with preempted jobs and a killed node
	@$(BIN)/python -m tests.faults.slurm

test-postgres: $(READY)  ## kill a sweep's worker whose study is on a PostgreSQL of this machine; skipped where there is none
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/harness/sweep -k postgresql

test-processors: $(READY)  ## compare with committed numbers as this processor and older ones compute them
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.instruction_sets

coverage: $(READY)  ## measure which lines the tests and the dry run execute, and write build/coverage.md
	@$(BIN)/python -m tests.measure_coverage

lint: $(READY)  ## check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

typecheck: $(READY)  ## check types
	@$(BIN)/mypy

dist: $(READY)  ## build a wheel in dist/ that works outside of the repository
	@rm -rf dist
	@$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

docs: $(READY)  ## build the site of documentation in build/site/, every link checked
	@test -f .venv/.docs-$(PINS) || $(BIN)/python -m pip install -qq --disable-pip-version-check -r docs/requirements.lock
	@touch .venv/.docs-$(PINS)
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --quiet --clean
	@echo "build/site/index.html"

notebook: $(READY)  ## execute docs/first-run.ipynb and keep what it shows
	@OMP_NUM_THREADS=1 $(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False docs/first-run.ipynb

lock: $(READY)  ## pin what the venv holds (after clean-venv and setup: what the project needs)
	@{ grep '^#' requirements.lock; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -v '^adagrpo' | sed 's/+cpu$$//'; } > .venv/pins
	@mv .venv/pins requirements.lock

clean:  ## delete caches and build files; runs, reports and the venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv:  ## delete the venv; the next target sets it up again
	rm -rf .venv
