# Everything that a contributor types. `make` alone lists it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The broker is one static binary on every platform.
export CGO_ENABLED := 0

GOLANGCI_VERSION := v2.15.0
GOLANGCI := .bin/golangci-lint-$(GOLANGCI_VERSION)
BUF := go tool -modfile=tools.mod buf

# Where goroutines share state. The other rooms gain nothing from the race
# detector but its slowness.
RACE := $(addsuffix /...,$(wildcard ./client ./internal/broker ./internal/rotation ./internal/pacer \
	./internal/sqlstore ./internal/grpcapi ./internal/localkms))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/broker
	go build -trimpath -o bin/broker ./cmd/broker

.PHONY: demo
demo: build ## Change a tenant's key while writes go on, here and now (ARGS="--keys 2000")
	@exec bin/broker demo $(ARGS)

.PHONY: test
test: ## Vet, all tests, and the race detector where goroutines share state
	go vet ./...
	go test ./...
	@if command -v "$${CC:-gcc}" >/dev/null; then \
		echo "go test -race $(RACE)"; \
		CGO_ENABLED=1 go test -race $(RACE); \
	else \
		echo "!!! NO RACE DETECTOR: it needs a C compiler, and $${CC:-gcc} is not installed" >&2; \
		[ "$${CI:-}" != true ]; \
	fi

.PHONY: lint
lint: $(GOLANGCI) ## Lint and check the format of schema and Go, the import rules included
	$(BUF) lint
	$(BUF) format -d --exit-code proto
	$(GOLANGCI) run

.PHONY: fmt
fmt: $(GOLANGCI) ## Format schema and Go
	$(BUF) format -w proto
	$(GOLANGCI) fmt

.PHONY: generate
generate: ## Generate the Go of the API from proto/
	$(BUF) generate
	gofmt -l -w proto

.PHONY: bench
bench: ## Measure against the performance targets, at most 15 minutes (BENCH=full adds the long lines)
	go run ./test/bench $(ARGS)

.PHONY: clean
clean: ## Remove what was built, but not the pinned tools
	rm -rf bin

# The version is part of the file's name, so that raising it installs anew.
$(GOLANGCI):
	GOBIN=$(CURDIR)/.bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .bin/golangci-lint $@
