# twtrace in a container: one static binary and nothing else.
#
#   docker build -t twtrace .
#   docker run --rm -it --privileged --pid=host --cgroupns=host twtrace
#
# Both architectures, from either: docker buildx build --platform linux/amd64,linux/arm64 .
# The BPF objects are in the repository: no clang, here or on the node.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION
WORKDIR /src
RUN --mount=target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -tags grpcnotrace -trimpath -ldflags "-s -w -X main.release=$VERSION" -o /twtrace ./cmd/twtrace

FROM scratch
ARG VERSION
LABEL org.opencontainers.image.title="twtrace" \
      org.opencontainers.image.description="Traces TCP state changes, connects and TIME_WAITs by eBPF, and tells why a connect failed" \
      org.opencontainers.image.source="https://github.com/twtrace/twtrace" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /twtrace /twtrace
# No USER: a container runtime gives capabilities to root alone. Another user has
# none in its effective set, whatever the pod asks for, and can load no program.
ENTRYPOINT ["/twtrace"]
