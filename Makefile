# `make` prints this help.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
BIN     := bin/rebake
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT    := .cache/bin/golangci-lint
LINT_VERSION := v2.5.0
# Where Debian keeps haproxy and mke2fs, and a plain user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## print this help
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing (apt, with sudo where not root), naming it first
	@test/setup.sh

.PHONY: build
build: ## build bin/rebake
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/rebake

$(LINT):
	@mkdir -p .cache/bin
	GOBIN=$(CURDIR)/.cache/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

.PHONY: lint
lint: $(LINT) ## style and layer rules
	@$(LINT) run ./...

.PHONY: check
check: setup lint ## the fast loop: lint, unit tests, scripts; no VM, no root
	@$(GO) run ./test/noskip -- $(GO) test -json ./...

# What speaks to AWS mostly waits: it runs beside the guests of E2E.
AWS := ./artifact/ami ./builder/amazon ./fleet/asg ./fleet/alb ./fleet/s3 ./test/awsfleet ./test/aws ./test/awsfake
E2E := ./test/e2e/... ./fleet/qemu/... ./internal/qemu/...
AWSPATH = PATH="$$PATH:$(CURDIR)/.cache/moto/bin:$(CURDIR)/.cache/bin"

.PHONY: test
test: setup lint setup-aws ## check, and everything on real parts: QEMU, HAProxy, Debian guests, moto, versitygw
	@$(GO) run ./test/noskip -- $(GO) test -json $$($(GO) list ./... | grep -vxF "$$($(GO) list -tags e2e $(AWS))")
	@$(AWSPATH) $(GO) run ./test/noskip -- $(GO) test -json -tags e2e -p 2 -timeout 25m $(E2E) $(AWS)

.PHONY: setup-aws
setup-aws:
	@test/setup-aws.sh

.PHONY: e2e-aws
e2e-aws: setup setup-aws ## what speaks to AWS, against moto's server, versitygw and rebake's own fake (installs them)
	@$(AWSPATH) $(GO) run ./test/noskip -- $(GO) test -json -tags e2e -timeout 10m $(AWS)

.PHONY: scale-aws
scale-aws: ## the API calls of a swap of 1,000 instances in three zones, counted on our own imitation of AWS
	@REBAKE_SCALE=1000 $(GO) test -tags e2e ./test/awsfleet -run TestCallsOfASwap -count=1 -v -timeout 5m

.PHONY: setup-vagrant
setup-vagrant: ## install what e2e-vagrant alone needs: vagrant, its libvirt provider, libvirt
	@test/setup-vagrant.sh

.PHONY: e2e-vagrant
e2e-vagrant: setup setup-vagrant ## boxes in Debian's own vagrant, and up under libvirt; ten minutes and more
	@$(GO) run ./test/noskip -- $(GO) test -json -tags vagrant -timeout 60m ./test/vagrant

.PHONY: race
race: $(LINT) ## unit tests under the race detector
	@$(GO) test -race ./...

.PHONY: demo
demo: setup build ## the main job on this machine: bake, run a fleet, swap under load, refuse a broken image
	@$(GO) run ./test/demo -rebake $(BIN)

.PHONY: soak
soak: ## a million operations of the deployment simulator; minutes
	@$(GO) test ./fleet -run TestSimulator -v -timeout 60m -runs 250000

.PHONY: soak-swap
soak-swap: setup ## 50 swaps and 10 rollbacks behind a real HAProxy under half a million requests; minutes
	@$(GO) run ./test/soakswap

.PHONY: mutants
mutants: ## break the deployment engine in every way of a list and see the tests notice; minutes
	@$(GO) run ./test/mutants

.PHONY: crash-matrix
crash-matrix: setup ## kill deployments at every point and write docs/crash-matrix.md; twenty minutes
	@REBAKE_CRASH_MATRIX=all $(GO) test -tags e2e ./test/e2e -run TestCrashMatrix -v -timeout 60m

.PHONY: bench
bench: setup build ## measure rebake against Debian's packer (installs it) and write docs/benchmarks.md; an hour
	@test/setup-bench.sh
	@$(GO) run ./test/bench -rebake $(BIN)
	@$(MAKE) --no-print-directory scale-aws

.PHONY: cross
cross: ## build for every supported system
	@for t in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do \
	  echo $$t; GOOS=$${t%/*} GOARCH=$${t#*/} CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/rebake; done

.PHONY: fuzz
fuzz: ## each fuzzer for 20 seconds
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -h '^func Fuzz' $$p/*_test.go | sed 's/func \(Fuzz[A-Za-z0-9]*\).*/\1/'); do \
	    $(GO) test $$p -run '^$$' -fuzz "^$$f\$$" -fuzztime 20s; done; done

.PHONY: clean
clean: ## remove what the build made (caches of bases too)
	@rm -rf bin .cache
