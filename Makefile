# modus-exporter: every command a developer or a user of the checkout needs.
PYTHON ?= python3
DOCKER ?= docker
HELM ?= helm
MANIFEST := deploy/kubernetes/modus-exporter.yaml
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' exporter/__init__.py)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test bench check lock mixin clean
.DEFAULT_GOAL := run

$(VENV)/.run: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/.dev: requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@ $(VENV)/.run

run: $(VENV)/.run  ## run the exporter: config.yaml when MODUS_API_KEY is set, else the demo fleet
	@if [ -n "$$MODUS_API_KEY" ]; then exec $(BIN)/python -m exporter; \
	else echo "MODUS_API_KEY is not set: starting the demo fleet" >&2; exec $(BIN)/python -m exporter --demo; fi

test: $(VENV)/.dev  ## everything the tests need, then the tests
	@sh tests/e2e/servers.sh
	$(BIN)/python -m pytest

bench: $(VENV)/.dev  ## what a scrape costs, into benchmarks/RESULTS.md; under ten minutes
	$(BIN)/python -m benchmarks.run

check: $(VENV)/.dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

lock:  ## pin what pyproject.toml asks for, with hashes
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group dev -o requirements-dev.lock

mixin: $(VENV)/.dev  ## write rules and dashboards from their templates and prometheus/settings.yaml
	$(BIN)/python prometheus/render.py
	$(BIN)/python grafana/generate.py

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
