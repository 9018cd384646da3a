package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// id makes an id of a container.
func id(n int) string { return fmt.Sprintf("%064x", n) }

// A server is a runtime with pods and containers that the test makes.
type server struct {
	cri.UnimplementedRuntimeServiceServer
	events chan *cri.ContainerEventResponse // nil: it has none

	mu         sync.Mutex
	containers []*cri.Container
	pods       []*cri.PodSandbox
	asked      int
}

func (s *server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "cri-o"}, nil
}

func (s *server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	var found cri.ListContainersResponse
	for _, c := range s.containers {
		if of := r.Filter.GetId(); of == "" || of == c.Id {
			found.Containers = append(found.Containers, c)
		}
	}
	return &found, nil
}

func (s *server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found cri.ListPodSandboxResponse
	for _, p := range s.pods {
		if of := r.Filter.GetId(); of == "" || of == p.Id {
			found.Items = append(found.Items, p)
		}
	}
	return &found, nil
}

func (s *server) GetContainerEvents(_ *cri.GetEventsRequest, stream cri.RuntimeService_GetContainerEventsServer) error {
	if s.events == nil {
		return status.Error(codes.Unimplemented, "no events")
	}
	for {
		select {
		case e := <-s.events:
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// pod makes a pod with a container.
func (s *server) pod(pod int, container int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = append(s.pods, &cri.PodSandbox{Id: id(pod), Metadata: metadata(pod)})
	s.containers = append(s.containers, &cri.Container{
		Id: id(container), PodSandboxId: id(pod), Metadata: &cri.ContainerMetadata{Name: fmt.Sprint("c", container)}})
}

func metadata(pod int) *cri.PodSandboxMetadata {
	return &cri.PodSandboxMetadata{Name: fmt.Sprint("pod", pod), Namespace: "shop", Uid: fmt.Sprint("uid", pod)}
}

func name(pod, container int) Name {
	n := Name{Runtime: "cri-o", Pod: fmt.Sprint("pod", pod), Namespace: "shop", PodUID: fmt.Sprint("uid", pod)}
	if container > 0 {
		n.Container = fmt.Sprint("c", container)
	}
	return n
}

func listen(t *testing.T) (socket, net.Listener) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return socket{path}, listener
}

func (s *server) start(t *testing.T) *runtime {
	t.Helper()
	at, listener := listen(t)
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, s)
	go func() { _ = g.Serve(listener) }()
	t.Cleanup(g.Stop)
	return &runtime{client: newCRI(at), socket: at}
}

// begin opens Names of these runtimes.
func begin(t *testing.T, runtimes ...*runtime) *Names {
	t.Helper()
	n := open(runtimes)
	t.Cleanup(n.Close)
	return n
}

func (n *Names) wants(t *testing.T, container string, want Name) {
	t.Helper()
	// A busy machine can be slower than patience.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		got, ok := n.Of(container)
		if ok && got == want {
			return
		}
		if ok || time.Now().After(deadline) {
			t.Fatalf("%s is %+v (%v), want %+v", container, got, ok, want)
		}
	}
}

// TestCRI: a container and the one that holds its pod's network have their names; one
// that the runtime does not know has none.
func TestCRI(t *testing.T) {
	s := &server{}
	s.pod(1, 2)
	n := begin(t, s.start(t))
	n.wants(t, id(2), name(1, 2))
	n.wants(t, id(1), name(1, 0))
	s.pod(3, 4) // after it was listed
	n.wants(t, id(4), name(3, 4))
	if got, ok := n.Of(id(9)); ok {
		t.Errorf("a container that there is none of is %+v", got)
	}
}

