# What each target does: `make help`. Longer chores are in xtask/ (`cargo xtask --help`).

SHELL := /bin/bash
.DEFAULT_GOAL := help

# What is costly to make and belongs to no one clone lies here.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/trireme

# Where cargo builds: the caller's choice, else the cache's target folder if there is one (`mkdir -p ~/.cache/trireme/target` makes
# all clones share it), else ./target.
ifeq ($(CARGO_TARGET_DIR),)
  CARGO_TARGET_DIR := $(if $(wildcard $(CACHE)/target/.),$(CACHE)/target,$(CURDIR)/target)
endif
export CARGO_TARGET_DIR

# Tests find the binary by this.
export TRIREME_BIN := $(CURDIR)/bin/trireme
# The distribution's kubectl, for tests with an old one beside the machine's own; unset where there is none.
KUBECTL_OLD := $(CACHE)/kubectl-old/usr/bin/kubectl

# RocksDB is compiled once for a machine; every cargo command below links that archive. A caller may bring an archive of their own.
ifeq ($(ROCKSDB_LIB_DIR),)
  WITH_ROCKSDB = set -e; ROCKSDB_LIB_DIR="$$(cargo xtask rocksdb)"; export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1;
endif

# Tests of real containers need root.
ifneq ($(shell id -u),0)
  AS_ROOT := --config 'target."cfg(unix)".runner = ["sudo", "-E", "env", "PATH=$(PATH)"]'
endif

.PHONY: help
help: ## Show this
	@echo "Targets:"; sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: up
up: packages-up build ## Install what is missing, build, start a three-zone cluster on this machine
	bin/trireme up --detach
	@echo "  bin/trireme status        every master and node"
	@echo "  make down                 stop the cluster; its data stays"

.PHONY: down
down: ## Stop the cluster that `make up` started
	bin/trireme down

# With the whole workspace's features, as tests are built, so that they share what is compiled.
.PHONY: build
build: packages-build ## Build bin/trireme
	$(WITH_ROCKSDB) cargo build --locked --workspace --bin trireme
	@$(call install_binary,debug)

# Without `jepsen` and `tests`, which links it: they would bring the fail points along.
.PHONY: dist
dist: packages-build ## Build bin/trireme for release: slower to build, faster to run
	$(WITH_ROCKSDB) cargo build --locked --workspace --exclude trireme-jepsen --exclude trireme-tests --bin trireme --profile dist
	@$(call install_binary,dist)

# Unless it is the same, so that a running cluster keeps its binary.
install_binary = cmp --silent $(CARGO_TARGET_DIR)/$(1)/trireme bin/trireme || install -D --mode=755 $(CARGO_TARGET_DIR)/$(1)/trireme bin/trireme

.PHONY: check
check: packages-build ## Check formatting, lints, licences, documentation and who imports whom; changes nothing
	cargo fmt --all --check
	$(WITH_ROCKSDB) cargo clippy --locked --workspace --all-targets -- --deny warnings
	$(WITH_ROCKSDB) RUSTDOCFLAGS="--deny warnings --allow rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items
	cargo test --locked --quiet --package xtask
	@if command -v cargo-deny >/dev/null; then cargo deny --all-features check bans licenses sources; \
	else echo "Skipped: cargo-deny is not installed, so licences and sources of dependencies were not checked (cargo install cargo-deny)."; fi

.PHONY: fix
fix: packages-build ## Format, and apply what clippy suggests
	$(WITH_ROCKSDB) cargo clippy --locked --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

# Everything is built before any test runs, the binary too, in the one profile. The ignored tests are those that need root.
.PHONY: test
test: packages-test ## Install what tests need and run them all
	$(WITH_ROCKSDB) cargo build --locked --workspace --all-targets
	@$(call install_binary,debug)
	@$(if $(AS_ROOT),sudo -v)
	$(WITH_ROCKSDB) if [ -x $(KUBECTL_OLD) ]; then export TRIREME_KUBECTL_OLD=$(KUBECTL_OLD); fi; \
	if command -v cargo-nextest >/dev/null; then cargo nextest run $(AS_ROOT) --locked --workspace --run-ignored all; \
	else cargo test $(AS_ROOT) --locked --workspace -- --include-ignored; fi

.PHONY: bench
bench: build packages-bench ## Measure start-up, memory and fail-over of a local cluster
	cargo xtask bench

.PHONY: bench-store
bench-store: dist packages-bench-store ## Measure the store side by side with etcd, both with three members, with the release binary
	cargo xtask bench-store --binary $(CARGO_TARGET_DIR)/dist/trireme

.PHONY: packages-build packages-up packages-bench packages-test packages-bench-store
packages-build packages-up packages-bench packages-test packages-bench-store: packages-%:
	@cargo xtask packages $*
