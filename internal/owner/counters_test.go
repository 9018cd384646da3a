package owner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// The files as Linux 6.12 writes them, with fewer columns.
const (
	snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\n" +
		"Tcp: RtoAlgorithm MaxConn ActiveOpens AttemptFails OutRsts\nTcp: 1 -1 64 3 18446744073709551615\n" +
		"Udp: InDatagrams NoPorts\nUdp: 1 2\n"
	netstat = "TcpExt: SyncookiesSent TW PAWSEstab DelayedACKs ListenOverflows\nTcpExt: 1 60 2 13 7\n" +
		"IpExt: InNoRoutes TW\nIpExt: 5 5\n"
	sockstat  = "sockets: used 10\nTCP: inuse 1 orphan 0 tw 17 alloc 46 mem 16\nUDP: inuse 0 mem 0\n"
	conntrack = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
		"0000001a  00000003 00000000 00000000 00000009 00000000 00000000 00000000 00000000 0000000f 00000001 00000000 00000000  00000000 00000000 00000000 00000000\n" +
		"0000001a  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 00000000 ffffffff 00000000  00000000 00000000 00000000 00000000\n"
)

func TestReadCounters(t *testing.T) {
	full := tree{
		"thread-self/net/snmp": snmp, "thread-self/net/netstat": netstat,
		"thread-self/net/sockstat": sockstat, "thread-self/net/stat/nf_conntrack": conntrack,
		"sys/net/netfilter/nf_conntrack_count": "26\n", "sys/net/netfilter/nf_conntrack_max": "262144\n",
	}
	tests := map[string]struct {
		files tree
		gauge [3]uint64
		want  map[string]uint64
	}{
		"all": {full, [3]uint64{17, 26, 262144}, map[string]uint64{
			"ActiveOpens": 64, "AttemptFails": 3, "OutRsts": 1<<64 - 1,
			"SyncookiesSent": 1, "TW": 60, "PAWSEstab": 2, "ListenOverflows": 7,
			"nf_conntrack_clash_resolve": 3, "nf_conntrack_insert_failed": 16, "nf_conntrack_drop": 1, "nf_conntrack_early_drop": 1<<32 - 1,
		}},
		"no conntrack": {tree{"thread-self/net/snmp": snmp}, [3]uint64{}, map[string]uint64{
			"ActiveOpens": 64, "AttemptFails": 3, "OutRsts": 1<<64 - 1,
		}},
		"nothing": {tree{}, [3]uint64{}, nil},
		// Before 5.10 the second column of conntrack's was another.
		"older columns": {tree{"thread-self/net/stat/nf_conntrack": "entries  searched insert_failed\n00000001  00000002 00000003\n"},
			[3]uint64{}, map[string]uint64{"nf_conntrack_insert_failed": 3}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readCounters(test.files.write(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Since(Counters{})); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
			if gauge := [3]uint64{got.TimeWaits, got.ConntrackCount, got.ConntrackMax}; gauge != test.gauge {
				t.Errorf("TIME_WAITs, conntrack's count and maximum: %d, want %d", gauge, test.gauge)
			}
		})
	}
}

func TestReadCountersRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"thread-self/net/snmp":               "Tcp: ActiveOpens OutRsts\nTcp: 1\n",
		"thread-self/net/netstat":            "TcpExt: TW\nTcpExt: many\n",
		"thread-self/net/sockstat":           "TCP: inuse 1 tw -\n",
		"thread-self/net/stat/nf_conntrack":  "drop\n0000000x\n",
		"sys/net/netfilter/nf_conntrack_max": "\n",
	} {
		if _, err := readCounters(tree{name: text}.write(t)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s %q: error %v, want one that names it", name, text, err)
		}
	}
}

// TestSince tells what moved and nothing else, and of a namespace that has
// another's inode, and counts from 0, only what is certain.
func TestSince(t *testing.T) {
	var before, after Counters
	before.values[counterIndex["TW"]], after.values[counterIndex["TW"]] = 5, 5
	if got := after.Since(before); got != nil {
		t.Errorf("%v moved, want none", got)
	}
	after.values[counterIndex["ListenDrops"]] = 3
	before.values[counterIndex["TWKilled"]] = 9
	if diff := cmp.Diff(map[string]uint64{"ListenDrops": 3}, after.Since(before)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzCounters: no text makes a parser panic, and what is parsed was there.
func FuzzCounters(f *testing.F) {
	for _, seed := range []string{snmp, netstat, sockstat, conntrack, "Tcp: \n", "Tcp: TW\nTcp: 1 2\n", "TCP:\n", "drop\n1 2\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Counters
		for _, parse := range []func([]byte) error{c.parseSNMP, c.parseConntrack, c.parseSockstat} {
			_ = parse(text)
		}
		for name := range c.Since(Counters{}) {
			name = strings.TrimPrefix(name, "nf_conntrack_")
			if name == "clash_resolve" {
				name = "clashres"
			}
			if !strings.Contains(string(text), name) {
				t.Errorf("%s is not in %q", name, text)
			}
		}
	})
}

// TestCountersOfNamespace: a connect that is refused moves the counters of its
// own namespace.
func TestCountersOfNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TWTRACE_TEST_REQUIRE") != "" {
			t.Fatal("not root")
		}
		t.Skip("making a network namespace needs root")
	}
	work, done := make(chan func() error), make(chan error)
	defer close(work)
	go thread.Run(func() error {
		for f := range work {
			done <- f()
		}
		return nil
	})
	var path string
	work <- func() error {
		link, err := filepath.EvalSymlinks("/proc/thread-self")
		path = filepath.Join(link, "ns/net")
		if err := errors.Join(err, unix.Unshare(unix.CLONE_NEWNET)); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	before, cookie, err := ReadCounters(path)
	if err != nil {
		t.Fatal(err)
	}
	work <- func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if want := netnsCookie(); cookie != want {
			return fmt.Errorf("cookie %d, want %d", cookie, want)
		}
		if err := unix.Connect(s, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}); !errors.Is(err, unix.ECONNREFUSED) {
			return errors.Join(errors.New("the connect is not refused"), err)
		}
		return nil
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	after, _, err := ReadCounters(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{"ActiveOpens": 1, "AttemptFails": 1, "OutRsts": 1}
	if diff := cmp.Diff(want, after.Since(before)); diff != "" {
		t.Errorf("what moved (-want +got):\n%s", diff)
	}
}
