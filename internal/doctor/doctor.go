// Package doctor tells what a machine lets twtrace see, how its network namespaces
// are, and what is wrong with either. Pure: what was found is given to it.
package doctor

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/record"
)

// Version is the "schema" of a report.
const Version = "twtrace-doctor/1"

// Findings are what was found on a machine.
type Findings struct {
	Kernel string // uname -r
	Arch   string // GOARCH
	// BTF: the kernel carries its types.
	BTF bool
	// Lockdown is none, integrity or confidentiality; "" where it is not known.
	Lockdown string
	// TSOffsetMode is as in the event log.
	TSOffsetMode string
	Privileges   Privileges
	// OwnUsers and OwnProcesses: this process is in a user namespace, or a
	// PID namespace, that is not the machine's.
	OwnUsers, OwnProcesses bool

	// Refused is why nothing can be traced, nil where tracing works, and Hint
	// the way out.
	Refused error
	Hint    string
	Probes  []Probe
	// TimeWaits: the life of TIME_WAITs is seen.
	TimeWaits bool
	// BlindSpots are what can't be seen, HookBlindSpots those for the lack of
	// hooks.
	BlindSpots, HookBlindSpots []string

	Namespaces []owner.Namespace
	// Unseen tells which could not be looked at, and why.
	Unseen error
	// Host is the inode of the machine's own network namespace, 0 where it is
	// not known.
	Host uint64
}

// Probe is a hook.
type Probe struct {
	Name      string `json:"name"`
	Available bool   `json:"available"`
	Via       string `json:"via,omitempty"`
	WhyNot    string `json:"why_not,omitempty"`
	// Gives is what it tells, LostWithout what can't be seen where neither it
	// nor another tells that.
	Gives       string `json:"gives,omitempty"`
	LostWithout string `json:"lost_without,omitempty"`
	// Forbidden: the kernel has it and does not permit it.
	Forbidden bool `json:"-"`
}

// A Report is what doctor tells. Its JSON is described in docs/doctor.md.
type Report struct {
	Schema string `json:"schema"`
	// OK: tracing works.
	OK           bool       `json:"ok"`
	Kernel       string     `json:"kernel,omitempty"`
	Arch         string     `json:"arch"`
	BTF          bool       `json:"btf"`
	Lockdown     string     `json:"lockdown,omitempty"`
	TSOffsetMode string     `json:"ts_offset_mode,omitempty"`
	Privileges   Privileges `json:"privileges"`
	Probes       []Probe    `json:"probes"`
	NetNS        []NetNS    `json:"netns"`
	Problems     []Problem  `json:"problems"`

	blindSpots []string
}

// NetNS is a network namespace.
type NetNS struct {
	Inode     uint64     `json:"inode"`
	Name      string     `json:"name,omitempty"`
	Sysctl    Sysctls    `json:"sysctl"`
	TimeWait  uint64     `json:"time_wait"`
	Conntrack *Conntrack `json:"conntrack,omitempty"`
}

// Sysctls are as in the event log.
type Sysctls struct {
	event.Sysctls
	// Recycle is tcp_tw_recycle, -1 where this kernel has none.
	Recycle int64
}

// MarshalJSON implements json.Marshaler.
func (s Sysctls) MarshalJSON() ([]byte, error) {
	b := record.AppendSysctls(nil, &s.Sysctls)
	if s.Recycle >= 0 {
		b = append(b[:len(b)-1], `,"tcp_tw_recycle":`...)
		b = append(strconv.AppendInt(b, s.Recycle, 10), '}')
	}
	return b, nil
}

// Conntrack is how full the table of nf_conntrack is.
type Conntrack struct {
	Count uint64 `json:"count"`
	Max   uint64 `json:"max"`
}

// Problem is something that is wrong.
type Problem struct {
	What string `json:"what"`
	Why  string `json:"why"`
	Hint string `json:"hint"`
	// of is the rule that found it; the text tells only a few of one.
	of string
}

// Report judges what was found.
func (f *Findings) Report() Report {
	r := Report{
		Schema: Version, OK: f.Refused == nil,
		Kernel: f.Kernel, Arch: f.Arch, BTF: f.BTF, Lockdown: f.Lockdown, TSOffsetMode: f.TSOffsetMode,
		Privileges: f.Privileges,
		Probes:     append([]Probe{}, f.Probes...),
		NetNS:      []NetNS{},
		Problems:   append([]Problem{}, f.ofMachine()...),
		blindSpots: f.BlindSpots,
	}
	// Where most waits stands first, and its problems do.
	namespaces := slices.SortedFunc(slices.Values(f.Namespaces), func(a, b owner.Namespace) int {
		return cmp.Or(cmp.Compare(b.Counters.TimeWaits, a.Counters.TimeWaits), cmp.Compare(a.Inode, b.Inode))
	})
	for _, n := range namespaces {
		shown := NetNS{Inode: n.Inode, Name: nameOf(n), Sysctl: Sysctls{n.Sysctls, n.Recycle}, TimeWait: n.Counters.TimeWaits}
		if n.Counters.ConntrackMax > 0 {
			shown.Conntrack = &Conntrack{n.Counters.ConntrackCount, n.Counters.ConntrackMax}
		}
		r.NetNS = append(r.NetNS, shown)
		r.Problems = append(r.Problems, place{n, n.Inode == f.Host}.problems()...)
	}
	return r
}

// nameOf is what ip netns calls a namespace, or its oldest process.
func nameOf(n owner.Namespace) string {
	if n.Name != "" || n.Oldest.PID == 0 {
		return n.Name
	}
	return n.Oldest.Comm + " (" + strconv.FormatUint(uint64(n.Oldest.PID), 10) + ")"
}
