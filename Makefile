# `make demo` and `make test` set up everything themselves: a virtual environment in .venv with locked versions.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready

.PHONY: demo test test-all lint format bench gpu-check gpu-wheels system-packages lock clean

demo: $(READY)
	$(BIN)/lora3d demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not weights"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# What some tests look with and pip cannot install: a browser, and what open3d (nerfstudio's ns-export) is linked with.
# Without them those tests are skipped, each with a word. `make test` leaves the system as it is.
system-packages:
	@if command -v chromium > /dev/null && ldconfig -p | grep -q libusb-1.0; then echo "system packages are there"; \
	elif command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
			chromium libusb-1.0-0; \
	else echo "no apt-get here: install Chromium and libusb 1.0 by hand"; fi

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/lora3d benchmark network
	$(BIN)/lora3d benchmark rooms
	$(BIN)/lora3d benchmark memory
	$(BIN)/lora3d benchmark inference

# The CUDA path proved and measured, see docs/gpu.md.
gpu-check: $(READY)
	$(BIN)/lora3d benchmark gpu --json outputs/gpu.json --folder outputs/gpu

# For a machine with a GPU and without registries.
WHEELS := .wheels
gpu-wheels: requirements/gpu.txt
	rm -rf $(WHEELS)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --implementation cp \
		$(foreach tag,manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1,--platform $(tag)_x86_64) \
		--dest $(WHEELS) --requirement requirements/gpu.txt
	@du -shc $(WHEELS)/*.whl | tail -n 1

lock: $(READY)
	$(UV) pip compile -q --universal --python-version 3.10 --no-annotate --no-header --no-emit-index-url \
		--group dev --upgrade pyproject.toml -o requirements/locked.txt

clean:
	rm -rf .venv outputs

# The lock is installed first, then the peer without what it would drag in, then this package as it stands.
$(READY): pyproject.toml requirements/locked.txt requirements/peer.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(UV) || $(BIN)/python -m pip install --quiet uv==0.13.9
	$(UV) pip install --python $(BIN)/python -r requirements/locked.txt
	$(UV) pip install --python $(BIN)/python --no-deps -r requirements/peer.txt
	$(UV) pip install --python $(BIN)/python --no-deps --editable .
	touch $@
