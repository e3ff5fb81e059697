# The one entry to everything. `make run` shows coracle at work, `make test` does what CI does.
.PHONY: help run test unit e2e guest conformance openapi bench lint

help:
	@echo "make run          build coracle and run its built-in image (needs cargo, nothing else)"
	@echo "make test         install what the tests need (as root), then everything CI does"
	@echo "make unit         unit tests and the crates' own tests"
	@echo "make e2e          the real binary against a real registry, as three kinds of user"
	@echo "make lint         format, clippy, tidy, cargo deny where installed"
	@echo "make openapi      schemathesis against the scheduler's own description"
	@echo "make bench        ratios of speed and memory against crun, podman, skopeo and umoci"
	@echo "make guest        limits on a Debian systemd host in QEMU: built once (2 minutes, as root), then resumed"
	@echo "make conformance  crun's own suite and podman with coracle-oci, on the host and in the guest (as root)"

run:
	cargo run --release --quiet -- run --rm coracle/hello

test:
	CORACLE_CONFORMANCE=$${CORACLE_CONFORMANCE:-alice} tests/setup/suite lint unit e2e guest conformance

lint:
	tests/setup/suite lint

unit:
	tests/setup/suite unit

e2e:
	tests/setup/suite e2e

bench:
	tests/bench/run
	tests/bench/disk/run
	tests/bench/disk/project
	tests/bench/network/run
	tests/bench/pool/run
	tests/bench/scheduler

guest:
	tests/setup/suite guest

openapi:
	scheduler/tests/openapi/run

conformance:
	tests/setup/suite conformance
