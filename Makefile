# Everything that a contributor types. `make` alone lists it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The broker is one static binary on every platform.
export CGO_ENABLED := 0

GOLANGCI_VERSION := v2.15.0
GOLANGCI := .bin/golangci-lint-$(GOLANGCI_VERSION)
HELM_VERSION := v4.3.1
HELM := .bin/helm-$(HELM_VERSION)
CRANE_VERSION := v0.22.1
CRANE := .bin/crane-$(CRANE_VERSION)
KUBECTL_VALIDATE_VERSION := v0.0.4
KUBECTL_VALIDATE := .bin/kubectl-validate-$(KUBECTL_VALIDATE_VERSION)
BUF := go tool -modfile=tools.mod buf

# Where goroutines share state. The other rooms gain nothing from the race
# detector but its slowness. It gets all tests of theirs, two of them with fewer
# rounds (-short): the full numbers have been run by then, and another round
# meets no goroutine that 500 have not met. SQLite, which is C translated to Go,
# is left uninstrumented: it is not ours, and made the tests three times slower.
RACEFLAGS := -race -short '-gcflags=modernc.org/...=-race=false'
RACE := $(addsuffix /...,$(wildcard ./client ./internal/broker ./internal/rotation ./internal/pacer \
	./internal/sqlstore ./internal/grpcapi ./internal/localkms))

# On a cold machine of two cores a package takes longer than Go's own ten minutes.
# CI takes nothing from Go's cache of test results, which does not see what the
# processes of a test read.
TESTFLAGS := -timeout 30m $(if $(filter true,$(CI)),-count=1)

# Cases of the model on PostgreSQL, which takes four times as long for each as
# SQLite, where 30 are walked.
POSTGRES_CHECKS ?= 8

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/broker
	@[ -e bin/broker ] || echo "the first build compiles every dependency, which takes minutes"
	go build -trimpath -o bin/broker ./cmd/broker

.PHONY: demo
demo: build ## Change a tenant's key while writes go on, here and now (ARGS="--keys 2000")
	@exec bin/broker demo $(ARGS)

.PHONY: test
test: ## Vet, all tests, scenarios and model on PostgreSQL too, and the race detector
	go vet ./...
	go test $(TESTFLAGS) $$(go list ./... | grep -Ev '/test/(clients|bugs)$$')
	@# That each seeded bug still fits takes a moment; whether it is caught, make bugs.
	go test $(TESTFLAGS) -run '^TestEvery' ./test/bugs
	@# Clients that are too old for something say so in their log, which -v shows.
	go test -v $(TESTFLAGS) ./test/clients | grep -v '^=== '
	@if [ -n "$${KEYBROKER_TEST_POSTGRES_URL:-}" ] || command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then \
		echo "KEYBROKER_TEST_ENGINE=postgres go test $(TESTFLAGS) ./test/scenarios ./test/badinput ./test/model -rapid.checks=$(POSTGRES_CHECKS)"; \
		KEYBROKER_TEST_ENGINE=postgres go test $(TESTFLAGS) ./test/scenarios ./test/badinput && \
		KEYBROKER_TEST_ENGINE=postgres go test $(TESTFLAGS) ./test/model -rapid.checks=$(POSTGRES_CHECKS); \
	else \
		echo "!!! NOT TESTED ON POSTGRESQL: it is not installed (Debian: postgresql-15)" >&2; \
		[ "$${CI:-}" != true ]; \
	fi
	@if command -v "$${CC:-gcc}" >/dev/null; then \
		echo "go test" $(RACEFLAGS) $(TESTFLAGS) $(RACE); \
		CGO_ENABLED=1 go test $(RACEFLAGS) $(TESTFLAGS) $(RACE); \
	else \
		echo "!!! NO RACE DETECTOR: it needs a C compiler, and $${CC:-gcc} is not installed" >&2; \
		[ "$${CI:-}" != true ]; \
	fi
	@for tool in jq aws; do command -v $$tool >/dev/null || \
		echo "!!! THE README'S TOUR WAS NOT TESTED: it needs $$tool, which is not installed" >&2; done
	@python3 -c 'import botocore' 2>/dev/null || /usr/bin/python3 -c 'import botocore' 2>/dev/null || \
		echo "!!! LOCALKMS WAS NOT CHECKED AGAINST BOTOCORE'S MODEL: it needs botocore, which is not installed" >&2

# Two KMS keys and three roles of yours: docs/aws.md. Never run by CI.
.PHONY: test-aws
test-aws: ## The KMS suite and the demo on AWS: half an hour, fewer than 2,000 KMS calls (KEYBROKER_TEST_AWS=1)
	@[ "$${KEYBROKER_TEST_AWS:-}" = 1 ] || { echo "make test-aws calls AWS KMS with your credentials: set KEYBROKER_TEST_AWS=1, and what docs/aws.md names" >&2; exit 1; }
	go test ./test/aws -count=1 -timeout 2h -v -run '^TestAWS$$'

