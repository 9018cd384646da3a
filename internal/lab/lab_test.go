package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"
)

// envChild makes the test binary a process that has a network, and waits.
const envChild = "TWTRACE_LAB_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) != "" {
		fmt.Fprintln(os.Stderr, waitInLab())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
}

// TestScenarios: each comes out as told, at the same time as all the others.
func TestScenarios(t *testing.T) {
	needRoot(t)
	for i, s := range Scenarios() {
		t.Run(s.Name, func(t *testing.T) {
			if s.Global && os.Getenv("TWTRACE_TEST_REQUIRE") == "" {
				t.Skip("it changes a setting of the whole machine: only in a VM")
			}
			t.Parallel()
			n, err := New(byte(i))
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if err := s.Run(t.Context(), n, t.Logf); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTold: each tells a newcomer enough, and has a name of its own.
func TestTold(t *testing.T) {
	var names []string
	for _, s := range Scenarios() {
		if s.Title == "" || len(s.Story) == 0 || s.Learned == "" || s.Live == "" || s.Verdict == "" {
			t.Errorf("%s does not tell enough", s.Name)
		}
		if slices.Contains(names, s.Name) {
			t.Errorf("there are two of %s", s.Name)
		}
		names = append(names, s.Name)
		if found, err := Find(s.Name); err != nil || found.Title != s.Title {
			t.Errorf("%s is found as %q: %v", s.Name, found.Title, err)
		}
	}
	if _, err := Find("nonsense"); err == nil {
		t.Error("a scenario is found that there is none of")
	}
}

// waitInLab makes a network with all that a scenario may put into it, tells the
// holders of its namespaces, and waits.
func waitInLab() error {
	n, err := New(0)
	if err != nil {
		return err
	}
	if err := n.snat(0); err != nil {
		return err
	}
	if err := n.serve(80, clientFirst); err != nil {
		return err
	}
	// One in TIME_WAIT, one that lives.
	if err := n.a.converse("client-a", client{}, n.server(80)); err != nil {
		return err
	}
	if _, err := n.a.dial("client-a", client{}, n.server(80)); err != nil {
		return err
	}
	// Not before: it may drop what comes later for a minute.
	if err := n.recycle(); err != nil {
		return err
	}
	for _, ns := range []*namespace{n.a, n.b, n.nat, n.srv} {
		fmt.Println(ns.holder.Process.Pid)
	}
	_, err = os.Stdin.Read(make([]byte, 1)) // for ever
	return err
}

// TestKilled: whoever kills the process leaves nothing behind. Nothing else holds its
// network namespaces than these holders, so they go with them.
func TestKilled(t *testing.T) {
	needRoot(t)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), envChild+"=1")
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	lines := bufio.NewScanner(stdout)
	namespaces := make(map[string]string)
	for range 4 {
		if !lines.Scan() {
			t.Fatalf("the child told of %d namespaces: %v", len(namespaces), lines.Err())
		}
		if _, err := strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		path := "/proc/" + lines.Text() + "/ns/net"
		if namespaces[path], err = os.Readlink(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for path, namespace := range namespaces {
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if now, err := os.Readlink(path); err != nil || now != namespace {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("%s lives on", path)
			}
		}
	}
}
