// Package top is the live table of `twtrace top`: who holds local ports, who
// waits in TIME_WAIT, who connects and who fails. A Collector makes Snapshots of
// what the tracker knows; they are rendered as text, or shown by a Model, which
// is the terminal's part. Only the Model knows of terminals, and none of them
// knows a clock.
package top

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

// Group is what a row of the table stands for.
type Group uint8

// The groups.
const (
	// ByDestination: a peer's address and port, from one local address, in
	// one network namespace: what local ports are counted by.
	ByDestination Group = iota
	ByProcess
	// ByContainer: a cgroup.
	ByContainer
	ByNetNS
)

// GroupNames are the groups as the user names them.
var GroupNames = []string{
	ByDestination: "destination",
	ByProcess:     "process",
	ByContainer:   "container",
	ByNetNS:       "netns",
}

func (g Group) String() string { return GroupNames[g] }

// ParseGroup returns the group that is spelled name.
func ParseGroup(name string) (Group, error) {
	n, err := parse(name, GroupNames)
	return Group(n), err
}

// Order is what the table is sorted by, the most first.
type Order uint8

// The orders.
const (
	// ByPressure: the share of the local ports that is taken.
	ByPressure Order = iota
	ByTimeWait
	ByFailures
	ByRate
)

// OrderNames are the orders as the user names them.
var OrderNames = []string{
	ByPressure: "pressure",
	ByTimeWait: "time_wait",
	ByFailures: "failures",
	ByRate:     "rate",
}

func (o Order) String() string { return OrderNames[o] }

// ParseOrder returns the order that is spelled name.
func ParseOrder(name string) (Order, error) {
	n, err := parse(name, OrderNames)
	return Order(n), err
}

func parse(name string, names []string) (int, error) {
	if n := slices.Index(names, name); n >= 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%q: must be one of %s", name, strings.Join(names, ", "))
}

// Key tells what a row is about. What its group does not look at is zero.
type Key struct {
	NetNS event.NetNS
	// Local has port 0, except where the port is none that connects choose
	// from: of connections that were accepted, or bound. These have no Peer,
	// each would have one of its own.
	Local, Peer netip.AddrPort
	PID         uint32
	Cgroup      uint64
}

// anyPeer reports whether this is about a local port with all its peers.
func (k *Key) anyPeer() bool { return k.Local.Port() != 0 }

// keyOf is all that a socket can be grouped by, to its peer or to its local port.
func keyOf(s *event.Socket, toPeer bool) Key {
	k := Key{NetNS: s.NetNS, Local: s.Tuple.Local, PID: s.Owner.PID, Cgroup: s.Owner.Cgroup}
	if toPeer {
		k.Local = netip.AddrPortFrom(s.Tuple.Local.Addr(), 0)
		k.Peer = s.Tuple.Peer
	}
	return k
}

// of is what the group looks at.
func (g Group) of(k Key) Key {
	switch g {
	case ByProcess:
		return Key{PID: k.PID}
	case ByContainer:
		return Key{Cgroup: k.Cgroup}
	case ByNetNS:
		return Key{NetNS: k.NetNS}
	default:
		k.PID, k.Cgroup = 0, 0
		return k
	}
}

// Row is a line of the table.
type Row struct {
	Key Key
	// Comms are the names of the processes, sorted; of many only some.
	Comms []string
	// In is what is known of the control group, where the row is about one.
	In *event.Cgroup
	// Ports are the local ports toward this destination or, in the other
	// groups, toward that one of its destinations where the largest share is
	// taken, which is Fullest.
	Ports   record.PortsFields
	Fullest Key
	// Live are the connects that are not over.
	Live, TimeWait int
	// Rate is connects that ended, however, in a second of the last
	// interval.
	Rate float64
	// Failures are the connects that failed in the last minute, Last is how
	// the last of them did.
	Failures uint64
	Last     record.Outcome
	lastAt   int64
}

