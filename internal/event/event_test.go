package event

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStates: the kernel's numbers (include/net/tcp_states.h), and its names.
func TestStates(t *testing.T) {
	want := []string{
		1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
		8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW_SYN_RECV", 255: "",
	}
	got := make([]string, len(want))
	for n := range want {
		got[n] = State(n).String()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStateSet(t *testing.T) {
	set := StateSet(0).With(Close).With(SynSent).With(NewSynRecv).With(SynSent)
	for n := range 256 {
		s := State(n)
		if want := s == Close || s == SynSent || s == NewSynRecv; set.Has(s) != want {
			t.Errorf("%s in %s: %v", s, set, !want)
		}
	}
	if got, want := set.String(), "SYN_SENT|CLOSE|NEW_SYN_RECV"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Bit n stands for state n, as in the events of the kernel programs.
	if set != 1<<7|1<<2|1<<12 {
		t.Errorf("%#x", uint16(set))
	}
}

func TestKinds(t *testing.T) {
	names := make(map[string]Kind)
	for n := range 256 {
		k := Kind(n)
		name := k.String()
		if known := k > 0 && k < Kinds; known != (name != "invalid") {
			t.Errorf("kind %d is %q", k, name)
		}
		if before, ok := names[name]; ok && name != "invalid" || name == "" {
			t.Errorf("kinds %d and %d are both %q", before, k, name)
		}
		names[name] = k
	}
}

func TestEnded(t *testing.T) {
	names := make(map[string]Ended)
	for n := range 256 {
		ended := Ended(n)
		name := ended.String()
		if known := ended > 0 && ended < Endings; known != (name != "invalid") || name == "" {
			t.Errorf("end %d is %q", n, name)
		}
		if before, ok := names[name]; ok && name != "invalid" {
			t.Errorf("ends %d and %d are both %q", before, ended, name)
		}
		names[name] = ended
	}
}

func TestPortRange(t *testing.T) {
	for _, test := range []struct {
		ports PortRange
		port  uint16
		want  bool
	}{
		{PortRange{Low: 32768, High: 60999}, 32767, false},
		{PortRange{Low: 32768, High: 60999}, 32768, true},
		{PortRange{Low: 32768, High: 60999}, 60999, true},
		{PortRange{Low: 32768, High: 60999}, 61000, false},
		{PortRange{Low: 5000, High: 5000}, 5000, true},
		{PortRange{Low: 1, High: 65535}, 65535, true},
		{PortRange{Low: 2, High: 1}, 1, false},
	} {
		if got := test.ports.Has(test.port); got != test.want {
			t.Errorf("%d in %v: %v", test.port, test.ports, got)
		}
	}
}

// TestClock: the wall clock counts only where there is no other, as in a log.
func TestClock(t *testing.T) {
	live, log := Event{Time: 1_700_000_000, Mono: 5}, Event{Time: 1_700_000_000}
	if live.Clock() != 5 || log.Clock() != 1_700_000_000 {
		t.Errorf("%d and %d", live.Clock(), log.Clock())
	}
}

func TestUsable(t *testing.T) {
	for _, test := range []struct {
		ports    PortRange
		reserved []PortRange
		want     int
	}{
		{PortRange{5000, 5000}, nil, 1},
		{PortRange{0, 65535}, nil, 65536},
		{PortRange{32768, 60999}, []PortRange{{1, 32768}, {40000, 40099}, {60999, 65535}, {70, 80}}, 28232 - 102},
		{PortRange{5000, 5009}, []PortRange{{1, 65535}}, 0},
		{PortRange{5, 4}, nil, 0},
	} {
		if got := (Sysctls{Ports: test.ports, Reserved: test.reserved}).Usable(); got != test.want {
			t.Errorf("%v without %v: %d, want %d", test.ports, test.reserved, got, test.want)
		}
	}
}

func TestNumber(t *testing.T) {
	var s Sysctls
	for i := range s.Numbers {
		s.Numbers[i] = int64(i) + 10
	}
	for i, name := range SysctlNames {
		if got := s.Number(name); got != int64(i)+10 {
			t.Errorf("%s is %d, want %d", name, got, i+10)
		}
	}
	if got := s.Number("tcp_nonsense"); got >= 0 {
		t.Errorf("no such setting is %d", got)
	}
}
