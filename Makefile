SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOLUBILITY := demo/runs/esol
PEAKS := 20.6 22.7 62.7 81.3 82.9 122.1 132.1 170.5

.PHONY: help demo test lint tables clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv: some 6 GB, a minute or two on a fast line"
	$(PIP) -r requirements.txt
	touch $@

.venv/extra: .venv/ready requirements-extra.txt
	$(PIP) -r requirements-extra.txt
	touch $@

demo: .venv/ready  ## set up and run the stations on real molecules (4 minutes on 2 cores, once installed)
	rm -rf demo
	$(BIN)/python render.py data/chembl_3000.smi -o demo/shards
	$(BIN)/python cluster.py data/chembl_3000.smi --k 30 --k 300 -o demo/labels.npz
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2 pretrain.py --shards demo/shards --labels demo/labels.npz \
	    --init bundled --lr 5e-6,5e-4 --loss contrastive=1,classes=0.1 --batch 64 --steps 10 --log-every 2 -o demo/encoder.pt
	$(BIN)/python finetune.py --data data/esol.csv --init demo/encoder.pt --freeze -o $(SOLUBILITY)
	$(BIN)/python export.py $(SOLUBILITY) -o demo/model.onnx
	$(BIN)/python predict.py demo/model.onnx data/new_molecules.txt -o demo/predictions.csv
	$(BIN)/python search.py nmr13c.csv.gz --peaks "$(PEAKS)" --index demo/index -o demo/hits.csv --html demo/hits.html
	@$(BIN)/python -c "$$SUMMARY"

test: .venv/extra  ## set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: .venv/extra  ## check style and formatting with ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

tables: .venv/ready  ## renew the tables of README.md, docs/, benchmarks/ and weights/ from benchmarks/results/
	$(BIN)/python benchmarks/tables.py

clean:  ## remove the environment, the demo and caches
	rm -rf demo .venv .pytest_cache .ruff_cache {.,tests,moleclip,benchmarks}/__pycache__

define SUMMARY
import csv, json
test = json.load(open("$(SOLUBILITY)/metrics.json"))["test"]
print("\nESOL, solubility in log mol/L: error on the 112 test molecules, lower is better")
for name, scores in test.items():
    print(f"    {name:22s} RMSE {scores['pooled']['RMSE']['mean']:.2f}   MAE {scores['pooled']['MAE']['mean']:.2f}")
print("The encoder started from weights/moleclip-small.pt; neither there nor in the demo's drawings is a molecule of ESOL.")
print("\nNew molecules, demo/predictions.csv")
for line in csv.DictReader(open("demo/predictions.csv")):
    print(f"    row {line['row']:>2s}  {line['name'][:34]:34s} {line['log_solubility'] or line['error']}")
print("\nWhich of 5,992 molecules has 13C peaks at $(PEAKS) ppm? demo/hits.html")
for line in list(csv.DictReader(open("demo/hits.csv")))[:3]:
    print(f"    {line['rank']}  score {float(line['score']):.2f}  {line['smiles']}")
print("\ndrawings       demo/shards/        their labels   demo/labels.npz")
print("encoder        demo/encoder.pt     its course     demo/encoder.curves.png")
print("finetuned run  $(SOLUBILITY)/      its report     $(SOLUBILITY)/report.png")
print("ONNX model     demo/model.onnx     predictions    demo/predictions.csv")
endef
export SUMMARY
