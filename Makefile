# NullBox. `make help` lists the verbs; README.md begins with the two that matter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export NULLBOX_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nullbox
ISO := build/nullbox.iso
TEST_ISO := build/nullbox-test.iso
NODE := x86_64-unknown-linux-musl
IMAGE := cargo run --quiet --package image --
# Tests of namespaces, jails, sandboxes and PID 1 need root; everything else runs as you.
AS_ROOT := $(if $(filter 0,$(shell id -u)),env,sudo -E)
ROOTED := nulld egress cage verifier
ROOTED_RUNNER := CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(AS_ROOT)"

.PHONY: help deps iso test-iso run test check unit system soak licences sizes fuzz bench bench-boot bench-cage bench-egress bench-ctxgraph clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

deps: ## install the Debian packages that the build and the tests need
	@scripts/deps.sh

iso: deps ## build the bootable image: toolchain, kernels, binaries, SquashFS, ISO
	@$(IMAGE) iso --out $(ISO)

run: iso ## boot a node in QEMU and run two real agents on it (ARGS=--once: then power off)
	@cargo build --quiet --package system-tests --bins
	@cargo run --quiet --package system-tests --bin demo -- --iso $(ISO) $(ARGS)

test: deps check unit system sizes licences ## everything: format, lints, unit, image, QEMU, sizes, licences

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

unit: ## tests that need no image
	python=$$(scripts/scitt.sh); NULLBOX_SCITT_PYTHON=$$python cargo test --workspace --exclude system-tests $(addprefix --exclude ,$(ROOTED))
	$(ROOTED_RUNNER) cargo test $(addprefix --package ,$(ROOTED))
	cargo test --package system-tests --lib --bins --test style

test-iso: iso ## the same image with a saboteur in it, for the system tests
	@eval "$$(scripts/musl-env.sh)"; "$$CARGO" build --quiet --release --locked --target $(NODE) --target-dir target/node \
		--package system-tests --bin fault
	@install -D target/node/$(NODE)/release/fault build/overlay/system/bin/fault
	@$(IMAGE) iso --out $(TEST_ISO) --overlay build/overlay

system: test-iso ## tests that boot the image in QEMU
	cargo build --quiet --package system-tests --bins
	cargo test --package system-tests --test system

soak: bench-boot test-iso ## the long versions: 50 boots, RESTARTS=100000 of services, CYCLES=1000 of agents, the faults ROUNDS=5 times, ctxgraph's power cuts and kills, a crowd for CROWD_SECONDS=300
	NULLBOX_EVERY_BIT=1 cargo test --package ledger --test tamper
	CROWD_SECONDS=$(or $(CROWD_SECONDS),300) cargo test --package ctxgraph --test crowd -- --nocapture
	NULLBOX_SOAK=1 cargo test --package ctxgraph -- power_cut killed
	$(ROOTED_RUNNER) RESTARTS=$(or $(RESTARTS),100000) cargo test --package nulld --test soak -- --nocapture
	cargo build --quiet --package system-tests --bins
	CYCLES=$(or $(CYCLES),1000) cargo test --package system-tests --test system -- many::starts
	for round in $$(seq $(or $(ROUNDS),5)); do for group in faults degraded time; do \
		cargo test --package system-tests --test system -- $$group::; done; done

sizes: ## sizes of the image, each binary, and the memory of an idle node
	@$(IMAGE) sizes --iso $(ISO)
	@cargo build --quiet --package system-tests --bins
	@cargo run --quiet --package system-tests --bin idle

fuzz: deps ## libFuzzer on what parses untrusted bytes, FUZZ_SECONDS=60 each
	@scripts/fuzz.sh $(or $(FUZZ_SECONDS),60)

bench: bench-boot bench-cage bench-egress bench-ctxgraph ## every benchmark

bench-boot: iso ## 50 boots in a row, and a Debian with systemd in between (ARGS="--boots N --peers N --json")
	@cargo build --quiet --package system-tests --bins
	@disk=$$($(AS_ROOT) scripts/debian-peer.sh); cargo run --quiet --package system-tests --bin bench_boot -- \
		--iso $(ISO) --peer-disk "$$disk" $(ARGS)

bench-cage: test-iso ## what a jail costs: agent start, plain libkrun and QEMU's microvm in turn (ARGS="--rounds N --crowd N --json")
	@cargo build --quiet --package system-tests --bins
	@disk=$$(scripts/microvm-disk.sh); cargo run --quiet --package system-tests --bin bench_cage -- \
		--iso $(TEST_ISO) --qemu-disk "$$disk" $(ARGS)

bench-egress: ## the proxy beside plain NAT, its DNS beside dnsmasq, in network namespaces (ARGS="--rounds N --json")
	@for need in dnsperf:dnsperf dnsmasq:dnsmasq-base; do PATH=$$PATH:/usr/sbin command -v $${need%:*} > /dev/null || \
		{ echo "bench-egress: $${need%:*} is missing: apt-get install $${need#*:}" >&2; exit 1; }; done
	@$(ROOTED_RUNNER) cargo bench --quiet --package egress --bench egress -- $(ARGS)

bench-ctxgraph: ## memory beside plain SQLite and Redis, and the ledger (ARGS="--rounds N --seconds N --millions N --small --json")
	@command -v redis-server > /dev/null || { echo "bench-ctxgraph: redis-server is missing: apt-get install redis-server" >&2; exit 1; }
	@cargo bench --quiet --package ctxgraph --bench ctxgraph -- $(ARGS)

licences: ## licences and sources of every dependency
	@scripts/deny.sh

clean: ## remove what was built here (the cache outside the tree stays)
	rm -rf target build
