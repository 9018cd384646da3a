package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/owner"
)

// cgroupRoot is where the hierarchy of control groups is mounted that tells
// containers apart.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	hierarchy, err := owner.FindHierarchy("/proc")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	kind := " - cgroup2 "
	if hierarchy.Controller != "" {
		kind = " - cgroup "
	}
	for mount := range strings.Lines(string(mounts)) {
		fields := strings.Fields(mount)
		if strings.Contains(mount, kind) && slices.Contains(strings.FieldsFunc(fields[len(fields)-1], func(r rune) bool { return r == ',' }), cmp.Or(hierarchy.Controller, "rw")) {
			return fields[4]
		}
	}
	skip(t, "no mount of the control groups")
	return ""
}

// newCgroup makes a control group, with those above it, that goes with the test: in
// every hierarchy, since a runtime makes it in each.
func newCgroup(t *testing.T, path string) (dir string) {
	t.Helper()
	root := cgroupRoot(t)
	t.Cleanup(func() {
		for at := path; at != "/"; at = filepath.Dir(at) {
			for _, hierarchy := range cgroupMounts(t) {
				_ = os.Remove(filepath.Join(hierarchy, at)) // what others use stays
			}
		}
	})
	dir = filepath.Join(root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cgroupMounts returns where hierarchies of control groups are mounted.
func cgroupMounts(t *testing.T) (mounts []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " - cgroup") {
			mounts = append(mounts, strings.Fields(line)[4])
		}
	}
	return mounts
}

// removeCgroup waits for the last process to be gone for good.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := os.Remove(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

const (
	podUID     = "0c1f6b1e-8a3e-4a41-9d55-7f0a7f0f7a11"
	containerA = "a000000000000000000000000000000000000000000000000000000000000001"
	containerB = "b000000000000000000000000000000000000000000000000000000000000002"
)

// TestContainersOfAPod: two containers share a network namespace with one port. A
// connects and is gone, with its control group. B finds no port, since A's TIME_WAIT
// holds it. Nothing of it is read before both are gone: each line tells whose it is.
func TestContainersOfAPod(t *testing.T) {
	needRoot(t)
	t.Setenv(envNode, "node-7")
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			n := newNetNS(t)
			parent := "/kubepods/burstable/pod" + podUID
			pod := newCgroup(t, parent)
			tr := trace(t, "-o", "json", "--probe-tier", tier)
			tr.signal(unix.SIGSTOP)
			err := n.do(func() error {
				// Loopback's TIME_WAITs are free after a second by default.
				if err := errors.Join(sysctl("ipv4/ip_local_port_range", "32768 32768"), sysctl("ipv4/tcp_tw_reuse", "0")); err != nil {
					return err
				}
				listener, err := listen(unix.AF_INET, "127.0.0.1:80")
				if err != nil {
					return err
				}
				served := make(chan error, 1)
				go func() { served <- serve(listener, 1) }()
				for _, id := range []string{containerA, containerB} {
					dir := filepath.Join(pod, id)
					if err := os.Mkdir(dir, 0o755); err != nil {
						return err
					}
					cmd := peerCommand("curl-"+id[:1], "curl", "127.0.0.1:80")
					cmd.Env = append(cmd.Env, envCgroup+"="+dir)
					cmd.Stderr = os.Stderr
					if err := cmd.Run(); id == containerA && err != nil {
						return err
					}
					if err := removeCgroup(dir); err != nil {
						return err
					}
				}
				return <-served
			})
			tr.signal(unix.SIGCONT)
			if err != nil {
				t.Fatal(err)
			}
			lines := about(tr.stop(), n)
			for comm, id := range map[string]string{"curl-a": containerA, "curl-b": containerB} {
				seen := 0
				for _, l := range lines {
					if l.Process.Comm != comm {
						continue
					}
					seen++
					isIn(t, fmt.Sprintf("%s's %s", comm, l), l.place, parent, id)
				}
				if seen < 2 {
					t.Errorf("%s has %d lines", comm, seen)
				}
			}
			var got []string
			for _, l := range of(lines, "connect") {
				got = append(got, l.String())
				if node := l.K8s.Node.Name; node != "node-7" {
					t.Errorf("%s is on %q", l, node)
				}
				if l.Connect.Outcome == "no_local_port" {
					isIn(t, "the port's holder", l.Ports.Holder.place, parent, containerA)
				}
			}
			if want := []string{"connect established", "connect no_local_port EADDRNOTAVAIL"}; !slices.Equal(got, want) {
				t.Errorf("connects: %q, want %q", got, want)
			}
		})
	}
}

