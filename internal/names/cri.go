package names

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criSockets are where runtimes that speak CRI listen: containerd's, that of k3s,
// and CRI-O's.
func criSockets() []socket {
	if s := fromEnv("CONTAINER_RUNTIME_ENDPOINT"); s != nil {
		return []socket{s}
	}
	return []socket{
		onHost("/run/containerd/containerd.sock"),
		onHost("/run/k3s/containerd/containerd.sock"),
		onHost("/run/crio/crio.sock"),
	}
}

// A criClient speaks the interface that runtimes have for the kubelet.
type criClient struct {
	service cri.RuntimeServiceClient
	runtime atomic.Pointer[string]
}

// maxAnswer bounds an answer, in bytes: that of the kubelet.
const maxAnswer = 16 << 20

func newCRI(s socket) *criClient {
	retry := backoff.DefaultConfig
	retry.MaxDelay = rest
	connection, err := grpc.NewClient("passthrough:///"+s[0],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: limit}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithAuthority("localhost"))
	if err != nil {
		panic(err) // these options are wrong
	}
	return &criClient{service: cri.NewRuntimeServiceClient(connection)}
}

func (c *criClient) find(ctx context.Context, id string) (Name, bool, error) {
	var name Name
	var ok bool
	err := c.list(ctx, id, func(found string, n Name) {
		if found == id {
			name, ok = n, true
		}
	})
	return name, ok, err
}

// list finds one container, or one that holds a pod's network; of "" all.
func (c *criClient) list(ctx context.Context, id string, found func(id string, name Name)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	runtime, err := c.name(ctx)
	if err != nil {
		return err
	}
	containers, err := c.service.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	pod := id
	if id != "" && len(containers.Containers) == 1 {
		pod = containers.Containers[0].PodSandboxId
	}
	sandboxes, err := c.service.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: pod}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	pods := make(map[string]*cri.PodSandboxMetadata)
	for _, s := range sandboxes.Items {
		pods[s.Id] = s.Metadata
		found(s.Id, nameOf(runtime, nil, s.Metadata))
	}
	for _, container := range containers.Containers {
		// One whose pod is not known is made at this moment: half a name is none.
		if m := pods[container.PodSandboxId]; m != nil {
			found(container.Id, nameOf(runtime, container.Metadata, m))
		}
	}
	return nil
}

// watch follows the events of containers, which came with CRI v1 of Kubernetes 1.26:
// containerd has them from 1.7, CRI-O where it is told so.
func (c *criClient) watch(ctx context.Context, found func(id string, name Name)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("watch containers: %w", err)
	}
	// After the events, so that none is missed between the two.
	if err := c.list(ctx, "", found); err != nil {
		return err
	}
	runtime, err := c.name(ctx)
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if status.Code(err) == codes.Unimplemented {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch containers: %w", err)
		}
		pod := e.GetPodSandboxStatus()
		if pod.GetMetadata() == nil {
			continue
		}
		found(pod.Id, nameOf(runtime, nil, pod.Metadata))
		for _, container := range e.ContainersStatuses {
			found(container.Id, nameOf(runtime, container.Metadata, pod.Metadata))
		}
	}
}

// name is the runtime's own.
func (c *criClient) name(ctx context.Context) (string, error) {
	if name := c.runtime.Load(); name != nil {
		return *name, nil
	}
	version, err := c.service.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return "", fmt.Errorf("ask for the runtime's name: %w", err)
	}
	c.runtime.Store(&version.RuntimeName)
	return version.RuntimeName, nil
}

func nameOf(runtime string, container *cri.ContainerMetadata, pod *cri.PodSandboxMetadata) Name {
	return Name{Runtime: runtime, Container: container.GetName(), Pod: pod.GetName(), Namespace: pod.GetNamespace(), PodUID: pod.GetUid()}
}
