# make run    builds twtrace and starts the live tail, through sudo where needed
# make image  builds the container image twtrace, by Docker
# make test   installs what the tests need, and runs all of them
#
# Building needs Go and nothing else. The tests need a Debian machine and root.

GO   ?= go
# gRPC's pages for debugging execute templates: without them twtrace is a sixth
# smaller (TestUnusedMethods).
TAGS := grpcnotrace
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: build run image test deps check generate fresh reproducible host soak matrix loki vm benchmarks bench fuzz vulnerabilities sbom clean

build:
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -o twtrace ./cmd/twtrace

run: build
	$(SUDO) ./twtrace

VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || echo devel-$$(git rev-parse --short=12 HEAD))

image:
	DOCKER_BUILDKIT=1 docker build --build-arg VERSION=$(VERSION) -t twtrace .

test: deps check fresh reproducible host benchmarks vm

# What the tests need beyond Go: Debian packages, and kernels in a cache.
deps:
	.ci/deps
	.ci/vm/kernels

# What needs no kernel: style, and that every platform builds.
check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	clang-format-19 --dry-run -Werror bpf/*.[ch] vmlinux/vmlinux.h
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -tags $(TAGS) -o /dev/null ./cmd/twtrace

# The BPF objects and their Go bindings, by the clang that go:generate names.
generate:
	$(GO) generate ./...

# They are what the sources say.
fresh: generate
	git diff --exit-code -- internal/probe internal/lab

# A build of the last commit in another directory, from nothing, has the same bytes.
reproducible:
	@dir=$$(mktemp -d) && trap 'chmod -R u+w "$$dir"; rm -rf "$$dir"' EXIT && \
	git clone -q . "$$dir/first" && git clone -q . "$$dir/second" && \
	$(MAKE) -s -C "$$dir/first" build && \
	GOCACHE=$$dir/cache $(MAKE) -s -C "$$dir/second" build && \
	cmp "$$dir/first/twtrace" "$$dir/second/twtrace" && \
	sha256sum <"$$dir/first/twtrace"

# On this kernel. The tests make their own network namespaces. The race detector
# slows twtrace as much as an emulated processor: fewer connections there, and
# all of them, the verdicts, the report and a minute of the soak without it. One
# package at a time: each has enough to do for two processors.
host:
	TWTRACE_TEST_CONNECTIONS=1000 $(GO) test -race -count=1 -p 1 -timeout 20m -skip '^(TestVerdicts|TestReport$$|TestSoak$$)' $(if $(SUDO),-exec "$(SUDO) -E") ./...
	$(GO) test -count=1 -run '^(TestLoad|TestLoss|TestMeetings|TestStalledReader|TestVerdicts|TestVerdictsInNoise|TestReport|TestSoak)$$' $(if $(SUDO),-exec "$(SUDO) -E") ./cmd/twtrace

# Half an hour at 2,000 connections a second, with pods coming and going: what twtrace
# takes meanwhile, and what it tells of them.
soak:
	TWTRACE_TEST_SOAK=30m $(GO) test -count=1 -v -timeout 1h -run '^TestSoak$$' $(if $(SUDO),-exec "$(SUDO) -E") ./cmd/twtrace

# What the scenarios of the lab are told as, on this kernel: for docs/verdicts.md.
matrix:
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	TWTRACE_TEST_MATRIX=$$dir/matrix $(GO) test -count=1 -run '^TestVerdicts$$' $(if $(SUDO),-exec "$(SUDO) -E") ./cmd/twtrace && \
	cat "$$dir"/*

# Every fuzz target so often, or for so long as 1m, until one finds something. A run
# begins with what the last one has learned. Only twtrace's own code guides it: with
# all that is built in it is several times slower. No part of test, where the targets
# have their seeds.
FUZZTIME ?= 100000x
fuzz:
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	for package in $$($(GO) list -f '{{if .TestGoFiles}}{{.ImportPath}}{{end}}' ./...); do \
		$(GO) test -c -gcflags="$$($(GO) list -m)/...=-d=libfuzzer" -o "$$dir/test" "$$package" && \
		cd "$$($(GO) list -f '{{.Dir}}' "$$package")" && \
		targets=$$("$$dir/test" -test.list '^Fuzz') || exit; \
		for target in $$targets; do \
			echo "$$package $$target" && \
			"$$dir/test" -test.run '^$$' -test.fuzz "^$$target\$$" -test.fuzztime $(FUZZTIME) \
				-test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/$$package" || exit; \
		done; \
	done

# What tracing costs, beside other tracers: those that are not installed (Debian's
# bpftrace, libbpf-tools, conntrack, tcpdump) are left out.
bench: build
	$(SUDO) $(GO) run ./cmd/bench --twtrace ./twtrace

# Every benchmark once, so that none rots.
benchmarks:
	$(GO) test -run '^$$' -bench . -benchtime 1x ./...

# On a real Loki, which is built first, and kept: ten minutes. No part of test.
loki:
	loki=$$(.ci/loki/build) && \
	TWTRACE_LOKI=$$loki $(GO) test -count=1 -v -run '^TestLoki$$' $(if $(SUDO),-exec "$(SUDO) -E") ./cmd/twtrace

# On other kernels, with every tier, in virtual machines.
vm:
	.ci/vm/matrix

# Known vulnerabilities of what is built in, as far as the code reaches them. Where
# their database can't be read, nothing is known, and nothing fails.
vulnerabilities:
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	GOBIN=$$dir $(GO) install golang.org/x/vuln/cmd/govulncheck@v1.9.0 && \
	{ "$$dir/govulncheck" -tags $(TAGS) ./cmd/twtrace; status=$$?; } || :; \
	case $$status in \
	0 | 3) exit $$status ;; \
	*) echo "vulnerabilities: govulncheck could not look, so nothing is known of any" ;; \
	esac

# What is built in, with versions, hashes and licenses: CycloneDX, in twtrace.cdx.json.
sbom:
	$(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 \
		app -json -licenses -main cmd/twtrace -output twtrace.cdx.json .

clean:
	rm -f twtrace twtrace.cdx.json
