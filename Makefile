# DialectBook. `make` lists the verbs.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
PROFILE ?= tiny
TORCH = 2.13.0
SETS = $(foreach knob,$(SET),--set $(knob))

help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Installing the locked packages into $(VENV) (once, some minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -q -r requirements.lock 2> $(VENV)/install.log || (tail -n 20 $(VENV)/install.log; exit 1)
	@$(RUN) -m pip install -q --no-deps -e . 2>> $(VENV)/install.log || (tail -n 20 $(VENV)/install.log; exit 1)
	@touch $@

book: $(VENV)/installed  ## run every chapter (PROFILE=tiny) and build the book; SET="knob=value …" overrides
	@$(RUN) -m dialectbook.run --profile $(PROFILE) $(SETS)

smoke: $(VENV)/installed  ## the same in the smallest profile: does everything run?
	@$(RUN) -m dialectbook.run --profile smoke

test: $(VENV)/installed  ## static gates, unit tests, every notebook in the smoke profile, the book with warnings as errors
	@$(RUN) -m pytest -q

lab: $(VENV)/installed  ## JupyterLab on the notebooks
	@$(VENV)/bin/jupyter lab --notebook-dir notebooks

bench: $(VENV)/installed  ## speed as ratios, measured side by side
	@$(RUN) tests/bench.py

address: $(VENV)/installed  ## after changing the address in pyproject.toml: write it into the notebooks
	@$(RUN) -m dialectbook.book address

lock:  ## pin what pyproject.toml resolves to today
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install -q 'torch==$(TORCH)' -e '.[book,test]'
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock
	rm -r $(VENV)-lock

clean:  ## remove everything that runs made
	rm -rf runs .snakemake

.PHONY: help book smoke test lab bench address lock clean
