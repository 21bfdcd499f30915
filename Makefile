# Each target is a script, so that a machine without make can run it as well:
# bash scripts/demo, bash scripts/test.

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench dev build

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## one agent's first task, end to end, with a company of its own
	@bash scripts/demo

test: ## install what the tests need, check the source, run every test
	@bash scripts/test

lint: ## format, vet, staticcheck, known vulnerabilities
	@bash scripts/lint

bench: ## ratios against named peers; takes minutes. BENCH='-run REGEXP -json' narrows it
	@. scripts/env && go run ./bench $(BENCH)

dev: ## a server that is built and started again when a source changes
	@bash scripts/dev

build: ## bin/estover
	@bash scripts/build
