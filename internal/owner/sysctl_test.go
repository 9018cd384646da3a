package owner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/thread"
)

// ofKernel are the sysctls of a kernel without the younger ones.
func ofKernel(t *testing.T, values map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range values {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadSysctls(t *testing.T) {
	dir := ofKernel(t, map[string]string{
		"ip_local_port_range": "32768\t60999\n", "ip_local_reserved_ports": "33000,40000-40099\n",
		"tcp_tw_reuse": "2\n", "tcp_timestamps": "1\n", "tcp_fin_timeout": "60\n", "tcp_max_tw_buckets": "8192\n", "tcp_syn_retries": "6\n",
	})
	got, err := readSysctls(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := event.Sysctls{
		Ports:    event.PortRange{Low: 32768, High: 60999},
		Reserved: []event.PortRange{{Low: 33000, High: 33000}, {Low: 40000, High: 40099}},
		Numbers:  [...]int64{2, -1, 1, 60, 8192, 6, -1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadSysctlsRefuses(t *testing.T) {
	good := map[string]string{"ip_local_port_range": "1 2\n", "ip_local_reserved_ports": "\n", "tcp_tw_reuse": "0\n"}
	for name, bad := range map[string]string{
		"ip_local_port_range": "1\n", "ip_local_reserved_ports": "1-x\n", "tcp_tw_reuse": "\n",
	} {
		values := map[string]string{}
		for n, v := range good {
			values[n] = v
		}
		values[name] = bad
		if _, err := readSysctls(ofKernel(t, values)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s %q: error %v, want one that names it", name, bad, err)
		}
	}
}

// TestSysctls: those of a namespace are its own, and whoever reads them stays
// where they are.
func TestSysctls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	before, _, err := Sysctls("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	path := make(chan string)
	done := make(chan struct{})
	defer close(done)
	go thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("2001 2002"), 0); err != nil {
			t.Error(err)
		}
		link, err := filepath.EvalSymlinks("/proc/thread-self")
		if err != nil {
			t.Error(err)
		}
		path <- filepath.Join(link, "ns/net")
		<-done
		return nil
	})
	there := <-path
	got, _, err := Sysctls(there)
	if err != nil {
		t.Fatal(err)
	}
	if want := (event.PortRange{Low: 2001, High: 2002}); got.Ports != want {
		t.Errorf("the range is %v, want %v", got.Ports, want)
	}
	after, _, err := Sysctls("/proc/self/ns/net")
	if err != nil || !after.Equal(before) {
		t.Errorf("here they were %+v, and now are %+v, %v", before, after, err)
	}
}

func FuzzParsePortRanges(f *testing.F) {
	for _, seed := range []string{"", "80", "80,8000-8099", "0-65535", "-", ",", "65536", "9-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := parsePortRanges(text)
		if err == nil && text != "" && len(ranges) != strings.Count(text, ",")+1 {
			t.Errorf("%q gives %v", text, ranges)
		}
	})
}
