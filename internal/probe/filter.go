package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// Filter says which sockets to trace; the zero Filter means all. The kernel
// applies it to what it knows at the moment of an event. A local port that is
// not chosen yet is in no set; a passive open whose peer can't be read yet passes,
// and the tracker looks at it again.
type Filter struct {
	// NetNS is a network namespace's inode.
	NetNS uint32
	// PID and Comm are the owner's; Comm is its first 15 bytes.
	PID  uint32
	Comm string
	// Version is 4 or 6: only IPv4, or only IPv6.
	Version int
	// LocalPorts and PeerPorts hold the ports to trace; nil means all.
	LocalPorts, PeerPorts *Ports
	// Networks holds either end's addresses.
	Networks []netip.Prefix
	// Container, Pod and Namespace are those that the owner is in: of a
	// container its name, or its id or the beginning of it; of a pod its name,
	// with its namespace before a slash or without, or its uid. "" means all.
	// Names become known only after an event: the kernel leaves out what
	// Tracer.LeaveOut tells it to.
	Container, Pod, Namespace string
	// Descendants keeps to the processes that this one starts after Adopt,
	// and their descendants.
	Descendants bool
	// ConnectionsOnly leaves out state changes that neither begin nor end
	// a connection.
	ConnectionsOnly bool
}

// Shows reports whether a packet that was dropped belongs to a socket that passes
// the filter, as far as is known whose it is.
func (f *Filter) Shows(s event.Socket) bool {
	return (f.NetNS == 0 || s.NetNS.Inode == f.NetNS) &&
		(f.PID == 0 || s.Owner.PID == f.PID) &&
		(f.Comm == "" || s.Owner.Comm == f.Comm) &&
		(f.LocalPorts == nil || f.LocalPorts.Has(s.Tuple.Local.Port())) &&
		f.HasContainer(s.Owner.In) &&
		!f.Descendants
}

// ByContainer reports whether the filter is about containers.
func (f *Filter) ByContainer() bool { return f.Container != "" || f.Pod != "" || f.Namespace != "" }

// HasContainer reports whether what is in a control group passes, as far as is
// known what that is; nil is one of which nothing is known.
func (f *Filter) HasContainer(in *event.Cgroup) bool {
	if !f.ByContainer() {
		return true
	}
	return in != nil && in.Container != "" &&
		(f.Container == "" || f.Container == in.Name || len(f.Container) >= minID && strings.HasPrefix(in.Container, f.Container)) &&
		(f.Pod == "" || f.Pod == in.Pod || f.Pod == in.PodUID || in.Pod != "" && f.Pod == in.Namespace+"/"+in.Pod) &&
		(f.Namespace == "" || f.Namespace == in.Namespace)
}

// minID is how much of a container's id tells it from others.
const minID = 6

// Has reports whether a socket passes the filter, as the kernel applies it.
func (f *Filter) Has(s event.Socket) bool {
	local, peer := s.Tuple.Local.Addr().Unmap(), s.Tuple.Peer.Addr().Unmap()
	is4 := peer.Is4() || !peer.IsValid() && local.Is4()
	return f.Shows(s) &&
		(f.Version == 0 || is4 == (f.Version == 4)) &&
		(f.PeerPorts == nil || f.PeerPorts.Has(s.Tuple.Peer.Port())) &&
		(f.Networks == nil || slices.ContainsFunc(f.Networks, func(n netip.Prefix) bool { return n.Contains(local) || n.Contains(peer) }))
}

// Ports is a set of ports, one bit each.
type Ports [1024]uint64

// Add puts a port into the set.
func (p *Ports) Add(port uint16) { p[port>>6] |= 1 << (port & 63) }

// Has reports whether a port is in the set; in nil every port is.
func (p *Ports) Has(port uint16) bool {
	return p == nil || p[port>>6]&(1<<(port&63)) != 0
}

// configure makes the constants that the programs are loaded with.
func (t *Tracer) configure(config Config) error {
	f := config.Filter
	filter := bpfFilter{
		Netns:           f.NetNS,
		Pid:             f.PID,
		ByComm:          f.Comm != "",
		ByLocalPort:     f.LocalPorts != nil,
		ByPeerPort:      f.PeerPorts != nil,
		ByAddress:       len(f.Networks) > 0,
		ByDescent:       f.Descendants,
		ByCgroup:        f.ByContainer(),
		OnlyConnections: f.ConnectionsOnly,
	}
	switch f.Version {
	case 4:
		filter.Family = unix.AF_INET
	case 6:
		filter.Family = unix.AF_INET6
	}
	for i := range min(len(f.Comm), len(filter.Comm)-1) {
		filter.Comm[i] = int8(f.Comm[i])
	}
	t.kernel.CgroupHierarchy = config.Cgroups.Hierarchy
	if config.Cgroups.Hierarchy != 0 {
		subsys, err := cgroupSubsys(t.types, config.Cgroups.Controller)
		if err != nil {
			return err
		}
		t.kernel.CgroupSubsys = subsys
	}
	size := config.ringSize()
	t.kernel.WakeupMark, t.kernel.StateMark, t.kernel.ShedMark = size/4, size/4*3, size/8*7
	t.kernel.TwTimerHandler = t.symbols.twTimerHandler

	values := map[string]any{
		"filter": filter, "kernel": t.kernel,
		"callers": t.symbols.callers, "tcp_rcv": t.symbols.tcpRcv,
	}
	if f.LocalPorts != nil {
		values["local_ports"] = *f.LocalPorts
	}
	if f.PeerPorts != nil {
		values["peer_ports"] = *f.PeerPorts
	}
	for name, value := range values {
		if err := t.spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return t.createConstants()
}

// fillNetworks fills the table behind Filter.Networks.
func (t *Tracer) fillNetworks(networks []netip.Prefix) error {
	for _, network := range networks {
		bits := network.Bits()
		if network.Addr().Is4() {
			bits += 96
		}
		key := bpfPrefix{Bits: uint32(bits), Address: network.Addr().As16()}
		if err := t.maps["networks"].Put(key, uint8(1)); err != nil {
			return fmt.Errorf("filter by %s: %w", network, err)
		}
	}
	return nil
}