// isIn checks that an owner is in a container of the pod at parent.
func isIn(t *testing.T, what string, p place, parent, id string) {
	t.Helper()
	if p.Cgroup.Path != parent+"/"+id || p.Container.ID != id || p.K8s.Pod.UID != podUID {
		t.Errorf("%s is in %+v, want container %s of pod %s", what, p, id, podUID)
	}
}

// TestContainerOlderThanTheTrace: a listener that was there before is in its
// container, and so are the connections that it accepts.
func TestContainerOlderThanTheTrace(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	parent := "/kubepods/burstable/pod" + podUID
	dir := newCgroup(t, parent+"/"+containerA)
	var server *peer
	err := n.do(func() (err error) {
		t.Setenv(envCgroup, dir)
		server, err = startPeer("server", "listen-and-hold", "127.0.0.1:80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tr := trace(t, "-o", "json")
	err = n.do(func() error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		return errors.Join(s.connect("127.0.0.1:80"), s.close())
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := of(about(tr.stop(), n), "accept")
	if err := server.end(); err != nil {
		t.Error(err)
	}
	if len(lines) != 1 {
		t.Fatalf("%d accepts, want 1", len(lines))
	}
	isIn(t, "the listener's connection", lines[0].place, parent, containerA)
}

// TestFilterByContainer: only what is in the container is told, and what is in others
// the kernel leaves out once that is known.
func TestFilterByContainer(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	parent := "/kubepods/burstable/pod" + podUID
	connect := func(id, to string) {
		t.Helper()
		dir := newCgroup(t, parent+"/"+id)
		err := n.do(func() error {
			cmd := peerCommand("curl-"+id[:1], "refused", to)
			cmd.Env = append(cmd.Env, envCgroup+"="+dir)
			return cmd.Run()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("one of two", func(t *testing.T) {
		tr := trace(t, "-o", "json", "--container", containerB[:12], "--pod", podUID)
		connect(containerA, "127.0.0.1:1")
		connect(containerB, "127.0.0.1:2")
		connect(containerA, "127.0.0.1:3")
		lines := about(tr.stop(), n)
		connects := of(lines, "connect")
		if len(connects) != 1 || connects[0].Network.Peer.Port != 2 {
			t.Errorf("connects: %+v", connects)
		}
		for _, l := range lines {
			if l.Process.PID != 0 && l.Process.Comm != "curl-b" {
				t.Errorf("a line of %+v: %s", l.Process, l)
			}
		}
	})
	t.Run("in the kernel", func(t *testing.T) {
		tr := trace(t, "-o", "json", "--container", containerB, "--netns", fmt.Sprint(n.inode), "--ring-size", "64K")
		// Not refused: whose a packet is that is dropped the kernel does not know.
		storm := func(times int) error {
			return n.do(func() error {
				for range times {
					if err := connected(closeInTurn); err != nil {
						return err
					}
				}
				return nil
			})
		}
		// This process is in no container: seen once, it is left out.
		if err := storm(1); err != nil {
			t.Fatal(err)
		}
		connect(containerB, "127.0.0.1:2")
		tr.await("the container's connect", func(l line) bool { return l.String() == "connect refused ECONNREFUSED" })
		tr.signal(unix.SIGSTOP)
		err := storm(200)
		tr.signal(unix.SIGCONT)
		if err != nil {
			t.Fatal(err)
		}
		lines := tr.stop()
		// The storm is ten times what the ring holds. Dropped packets of others are
		// not filtered, but few.
		if last := lines[len(lines)-1]; last.Summary.Lost.Kernel > 500 {
			t.Errorf("%d events lost: the kernel did not leave them out", last.Summary.Lost.Kernel)
		}
	})
}
