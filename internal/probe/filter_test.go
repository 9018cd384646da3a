package probe

import (
	"net/netip"
	"testing"

	"github.com/twtrace/twtrace/internal/event"
)

func TestPorts(t *testing.T) {
	var all *Ports
	for _, port := range []uint16{0, 1, 80, 65535} {
		if !all.Has(port) {
			t.Errorf("port %d is not among all", port)
		}
	}
	for _, added := range [][]uint16{{}, {0}, {65535}, {80, 443}, {63, 64, 127, 128}} {
		var ports Ports
		want := make(map[uint16]bool)
		for _, port := range added {
			ports.Add(port)
			ports.Add(port)
			want[port] = true
		}
		for n := range 1 << 16 {
			if port := uint16(n); ports.Has(port) != want[port] {
				t.Errorf("%v: has %d: %v", added, port, !want[port])
			}
		}
	}
}

// TestHasContainer: by name, by id or its beginning, by pod with or without its
// namespace, by uid; what is not known is not taken for it.
func TestHasContainer(t *testing.T) {
	known := event.Cgroup{Container: "2f0c9f1d", Name: "b", Pod: "api-x", Namespace: "shop", PodUID: "0c1f"}
	idOnly := event.Cgroup{Container: "2f0c9f1d", PodUID: "0c1f"}
	for _, test := range []struct {
		filter               Filter
		known, idOnly, other bool
	}{
		{Filter{}, true, true, true},
		{Filter{Container: "b"}, true, false, false},
		{Filter{Container: "2f0c9f"}, true, true, false},
		{Filter{Container: "2f0c"}, false, false, false}, // too short to be meant as an id
		{Filter{Pod: "api-x"}, true, false, false},
		{Filter{Pod: "shop/api-x"}, true, false, false},
		{Filter{Pod: "other/api-x"}, false, false, false},
		{Filter{Pod: "0c1f"}, true, true, false},
		{Filter{Namespace: "shop"}, true, false, false},
		{Filter{Namespace: "shop", Pod: "api-x", Container: "b"}, true, false, false},
		{Filter{Namespace: "shop", Pod: "api-x", Container: "a"}, false, false, false},
	} {
		for in, want := range map[*event.Cgroup]bool{&known: test.known, &idOnly: test.idOnly, {Path: "/system.slice"}: test.other, nil: test.other} {
			if got := test.filter.HasContainer(in); got != want {
				t.Errorf("%+v: %+v passes: %v", test.filter, in, got)
			}
		}
	}
}

// TestPortsLayout: the kernel programs look for port n in bit n%64 of word
// n/64.
func TestPortsLayout(t *testing.T) {
	var ports Ports
	ports.Add(443)
	if ports[443/64] != 1<<(443%64) {
		t.Errorf("word %d is %#x", 443/64, ports[443/64])
	}
}

// TestShows: a dropped packet is shown where its socket passes the filter, and where
// nothing is filtered.
func TestShows(t *testing.T) {
	var web Ports
	web.Add(80)
	known := event.Socket{
		NetNS: event.NetNS{Inode: 10}, Owner: event.Owner{PID: 7, Comm: "curl"},
		Tuple: event.Tuple{Local: netip.MustParseAddrPort("10.0.0.1:80")},
	}
	for _, test := range []struct {
		name           string
		filter         Filter
		known, unknown bool
	}{
		{"nothing", Filter{}, true, true},
		{"what the kernel filters", Filter{PeerPorts: &web, Version: 4}, true, true},
		{"its namespace", Filter{NetNS: 10}, true, false},
		{"another namespace", Filter{NetNS: 11}, false, false},
		{"its process", Filter{PID: 7, Comm: "curl"}, true, false},
		{"another process", Filter{PID: 8}, false, false},
		{"another name", Filter{Comm: "wget"}, false, false},
		{"its port", Filter{LocalPorts: &web}, true, false},
		{"a command", Filter{Descendants: true}, false, false},
	} {
		if got := test.filter.Shows(known); got != test.known {
			t.Errorf("%s: one that is known: %v", test.name, got)
		}
		if got := test.filter.Shows(event.Socket{}); got != test.unknown {
			t.Errorf("%s: one that is not known: %v", test.name, got)
		}
	}
}
