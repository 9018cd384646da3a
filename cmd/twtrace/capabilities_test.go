package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/twtrace/twtrace/internal/thread"
)

// capabilities are those that tracing takes: the rows of the table in
// docs/aks.md, and what deploy/overlays/least-privilege adds.
var capabilities = map[string]uintptr{
	"BPF":             unix.CAP_BPF,
	"PERFMON":         unix.CAP_PERFMON,
	"SYSLOG":          unix.CAP_SYSLOG,
	"SYS_ADMIN":       unix.CAP_SYS_ADMIN,
	"SYS_PTRACE":      unix.CAP_SYS_PTRACE,
	"DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"NET_ADMIN":       unix.CAP_NET_ADMIN,
}

// TestCapabilities: with these seven doctor finds what it finds with all of root's,
// and what is lost without each.
func TestCapabilities(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	var tenant *peer
	err := n.do(func() (err error) {
		tenant, err = startPeer("tenant", "listen-and-hold", "127.0.0.1:81")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tenant.end(); err != nil {
			t.Error(err)
		}
	}()
	seen := func(d diagnosis) (names []string) {
		for _, p := range d.Probes {
			if p.Available {
				names = append(names, p.Name+" by "+p.Via)
			}
		}
		return names
	}
	entered := func(d diagnosis) bool {
		for _, shown := range d.NetNS {
			if shown.Inode == n.inode {
				return true
			}
		}
		return false
	}
	root := diagnose(t, twtrace("doctor", "-o", "json"), 0)
	for _, tt := range []struct {
		without string
		// ofKernel: it is asked of every kernel. An emulated machine takes long.
		ofKernel bool
		want     func(diagnosis) bool
	}{
		{"", true, func(d diagnosis) bool {
			return cmp.Diff(seen(root), seen(d)) == "" && entered(d) && d.TSOffsetMode == root.TSOffsetMode && len(d.Privileges.Missing) == 0
		}},
		// SYS_ADMIN contains the two.
		{"BPF PERFMON", false, func(d diagnosis) bool { return cmp.Diff(seen(root), seen(d)) == "" }},
		{"BPF SYS_ADMIN", true, func(d diagnosis) bool { return !d.OK }},
		{"PERFMON SYS_ADMIN", false, func(d diagnosis) bool { return !d.OK }},
		{"SYSLOG", false, func(d diagnosis) bool {
			return d.OK && entered(d) && !slices.ContainsFunc(seen(d), func(name string) bool { return strings.HasPrefix(name, "timer_cancel ") })
		}},
		{"SYS_ADMIN", true, func(d diagnosis) bool { return d.OK && !entered(d) }},
		{"SYS_PTRACE", false, func(d diagnosis) bool { return cmp.Diff(seen(root), seen(d)) == "" && !entered(d) }},
		{"NET_ADMIN", false, func(d diagnosis) bool {
			return cmp.Diff(seen(root), seen(d)) == "" && entered(d) && d.TSOffsetMode == ""
		}},
	} {
		if testing.Short() && !tt.ofKernel {
			continue
		}
		t.Run("without "+tt.without, func(t *testing.T) {
			var kept []uintptr
			if strings.HasPrefix(root.Kernel, "5.10.") {
				// Before 5.11 maps count against RLIMIT_MEMLOCK, which only this raises.
				kept = append(kept, unix.CAP_SYS_RESOURCE)
			}
			for name, number := range capabilities {
				if !slices.Contains(strings.Fields(tt.without), name) {
					kept = append(kept, number)
				}
			}
			d, err := diagnoseWith(kept)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("without: %v; entered %v, offsets %q", slices.DeleteFunc(seen(root), func(name string) bool { return slices.Contains(seen(d), name) }), entered(d), d.TSOffsetMode)
			if !tt.want(d) {
				t.Errorf("%+v\nroot's: %+v", d, root)
			}
		})
	}
}

// diagnoseWith runs twtrace doctor with these capabilities and no other.
func diagnoseWith(kept []uintptr) (d diagnosis, err error) {
	err = thread.Run(func() error {
		for number := uintptr(0); ; number++ {
			if slices.Contains(kept, number) {
				continue
			}
			switch err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0); err {
			case nil:
				continue
			case unix.EINVAL: // past the last one
			default:
				return fmt.Errorf("drop capability %d: %w", number, err)
			}
			break
		}
		// Where nothing can be traced, it ends with 1, and tells all the same.
		out, err := twtrace("doctor", "-o", "json").Output()
		if _, ok := err.(*exec.ExitError); err != nil && !ok {
			return err
		}
		return json.Unmarshal(out, &d)
	})
	return d, err
}

// TestPrivilegesGivenUp: once it traces, no thread of it has a privilege that
// only attaching took, and what needs those that are left still works.
func TestPrivilegesGivenUp(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tr.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		have, err := cap.GetPID(tid)
		if err != nil {
			continue // the thread has ended
		}
		looked++
		for _, capability := range []cap.Value{cap.PERFMON, cap.NET_ADMIN, cap.SYS_MODULE, cap.SETUID, cap.SYS_RAWIO} {
			for _, set := range []cap.Flag{cap.Permitted, cap.Effective} {
				if has, err := have.GetFlag(set, capability); err != nil || has {
					t.Errorf("thread %d has %v (%v): %v, %v", tid, capability, set, has, err)
				}
			}
		}
	}
	if looked == 0 {
		t.Fatal("no thread of twtrace could be looked at")
	}
	if err := n.do(refused); err != nil {
		t.Fatal(err)
	}
	// Settings and counters are read in the namespace, by way of a process in it.
	tr.await("the settings of the namespace", func(l line) bool { return l.Event == "netns" && l.NetNS == n.inode })
	checkLog(t, tr.stop())
}
