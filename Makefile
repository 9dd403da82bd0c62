# Everything runs in .venv, which the first command makes. `make demo` and `make test` each need nothing but
# Python 3.11 or newer with venv, and g++.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Built from these: when one changes, the package is built again.
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc cmake -type f)

.PHONY: demo test test-all lint docs bench package clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.built
	$(BIN)/fastdecode demo -o demo

# Two processes, each with one thread. `long` tests are more cases of what the others try, or minutes of searching.
PYTEST = $(BIN)/python -m pytest -q -p no:cacheprovider -p no:benchmark -n 2 --dist loadgroup --no-loadscope-reorder

test: $(VENV)/.built-test
	@echo "make test leaves out the long tests; make test-all runs them too"
	$(PYTEST)

test-all: $(VENV)/.built-test
	$(PYTEST) -m ""

lint: $(VENV)/.built-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.hpp' '*.inc' '*.cpp' '*.c' '*.cu')

# The documentation as a site, in build/site. Warnings, such as a link to nothing, are errors.
docs: $(VENV)/.built-docs
	$(BIN)/python -m tools.report --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open build/site/index.html in a browser"

bench: $(VENV)/.built-test
	$(BIN)/python benchmarks/bench_generate.py

# dist/: an sdist and a wheel for every Python and glibc 2.28, checked; each is tried in an empty environment while there
# is time, and what is skipped is named.
package: $(VENV)/.built-package
	$(BIN)/python -m tools.build_wheel --seconds 200

# torch 2.13.0 has a small CPU build here; an open range would fetch several GB of CUDA packages elsewhere.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.built-test: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

$(VENV)/.built-dev: $(VENV)/.built-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	touch $@

$(VENV)/.built-package: $(VENV)/.built-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,package]"
	touch $@

$(VENV)/.built-docs: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo fastdecode/lib fastdecode/include fastdecode/*.so
