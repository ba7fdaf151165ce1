# check, test, install: the words packagers know. No logic here.

PREFIX = /usr/local
DESTDIR =
CARGO = cargo

.PHONY: all check test soak install

all:
	$(CARGO) build --release --locked

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	mandoc -T lint -W warning man/opm.1 man/opm-unit.5 man/opm.7 man/opm-daemon.8

test:
	$(CARGO) test --locked

# Simulated worlds that nobody has seen, for so many hours.
HOURS = 1

soak:
	HOURS=$(HOURS) $(CARGO) test --release --test sim -- --ignored --nocapture soak

install: all
	install -D -m 755 target/release/opm $(DESTDIR)$(PREFIX)/bin/opm
	install -D -m 644 man/opm.1 $(DESTDIR)$(PREFIX)/share/man/man1/opm.1
	install -D -m 644 man/opm-unit.5 $(DESTDIR)$(PREFIX)/share/man/man5/opm-unit.5
	install -D -m 644 man/opm.7 $(DESTDIR)$(PREFIX)/share/man/man7/opm.7
	install -D -m 644 man/opm-daemon.8 $(DESTDIR)$(PREFIX)/share/man/man8/opm-daemon.8
