# make help lists the targets. Everything that they need is installed by `make tools` (root, Debian), which the others call.
SHELL := /bin/bash
APT := fuse3 fio iproute2 nbdkit libnbd-bin nbdfuse nbd-server libiscsi-dev tgt qemu-utils stress-ng ctdb acl attr openssl util-linux python3 procps pkg-config gcc make
PREFIX := /usr/local
# Where systemd looks for the units of what is not packaged, and where they look for what this machine is.
UNITS := $(PREFIX)/lib/systemd/system
CONF := /etc/csvfs
DOC := $(PREFIX)/share/doc/csvfs
# Where the built programs are.
FROM := target/release
PROGRAMS := csvfs csv-target lockd lockctl
CARGO_TOOLS := cargo-nextest pjdfstest fsx
NEXTEST := cargo nextest run --no-fail-fast

.PHONY: help tools tools-lint build demo test mutants soak bench bench-build bench-full lint doc install clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

tools: ## Install the packages and programs that the tests need
	@scripts/tools $(APT) -- $(CARGO_TOOLS)
	@scripts/emulator

tools-lint:
	@scripts/tools -- cargo-deny

build: ## Release binaries in target/release
	cargo build --release --workspace

demo: tools build ## Use, kill and check a volume and show its speed; then a cluster of three nodes on this machine
	scripts/demo
	scripts/demo-cluster

test: tools ## All tests but the long ones
	$(NEXTEST) --workspace

mutants: tools ## Switch each named rule off in turn: its tests must fail
	scripts/mutants

soak: tools ## The long runs: more seeds, more crash states
	CSV_SOAK=1 $(NEXTEST) --workspace

bench-build: build
	cargo build --release --package csvfs --example null_mount

bench: tools bench-build ## The figures of docs/PERFORMANCE.md
	target/release/bench run

bench-full: tools bench-build ## The same with a million files
	target/release/bench run --full

lint: tools-lint ## Formatting, clippy, docs, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo deny --log-level error check bans licenses sources
	scripts/advisories

doc: ## The documentation of the crates
	cargo doc --workspace --no-deps

install: $(if $(filter target/release,$(FROM)),build) ## Programs, systemd units and docs to PREFIX (/usr/local), mount.csvfs to /sbin
	install -D -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(FROM)/,$(PROGRAMS))
	install -d $(DESTDIR)/sbin $(DESTDIR)$(UNITS) $(DESTDIR)$(CONF)
	ln -sf $(PREFIX)/bin/csvfs $(DESTDIR)/sbin/mount.csvfs
	for unit in lockd.service csvfs@.service csv-target@.service; do \
		sed 's|@BIN@|$(PREFIX)/bin|g; s|@DOC@|$(DOC)|g; s|@CONF@|$(CONF)|g' scripts/systemd/$$unit >$(DESTDIR)$(UNITS)/$$unit; \
	done
	install -D -m 644 -t $(DESTDIR)$(DOC) README.md CHANGELOG.md docs/*.md scripts/systemd/csvfs.conf

clean: ## Remove what was built
	cargo clean
