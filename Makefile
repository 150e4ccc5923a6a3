# `make run` and `make test` need nothing but Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Test processes: two suit the smallest machines.
WORKERS ?= 2

# A run's folder, for `make picture`.
RUN ?= tflite_models/fashion_mnist_mobilenet_small

.PHONY: run test arm64 runtimes mediapipe picture apk apk-test lint format lock clean

run: $(VENV)/.installed
	$(BIN)/python pipelines/classify_mobile.py $(FLAGS)

# In some long runs a test process has died, once in thousands of tests; twice the stack ended in TensorFlow, the cause is
# not known. Such a test, and none that fails (no message matches the pattern), is run once more in a new process.
test: lint
	$(BIN)/pytest -n $(WORKERS) --dist=worksteal --reruns 1 --only-rerun '(?!)'

# What runs files on ARM64, emulated or not; it says which system packages it wants. Tests that need it skip without.
arm64: $(VENV)/.installed
	$(BIN)/python -m mobileprune.benchmark.arm64_setup --lock requirements.lock

# TensorFlow Lite 2.16.1, which an app may carry. Tests that need it skip without, as they do on Python 3.13.
runtimes: $(BIN)/python
	$(BIN)/python -m mobileprune.runtime_setup --if-supported

# MediaPipe, which needs other versions than TensorFlow does. Tests that need it skip without; on Python 3.13 all do.
mediapipe: .mediapipe/.installed

# The README's picture of a run's report: make run FLAGS=--control, then this. It needs Debian's package chromium.
picture: $(VENV)/.installed
	$(BIN)/python -m mobileprune.report.picture $(RUN) docs/report.png

# The Android demo and its JVM tests, with nothing but Python and what android_demo/apt-packages.txt lists.
apk: $(BIN)/python
	PYTHONPATH=. $(BIN)/python android_demo/tools/build_apk.py apk

apk-test: $(BIN)/python
	PYTHONPATH=. $(BIN)/python android_demo/tools/build_apk.py test

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest versions that pyproject.toml allows, with hashes, for every Python that it allows.
lock: $(BIN)/python
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile $(LOCK) -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(LOCK) -o requirements-test.lock --extra test pyproject.toml
	$(BIN)/uv pip compile $(LOCK) -o requirements-mediapipe.lock --group mediapipe
	$(BIN)/uv pip compile $(LOCK) -o requirements-keras-hub.lock --no-deps --group keras-hub
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url

clean:
	rm -rf $(VENV) .arm64 .runtimes .mediapipe android_demo/build build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else "mobileprune needs Python 3.11 to 3.13, this is %d.%d. Try: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes --requirement requirements.lock
	$(PIP) install --quiet --no-deps --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.lock requirements-keras-hub.lock $(VENV)/.installed
	$(PIP) install --quiet --require-hashes --requirement requirements-test.lock
	$(PIP) install --quiet --require-hashes --no-deps --requirement requirements-keras-hub.lock
	touch $@

# No dependencies but those listed: the list leaves out what classifying an image does not need.
.mediapipe/.installed: requirements-mediapipe.lock | $(BIN)/python
	$(BIN)/python -m venv --clear .mediapipe
	.mediapipe/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps \
		--requirement requirements-mediapipe.lock
	touch $@
