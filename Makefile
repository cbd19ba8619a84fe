# `make book` and `make test` need nothing but Python: the first run creates .venv, later runs reuse it.
PYTHON  ?= python3
# What pip is asked for as PyTorch; options such as --index-url may follow the version.
TORCH   ?= torch==2.13.0
# Empty: each notebook's own default. `smoke` runs a quick variant of the book in _build/smoke.
SCALE   ?=
# Notebooks, or files of tests, at a time.
JOBS    ?= 2
ENCODER ?= rte
# The populations of `make study`, and where they run: local, slurm, or another profile's folder.
STUDY   ?= workflow/study.yaml
PROFILE ?= local
ARGS    ?=

BIN   := .venv/bin
READY := .venv/.ready
STUDY_READY := .venv-study/.ready
SNAKEMAKE = .venv-study/bin/snakemake --snakefile workflow/Snakefile --configfile $(STUDY)

.DEFAULT_GOAL := help
.PHONY: help book refresh test browser slurm lab train study bench clean

help:
	@echo "make book     run every notebook in _build, then build _build/html/index.html  (SCALE=smoke: a quick variant)"
	@echo "make refresh  run every notebook and keep its outputs in book/"
	@echo "make test     run the tests                                                    (ARGS='-k scenes -x')"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make train    train a model                                                    (ENCODER=rte ARGS='...')"
	@echo "make study    train and measure the populations of STUDY                       (PROFILE=slurm JOBS=2 ARGS='-n')"
	@echo "make bench    run the benchmarks"
	@echo "make clean    remove built pages and caches, encoded scenes, kept results and unpacked models too; .venv stays"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt $(TORCH)
	$(BIN)/pip install -c constraints.txt -e ".[book,test,lab]"
	@touch $@

book: $(READY)
	$(BIN)/spatial-circuits run-book --jobs $(JOBS) --render $(if $(SCALE),--scale $(SCALE) --out _build/$(SCALE))

refresh: $(READY)
	$(BIN)/spatial-circuits run-book --jobs $(JOBS) --in-place

test: $(READY) $(STUDY_READY) browser slurm
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The pages are tested in Debian's Chromium, installed where that is possible; without one, those tests are skipped.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || echo "no Chromium: browser tests will be skipped"

# Snakemake has an environment of its own: it wants older packages than the book.
$(STUDY_READY): workflow/requirements.txt
	$(PYTHON) -m venv .venv-study
	.venv-study/bin/pip install -q -r workflow/requirements.txt
	@touch $@

# The study is tested through a real Slurm on this machine, installed where that is possible; else that test is skipped.
slurm:
	@command -v slurmctld >/dev/null || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; } || echo "no Slurm: its test will be skipped"

lab: $(READY)
	@$(BIN)/jupyter trust book/*.ipynb >/dev/null  # else JupyterLab would not run the interactive figures in their outputs
	$(BIN)/jupyter lab --notebook-dir book $(ARGS)

train: $(READY)
	$(BIN)/spatial-circuits train --encoder $(ENCODER) $(ARGS)

# After a kill the same command goes on: finished files stay, a training run resumes from its checkpoint.
study: $(READY) $(STUDY_READY)
	$(BIN)/python workflow/locked.py runs/.study.lock $(SNAKEMAKE) --nolock --profile $(if $(wildcard workflow/profiles/$(PROFILE)),workflow/profiles/)$(PROFILE) --jobs $(JOBS) $(ARGS)

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks -s $(ARGS)

SCENES = $${SPATIAL_CIRCUITS_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/spatial-circuits}

clean:
	rm -f "$(SCENES)"/scenes-*.f16 "$(SCENES)"/scenes-*.json
	rm -rf "$(SCENES)"/results "$(SCENES)"/models
	rm -rf _build .pytest_cache .benchmarks .hypothesis .coverage book/*.partial.ipynb book/.ipynb_checkpoints
	find lib tests book -name __pycache__ -type d -prune -exec rm -rf {} +
