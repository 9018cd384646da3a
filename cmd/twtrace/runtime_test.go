package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// busybox is static, and all that the containers of the tests hold.
const busybox = "/bin/busybox"

// needPrograms skips the test where one is not installed. The VMs have none.
func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("a container runtime takes its time, and the VMs have none")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, "%v: .ci/deps installs it", err)
		}
	}
}

// layer is a tar archive of a root directory with busybox.
func layer(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"} {
		writeTar(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	writeTar(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func writeTar(t *testing.T, w *tar.Writer, header *tar.Header, content []byte) {
	t.Helper()
	header.Size = int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
}

// startDaemon starts a daemon that ends with the test, and waits until it is ready. It
// has a network namespace of its own for the host's.
func startDaemon(t *testing.T, ready func() error, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := newNetNS(t).do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s: %s", program, tailOf(output.Bytes()))
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v: %s", program, err, tailOf(output.Bytes()))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not get ready: %v", program, err)
		}
	}
}

// tailOf is the end of a daemon's log.
func tailOf(output []byte) []byte { return output[max(0, len(output)-4000):] }

// TestDocker: two containers that share a network namespace with one port, as those of
// a pod do. A connects, closes first, and is removed; B finds no port. Both are gone
// before anything of it is read, and each line has its container's name.
func TestDocker(t *testing.T) {
	needRoot(t)
	needPrograms(t, "dockerd", "docker", busybox)
	dir := t.TempDir()
	host := "unix://" + filepath.Join(dir, "docker.sock")
	t.Setenv("DOCKER_HOST", host)
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix://"+filepath.Join(dir, "none"))
	docker := func(stdin []byte, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // in cleanups, too
		defer cancel()
		cmd := exec.CommandContext(ctx, "docker", args...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("docker: %v: %s", err, out)
		}
		return out
	}
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, func() error { _, err := docker(nil, "version"); return err }, "dockerd",
		"--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "-H", host, "--bridge", "none", "--iptables=false", "--ip6tables=false",
		"--ip-forward=false", "--ip-masq=false", "--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--oom-score-adjust", "0") // less needs CAP_SYS_RESOURCE
	must(docker(layer(t), "import", "-", "busybox"))

	tr := trace(t, "-o", "json")
	server := must(docker(nil, "run", "-d", "--rm", "--name", "web", "--network", "none",
		"--sysctl", "net.ipv4.ip_local_port_range=32768 32768", "--sysctl", "net.ipv4.tcp_tw_reuse=0",
		"busybox", "/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:80"))
	t.Cleanup(func() { _, _ = docker(nil, "kill", "web") })
	tr.await("the server listens", func(l line) bool { return l.State.New == "LISTEN" && l.Container.ID == server })
	tr.signal(unix.SIGSTOP)
	// The end of its input is the end of the connection: it closes first.
	client := []string{"busybox", "/bin/busybox", "nc", "127.0.0.1", "80"}
	outA, errA := docker(nil, append([]string{"run", "-i", "--rm", "--name", "api-a", "--network", "container:web"}, client...)...)
	outB, errB := docker(nil, append([]string{"run", "-i", "--rm", "--name", "api-b", "--network", "container:web"}, client...)...)
	tr.signal(unix.SIGCONT)
	if errA != nil || errB == nil {
		t.Errorf("a: %v: %s, b: %v: %s; want a to connect, and b not", errA, outA, errB, outB)
	}
	lines := tr.stop()
	var netns string // the cookie: inodes are used again
	for _, l := range lines {
		if l.Container.ID == server {
			netns = l.NetNSCookie
		}
	}
	want := map[string]string{"connect established": "api-a", "connect no_local_port EADDRNOTAVAIL": "api-b", "accept": "web"}
	for _, l := range of(lines, "connect", "accept") {
		if l.NetNSCookie != netns {
			continue
		}
		what := l.String()
		if l.Container.Runtime != "docker" || l.Container.Name == "" || l.Container.Name != want[what] {
			t.Errorf("%s is of %+v", what, l.Container)
		}
		delete(want, what)
		if l.Connect.Outcome == "no_local_port" && l.Ports.Holder.Container.Name != "api-a" {
			t.Errorf("the port is held by %+v", l.Ports.Holder.place)
		}
	}
	if len(want) > 0 {
		t.Errorf("no line of %v", want)
	}
	for _, l := range lines {
		if l.NetNSCookie == netns && l.Process.PID != 0 && !slices.Contains([]string{"api-a", "api-b", "web"}, l.Container.Name) {
			t.Errorf("%s of process %+v is of %+v", l, l.Process, l.place)
		}
	}
}

