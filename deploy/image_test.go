package deploy_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// maxImage is what an image may take, in bytes, unpacked.
const maxImage = 30e6

// TestImage builds the image from the Dockerfile as it stands, for both
// architectures, and traces containers from it.
//
// No registry is asked: an image of the same name, made of this machine's Go,
// stands in for the one that the Dockerfile begins with. docs/image.md has it as
// commands.
func TestImage(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds twtrace twice, without a cache")
	}
	if os.Geteuid() != 0 {
		t.Skip("a Docker engine of its own needs root")
	}
	for _, program := range []string{"dockerd", "runc", "curl", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: .ci/deps does that", program)
		}
	}
	d := startDocker(t)
	d.importGo(t)
	d.importCurl(t)
	for _, arch := range []string{"amd64", "arm64"} {
		d.docker(t, "build", "--quiet", "--network=none", "--platform=linux/"+arch, "--build-arg=VERSION=v0.0.0-test", "--tag=twtrace:"+arch, "..")
	}
	rootfs := make(map[string]string)
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		var images []struct {
			Size         int64
			Architecture string
			Config       struct {
				Entrypoint []string
				Labels     map[string]string
			}
		}
		if err := json.Unmarshal(d.docker(t, "image", "inspect", "twtrace:"+arch), &images); err != nil {
			t.Fatal(err)
		}
		image := images[0]
		t.Logf("%s: %.1f MB", arch, float64(image.Size)/1e6)
		if image.Size > maxImage || image.Architecture != arch || !slices.Equal(image.Config.Entrypoint, []string{"/twtrace"}) {
			t.Errorf("%+v", image)
		}
		if version := image.Config.Labels["org.opencontainers.image.version"]; version != "v0.0.0-test" {
			t.Errorf("version %q", version)
		}
		rootfs[arch] = d.export(t, "twtrace:"+arch)
		files, err := filepath.Glob(rootfs[arch] + "/*")
		if err != nil {
			t.Fatal(err)
		}
		// Docker makes the others.
		files = slices.DeleteFunc(files, func(path string) bool {
			return slices.Contains([]string{"dev", "etc", "proc", "sys"}, filepath.Base(path))
		})
		if !slices.Equal(files, []string{rootfs[arch] + "/twtrace"}) {
			t.Errorf("the image holds %q", files)
		}
		binary, err := elf.Open(rootfs[arch] + "/twtrace")
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		if binary.Machine != machine {
			t.Errorf("%s: machine %s", arch, binary.Machine)
		}
		for _, segment := range binary.Progs {
			if segment.Type == elf.PT_INTERP {
				t.Errorf("%s is linked dynamically", arch)
			}
		}
	}
	t.Run("privileged", func(t *testing.T) { d.traceContainers(t) })
	t.Run("least privilege", func(t *testing.T) { leastPrivilege(t, rootfs["amd64"]) })
}

// traceContainers is the story that twtrace was made for: two containers share a
// network namespace, as those of a pod do, where one local port is left. The first
// curl leaves a TIME_WAIT on it, the second fails.
func (d *docker) traceContainers(t *testing.T) {
	d.docker(t, "run", "--detach", "--name=pod", "--network=none", "--sysctl=net.ipv4.ip_local_port_range=50000 50000", "curl", "busybox", "sleep", "3600")
	pid := strings.TrimSpace(string(d.docker(t, "inspect", "--format={{.State.Pid}}", "pod")))
	serveIn(t, "/proc/"+pid+"/ns/net", "127.0.0.1:80")

	dir := t.TempDir()
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	tracer := d.command("run", "--name=twtrace", "--privileged", "--pid=host", "--cgroupns=host", "--network=none",
		"--volume="+dir+":/ready", "--volume="+d.socket+":/run/docker.sock:ro",
		"twtrace:amd64", "-o", "json", "--ready-file=/ready/ready")
	var stderr bytes.Buffer
	tracer.Stdout, tracer.Stderr = stdout, &stderr
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "twtrace to be ready", func() bool {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		return err == nil
	})
	curl := func(name string) []string {
		return []string{"run", "--network=container:pod", "--name=" + name, "curl", "curl", "--silent", "--show-error", "http://127.0.0.1/"}
	}
	d.docker(t, curl("first")...)
	var failed *exec.ExitError
	if out, err := d.command(curl("second")...).CombinedOutput(); !errors.As(err, &failed) || failed.ExitCode() != 7 {
		t.Fatalf("the second curl: %v: %s", err, out)
	}
	d.docker(t, "stop", "--time=60", "twtrace")
	if err := tracer.Wait(); err != nil {
		t.Fatalf("twtrace: %v: %s", err, &stderr)
	}

	type owner struct {
		Process   struct{ Comm string }
		Container struct{ ID, Name string }
	}
	type line struct {
		owner
		Event   string
		Network struct {
			Peer struct {
				Address string
				Port    int
			}
		}
		Connect  struct{ Outcome string }
		TimeWait struct{ Ended string } `json:"time_wait"`
		Error    struct{ Type string }
		Verdict  struct{ ID string }
	}
	text, err := os.ReadFile(stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]int)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		if l.Process.Comm != "curl" || l.Network.Peer.Port != 80 {
			continue
		}
		container := ""
		switch what := fmt.Sprint(l.Event, " ", l.Connect.Outcome, l.Error.Type, l.Verdict.ID); what {
		case "connect established", "time_wait.enter ":
			told[what]++
			container = "first"
		case "connect no_local_portEADDRNOTAVAILlocal_ports_exhausted_time_wait":
			told[what]++
			container = "second"
		}
		if container != "" {
			id := strings.TrimSpace(string(d.docker(t, "inspect", "--format={{.Id}}", container)))
			if l.Container.ID != id || l.Container.Name != container {
				t.Errorf("%s is of %+v, want %s, %s", lines.Bytes(), l.Container, container, id)
			}
		}
	}
	if len(told) != 3 {
		t.Errorf("it told %v: %s", told, text)
	}
}

