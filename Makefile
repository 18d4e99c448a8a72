# Each target sets up .venv by itself; all it needs is Python 3.11 or later (with pip and venv) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test test-extra fuzz check format docs
demo: .venv/.installed
	$(BIN)/rfp demo -o rfp-demo

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What needs more than `make test`: Node.js and Chromium are installed where this is root on Debian and they are not
# there; a test skips with its reason where something is still missing.
test-extra: .venv/.extra
	@for tool in node:nodejs npm:npm chromium:chromium chromedriver:chromium-driver; do \
	  command -v $${tool%:*} > /dev/null || missing="$$missing $${tool#*:}"; \
	done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "not installed, so some tests skip: apt-get install$$missing"; fi || true
	$(BIN)/python -m pytest -m extra -rs

# The same tests as in `make test`, over 2,500 damaged files instead of 176, and as many more that Hypothesis makes up.
fuzz: .venv/.installed
	RFP_FUZZ=250 $(BIN)/python -m pytest tests/runtime/test_fuzz.py

# mypy reads an installed copy: an editable install hides rfp.* behind import hooks (CONTRIBUTING.md).
check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .venv/typed build && $(BIN)/pip install -q --no-deps --target .venv/typed . && rm -rf build
	cd .venv/typed && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml -p rfp
	$(BIN)/python -m pytest tests/test_architecture.py

docs: .venv/.installed
	$(BIN)/python docs/generate.py

format: .venv/.installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Written last and by itself, so that an interrupted installation is done again.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Heavy, and for `make test-extra` alone.
.venv/.extra: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'ray[data]' selenium
	touch $@
