# check, test, install: the words packagers know. No logic here.

PREFIX = /usr/local
DESTDIR =
CARGO = cargo

.PHONY: all check test soak fuzz install

all:
	$(CARGO) build --release --locked

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	mandoc -T lint -W warning man/opm.1 man/opm-apply.1 man/opm-unit.5 man/opm.7 man/opm-daemon.8

test:
	$(CARGO) test --locked

# Simulated worlds that nobody has seen, for so many hours.
HOURS = 1

soak:
	HOURS=$(HOURS) $(CARGO) test --release --test sim -- --ignored --nocapture soak

# One target of fuzz/README.md, for so many seconds, with inputs of at most so many bytes.
TARGET = yaml
TIME = 600
LENGTH = 4096

fuzz:
	mkdir -p fuzz/work/$(TARGET) fuzz/artifacts
	cd fuzz && $(CARGO) run --release --locked --bin $(TARGET) -- work/$(TARGET) corpus/$(TARGET) -dict=dict \
		-max_len=$(LENGTH) -max_total_time=$(TIME) -timeout=10 -rss_limit_mb=1024 \
		-artifact_prefix=artifacts/$(TARGET)- -print_final_stats=1

install: all
	install -D -m 755 target/release/opm $(DESTDIR)$(PREFIX)/bin/opm
	install -D -m 644 man/opm.1 $(DESTDIR)$(PREFIX)/share/man/man1/opm.1
	install -D -m 644 man/opm-apply.1 $(DESTDIR)$(PREFIX)/share/man/man1/opm-apply.1
	install -D -m 644 man/opm-unit.5 $(DESTDIR)$(PREFIX)/share/man/man5/opm-unit.5
	install -D -m 644 man/opm.7 $(DESTDIR)$(PREFIX)/share/man/man7/opm.7
	install -D -m 644 man/opm-daemon.8 $(DESTDIR)$(PREFIX)/share/man/man8/opm-daemon.8