// leastPrivilege runs doctor as the least-privilege overlay would: with its
// capabilities, no new ones, and a root that can't be written.
func leastPrivilege(t *testing.T, rootfs string) {
	var capabilities []string
	for _, object := range render(t, "overlays/least-privilege") {
		if spec := podSpec(t, object); spec != nil {
			security := spec.Containers[0].SecurityContext
			if security.Privileged || !slices.Equal(security.Capabilities.Drop, []string{"ALL"}) {
				t.Errorf("%+v", security)
			}
			for _, name := range security.Capabilities.Add {
				capabilities = append(capabilities, "CAP_"+name)
			}
		}
	}
	// What a container runtime hands to runc, by its default but for those.
	dir := t.TempDir()
	spec := exec.Command("runc", "spec")
	spec.Dir = dir
	if out, err := spec.CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	config["root"] = map[string]any{"path": rootfs, "readonly": true}
	process := config["process"].(map[string]any)
	process["args"], process["terminal"] = []string{"/twtrace", "doctor", "-o", "json"}, false
	process["capabilities"] = map[string]any{"bounding": capabilities, "permitted": capabilities, "effective": capabilities}
	process["noNewPrivileges"] = true
	linux := config["linux"].(map[string]any)
	linux["namespaces"] = slices.DeleteFunc(linux["namespaces"].([]any), func(of any) bool {
		return of.(map[string]any)["type"] == "pid" // hostPID
	})
	if text, err = json.Marshal(config); err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	run := exec.Command("runc", "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, "twtrace-"+strconv.Itoa(os.Getpid()))
	var stderr bytes.Buffer
	run.Stderr = &stderr
	out, err := run.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, &stderr)
	}
	var told struct {
		OK         bool
		Privileges struct{ Missing []string }
		NetNS      []struct{ Inode uint64 }
		Problems   []struct{ What, Why string }
	}
	if err := json.Unmarshal(out, &told); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Its own, and this test's.
	if !told.OK || len(told.Privileges.Missing) > 0 || len(told.NetNS) < 2 {
		t.Errorf("%+v", told)
	}
	for _, problem := range told.Problems {
		if regexp.MustCompile(`^(privileges are missing|the machine's processes|TIME_WAITs can't be seen|some network)`).MatchString(problem.What) {
			t.Errorf("%+v", problem)
		}
	}
}

// docker is a Docker engine of the test's own, with no network.
type docker struct{ socket string }

func startDocker(t *testing.T) *docker {
	dir := t.TempDir()
	d := &docker{filepath.Join(dir, "docker.sock")}
	config := map[string]any{
		"data-root": filepath.Join(dir, "data"), "exec-root": filepath.Join(dir, "exec"), "pidfile": filepath.Join(dir, "pid"),
		"hosts": []string{"unix://" + d.socket}, "bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false,
		"oom-score-adjust": 0, "exec-opts": []string{"native.cgroupdriver=cgroupfs"},
	}
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err == nil && has == 0 {
		// Nobody here can give a container this one, which is among all.
		runtime := filepath.Join(dir, "runc")
		if err := os.WriteFile(runtime, []byte(`#!/bin/sh
for arg; do
	[ ! -f "$arg/config.json" ] || sed -i 's/"CAP_SYS_RESOURCE",\?//g' "$arg/config.json"
done
exec runc "$@"
`), 0o700); err != nil {
			t.Fatal(err)
		}
		config["runtimes"] = map[string]any{"here": map[string]any{"path": runtime}}
		config["default-runtime"] = "here"
	}
	text, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	engine := exec.Command("dockerd", "--config-file="+filepath.Join(dir, "config.json"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	engine.Stdout, engine.Stderr = log, log
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- engine.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("dockerd: %s", text[max(0, len(text)-4000):])
		}
		if out, _ := d.command("ps", "--all", "--quiet").Output(); len(out) > 0 {
			_ = d.command(append([]string{"rm", "--force"}, strings.Fields(string(out))...)...).Run()
		}
		_ = engine.Process.Signal(unix.SIGTERM)
		<-ended
	})
	waitFor(t, "dockerd to listen", func() bool {
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd: %v: %s", err, text)
		default:
		}
		return d.command("version").Run() == nil
	})
	return d
}

