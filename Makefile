# `make` lists every duty. Each does its own set-up on a fresh Debian 12.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# One call for all programs, so that features agree and nothing is compiled twice.
BUILD_RELEASE = cargo build --release -p skepd -p swarmctl -p skep-images --bins --example pack

.PHONY: help setup build release demo demo-stop test unit e2e check fmt deny bench image

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what building, running and testing need (apt, rustup)
	scripts/setup build run test

build: ## debug build of everything
	scripts/setup build
	cargo build --workspace
	scripts/static debug

release: ## skepd, swarmctl and skep-init, optimised
	scripts/setup build
	$(BUILD_RELEASE)
	scripts/static release

demo: ## one-node swarm, a service of 3 replicas, answers from each (root)
	scripts/setup build run
	$(BUILD_RELEASE)
	scripts/demo-image release
	scripts/demo

demo-stop: ## remove everything the demo made
	scripts/demo-stop

test: ## every test: unit, property, real kernel, real daemons (root for the real ones)
	scripts/test all

unit: ## tests that need neither root nor daemons
	scripts/test unit

e2e: ## tests with real daemons on a host of their own (root)
	scripts/test e2e

check: ## formatting, lints, crate arrows, pure crates stay pure
	scripts/check

fmt: ## format
	cargo fmt --all

deny: ## licences and banned crates (installs cargo-deny if missing)
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check

bench: ## benchmarks; one with B=B5
	scripts/bench $(B)

image: ## the demonstration image as an archive
	$(BUILD_RELEASE)
	scripts/demo-image release
