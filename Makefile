# Everything a user or a machine types. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS := -n 2 --dist worksteal
# What a file of slow tests builds is built once.
SLOW_TESTS := -n 2 --dist loadfile --durations=20
# What pip cannot give: gcc compiles the instruction counter of the qemu-arm64 target, g++ the C++ snippet of
# docs/on-device.md, chromium and its driver show the HTML report to the tests, sshd is the other machine of theirs.
SYSTEM_PACKAGES := gcc g++ libc6-dev chromium chromium-driver openssh-client openssh-server busybox

.PHONY: help demo docs test test-slow test-long fuzz lint bench zoo kills operators survey schemas lock system-packages clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

demo: $(INSTALLED)  ## build the embedded default: five files, proven equal and timed
	$(BIN)/coordatt-deploy build

test: $(INSTALLED)  ## the tests that need seconds
	$(BIN)/python -Im pytest $(TESTS) -m "not slow"

test-slow: $(INSTALLED)  ## the tests that convert and run whole networks
	$(BIN)/python -Im pytest $(SLOW_TESTS) -m "slow and not long"

test-long: $(INSTALLED)  ## relatives of what the slow tests show, minutes each
	$(BIN)/python -Im pytest $(SLOW_TESTS) -m long

fuzz: $(INSTALLED)  ## change files at random, 2,000 times, and export 300 random networks: no traceback, nothing wrong is passed
	FUZZ_CASES=2000 $(BIN)/python -Im pytest -m slow tests/fuzz/test_fuzz.py
	FUZZ_NETWORKS=300 $(BIN)/python -Im pytest -m slow -s tests/fuzz/test_structure.py

lint: $(INSTALLED)  ## ruff on the sources; types and layers on the wheel, as it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -Im pytest -q tests/static

bench: $(INSTALLED)  ## what each attention block costs: our files, the official defaults, the plain backbone
	$(BIN)/coordatt-deploy attention-cost --input-size 224 --precision fp32 --precision int8 --target qemu-arm64

zoo: $(INSTALLED)  ## every backbone with every attention block in every format, exported and judged; goes on where it was
	$(BIN)/python -m benchmarks.zoo_matrix build/zoo

operators: $(INSTALLED)  ## what every format makes of every operator: docs/operators.md and what inspect reads
	$(BIN)/python -m benchmarks.operator_table

survey: $(INSTALLED)  ## export and prove strangers' networks, those of timm, torchvision and ultralytics that are installed
	$(BIN)/python -m benchmarks.survey
	$(BIN)/python -m benchmarks.survey --write-docs

kills: $(INSTALLED)  ## kill commands at random moments: the old or the new bundle, and nothing left over
	$(BIN)/python benchmarks/kills.py

schemas: $(INSTALLED)  ## write the JSON Schema of every document into docs/schema
	$(BIN)/python -c "from coordatt_deploy.commands.schema import DOCUMENTS; print(*DOCUMENTS)" | tr ' ' '\n' \
	  | while read -r name; do $(BIN)/coordatt-deploy schema "$$name" > "docs/schema/$$name.json"; done

docs: $(INSTALLED)  ## the documentation as a site, in build/site; a broken link ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock:  ## write requirements.lock from a fresh environment
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet "torch==2.13.0"
	build/lock/bin/python -m pip install --quiet ".[all]" --group dev "setuptools>=77"
	build/lock/bin/python -m pip freeze --all --exclude coordatt-deploy --exclude pip \
	  | sed 's/+cpu$$//' > requirements.lock

system-packages:  ## what pip cannot give; as root
	apt-get update
	apt-get install --yes --no-install-recommends $(SYSTEM_PACKAGES)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info
