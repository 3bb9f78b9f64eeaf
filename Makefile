# make test     everything a change must pass; the same as .ci/run
# make build    bin/bailment
# make crash    the long fault runs            make fuzz    every fuzz target, FUZZTIME each
# make demo-tpm a machine with nothing but its TPM, from its first boot to its quarantine and back
# make bench    the benchmarks                 make generate    api/ from its .proto files, docs/reference from the binary
# make fmt      format in place                make clean
# make release  dist/VERSION, signed with RELEASE_KEY    make release-check    built twice, compared, verified

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Two test binaries at a time: the race detector needs memory, and timing tests need a core.
JOBS     ?= 2
FUZZTIME ?= 1m
BENCH    ?= .
ROUNDS   ?= 200

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/bailment/bailment/internal/cli.version=$(VERSION)

# Linters and generators live in a module of their own, so that the product's graph stays short.
TOOL := go tool -modfile=tools/go.mod
# What people wrote: generated code is nobody's style.
OURS  = $$(go list ./... | grep -v /bailment/api/)

.PHONY: demo-tpm test check deps lint format vet staticcheck architecture workflows race build release release-check crash fuzz bench generate fmt clean

test: deps lint race
check: test

deps:
	@scripts/deps test

# From the quickest to the slowest, so that what fails fails soon.
lint: format vet staticcheck architecture workflows

format:
	@echo "== format (gofumpt)"
	@out=$$(git ls-files -co --exclude-standard -- '*.go' | grep -v '^api/' | xargs $(TOOL) gofumpt -l); \
	  if [ -n "$$out" ]; then echo "not formatted, run make fmt:"; echo "$$out"; exit 1; fi

vet:
	@echo "== go vet"
	@go vet ./...

staticcheck:
	@echo "== staticcheck"
	@$(TOOL) staticcheck $(OURS)

architecture:
	@echo "== architecture"
	@out=$$(go test -count=1 ./internal/archtest 2>&1) || { echo "$$out"; exit 1; }

workflows:
	@echo "== actionlint"
	@$(TOOL) actionlint -shellcheck= -pyflakes= integrations/github/example.yml

race:
	@echo "== go test -race"
	@JOBS=$(JOBS) scripts/race

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/bailment ./cmd/bailment

# VERSION as typed, or none: then the commit's tag counts.
TYPED := $(if $(findstring command,$(origin VERSION)),$(VERSION))

release:
	@VERSION='$(TYPED)' scripts/release

release-check:
	@VERSION='$(TYPED)' scripts/release-check

crash: deps
	BAILMENT_CRASH_ROUNDS=$(ROUNDS) go test -count=1 -p 1 -timeout 2h -v ./test/faults/...

fuzz:
	@FUZZTIME=$(FUZZTIME) scripts/fuzz

demo-tpm: build
	@scripts/deps demo
	@scripts/demo-tpm bin/bailment

bench: build
	go run ./test/bench -bin bin/bailment
	go test -run '^$$' -bench '$(BENCH)' -benchmem -p 1 -timeout 1h $(OURS)

generate:
	@scripts/deps generate
	@scripts/generate
	go run ./cmd/bailment gen docs docs/reference/cli
	go run ./cmd/bailment config reference > docs/reference/server-config.md
	go run ./cmd/bailment bundle reference > docs/reference/bundle.md

fmt:
	@git ls-files -co --exclude-standard -- '*.go' | grep -v '^api/' | xargs $(TOOL) gofumpt -w

clean:
	rm -rf bin dist coverage.out