// command runs Debian's docker, which brings BuildKit along; another may want a
// plugin for it.
func (d *docker) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/usr/bin/docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.socket, "DOCKER_BUILDKIT=1", "DOCKER_CONFIG="+filepath.Dir(d.socket))
	return cmd
}

// docker runs a command that must work, and returns what it prints.
func (d *docker) docker(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := d.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %q: %v: %s%s", args, err, out, &stderr)
	}
	return out
}

// export unpacks an image and returns where.
func (d *docker) export(t *testing.T, image string) string {
	t.Helper()
	id := strings.TrimSpace(string(d.docker(t, "create", "--platform=linux/"+image[strings.Index(image, ":")+1:], image)))
	archive := d.docker(t, "export", id)
	d.docker(t, "rm", id)
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, header.Name)
		switch header.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			if header.Size == 0 {
				continue // Docker's own, to mount on
			}
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// importGo makes the image that the Dockerfile begins with: this machine's Go, a
// shell, and the modules as the proxy of a build without a network.
func (d *docker) importGo(t *testing.T) {
	t.Helper()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`(?m)^FROM --platform=\$BUILDPLATFORM (\S+)`).FindSubmatch(dockerfile)[1]
	root := strings.TrimSpace(run(t, "go", "env", "GOROOT"))
	cache := filepath.Join(strings.TrimSpace(run(t, "go", "env", "GOMODCACHE")), "cache/download")
	var modules []string
	for d := json.NewDecoder(strings.NewReader(run(t, "go", "mod", "download", "-json"))); d.More(); {
		var module struct{ Info, GoMod, Zip string }
		if err := d.Decode(&module); err != nil {
			t.Fatal(err)
		}
		modules = append(modules, module.Info, module.GoMod, module.Zip)
	}
	d.importImage(t, string(name), []string{"ENV PATH=/usr/local/go/bin:/bin GOPROXY=file:///modules GOSUMDB=off GOTOOLCHAIN=local GOPATH=/go HOME=/root"}, func(a *archive) {
		for _, part := range []string{"bin", "lib", "pkg", "src", "VERSION", "go.env"} {
			a.add(filepath.Join(root, part), "usr/local/go/"+part)
		}
		for _, module := range modules {
			a.add(module, "modules/"+strings.TrimPrefix(module, cache+"/"))
		}
		a.addProgram("busybox", "bin/busybox")
		a.link("busybox", "bin/sh")
		a.directory("tmp")
	})
}

// importCurl makes an image with curl, the libraries that it is linked with, and
// busybox.
func (d *docker) importCurl(t *testing.T) {
	t.Helper()
	d.importImage(t, "curl", []string{"ENV PATH=/bin"}, func(a *archive) {
		a.addProgram("busybox", "bin/busybox")
		a.addProgram("curl", "bin/curl")
		path, err := exec.LookPath("curl")
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range regexp.MustCompile(`/\S+`).FindAllString(run(t, "ldd", path), -1) {
			a.add(library, strings.TrimPrefix(library, "/"))
		}
	})
}

// importImage makes an image of what fill puts into it.
func (d *docker) importImage(t *testing.T, name string, changes []string, fill func(*archive)) {
	t.Helper()
	args := []string{"import"}
	for _, change := range changes {
		args = append(args, "--change="+change)
	}
	cmd := d.command(append(args, "-", name)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &archive{tar: tar.NewWriter(stdin)}
	fill(a)
	err = errors.Join(a.err, a.tar.Close(), stdin.Close(), cmd.Wait())
	if err != nil {
		t.Fatalf("make image %s: %v: %s", name, err, &said)
	}
}

// An archive is a root file system in the making. Its first error stays.
type archive struct {
	tar *tar.Writer
	err error
}

// add puts a file, or a directory with all that is in it, into the archive.
func (a *archive) add(from, to string) {
	if a.err != nil {
		return
	}
	// A link to it is as good as the file itself.
	if from, a.err = filepath.EvalSymlinks(from); a.err != nil {
		return
	}
	a.err = filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
			return err
		}
		header, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		header.Name = filepath.Join(to, strings.TrimPrefix(path, from))
		if err := a.tar.WriteHeader(header); err != nil || info.IsDir() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(a.tar, file)
		return err
	})
}

func (a *archive) addProgram(name, to string) {
	path, err := exec.LookPath(name)
	if err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.add(path, to)
}

func (a *archive) link(to, from string) {
	a.err = errors.Join(a.err, a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: from, Linkname: to, Mode: 0o777}))
}

func (a *archive) directory(name string) {
	a.err = errors.Join(a.err, a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o777}))
}

// serveIn answers HTTP in a network namespace. It keeps connections alive: curl
// closes first, and the TIME_WAIT is curl's.
func serveIn(t *testing.T, netns, address string) {
	t.Helper()
	err := thread.Run(func() error {
		file, err := os.Open(netns)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", netns, err)
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
		go func() { _ = server.Serve(listener) }() // until Close
		t.Cleanup(func() { server.Close() })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return string(out)
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
