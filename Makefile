# Two commands do all the set-up on a fresh machine:  make sample PROMPT="a red apple, noto emoji style"   and   make test
PYTHON ?= python3
PROMPT ?= a red apple, noto emoji style
OUT ?= pictures
# Where PyTorch has its builds without CUDA. For a GPU: make install TORCH_INDEX=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
# Compiling every file of torch takes longer than installing it; Python compiles what is imported.
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt
# torch alone and first: asking a second index for every package would be slow, and wrong where names collide.
TORCH := $(PIP) --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
# For train-emoji: shards, where the runs go, and minutes of training; for train-emoji-128 of each of the three networks.
DATA ?= ../shared/data/emoji ../shared/data/emoji-extra
RUNS ?= runs/emoji
CLIP_MINUTES ?= 2
TOKENIZER_MINUTES ?= 4
STAR_MINUTES ?= 9
SOURCES := pyproject.toml constraints.txt
# As many processes as there are cores (tests/conftest.py; PYTEST_XDIST_AUTO_NUM_WORKERS= asks for a number). What Python
# compiled is kept, or every process that a test starts would compile torch and transformers anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n auto --dist worksteal

.PHONY: help docs models sample pictures train-emoji train-emoji-128 install install-dev test check mutate format clean

help:
	@echo 'make sample PROMPT="..."   draw a picture (sets everything up first)'
	@echo 'make test                  run the tests'
	@echo 'make check                 what CI runs: format, lint, types, tests'
	@echo 'make mutate                change the formulas one by one and see that a test fails (about an hour; SAMPLE=40)'
	@echo 'make install               the package and its dependencies in $(VENV)'
	@echo 'make train-emoji           star-emoji anew on one GPU, by the clock (DATA=, RUNS=, STAR_MINUTES=, PRESET=)'
	@echo 'make train-emoji-128       text encoder, tokenizer and STAR at 128 px, one after the other (*_MINUTES=)'
	@echo 'make pictures              the pictures of docs/working-with-pictures.md anew, by the commands on that page'
	@echo 'make format                format and fix the code'
	@echo 'make docs                  the documentation as a site, in build/site'
	@echo 'make models                docs/models.md anew, from the registry'

# What Python compiled is kept, or every call would compile transformers anew.
sample: $(VENV)/installed
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/star sample "$(PROMPT)" --out "$(OUT)"

pictures: $(VENV)/installed
	sed -n '/--out docs/s/^    star /star /p' docs/working-with-pictures.md | PATH="$(abspath $(BIN)):$$PATH" sh -ex

# What ships, trained anew on the tokenizer and text encoder that ship: a run whose schedule ends by the clock; --resume
# goes on where one was stopped.
STAR ?= $(BIN)/star
train-emoji: PRESET ?= emoji
train-emoji: $(if $(findstring $(BIN),$(STAR)),$(VENV)/installed)
	$(STAR) train star --preset $(PRESET) --data $(DATA) --out $(RUNS)/star --run.minutes=$(STAR_MINUTES) --resume

train-emoji-128: PRESET ?= emoji
train-emoji-128: STAR_PRESET ?= emoji-128
train-emoji-128: $(if $(findstring $(BIN),$(STAR)),$(VENV)/installed)
	$(STAR) train clip --preset $(PRESET) --data $(DATA) --out $(RUNS)/clip --run.minutes=$(CLIP_MINUTES) --resume
	$(STAR) train tokenizer --preset $(PRESET) --data $(DATA) --out $(RUNS)/tokenizer --run.minutes=$(TOKENIZER_MINUTES) --resume
	$(STAR) train star --preset $(STAR_PRESET) --data $(DATA) --out $(RUNS)/star-128 --run.minutes=$(STAR_MINUTES) --resume \
	    --tokenizer=$(RUNS)/tokenizer/model --text-encoder=$(RUNS)/clip/model

install: $(VENV)/installed

install-dev: $(VENV)/installed-dev

test: $(VENV)/installed-dev
	$(PYTEST)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# One thread, so that a mutant's processes can be forked; SAMPLE= changes of each file, all by default.
mutate: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.mutation $(if $(SAMPLE),--sample $(SAMPLE))

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A warning is an error (mkdocs.yml).
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

models: $(VENV)/installed
	$(BIN)/star list --markdown > docs/models.md

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamps keep later calls from asking pip again.
$(VENV)/installed: $(SOURCES) | $(VENV)/bin/python
	@echo "installing into $(VENV), once (about a minute)"
	$(TORCH)
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(SOURCES) | $(VENV)/bin/python
	@echo "installing into $(VENV), once (about a minute)"
	$(TORCH)
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(SOURCES) | $(VENV)/bin/python
	@echo "installing into $(VENV), once (about a minute)"
	$(TORCH)
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/installed
