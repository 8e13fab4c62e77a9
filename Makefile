# The words of the project. CI calls the same ones a person does.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test check install lock format size clean test-quality test-clients fuzz soak bench-train bench-claims bench-xsid bench-plan bench-serve bench-data bench-evaluate bench-shards bench-gate bench-harmed bench-drift bench-lm-eval help

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED) ## make .venv with the pinned dependencies

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lorimer needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(INSTALLED)

quickstart: $(INSTALLED) ## the whole story on real data, ends with a served adapter
	$(BIN)/lorimer quickstart

test: $(INSTALLED) ## the tests (no network, no downloads)
	$(BIN)/pytest -n 2 --dist loadfile

check: $(INSTALLED) ## lint, format, types, import contract
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test-quality: $(INSTALLED) ## the slow ones: the real base learns the help desk
	$(BIN)/pytest -m real_base

test-clients: $(INSTALLED) .venv-clients ## LangChain's and LlamaIndex's classes against a server of ours
	PYTHONPATH=src .venv-clients/bin/python -m pytest tests/serving/test_frameworks.py

# theirs want an older openai: an environment of its own, which sees what is not in it in ours
.venv-clients: tests/clients.txt $(INSTALLED)
	rm -rf .venv-clients && $(PYTHON) -m venv .venv-clients
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > `echo .venv-clients/lib/python3.*/site-packages`/ours.pth
	.venv-clients/bin/pip install --quiet --disable-pip-version-check -r tests/clients.txt

fuzz: $(INSTALLED) ## 2,000 requests a route, made from the API's own document; half an hour
	$(BIN)/pytest -m fuzz -s

bench-train: $(INSTALLED) .venv-peers ## training beside TRL and a tuned PEFT loop; most of an hour
	$(BIN)/python bench/train.py

bench-claims: $(INSTALLED) ## what is said about LoRA beside what is measured; half an hour
	$(BIN)/python bench/claims.py

bench-xsid: $(INSTALLED) ## intents in five languages; ten minutes
	$(BIN)/python bench/xsid.py

bench-plan: $(INSTALLED) ## plans beside what their runs then needed; ten minutes
	$(BIN)/python bench/plan.py

bench-evaluate: $(INSTALLED) ## eight adapters evaluated beside one; a quarter of an hour
	$(BIN)/python bench/evaluate.py

bench-data: $(INSTALLED) ## the data room beside known truth, and a million rows; a quarter of an hour
	$(BIN)/python bench/data.py

bench-shards: $(INSTALLED) ## what sharding costs in accuracy and saves in erasing; half an hour
	$(BIN)/python bench/shards.py

bench-gate: $(INSTALLED) ## the gate's verdicts, intervals and power on data whose truth is known; five minutes
	$(BIN)/python bench/gate.py

bench-harmed: $(INSTALLED) ## adapters harmed on purpose: does each fail the right check alone? a quarter of an hour
	$(BIN)/python bench/harmed.py

bench-drift: $(INSTALLED) ## what neutral text tells of what was forgotten; after bench-harmed, an hour
	$(BIN)/python bench/drift.py

bench-lm-eval: $(INSTALLED) ## scores beside lm-eval's, item by item; its Python is LORIMER_LM_EVAL; an hour
	$(BIN)/python bench/lm_eval.py

bench-serve: $(INSTALLED) .venv-peers ## serving beside vLLM, llama.cpp and PEFT, those that are there
	$(BIN)/python bench/serve.py

soak: $(INSTALLED) ## isolation under fire; ten minutes
	$(BIN)/python bench/soak.py

.venv-peers: bench/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r bench/peers.txt

format: $(INSTALLED) ## put the source in its form
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

lock: ## pin what a fresh environment resolves to
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 '.[dev]'
	.venv-lock/bin/pip freeze --exclude lorimer | sed 's/+cpu//' > requirements.lock
	rm -rf .venv-lock build src/lorimer.egg-info

size: ## lines of each room, source and tests
	@for room in $$(ls src/lorimer); do printf '%-16s %6s\n' $$room $$(find src/lorimer/$$room -name '*.py' | xargs cat | wc -l); done
	@printf '%-16s %6s\n' tests $$(find tests -name '*.py' | xargs cat | wc -l)

clean: ## remove what make made
	rm -rf .venv .venv-peers .venv-clients bench/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/lorimer.egg-info
