# make help lists the targets. Everything that they need is installed by `make tools` (root, Debian), which the others call.
SHELL := /bin/bash
APT := fuse3 fio iproute2 nbdkit libnbd-bin nbdfuse nbd-server qemu-utils stress-ng ctdb acl attr python3 procps pkg-config gcc make
PREFIX := /usr/local
CARGO_TOOLS := cargo-nextest pjdfstest fsx
NEXTEST := cargo nextest run --no-fail-fast

.PHONY: help tools tools-lint build demo test mutants soak bench bench-full lint doc install clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

tools: ## Install the packages and programs that the tests need
	@scripts/tools $(APT) -- $(CARGO_TOOLS)
	@scripts/emulator

tools-lint:
	@scripts/tools -- cargo-deny

build: ## Release binaries in target/release
	cargo build --release --workspace

demo: tools build ## Format, mount, use, kill and check a volume, and show its speed
	scripts/demo

test: tools ## All tests but the long ones
	$(NEXTEST) --workspace

mutants: tools ## Switch each named rule off in turn: its tests must fail
	scripts/mutants

soak: tools ## The long runs: more seeds, more crash states
	CSV_SOAK=1 $(NEXTEST) --workspace

bench: tools build ## The figures of docs/PERFORMANCE.md
	target/release/bench run

bench-full: tools build ## The same with a million files
	target/release/bench run --full

lint: tools-lint ## Formatting, clippy, docs, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo deny --log-level error check bans licenses sources
	scripts/advisories

doc: ## The documentation of the crates
	cargo doc --workspace --no-deps

install: build ## Programs to PREFIX (/usr/local), and mount.csvfs to /sbin
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/csvfs target/release/csv-target
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/csvfs $(DESTDIR)/sbin/mount.csvfs

clean: ## Remove what was built
	cargo clean
