# `make reproduce` and `make test` do everything, the environment included. `make help` lists the rest.
#
#   make reproduce                                     every notebook, results in build/reproduce
#   make reproduce NOTEBOOK=1_isda ARGS="-p seeds=5"   one notebook, other parameters
#   PYTHON=python3.12 make env                         an environment with another Python

.DEFAULT_GOAL := help
.PHONY: help env lab reproduce test test-deep test-browser mutants test-gpu notebooks figures runs run sweep bench site slides lint clean

# The environment's modules are compiled at their first import; where this is set they would be at every import.
unexport PYTHONDONTWRITEBYTECODE

RUN := .venv/bin/python -m
# The interpreter is passed on in the environment only where the user named one: tools/environment.py looks for that.
PYTHON3 := $(or $(PYTHON),python3)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

env:  ## make or update the environment in .venv
	@$(PYTHON3) tools/environment.py

lab: env  ## open this folder in JupyterLab, at the README with the list of lessons
	JUPYTER_CONFIG_PATH=tools/lab $(RUN) jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/README.md \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

reproduce: env  ## run the notebooks (NOTEBOOK=1_isda, ARGS="-p seeds=5"): executed copies, figures, times in build/reproduce
	@$(RUN) companion reproduce $(NOTEBOOK) $(ARGS)

test: env  ## lint, types, unit tests, notebooks with reduced parameters, committed outputs (FAST=1: not the notebooks)
	@.venv/bin/python tools/test.py $(if $(FAST),style format types fast) $(ARGS)

test-deep: env  ## the property tests with 400 examples each in place of 10: 20,000 and more in all
	HYPOTHESIS_PROFILE=deep $(RUN) pytest tests/semaug/properties --timeout 3600 $(ARGS)

test-browser: env  ## every lesson in JupyterLab and as a web page, in Chromium; one run whole; pictures in build/browser
	@$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	SEMAUG_BROWSER=all $(RUN) pytest tests/browser $(ARGS)

mutants: env  ## small changes of the methods, each of which has to fail a test (ARGS="isda --count 30 --seed 1")
	.venv/bin/python tests/mutants.py $(ARGS)

test-gpu: env  ## the tests that need a CUDA device; make test hides it from all others
	CUDA_VISIBLE_DEVICES=$(or $(CUDA_VISIBLE_DEVICES),0) $(RUN) pytest tests/semaug/test_cuda.py tests/semaug/training/test_capture.py $(ARGS)

notebooks: env  ## run the notebooks and refresh the committed .ipynb (NOTEBOOK=1_isda)
	@$(RUN) companion refresh $(NOTEBOOK) $(ARGS)

figures: env  ## redraw figures/ from the committed records (NOTEBOOK=1_isda FIGURE=accuracy)
	@$(RUN) companion figures $(NOTEBOOK) $(FIGURE) $(ARGS)

runs: env  ## the planned training runs that the figures stand on, and which are saved (NOTEBOOK=1_isda PROFILE=paper)
	@$(RUN) companion runs $(NOTEBOOK) --profile $(or $(PROFILE),cpu) $(ARGS)

run: env  ## train the next missing ones that fit into MINUTES; a stopped one goes on (PROFILE=paper MINUTES=30)
	@$(RUN) companion run $(NOTEBOOK) --profile $(or $(PROFILE),cpu) --minutes $(or $(MINUTES),30) $(ARGS)

sweep: env  ## run a notebook over a grid (CONFIG=companion/workflow/strength.yaml, ARGS=--dry-run: plan and cost, SWEEP=slurm)
	@$(RUN) companion sweep $(CONFIG) --on $(or $(SWEEP),local) $(ARGS)

bench: env  ## benchmarks on one thread, as ratios to the fastest of each group
	OMP_NUM_THREADS=1 $(RUN) pytest tests/benchmarks --benchmark-only --benchmark-group-by=group --benchmark-columns=median,iqr,rounds $(ARGS)

site: env  ## the lessons as web pages in build/site/html (needs npm, for MathJax)
	@$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	@$(RUN) companion site

slides: env  ## the lessons as slides in build/slides, which need no network (needs npm, for reveal.js and MathJax)
	@$(RUN) companion slides

lint: env  ## style and types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

clean:  ## remove what runs wrote (not .venv)
	rm -rf build .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
