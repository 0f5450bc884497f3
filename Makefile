# `make` lists every duty. Each does its own set-up on a fresh Debian 12.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# One call for all programs, so that features agree and nothing is compiled twice.
BUILD_RELEASE = cargo build --release -p skepd -p swarmctl -p skep-images --bins --example pack

# The same with the program that makes a cluster of hosts.
BUILD_CLUSTER = cargo build --release -p skepd -p swarmctl -p skep-images -p skep-kit --bins --example pack
MANAGERS ?= 3
WORKERS ?= 3

.PHONY: help setup build release demo demo-stop cluster cluster-stop test unit e2e sim sim-mutants check fmt deny bench vm vm-systemd image

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

cluster: ## many hosts on this machine, joined: MANAGERS=3 WORKERS=3 (root)
	scripts/setup build run test
	$(BUILD_CLUSTER)
	scripts/demo-image release
	scripts/cluster start $(MANAGERS) $(WORKERS)

cluster-stop: ## remove everything the cluster made
	scripts/cluster stop

test: ## every test but the long scenarios: unit, property, real kernel, real daemons (root)
	scripts/test all

unit: ## tests that need neither root nor daemons
	scripts/test unit

e2e: ## every scenario with real daemons, one host and many, genuine peers too; some with NAME=part (root)
	scripts/test e2e $(NAME)

sim: ## simulated clusters on virtual time: SEEDS=N of them, or SEED=n alone with all that happened; GROUP=1: groups of managers and their disks
	cargo run --release --quiet -p skep-sim -- $(if $(GROUP),--group) $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

sim-mutants: ## each fault put in on purpose must be found by one of SEEDS seeds
	cargo run --release --quiet -p skep-sim -- $(if $(GROUP),--group) --mutants --seeds $(or $(SEEDS),600)

check: ## formatting, lints, crate arrows, pure crates stay pure
	scripts/check

fmt: ## format
	cargo fmt --all

deny: ## licences and banned crates (installs cargo-deny if missing)
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check

bench: ## benchmarks; one with B=B5
	scripts/bench $(B)

vm: ## tests on Debian's kernel in a small virtual machine: what this one's lacks (part of make test)
	SKEP_REQUIRE_REAL=1 scripts/vm

vm-systemd: ## Debian 12 with systemd and cgroup v2 in a virtual machine: installed as README says, checked (root)
	scripts/vm-systemd

image: ## the demonstration image as an archive
	$(BUILD_RELEASE)
	scripts/demo-image release
