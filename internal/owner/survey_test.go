package owner

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twtrace/twtrace/internal/event"
)

// The files as a little-endian machine writes them: two TIME_WAITs and a
// connection to 10.1.0.9:443, a TIME_WAIT from port 80, and one of IPv6.
const (
	tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1062 1 0000000050d2b9c5 100 0 0 10 0
   1: 0700010A:8000 0900010A:01BB 06 00000000:00000000 03:00001774 00000000     0        0 0 3 00000000d3b1f3d6
   2: 0700010A:EE47 0900010A:01BB 06 00000000:00000000 03:00001774 00000000     0        0 0 3 00000000d3b1f3d6
   3: 0700010A:8001 0900010A:01BB 01 00000000:00000000 00:00000000 00000000     0        0 3072 1 00000000d3b1f3d6 20 4 30 10 -1
   4: 0700010A:0050 0300010A:9C40 06 00000000:00000000 03:00001774 00000000     0        0 0 3 00000000d3b1f3d6
`
	tcp6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: B80D0120000000000000000007000000:8003 B80D0120000000000000000009000000:01BB 06 00000000:00000000 03:00001774 00000000     0        0 0 3 00000000d3b1f3d6
`
)

func littleEndian(t *testing.T) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the files are of a little-endian machine")
	}
}

func TestReadNamespace(t *testing.T) {
	littleEndian(t)
	files := tree{
		"sys/net/ipv4/ip_local_port_range": "32768\t60999\n", "sys/net/ipv4/ip_local_reserved_ports": "32769-60997\n",
		"sys/net/ipv4/tcp_tw_recycle": "1\n",
		"thread-self/net/sockstat":    "TCP: inuse 1 orphan 0 tw 4 alloc 46 mem 16\n",
		"thread-self/net/tcp":         tcp, "thread-self/net/tcp6": tcp6,
	}
	var n Namespace
	if err := n.read(files.write(t)); err != nil {
		t.Fatal(err)
	}
	want := Namespace{Recycle: 1, Sysctls: n.Sysctls, Counters: Counters{TimeWaits: 4}, Busiest: Destination{
		Local: netip.MustParseAddr("10.1.0.7"), Peer: netip.MustParseAddrPort("10.1.0.9:443"), TimeWait: 2,
	}}
	opts := []cmp.Option{cmp.AllowUnexported(Counters{}), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})}
	if diff := cmp.Diff(want, n, opts...); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if usable := n.Sysctls.Usable(); usable != 3 {
		t.Errorf("%d usable ports, want 3", usable)
	}

	// Where few wait the table of sockets, which is long, is left alone; and a
	// kernel has no tcp_tw_recycle.
	files["sys/net/ipv4/ip_local_reserved_ports"] = "\n"
	delete(files, "sys/net/ipv4/tcp_tw_recycle")
	n = Namespace{}
	if err := n.read(files.write(t)); err != nil {
		t.Fatal(err)
	}
	if n.Busiest.TimeWait != 0 || n.Recycle != -1 {
		t.Errorf("busiest %+v, tcp_tw_recycle %d", n.Busiest, n.Recycle)
	}
}

func TestParseAddress(t *testing.T) {
	littleEndian(t)
	for text, want := range map[string]string{
		"0100007F": "127.0.0.1", "B80D0120000000000000000007000000": "2001:db8::7",
		"0000000000000000FFFF00000100007F": "127.0.0.1",
	} {
		got, err := parseAddress(text)
		if err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "7F", "0100007", "0100007X", "0100007F0100007F"} {
		if got, err := parseAddress(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

// FuzzTimeWaits: no table makes a parser panic, and no destination has more
// TIME_WAITs than there are lines.
func FuzzTimeWaits(f *testing.F) {
	for _, seed := range []string{tcp, tcp6, "1: : : 06\n", "1: 7F:0 :0 06\n", "1: A:8000 06 06"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		counts := make(map[string]int)
		if err := countTimeWaits(strings.NewReader(text), event.PortRange{Low: 1024, High: 65535}, counts); err != nil {
			return
		}
		if d, err := busiest(counts); err == nil && d.TimeWait > strings.Count(text, "06") {
			t.Errorf("%+v of %q", d, text)
		}
	})
}

func TestOldestProcesses(t *testing.T) {
	files := tree{"20/ns/net": "pod", "30/ns/net": "host"}
	files.add(20, "nginx", 0, 900)
	files.add(30, "a) (b", 0, 50)
	files.add(40, "no longer readable", 0, 1)
	proc := files.write(t)
	got, err := oldestProcesses(proc)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]event.Owner{"20/ns/net": {PID: 20, Comm: "nginx"}, "30/ns/net": {PID: 30, Comm: "a) (b"}} {
		if owner := got[inode(t, proc+"/"+path)].Owner; owner != want {
			t.Errorf("%s: %+v, want %+v", path, owner, want)
		}
	}
	if len(got) != 2 {
		t.Errorf("%d namespaces, want 2: %+v", len(got), got)
	}
}

// TestSurvey looks at the real machine: our own namespace is there, once, and
// whoever looks stays where they are.
func TestSurvey(t *testing.T) {
	own := inode(t, "/proc/self/ns/net")
	namespaces, err := Survey("/proc")
	if namespaces == nil {
		t.Fatal(err)
	}
	found := 0
	for _, n := range namespaces {
		if n.Inode == own {
			found++
			if n.Oldest.PID == 0 || n.Sysctls.Ports.High == 0 {
				t.Errorf("%+v", n)
			}
		}
	}
	if found != 1 {
		t.Errorf("our own namespace is found %d times", found)
	}
	if now := inode(t, "/proc/self/ns/net"); now != own {
		t.Errorf("we are in %d now", now)
	}
}
