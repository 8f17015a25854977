# chestnb: make demo | make page | make test | make lab      (README.md has the same commands for pip alone)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
DATA   ?= dataset
OUT    ?=
RUN    ?= $(if $(OUT),$(OUT),runs/demo)
PORT   ?= 8000

.DEFAULT_GOAL := help
.PHONY: help install demo page test lab clean-notebooks export notebooks readme bench docs

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

install: $(READY)  ## Make .venv if it is missing and install chestnb with its exact versions
$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,weights,export]"
	@touch $@

demo: $(READY)  ## Train and evaluate the fusion model (DATA=folder for your own X-rays, OUT=run folder)
	$(BIN)/chestnb_demo --data "$(DATA)" $(if $(OUT),--out "$(OUT)")

page: $(READY)  ## The demo's model as a page that runs in your browser (RUN=run folder, PORT=8000)
	$(BIN)/chestnb_page "$(RUN)" --to runs/page --serve $(PORT)

test: $(READY)  ## All checks: notebooks clean, library in sync, notebooks run, package tested
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/check.py all

lab: $(READY)  ## Open JupyterLab on the lessons
	$(BIN)/jupyter lab --notebook-dir=nbs

export: $(READY)  ## Notebooks -> library
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_export

clean-notebooks: $(READY)  ## Strip what does not belong in a committed notebook
	$(BIN)/python tools/check.py --fix clean

notebooks: $(READY)  ## Run every lesson and keep its outputs (NB=name for one)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/run_notebooks.py $(NB)

readme: $(READY)  ## README, maps, sidebar, API index and page of commands from the notebooks
	$(BIN)/python tools/check.py --fix readme

bench: $(READY)  ## Print the benchmark table (minutes)
	$(BIN)/python benchmarks/run.py

docs: $(READY)  ## Render the site into _docs (needs Quarto on the PATH)
	@command -v quarto >/dev/null || { echo "Quarto is not installed: https://quarto.org/docs/get-started/"; exit 1; }
	rm -rf _proc _docs && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_proc_nbs && $(BIN)/python tools/site_pages.py _proc
	cd _proc && PATH="$(CURDIR)/$(BIN):$$PATH" quarto render --no-cache && mv _docs ..
	$(BIN)/python tools/try_page.py _docs/try
