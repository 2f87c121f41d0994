# NullBox. `make help` lists the verbs; README.md begins with the two that matter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export NULLBOX_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nullbox
ISO := build/nullbox.iso
TEST_ISO := build/nullbox-test.iso
NODE := x86_64-unknown-linux-musl
# In a place of its own, so that it runs beside builds of the tests.
IMAGE := cargo run --quiet --package image --target-dir target/image --
AS_ROOT := $(if $(filter 0,$(shell id -u)),env,sudo -E)
RUNNER := CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER
ROOTED_RUNNER := $(RUNNER)="$(AS_ROOT)"
# One choice of packages, and so of their features, for all tests: a crate is compiled once. And clippy compiles it: what is linted is what
# runs, and no crate is gone through a second time for the lints alone. (CLIPPY_ARGS: as `cargo clippy -- -Dwarnings` hands it to its driver.)
LINTED := RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
TESTS := $(LINTED) cargo test --workspace
# A workspace of its own, for its peers.
BENCH_VERIFIER := --locked --manifest-path cage/verifier/bench/Cargo.toml --target-dir target/bench

.PHONY: help deps kernels fault iso test-iso run test check unit unit-stalled system soak licences sizes fuzz bench bench-boot bench-cage bench-egress bench-ctxgraph bench-verifier mutants clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

deps: ## install the Debian packages that the build and the tests need
	@scripts/deps.sh

iso: deps ## build the bootable image: toolchain, kernels, binaries, SquashFS, ISO
	@$(IMAGE) iso --out $(ISO)

run: iso ## boot a node in QEMU and run three real agents on it (ARGS=--once: then power off)
	@cargo build --quiet --package system-tests --bins
	@cargo run --quiet --package system-tests --bin demo -- --iso $(ISO) $(ARGS)

kernels: deps ## both kernels (cached outside the tree, by content)
	@$(IMAGE) kernel host
	@$(IMAGE) kernel guest

# The images are built beside the first tests, in what those leave of the processors.
test: deps ## everything: format, lints, unit, image, QEMU, sizes, licences
	@cargo --version > /dev/null # a toolchain that is missing is fetched by one of them alone
	@scripts/beside.sh build/image.log nice -n 19 $(MAKE) test-iso -- $(MAKE) --no-print-directory check unit
	@scripts/beside.sh build/licences.log nice -n 19 $(MAKE) licences -- $(MAKE) --no-print-directory system sizes

check: ## formatting and lints, of everything there is to compile
	cargo fmt --all --check
	$(TESTS) --lib --bins --examples --benches --test '*' --no-run
	$(LINTED) cargo check $(BENCH_VERIFIER) --no-default-features

unit: ## tests that need no image
	python=$$(scripts/scitt.sh); NULLBOX_SCITT_PYTHON=$$python $(RUNNER)=$(CURDIR)/scripts/run-test.sh $(TESTS)

unit-stalled: ## the same while threads of theirs stand still at random: what hangs on a moment shows itself (SEED=1 ARGS="--test ports")
	@$(TESTS) --no-run
	python=$$(scripts/scitt.sh); NULLBOX_SCITT_PYTHON=$$python $(RUNNER)=$(CURDIR)/scripts/run-test.sh \
		scripts/stall.py $(or $(SEED),1) env $(TESTS) --no-fail-fast $(ARGS)

fault: deps
	@eval "$$(scripts/musl-env.sh)"; env -u SOURCE_DATE_EPOCH "$$CARGO" build --quiet --release --locked --target $(NODE) --target-dir target/node \
		--package system-tests --bin fault

# The saboteur first: it is linked on one processor, beside the first tests.
test-iso: fault iso ## the same image with a saboteur in it, for the system tests
	@install -D target/node/$(NODE)/release/fault build/overlay/system/bin/fault
	@$(IMAGE) iso --out $(TEST_ISO) --overlay build/overlay

system: test-iso ## tests that boot the image in QEMU, in two lanes: a node keeps one processor busy
	$(TESTS) --test system --no-run
	@scripts/beside.sh build/system-second.log env NULLBOX_LANE=second $(TESTS) --test system -- env NULLBOX_LANE=first $(TESTS) --test system

soak: bench-boot test-iso ## the long versions: 50 boots, RESTARTS=100000 of services, CYCLES=1000 of agents, hostile kernels, the faults ROUNDS=5 times, ctxgraph's power cuts and kills, a crowd for CROWD_SECONDS=300
	NULLBOX_EVERY_BIT=1 cargo test --package ledger --test tamper
	CROWD_SECONDS=$(or $(CROWD_SECONDS),300) cargo test --package ctxgraph --test crowd -- --nocapture
	NULLBOX_SOAK=1 cargo test --package ctxgraph -- power_cut killed
	$(ROOTED_RUNNER) RESTARTS=$(or $(RESTARTS),100000) cargo test --package nulld --test soak -- --nocapture
	$(TESTS) --test system --no-run
	CYCLES=$(or $(CYCLES),1000) $(TESTS) --test system -- many::starts
	for group in hostile:: execs::file many::crowd; do NULLBOX_SOAK=1 $(TESTS) --test system -- $$group; done
	for round in $$(seq $(or $(ROUNDS),5)); do for group in faults degraded time; do \
		$(TESTS) --test system -- $$group::; done; done

sizes: ## sizes of the image, each binary, and the memory of an idle node
	@$(IMAGE) sizes --iso $(ISO)
	@$(TESTS) --quiet --test system --no-run
	@$${CARGO_TARGET_DIR:-target}/debug/idle

fuzz: deps ## libFuzzer on what parses untrusted bytes, FUZZ_SECONDS=60 each
	@scripts/fuzz.sh $(or $(FUZZ_SECONDS),60)

bench: bench-boot bench-cage bench-egress bench-ctxgraph bench-verifier ## every benchmark

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

bench-verifier: ## a decision beside cedar-policy, regorus and biscuit-auth; a step, a receipt, a token (ARGS="--rounds N --ms N --json")
	@cargo run --quiet --release $(BENCH_VERIFIER) -- $(ARGS)

mutants: ## every change that cargo-mutants makes in what decides and in the states of tasks must fail a test (ARGS="-F step --shard 0/8")
	@command -v cargo-mutants > /dev/null || { echo "mutants: cargo-mutants is missing: cargo install cargo-mutants" >&2; exit 1; }
	@mkdir -p build
	cargo mutants --package verdict --output build $(ARGS)

licences: ## licences and sources of every dependency
	@scripts/deny.sh

clean: ## remove what was built here (the cache outside the tree stays)
	rm -rf target build