// A kubelet makes pods and containers as the kubelet does.
type kubelet struct {
	t       *testing.T
	runtime cri.RuntimeServiceClient
	sandbox *cri.PodSandboxConfig
	pod     string
}

// startContainerd starts containerd with its CRI, and what it takes where there is no
// CAP_SYS_RESOURCE and no registry. It returns where it listens.
func startContainerd(t *testing.T) (socket string, runtime cri.RuntimeServiceClient) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "containerd.sock")
	config := filepath.Join(dir, "config.toml")
	err := os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "%[2]s"
[ttrpc]
  address = "%[1]s/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/busybox:test"
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`, dir, socket), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	network := fmt.Appendf(nil, `{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"10.99.0.0/24","dataDir":"%s/ipam"}}]}`, dir)
	if err := os.WriteFile(filepath.Join(dir, "cni", "10-pods.conflist"), network, 0o600); err != nil {
		t.Fatal(err)
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	runtime = cri.NewRuntimeServiceClient(connection)
	startDaemon(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		status, err := runtime.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, condition := range status.Status.Conditions {
			if !condition.Status {
				return fmt.Errorf("%s: %s", condition.Type, condition.Message)
			}
		}
		return nil
	}, "containerd", "--config", config)

	archive := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(archive, image(t), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", archive).CombinedOutput()
	if err != nil {
		t.Fatalf("import an image: %v: %s", err, out)
	}
	return socket, runtime
}

// image is an archive as docker save makes it, of an image that does nothing for ever.
func image(t *testing.T) []byte {
	t.Helper()
	root := layer(t)
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Cmd":["/bin/busybox","sleep","1000000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		goruntime.GOARCH, sha256.Sum256(root))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range map[string][]byte{
		"layer.tar": root, "config.json": config,
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["localhost/busybox:test"],"Layers":["layer.tar"]}]`),
	} {
		writeTar(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// runPod runs a pod without containers, whose loopback has one local port.
func runPod(t *testing.T, runtime cri.RuntimeServiceClient) *kubelet {
	t.Helper()
	k := &kubelet{t: t, runtime: runtime, sandbox: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "api-x", Uid: podUID, Namespace: "shop"},
		LogDirectory: t.TempDir(),
		Labels: map[string]string{
			"io.kubernetes.pod.name": "api-x", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": podUID,
		},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/pod" + podUID,
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "32768 32768", "net.ipv4.tcp_tw_reuse": "0"},
		},
	}}
	newCgroup(t, k.sandbox.Linux.CgroupParent) // so that it goes with the test
	response, err := runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: k.sandbox})
	if err != nil {
		t.Fatal(err)
	}
	k.pod = response.PodSandboxId
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: k.pod})
		if err == nil {
			_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: k.pod})
		}
		if err != nil {
			t.Error(err)
		}
	})
	return k
}

// start starts a container.
func (k *kubelet) start(name string, command ...string) (id string) {
	k.t.Helper()
	created, err := k.runtime.CreateContainer(k.t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: k.pod, SandboxConfig: k.sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: "localhost/busybox:test"},
			Command:  append([]string{"/bin/busybox"}, command...),
			Labels: map[string]string{
				"io.kubernetes.container.name": name, "io.kubernetes.pod.name": "api-x",
				"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": podUID,
			},
			LogPath: name + ".log",
			Linux:   &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.t.Context(), &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		k.t.Fatal(err)
	}
	return created.ContainerId
}

