# Two commands set everything up from nothing: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# A CPU build is enough for everything here; set TORCH to what your accelerator needs.
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
# Two processes that each use every core slow each other many times over.
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-fast long slow lowest check fmt bench exam docs browser wheels clean

# The default system at the settings of the exam, which says what it is worth.
demo: $(VENV)/.installed
	$(BIN)/palimpsest erase star --model tiny/sd --out demo --overwrite
	@echo "The receipt: $(CURDIR)/demo/receipt.html"

# Two processes with one thread each: on small models a second thread brings nothing, a second process does. The slowest
# tests are named at the end. All: at most 15 minutes on two idle cores; fast: 4.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --durations 15

# Files stay whole, since their tests share models; slow tests are dealt out one by one, so that no process waits.
test: $(VENV)/.test browser
	$(PYTEST) --dist loadfile -m "not slow and not long"
	$(PYTEST) --dist load -m "slow and not long"

test-fast: $(VENV)/.test
	$(PYTEST) --dist loadfile -m "not slow and not long and not browser"

# Every eraser on the small model, as its record says: an hour of one core.
long: $(VENV)/.test
	$(PYTEST) --dist load -m long

# Which tests are slow is measured: tests/slow.txt, to be committed.
slow: $(VENV)/.test browser
	$(PYTEST) --dist loadfile -m "not long" --note-slow

# The oldest versions that pyproject.toml promises, in an environment of its own.
lowest:
	scripts/lowest.sh

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python bench/closed_form.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/worlds.py
	$(BIN)/python bench/erase.py
	$(BIN)/python bench/processes.py

exam: $(VENV)/.installed
	$(BIN)/palimpsest exam erase

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site: $(CURDIR)/site/index.html"

# The receipt is tested in a real browser. Where none can be installed those tests are skipped, and say so.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	       && (apt-get update -qq && apt-get install -y -qq chromium) >/dev/null 2>&1; } \
	  || echo "No chromium: browser tests will be skipped."

$(VENV)/.installed: pyproject.toml models/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e . -e models
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

wheels: $(VENV)/.test
	$(BIN)/python -m hatchling build -t wheel -d $(CURDIR)/dist
	cd models && $(abspath $(BIN))/python -m hatchling build -t wheel -d $(CURDIR)/dist

clean:
	rm -rf $(VENV) .venv-lowest demo build dist site