// name adds the name of a process.
func (r *Row) name(comm string) {
	if comm != "" && len(r.Comms) < maxComms && !slices.Contains(r.Comms, comm) {
		r.Comms = append(r.Comms, comm)
	}
}

// contain notes what a socket's owner is in.
func (r *Row) contain(group Group, in *event.Cgroup) {
	if group == ByContainer && in != nil {
		r.In = in
	}
}

// containerText names a container or, where it is none that is known, its control
// group.
func containerText(name string, cgroup uint64) string {
	if name == "" {
		return idText(cgroup)
	}
	return name
}

// fill notes the local ports toward a destination, if there are none of which a
// larger share is taken.
func (r *Row) fill(destination Key, ports *record.PortsFields) {
	if ports.Usable > 0 && (r.Ports.Usable == 0 || share(ports) > share(&r.Ports) ||
		share(ports) == share(&r.Ports) && compareKeys(&destination, &r.Fullest) < 0) {
		r.Fullest, r.Ports = destination, *ports
	}
}

// share is how much of the local ports is taken.
func share(p *record.PortsFields) float64 {
	if p.Usable == 0 {
		return 0
	}
	return float64(p.InUse) / float64(p.Usable)
}

// sort puts the rows in this order; where that leaves a choice, in one that
// stays the same from table to table.
func (o Order) sort(rows []Row) {
	slices.SortFunc(rows, func(a, b Row) int {
		first := 0
		switch o {
		case ByPressure: // as all others, next
		case ByTimeWait:
			first = cmp.Compare(b.TimeWait, a.TimeWait)
		case ByFailures:
			first = cmp.Compare(b.Failures, a.Failures)
		case ByRate:
			first = cmp.Compare(b.Rate, a.Rate)
		}
		return cmp.Or(first,
			cmp.Compare(share(&b.Ports), share(&a.Ports)),
			cmp.Compare(b.TimeWait, a.TimeWait),
			cmp.Compare(b.Failures, a.Failures),
			compareKeys(&a.Key, &b.Key),
		)
	})
}

func compareKeys(a, b *Key) int {
	return cmp.Or(
		cmp.Compare(a.NetNS.Inode, b.NetNS.Inode),
		cmp.Compare(a.NetNS.Cookie, b.NetNS.Cookie),
		a.Peer.Compare(b.Peer),
		a.Local.Compare(b.Local),
		cmp.Compare(a.PID, b.PID),
		cmp.Compare(a.Cgroup, b.Cgroup),
	)
}

// sortConnections puts the TIME_WAIT first that ends first, and what is no
// TIME_WAIT last.
func sortConnections(connections []track.Connection) {
	slices.SortFunc(connections, func(a, b track.Connection) int {
		rank := func(c *track.Connection) int {
			switch {
			case c.TimeWait && c.EndsIn > 0:
				return 0
			case c.TimeWait:
				return 1
			default:
				return 2
			}
		}
		return cmp.Or(
			cmp.Compare(rank(&a), rank(&b)),
			cmp.Compare(a.EndsIn, b.EndsIn),
			cmp.Compare(a.Socket.NetNS.Inode, b.Socket.NetNS.Inode),
			a.Socket.Tuple.Peer.Compare(b.Socket.Tuple.Peer),
			a.Socket.Tuple.Local.Compare(b.Socket.Tuple.Local),
		)
	})
}

// View is what is looked at.
type View struct {
	Group Group
	// Row is looked into, where Inside is set.
	Inside bool
	Row    Key
}

// Snapshot is the table at one moment. Nobody changes it any more, but for the
// order of Rows and Connections, which whoever shows it may choose.
type Snapshot struct {
	View View
	Time time.Time
	// Every is the interval between two.
	Every time.Duration
	Rows  []Row
	// Connections are those behind View.Row; Omitted are so many more.
	Connections []track.Connection
	Omitted     int
	// Rate, Failures, Live and TimeWait are those of all rows together.
	Rate           float64
	Failures       uint64
	Live, TimeWait int
	// Notes are what the numbers must be read with, one line each.
	Notes []string
}