// exit waits for a container to exit, and returns its status.
func (k *kubelet) exit(id string) int32 {
	k.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		response, err := k.runtime.ContainerStatus(k.t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			k.t.Fatal(err)
		}
		if response.Status.State == cri.ContainerState_CONTAINER_EXITED {
			return response.Status.ExitCode
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("container %s does not exit", id)
		}
	}
}

// TestContainerd: two containers of one pod, made as the kubelet makes them. A
// connects, closes first and exits, with its control group; B finds no port. Each
// line has its container's and the pod's name, though nothing is read before both are
// gone; and the pod can be filtered by.
func TestContainerd(t *testing.T) {
	needRoot(t)
	needPrograms(t, "containerd", "ctr", "runc", "/usr/lib/cni/loopback", busybox)
	socket, runtime := startContainerd(t)
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix://"+socket)
	t.Setenv("DOCKER_HOST", "unix://"+socket+".none")
	all := trace(t, "-o", "json")
	filtered := trace(t, "-o", "json", "--pod", "shop/api-x", "--container", "b")
	elsewhere := trace(t, "-o", "json", "--namespace", "other")
	k := runPod(t, runtime)
	server := k.start("web", "httpd", "-f", "-p", "127.0.0.1:80")
	all.await("the server listens", func(l line) bool { return l.State.New == "LISTEN" && l.Container.ID == server })
	all.signal(unix.SIGSTOP)
	// It has no input: it closes first.
	a := k.start("a", "nc", "127.0.0.1", "80")
	statusA := k.exit(a)
	b := k.start("b", "nc", "127.0.0.1", "80")
	statusB := k.exit(b)
	all.signal(unix.SIGCONT)
	if statusA != 0 || statusB == 0 {
		t.Errorf("a exited with %d, b with %d; want a to connect, and b not", statusA, statusB)
	}

	var got []string
	var netns string // the cookie: inodes are used again
	lines := all.stop()
	for _, l := range lines {
		if l.Container.ID == a {
			netns = l.NetNSCookie
		}
	}
	names := map[string]string{server: "web", a: "a", b: "b"}
	for _, l := range lines {
		if l.NetNSCookie != netns || l.Process.PID == 0 {
			continue
		}
		checkPlace(t, l.String(), l.place, names)
		if l.Event == "connect" || l.Event == "accept" {
			got = append(got, l.Container.Name+": "+l.String())
		}
		if l.Connect.Outcome == "no_local_port" {
			checkPlace(t, "the holder of the port", l.Ports.Holder.place, map[string]string{a: "a"})
		}
	}
	slices.Sort(got)
	if want := []string{"a: connect established", "b: connect no_local_port EADDRNOTAVAIL", "web: accept"}; !slices.Equal(got, want) {
		t.Errorf("lines: %q, want %q", got, want)
	}

	connects := 0
	for _, l := range filtered.stop() {
		if l.Process.PID == 0 {
			continue
		}
		checkPlace(t, "filtered: "+l.String(), l.place, map[string]string{b: "b"})
		if l.Event == "connect" {
			connects++
		}
	}
	if connects != 1 {
		t.Errorf("filtered: %d connects of b, want 1", connects)
	}
	for _, l := range elsewhere.stop() {
		if l.Process.PID != 0 {
			t.Errorf("another namespace: %s of %+v", l, l.place)
		}
	}
}

// checkPlace checks that an owner is in one of these containers of the pod.
func checkPlace(t *testing.T, what string, p place, names map[string]string) {
	t.Helper()
	name, ok := names[p.Container.ID]
	if !ok || p.Container.Name != name || p.Container.Runtime != "containerd" || p.K8s.Container.Name != name ||
		p.K8s.Pod.Name != "api-x" || p.K8s.Pod.UID != podUID || p.K8s.Namespace.Name != "shop" {
		t.Errorf("%s is in %+v, want one of %v", what, p, names)
	}
}
