# make study: from a fresh machine to a report on a first study, results/quick/report.html.
# make test: every check that CI runs.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles a module when it is first imported. Most of the installed ones never are.
INSTALL := --quiet --no-compile
# Then it must be kept: the tests start many processes, and each would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test floors pytest contract lint style types imports faults gpu gpu-rehearsal figures dashboard-picture docs docs-serve clean
.DELETE_ON_ERROR:

study: .venv/.installed
	$(BIN)/study train experiment=quick
	$(BIN)/study report results/quick

test: lint pytest

# A small study with the lowest versions that pyproject.toml declares, in build/floors.
floors: .venv/.installed-dev
	.ci/floors

# A target of its own, so that make --jobs=2 starts it while mypy still runs, which takes half a
# minute of one core.
# Three workers on two cores, because each waits for processes and browsers. The fetch is no target of
# its own: make --jobs=2 would start all other targets before pytest. If it fails, some tests skip.
pytest: .venv/.installed-dev
	-$(BIN)/study fetch smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal

# What users rely on: commands, keys, files and public names. In a minute.
contract: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/contract

# Three targets, so that make --jobs=2 runs them beside each other.
lint: style types imports

style: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

imports: .venv/.installed-dev
	$(BIN)/lint-imports --no-logo

# Kill small sweeps N times, make N of their file calls fail and take their power N times; compare
# what is left with undisturbed sweeps (tests/faults). N=200 takes about 20 minutes on two cores.
N ?= 200
SEED ?= 0
faults: .venv/.installed-dev
	$(BIN)/python -m tests.faults --number $(N) --seed $(SEED)

# On a machine with a GPU: checks, a model of 8 billion parameters, SmolLM2, studies. Run it again to
# go on where it stopped, after MINUTES or at a failure (benchmarks/gpu.py).
MINUTES ?= 30
gpu: .venv/.installed-dev
	-$(BIN)/study fetch smollm2
	$(BIN)/python -m benchmarks.gpu --minutes $(MINUTES)

# All of its steps, with the tiny base on a CPU, and nothing but the files that would travel.
gpu-rehearsal: .venv/.installed-dev
	benchmarks/pack.sh --tree
	rm -rf build/gpu && mkdir -p build/gpu
	tar -xzf .gpu/tree.tar.gz -C build/gpu
	cd build/gpu && OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/python -m benchmarks.gpu --rehearse \
		|| { tail -n 30 results/gpu/*/*.txt; exit 1; }

# Draw every committed picture and write every number in the documents again, from the committed
# tables (results/reference). Afterwards git reports only what changed.
figures: .venv/.installed
	$(BIN)/python -m research.make

# The README's picture of the dashboard: the gradient norm at step 0, which the verdicts are about. Its
# bytes depend on the browser and on its fonts, so `make figures` does not draw it.
dashboard-picture: .venv/.installed-dev
	$(BIN)/study dashboard results/reference/quick --export build/dashboard.html
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1600,1000 \
		--virtual-time-budget=60000 --screenshot=plots/reference/dashboard.png \
		"file://$(CURDIR)/build/dashboard.html#tab=layers&step=0&layer=model"

# The documentation site, in build/site. A warning is an error: every link and anchor must exist.
docs: .venv/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "study needs Python 3.11 or newer, but $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install $(INSTALL) --editable '.[dashboard,smollm2]'
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install $(INSTALL) --editable '.[dev]'
	@touch .venv/.installed $@
