# modus-exporter: every command a developer or a user of the checkout needs.
PYTHON ?= python3
DOCKER ?= docker
HELM ?= helm
MANIFEST := deploy/kubernetes/modus-exporter.yaml
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' exporter/__init__.py)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# two processes for each processor, for many tests wait for a server; those that share one stay together
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(8, 2 * (os.cpu_count() or 1)))')
PYTEST = PATH="$$PATH:$$PWD/$(VENV)/servers/usr/bin" $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
# What PYTHON is, or in one line why it will not do. Python 2 understands this too.
LOOK := import os, sys; found = sys.version.split()[0]; \
	sys.version_info < (3, 11) and sys.exit("it is Python " + found); \
	from importlib.util import find_spec; \
	find_spec("ensurepip") or sys.exit("it has no venv (on Debian: apt-get install python3-venv)"); \
	print("Python", found, os.path.realpath(sys.executable))

.PHONY: run test test-fast bench check lock mixin image manifest release-check clean FORCE
.DEFAULT_GOAL := run

# .venv is made anew when PYTHON is not the interpreter it was made with
$(VENV)/interpreter: FORCE
	$(eval FOUND := $(shell if command -v $(PYTHON) >/dev/null; then $(PYTHON) -c '$(LOOK)' 2>&1; else echo it is not there; fi))
	$(if $(filter Python,$(firstword $(FOUND))),,$(error Python 3.11 or newer with venv is needed, and $(PYTHON) \
	will not do: $(FOUND). Name another one: make $(or $(firstword $(MAKECMDGOALS)),run) PYTHON=python3.12))
	@[ "$$(cat $@ 2>/dev/null)" = "$(FOUND)" ] || { $(PYTHON) -m venv --clear $(VENV) && echo "$(FOUND)" >$@; }

$(VENV)/.run: requirements.lock $(VENV)/interpreter
	$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/interpreter
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@ $(VENV)/.run

run: $(VENV)/.run  ## run the exporter: config.yaml when MODUS_API_KEY is set, else the demo fleet
	@[ -n "$$MODUS_API_KEY" ] || echo "MODUS_API_KEY is not set: starting the demo fleet." >&2
	@echo "Look at the url= of the line 'listening' next, http://localhost:10371/ by default, and at /metrics there." >&2
	@echo "With Prometheus, alerts and dashboards: docker compose up --build --wait. Ctrl-C ends it." >&2
	@exec $(BIN)/python -m exporter $$([ -n "$$MODUS_API_KEY" ] || echo --demo)

# once for each .venv: `make clean` has it tried again
$(VENV)/servers: | $(VENV)/interpreter
	@sh tests/e2e/servers.sh $@

test: $(VENV)/.dev $(VENV)/servers  ## everything the tests need, then the tests
	@$(PYTEST)

test-fast: $(VENV)/.dev  ## the unit and golden tests that start no server
	@$(PYTEST) -m "not servers" tests/unit tests/golden

bench: $(VENV)/.dev  ## what a scrape costs, into benchmarks/RESULTS.md; under ten minutes
	$(BIN)/python -m benchmarks.run

check: $(VENV)/.dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy --strict

lock: $(VENV)/interpreter  ## pin what pyproject.toml asks for, with hashes
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --extra postgres -o requirements.lock
	$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group dev -o requirements-dev.lock

mixin: $(VENV)/.run  ## write rules and dashboards from prometheus/settings.yaml, or: SETTINGS=mine.yaml OUTPUT=mixin
	MIXIN_SETTINGS=$(SETTINGS) MIXIN_OUTPUT=$(OUTPUT) $(BIN)/python prometheus/render.py
	MIXIN_SETTINGS=$(SETTINGS) MIXIN_OUTPUT=$(OUTPUT) $(BIN)/python grafana/generate.py

image:  ## build the container image
	$(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) $(IMAGE_FLAGS) -t modus-exporter:$(VERSION) .

manifest:  ## write the plain Kubernetes manifest from the Helm chart
	$(HELM) template modus-exporter deploy/helm/modus-exporter >$(MANIFEST).new
	{ echo "# Written by \`make manifest\` from the Helm chart with its default values."; \
	sed '/^# Source:/d; /managed-by:/d' $(MANIFEST).new; } >$(MANIFEST)
	rm $(MANIFEST).new

release-check:  ## build what is released, install it and scrape the demo from it
	PYTHON=$(PYTHON) sh deploy/release-check.sh $(VERSION)

clean:
	rm -rf $(VENV) build dist