# It compiles the product once for each bug, so it is not part of make test.
.PHONY: bugs
bugs: ## Put each seeded bug in and see that the suites catch it
	go test -v $(TESTFLAGS) ./test/bugs | grep -v '^=== '

.PHONY: lint
lint: $(GOLANGCI) ## Lint and check the format of schema and Go, the import rules included
	$(BUF) lint
	$(BUF) format -d --exit-code proto
	$(GOLANGCI) run --allow-serial-runners

.PHONY: fmt
fmt: $(GOLANGCI) ## Format schema and Go
	$(BUF) format -w proto
	$(GOLANGCI) fmt

.PHONY: generate
generate: ## Generate the Go of the API from proto/
	$(BUF) generate
	gofmt -l -w proto

# Go fuzzes one target at a time. What it finds becomes a seed in testdata/fuzz.
FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## Search for inputs that break what parses (FUZZTIME=30s for each target)
	@targets=$$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' client cmd internal proto test | sort) || \
		{ echo "found no fuzz target" >&2; exit 1; }; \
	while IFS=: read -r file target; do \
		target=$${target#func }; echo "$$(dirname "$$file") $$target"; \
		go test "./$$(dirname "$$file")" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) </dev/null; \
	done <<<"$$targets"

.PHONY: bench
bench: ## Measure against the performance targets, at most 15 minutes (BENCH=full adds the long lines)
	go run ./test/bench $(ARGS)

# Each part ends in a line of JSON for each engine. 500 cycles on SQLite take about an hour: half
# of them strike at random, half at the points between an act at KMS and its
# commit. 100 on PostgreSQL take about a quarter of an hour, 10 key changes of a
# service that keeps its own wrapped keys some five minutes.
CYCLES ?= 500
PG_CYCLES ?= 100
PASS_ROUNDS ?= 10
.PHONY: chaos
chaos: ## Strike CYCLES=500 times on SQLite and PG_CYCLES=100 times on PostgreSQL with three replicas, while keys change
	go test ./test/chaos -timeout=0 -v -run 'TestKeyChangesSurviveTheNemesis$$' -chaos.cycles=$(CYCLES) -chaos.nemesis=mix
	go test ./test/chaos -timeout=0 -v -run 'TestReplicasSurviveTheNemesis$$' -chaos.pgcycles=$(PG_CYCLES)
	go test ./test/chaos -timeout=0 -v -run 'TestPassesSurviveTheNemesis$$' -chaos.passrounds=$(PASS_ROUNDS)

IMAGE ?= keybroker:dev
.PHONY: image
image: build $(CRANE) ## Pack bin/broker as an image from scratch into bin/image.tar (IMAGE=name:tag)
	CRANE=$(CRANE) deploy/image.sh $(IMAGE) bin/image.tar

.PHONY: chart
chart: build $(HELM) $(KUBECTL_VALIDATE) ## Check the Helm chart without a cluster
	HELM=$(HELM) KUBECTL_VALIDATE=$(KUBECTL_VALIDATE) deploy/helm/check.sh

# A namespace of a cluster of yours: docs/testing.md. Never run by CI.
.PHONY: cluster-test
cluster-test: $(HELM) ## Install the chart in kubectl's cluster, change a key there, uninstall it (KEYBROKER_TEST_CLUSTER=1)
	@[ "$${KEYBROKER_TEST_CLUSTER:-}" = 1 ] || { echo "make cluster-test installs the chart in the cluster of kubectl's context: set KEYBROKER_TEST_CLUSTER=1, and ARGS as docs/testing.md says" >&2; exit 1; }
	go run ./test/cluster -helm $(HELM) $(ARGS)

.PHONY: clean
clean: ## Remove what was built, but not the pinned tools
	rm -rf bin

# The version is part of the file's name, so that raising it installs anew.
$(GOLANGCI): PACKAGE := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
$(HELM): PACKAGE := helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
$(CRANE): PACKAGE := github.com/google/go-containerregistry/cmd/crane@$(CRANE_VERSION)
$(KUBECTL_VALIDATE): PACKAGE := sigs.k8s.io/kubectl-validate@$(KUBECTL_VALIDATE_VERSION)
$(GOLANGCI) $(HELM) $(CRANE) $(KUBECTL_VALIDATE):
	env -u GOOS -u GOARCH GOBIN=$(CURDIR)/.bin go install $(PACKAGE) # for this machine, whatever is built
	mv .bin/$(notdir $(firstword $(subst @, ,$(PACKAGE)))) $@
