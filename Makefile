.DEFAULT_GOAL := help
.PHONY: help demo demo-morning check test transcripts test-go test-batch test-rabbitmq4 test-rabbitmq43 deny advisories soak punctual bench build

help: ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

demo: ## wake a simulated fleet of 200 machines here, end to end, in under a minute after the build
	@tests/support/setup broker
	@deploy/demo

demo-morning: ## a scheduled morning of 5,000 machines in three waves, with replicas and RabbitMQ dying on the way
	@tests/support/setup broker clock
	@deploy/demo morning

check: ## format, lints and unit tests, in under two minutes once the dependencies are built; needs no broker
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test --lib --bins

test: ## format, lints and all tests, on a private RabbitMQ and a private Prometheus; installs what is missing
	@tests/support/setup broker python prometheus examples clock
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test -- --test-threads=8 # they wait more than they work

transcripts: ## docs/transcripts.md anew, by running its commands
	@tests/support/setup broker
	REVEILLE_TRANSCRIPTS=write cargo test --test suite operator::transcripts

test-go: ## the examples in Go, built against the distribution's amqp091-go
	@tests/support/setup broker go
	cargo test --test suite operator::examples -- --ignored

test-batch: ## the tests of faults with lanes that call 20 jobs together
	@tests/support/setup broker
	REVEILLE_TEST_BATCH=20 cargo test --test suite -- --test-threads=8 \
	    api::api_faults:: broker::broker_lost:: broker::cluster:: broker::mended:: broker::network:: broker::publisher:: \
	    hostile::poison:: hostile::unreadable:: job::ambiguity:: job::confirm:: job::fleet:: job::retries:: \
	    lane::evidence:: lane::pause:: lane::queues:: operator::stop:: replica::baton:: replica::replicas::

test-rabbitmq4: ## all tests on RabbitMQ 4.0, from Debian 13 in a folder below target/; needs root and debootstrap
	@tests/support/setup rabbitmq4 python prometheus examples clock
	RABBITMQ_ROOT=$(CURDIR)/target/rabbitmq4 cargo test -- --test-threads=8

test-rabbitmq43: ## all tests on RabbitMQ 4.3, from Debian 14 in a folder below target/; needs root and debootstrap
	@tests/support/setup rabbitmq43 python prometheus examples clock
	RABBITMQ_ROOT=$(CURDIR)/target/rabbitmq43 cargo test -- --test-threads=8

deny: ## licences, duplicates and sources of all dependencies, by deny.toml; installs cargo-deny where it is missing
	@tests/support/setup deny
	target/deny/bin/cargo-deny --locked check licenses bans sources

advisories: ## known faults of dependencies (RustSec); needs github.com, and fails without
	@tests/support/setup deny
	target/deny/bin/cargo-deny --locked check advisories

soak: ## load and random faults for SOAK=600 seconds, then the accounting, as a table
	@tests/support/setup broker
	SOAK=$(SOAK) SOAK_SEED=$(SOAK_SEED) cargo test --test suite job::soak -- --ignored --nocapture

punctual: ## whether machines are up when a schedule with ready_by is due, in real time: on a machine that does nothing else
	@tests/support/setup broker clock
	cargo test --test suite operator::schedules::ready -- --ignored --nocapture

bench: ## jobs/s, CPU and memory beside the smallest consumer that could do the same; how exactly a lane keeps its rate; fleets; pauses; many lanes
	@tests/support/setup broker
	cargo bench --bench sign && cargo bench --bench throughput && cargo bench --bench rate && cargo bench --bench fleet && cargo bench --bench pause && cargo bench --bench breaker && cargo bench --bench lanes

build: ## release binaries: target/release/reveille and target/release/bcc-sim
	cargo build --release
