package names

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkKnown checks that whoever is known has a name, of valid text.
func (n *Names) checkKnown(t *testing.T) {
	t.Helper()
	for _, id := range n.known.Keys() {
		a, _ := n.known.Peek(id)
		if name := a.name; !a.ok || name.Container == "" && name.Pod == "" {
			t.Errorf("%q is %+v", id, name)
		}
		for _, text := range []string{a.name.Runtime, a.name.Container, a.name.Pod, a.name.Namespace, a.name.PodUID} {
			if !utf8.ValidString(text) {
				t.Errorf("%q is %+q", id, a.name)
			}
		}
	}
}

// saying is a runtime that says these bytes.
type saying struct {
	cri.RuntimeServiceClient
	grpc.ClientStream
	version, containers, pods []byte
	events                    [][]byte
}

// hear is what gRPC makes of them.
func hear[M proto.Message](b []byte, m M) (M, error) {
	if err := proto.Unmarshal(b, m); err != nil {
		return m, status.Error(codes.Internal, err.Error())
	}
	return m, nil
}

func (s *saying) Version(context.Context, *cri.VersionRequest, ...grpc.CallOption) (*cri.VersionResponse, error) {
	return hear(s.version, &cri.VersionResponse{})
}

func (s *saying) ListContainers(context.Context, *cri.ListContainersRequest, ...grpc.CallOption) (*cri.ListContainersResponse, error) {
	return hear(s.containers, &cri.ListContainersResponse{})
}

func (s *saying) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest, ...grpc.CallOption) (*cri.ListPodSandboxResponse, error) {
	return hear(s.pods, &cri.ListPodSandboxResponse{})
}

func (s *saying) GetContainerEvents(context.Context, *cri.GetEventsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[cri.ContainerEventResponse], error) {
	return s, nil
}

func (s *saying) Recv() (*cri.ContainerEventResponse, error) {
	if len(s.events) == 0 {
		return nil, io.EOF
	}
	event := s.events[0]
	s.events = s.events[1:]
	return hear(event, &cri.ContainerEventResponse{})
}

// FuzzCRI: whatever a runtime says, a container has a whole name, its own, or none.
func FuzzCRI(f *testing.F) {
	say := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	version := say(&cri.VersionResponse{RuntimeName: "cri-o"})
	for _, pod := range []*cri.PodSandboxMetadata{nil, {}, metadata(1)} {
		for _, container := range []*cri.ContainerMetadata{nil, {}, {Name: "c2"}} {
			f.Add(version,
				say(&cri.ListContainersResponse{Containers: []*cri.Container{{}, {Id: id(2), PodSandboxId: id(1), Metadata: container}}}),
				say(&cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{}, {Id: id(1), Metadata: pod}}}),
				say(&cri.ContainerEventResponse{
					PodSandboxStatus:   &cri.PodSandboxStatus{Id: id(3), Metadata: pod},
					ContainersStatuses: []*cri.ContainerStatus{{}, {Id: id(4), Metadata: container}}}))
		}
	}
	f.Fuzz(func(t *testing.T, version, containers, pods, event []byte) {
		s := &saying{version: version, containers: containers, pods: pods, events: [][]byte{event, event}}
		c := &criClient{service: s}
		name, ok, err := c.find(t.Context(), id(2))
		if ok && err != nil {
			t.Errorf("%+v, and yet %v", name, err)
		}
		if ok && !says(t, s, id(2), name) {
			t.Errorf("nobody says %+v", name)
		}
		n := open(nil)
		if err := c.watch(t.Context(), n.found); err == nil {
			t.Error("the watch has no end")
		}
		n.checkKnown(t)
	})
}

// says reports whether the runtime says so of a container, or of one that holds a pod's
// network.
func says(t *testing.T, s *saying, id string, name Name) bool {
	containers, err := hear(s.containers, &cri.ListContainersResponse{})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := hear(s.pods, &cri.ListPodSandboxResponse{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		m := pod.GetMetadata()
		if m.GetName() != name.Pod || m.GetNamespace() != name.Namespace || m.GetUid() != name.PodUID {
			continue
		}
		if pod.Id == id && name.Container == "" {
			return true
		}
		for _, c := range containers.Containers {
			if c.Id == id && c.PodSandboxId == pod.Id && c.GetMetadata().GetName() == name.Container {
				return true
			}
		}
	}
	return false
}

// answering is an engine that answers with these bytes.
type answering struct {
	container, list, past, events []byte
	gone                          bool // the container that is asked for
}

func (a *answering) RoundTrip(r *http.Request) (*http.Response, error) {
	body, code := a.container, http.StatusOK
	switch {
	case r.URL.Path == "/containers/json":
		body = a.list
	case r.URL.Path == "/events" && r.FormValue("until") != "":
		body = a.past
	case r.URL.Path == "/events":
		body = a.events
	case a.gone:
		code = http.StatusNotFound
	}
	return &http.Response{StatusCode: code, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// FuzzDocker: whatever the engine answers, a container has a whole name, its own, or
// none.
func FuzzDocker(f *testing.F) {
	labels := `{"io.kubernetes.container.name":"b","io.kubernetes.pod.name":"api","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"u"}`
	event := `{"Actor":{"ID":"` + id(1) + `","Attributes":{"name":"a"}}}`
	for _, name := range []string{"/web", "", "/", "/other/alias"} {
		for _, labels := range []string{labels, "{}", "null"} {
			f.Add([]byte(`{"Id":"`+id(1)+`","Name":"`+name+`","Config":{"Labels":`+labels+`}}`),
				[]byte(`[{},null,{"Id":"`+id(1)+`","Names":["`+name+`",""],"Labels":`+labels+`}]`),
				[]byte(event), []byte(event+"\n{}\n"+event), name == "")
		}
	}
	f.Fuzz(func(t *testing.T, container, list, past, events []byte, gone bool) {
		a := &answering{container, list, past, events, gone}
		d := &dockerClient{http.Client{Transport: a}}
		name, ok, err := d.find(t.Context(), id(1))
		if ok && err != nil {
			t.Errorf("%+v, and yet %v", name, err)
		}
		said := container
		if gone {
			said = past
		}
		if ok && !quotes(said, id(1)) {
			t.Errorf("%+v is of another: %q", name, said)
		}
		n := open(nil)
		if err := d.watch(t.Context(), n.found); err == nil {
			t.Error("the watch has no end")
		}
		n.checkKnown(t)
	})
}

// quotes reports whether the first JSON value of a text has this one in it.
func quotes(text []byte, value string) bool {
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		token, err := decoder.Token()
		if err != nil {
			return false
		}
		if s, ok := token.(string); ok && strings.EqualFold(s, value) {
			return true
		}
	}
}
