package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A diagnosis is doctor's JSON, as its reader sees it.
type diagnosis struct {
	Schema, Kernel, Arch string
	OK, BTF              bool
	TSOffsetMode         string `json:"ts_offset_mode"`
	Privileges           struct{ Effective, Missing []string }
	Probes               []struct {
		Name, Via, Gives string
		Available        bool
		WhyNot           string `json:"why_not"`
		LostWithout      string `json:"lost_without"`
	}
	NetNS []struct {
		Inode     uint32
		Name      string
		Sysctl    map[string]any
		TimeWait  uint64 `json:"time_wait"`
		Conntrack *struct{ Count, Max uint64 }
	}
	Problems []problem
}

type problem struct{ What, Why, Hint string }

// ofMachine are the problems that are not those of a network namespace.
func (d *diagnosis) ofMachine() []problem {
	return slices.DeleteFunc(slices.Clone(d.Problems), func(p problem) bool { return strings.Contains(p.What, ", network namespace ") })
}

// diagnose runs twtrace doctor -o json, which must end with this exit status and
// say nothing else.
func diagnose(t *testing.T, cmd *exec.Cmd, want int) diagnosis {
	t.Helper()
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if code, stderr := status(t, cmd); code != want || stderr != "" {
		t.Fatalf("exit status %d, want %d; stderr %q", code, want, stderr)
	}
	var d diagnosis
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v: %s", err, &stdout)
	}
	if d.Schema != "twtrace-doctor/1" || d.OK != (want == 0) {
		t.Errorf("schema %q, ok %v", d.Schema, d.OK)
	}
	return d
}

// TestDoctor: the hooks as they are, and a network namespace whose only port is in
// TIME_WAIT.
func TestDoctor(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	var tenant *peer
	err := n.do(func() (err error) {
		if err := sysctl("ipv4/ip_local_port_range", "5000 5000"); err != nil {
			return err
		}
		if err := converse(unix.AF_INET, "127.0.0.1:80", "127.0.0.1:80"); err != nil {
			return err
		}
		tenant, err = startPeer("tenant", "listen-and-hold", "127.0.0.1:81")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	d := diagnose(t, twtrace("doctor", "-o", "json"), 0)

	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	if d.Kernel != unix.ByteSliceToString(name.Release[:]) || !d.BTF || d.TSOffsetMode == "" {
		t.Errorf("kernel %q, btf %v, ts_offset_mode %q", d.Kernel, d.BTF, d.TSOffsetMode)
	}
	available := make(map[string]bool)
	for _, p := range d.Probes {
		available[p.Name] = available[p.Name] || p.Available
		if p.Gives == "" || p.LostWithout == "" || p.Available != (p.WhyNot == "") {
			t.Errorf("%+v", p)
		}
	}
	for _, name := range []string{"inet_sock_set_state", "timer_cancel", "tcp_send_reset", "tcp"} {
		if !available[name] {
			t.Errorf("%s is not available: %+v", name, d.Probes)
		}
	}

	found := 0
	for _, shown := range d.NetNS {
		if shown.Inode != n.inode {
			continue
		}
		found++
		if want := fmt.Sprintf("tenant (%d)", tenant.pid); shown.Name != want {
			t.Errorf("name %q, want %q", shown.Name, want)
		}
		if diff := cmp.Diff([]any{5000.0, 5000.0}, shown.Sysctl["ip_local_port_range"]); diff != "" || shown.Sysctl["tcp_fin_timeout"] != 60.0 {
			t.Errorf("sysctl %v", shown.Sysctl)
		}
		if shown.TimeWait != 1 {
			t.Errorf("time_wait %d, want 1", shown.TimeWait)
		}
	}
	if found != 1 {
		t.Fatalf("the namespace is found %d times", found)
	}
	place := fmt.Sprintf("tenant (%d), network namespace %d: ", tenant.pid, n.inode)
	var problems []string
	for _, p := range d.Problems {
		if what, ok := strings.CutPrefix(p.What, place); ok {
			problems = append(problems, what)
			if !strings.Contains(p.Hint, "nsenter -t "+strconv.Itoa(int(tenant.pid))+" -n sysctl -w net.ipv4.ip_local_port_range=") {
				t.Errorf("hint %q", p.Hint)
			}
		}
	}
	want := []string{"TIME_WAITs hold 1 of 1 local port toward 127.0.0.1:80", "only 1 local port to connect from"}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}

	var text bytes.Buffer
	cmd := twtrace("doctor")
	cmd.Stdout = &text
	if code, stderr := status(t, cmd); code != 0 || stderr != "" {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	// Other tests' namespaces can bury this one's in the text, but not these.
	for _, want := range []string{"tracing     works\n", "\ninet_sock_set_state ", "\n     NETNS NAME ", "TIME_WAITs hold ", "\nproblems: "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text has no %q:\n%s", want, &text)
		}
	}
	if err := tenant.end(); err != nil {
		t.Error(err)
	}
}

// TestDoctorWithoutPrivilege: one problem says all that is wrong, and what needs
// no privileges is told.
func TestDoctorWithoutPrivilege(t *testing.T) {
	needRoot(t)
	cmd := exec.Command(copySelf(t), "doctor", "-o", "json")
	cmd.Env = append(os.Environ(), envMain+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	d := diagnose(t, cmd, 1)
	const why = "create the maps: not permitted (EPERM); missing: CAP_BPF, "
	if p := d.ofMachine(); len(p) != 1 || p[0].What != "nothing can be traced" || !strings.HasPrefix(p[0].Why, why) ||
		p[0].Hint != "tracing the kernel takes root: sudo twtrace" {
		t.Errorf("problems %+v", d.Problems)
	}
	if len(d.Privileges.Effective) != 0 || len(d.Probes) != 0 {
		t.Errorf("privileges %v, probes %v; want none", d.Privileges.Effective, d.Probes)
	}
	own, err := currentNetNS()
	if err != nil {
		t.Fatal(err)
	}
	if len(d.NetNS) == 0 || d.NetNS[0].Inode != own {
		t.Errorf("namespaces %+v, want our own, %d", d.NetNS, own)
	}
}

// TestDoctorWithoutBTF: without the kernel's types nothing works; with a file of
// them all does.
func TestDoctorWithoutBTF(t *testing.T) {
	needRoot(t)
	types, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/vmlinux.btf"
	if err := os.WriteFile(path, types, 0o600); err != nil {
		t.Fatal(err)
	}
	err = inNewMounts(func() error {
		if err := unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
			return err
		}
		d := diagnose(t, twtrace("doctor", "-o", "json"), 1)
		if p := d.ofMachine(); d.BTF || len(p) != 1 || p[0].Why != "this kernel carries no BTF" || !strings.Contains(p[0].Hint, "--btf FILE") {
			t.Errorf("btf %v, problems %+v", d.BTF, d.Problems)
		}
		if d.TSOffsetMode == "" {
			t.Error("no ts_offset_mode, which takes no BTF")
		}
		d = diagnose(t, twtrace("doctor", "-o", "json", "--btf", path), 0)
		if p := d.ofMachine(); len(p) == 0 || p[0].What != "this kernel carries no BTF" {
			return errors.New("the file hides that the kernel carries no BTF")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLockdown(t *testing.T) {
	path := t.TempDir() + "/lockdown"
	for text, want := range map[string]string{
		"[none] integrity confidentiality\n": "none", "none [integrity] confidentiality\n": "integrity", "none integrity [confidentiality]\n": "confidentiality", "": "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lockdown(path); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
	if got := lockdown(path + "/none"); got != "" {
		t.Errorf("no file is %q", got)
	}
}
