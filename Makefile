# The same targets here and in CI. They need Python >= 3.11, git and make; `make PYTHON=python3.12`
# takes another Python. The stamp keeps a second target from installing again.
PYTHON ?= python3
JOBS ?= 2
RUN ?= runs/demo
STAMP = .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install demo test test-slow mutants lint types docs bench dist check clean
.DEFAULT_GOAL = check

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ppgen needs Python 3.11 or later; run make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing ppgen and what it needs into .venv: a few minutes the first time"
	PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet -e ".[test,lint,docs]" -c constraints.txt
	@touch $@

# One thread: the network is so small that threads only wait for each other.
demo: export OMP_NUM_THREADS = 1
demo: $(STAMP)
	rm -rf $(RUN)
	ppgen fit vae --data digits --set latent=8 --set prior=flow --set dropout=0.1 --batch-size 128 \
	    --steps 3000 --lr 0.003 --schedule cosine --out $(RUN)
	ppgen sample $(RUN) -n 64 --out $(RUN)/samples.png
	ppgen evaluate $(RUN)
	ppgen plot $(RUN)
	ppgen diagnose $(RUN)
	ppgen report $(RUN)
	@ls -m $(RUN) $(RUN)/plots

test: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n $(JOBS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -m slow -n $(JOBS) --ignore tests/mutants

# Plants every bug of tests/mutants in a copy of the tree: each has to be noticed by the tests that it names.
mutants: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -m slow -n $(JOBS) tests/mutants

lint: $(STAMP)
	ruff check .

types: $(STAMP)
	mypy

docs: $(STAMP)
	OMP_NUM_THREADS=1 python -m sphinx -E -W --keep-going -q -j $(JOBS) docs docs/_build/html
	OMP_NUM_THREADS=1 python -m sphinx -E -W --keep-going -q -j $(JOBS) -D language=ja docs docs/_build/html/ja  # runs nothing again

bench: $(STAMP)
	python -m pip install --quiet -e ".[bench]" -c constraints.txt
	set -e; for name in engine auto flows denoisers; do python benchmarks/$$name.py; done
	@echo "the other benchmarks read data: docs/benchmarks.md has their commands"

# What would be uploaded, looked at: into dist/. tests/newcomer uses a wheel as a stranger would.
dist: $(STAMP)
	rm -rf build dist *.egg-info/SOURCES.txt
	python -m pip install --quiet -e ".[dist]" -c constraints.txt
	python -m build --quiet
	python -m twine check --strict dist/*

check: lint types test docs

clean:
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