// TestCRIGone: who watches knows the name of a container that is gone before anybody
// asks, and of one that was there and is gone.
func TestCRIGone(t *testing.T) {
	s := &server{events: make(chan *cri.ContainerEventResponse)}
	s.pod(1, 2)
	n := begin(t, s.start(t))
	s.events <- &cri.ContainerEventResponse{
		ContainerId:      id(6),
		PodSandboxStatus: &cri.PodSandboxStatus{Id: id(5), Metadata: metadata(5)},
		ContainersStatuses: []*cri.ContainerStatus{
			{Id: id(6), Metadata: &cri.ContainerMetadata{Name: "c6"}}},
	}
	s.events <- &cri.ContainerEventResponse{ContainerId: id(7)} // of a pod that is gone
	for !n.known.Contains(id(2)) || !n.known.Contains(id(6)) {  // nobody has asked: they are watched
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	s.pods, s.containers = nil, nil
	s.mu.Unlock()
	n.wants(t, id(2), name(1, 2))
	n.wants(t, id(6), name(5, 6))
	if got, ok := n.Of(id(7)); ok {
		t.Errorf("one that nothing is known of is %+v", got)
	}
}

// TestHang: a runtime that accepts and never answers costs one wait, however many
// containers there are, and takes no name from those of another.
func TestHang(t *testing.T) {
	at, listener := listen(t)
	go func() {
		var held []net.Conn
		for {
			c, err := listener.Accept()
			if err != nil {
				for _, c := range held {
					c.Close()
				}
				return
			}
			held = append(held, c)
		}
	}()
	s := &server{}
	s.pod(1, 2)
	n := begin(t, &runtime{client: newDocker(at), socket: at}, &runtime{client: newCRI(at), socket: at}, s.start(t))
	n.wants(t, id(2), name(1, 2))
	began := time.Now()
	for i := range 3 * maxQuestions {
		if got, ok := n.Of(id(100 + i)); ok {
			t.Fatalf("a container that there is none of is %+v", got)
		}
	}
	for range 1000 {
		n.Of(id(100))
	}
	// Each of these would take 200 ms: more than ten minutes in all.
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	for _, r := range n.runtimes {
		if len(r.questions) > maxQuestions {
			t.Errorf("%d questions wait", len(r.questions))
		}
	}
}

// TestNobody: where there is no runtime nothing is known, and that at once.
func TestNobody(t *testing.T) {
	at := socket{filepath.Join(t.TempDir(), "nothing")}
	n := begin(t, &runtime{client: newDocker(at), socket: at}, &runtime{client: newCRI(at), socket: at})
	if n.Any() {
		t.Error("there is a runtime")
	}
	for i := range 10 {
		if got, ok := n.Of(id(i)); ok {
			t.Errorf("a container is %+v", got)
		}
	}
}

// TestBounded: what is kept of containers that come and go is bounded.
func TestBounded(t *testing.T) {
	n := begin(t)
	for i := range 3 * maxNames {
		n.found(id(i), name(1, i))
	}
	if n.known.Len() != maxNames {
		t.Errorf("%d names are kept, want %d", n.known.Len(), maxNames)
	}
	n.wants(t, id(3*maxNames-1), name(1, 3*maxNames-1))
}

// TestDocker: of a container that runs, of one that is gone by now, and of one that
// cri-dockerd made for the kubelet.
func TestDocker(t *testing.T) {
	at, listener := listen(t)
	labels := `{"io.kubernetes.container.name":"b","io.kubernetes.pod.name":"api","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"u"}`
	mux := http.NewServeMux()
	mux.HandleFunc("/containers/json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `[{"Id":%q,"Names":["/other/alias","/listed"]},{"Id":"x","Names":[]}]`, id(1))
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("until") != "" { // what has been
			if strings.Contains(r.FormValue("filters"), id(6)) {
				fmt.Fprintf(w, `{"Actor":{"ID":%q,"Attributes":{"name":"recalled"}}}`, id(6))
			}
			return
		}
		fmt.Fprintf(w, `{"Type":"container","Action":"create","Actor":{"ID":%q,"Attributes":{"name":"gone"}}}`+"\n", id(2))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/containers/"+id(3)+"/json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"Id":%q,"Name":"/k8s_b_api_shop_u_0","Config":{"Labels":%s}}`, id(3), labels)
	})
	mux.HandleFunc("/containers/"+id(4)+"/json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"Id":%q,"Name":"/another"}`, id(5)) // it is another's
	})
	web := http.Server{Handler: mux}
	go func() { _ = web.Serve(listener) }()
	t.Cleanup(func() { web.Close() })
	r := &runtime{client: newDocker(at), socket: at}
	n := open([]*runtime{r})
	t.Cleanup(n.Close)
	for i, want := range map[int]Name{
		3: {Runtime: "docker", Container: "b", Pod: "api", Namespace: "shop", PodUID: "u"},
		6: {Runtime: "docker", Container: "recalled"},
	} {
		n.wants(t, id(i), want)
	}
	// What nobody can be asked about is known by the watch.
	watched := make(map[string]Name)
	ctx, cancel := context.WithCancel(t.Context())
	err := r.watch(ctx, func(id string, name Name) {
		if watched[id] = name; len(watched) == 2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended: %v", err)
	}
	for i, want := range map[int]string{1: "listed", 2: "gone"} {
		if got := watched[id(i)]; got != (Name{Runtime: "docker", Container: want}) {
			t.Errorf("%s is %+v", want, got)
		}
	}
	if got, ok := n.Of(id(4)); ok {
		t.Errorf("one is called %+v, which is another", got)
	}
}

// TestSockets: what the environment says goes before what is usual.
func TestSockets(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///d")
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix:///c")
	if got := dockerSocket(); len(got) != 1 || got[0] != "/d" {
		t.Errorf("docker: %q", got)
	}
	if got := criSockets(); len(got) != 1 || got[0][0] != "/c" {
		t.Errorf("CRI: %q", got)
	}
	t.Setenv("DOCKER_HOST", "tcp://10.0.0.1:2375") // another machine's containers are not ours
	if got := dockerSocket(); !strings.Contains(strings.Join(got, " "), "/run/docker.sock") {
		t.Errorf("docker: %q", got)
	}
}

// BenchmarkOf: the name of one of a thousand containers that is known.
func BenchmarkOf(b *testing.B) {
	n := open(nil)
	defer n.Close()
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = id(i)
		n.found(ids[i], name(1, i))
	}
	i := 0
	for b.Loop() {
		i++
		if _, ok := n.Of(ids[i%len(ids)]); !ok {
			b.Fatal("a name is not known")
		}
	}
}
