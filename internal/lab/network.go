// Package lab reproduces failures of TCP in network namespaces of its own: what the
// verdicts are about, to learn from and to test twtrace by. The namespaces have no
// names and nothing else refers to them: whatever ends the process, the kernel takes
// all of it down.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// Network is four network namespaces: a and b, two pods; nat, the node that they
// reach the world through; and srv, the world. The first has these addresses, of
// others other bytes differ.
//
//	a 10.77.1.2 ── 10.77.1.1 ┐
//	                         nat 10.88.0.1 ── 10.88.0.2 srv (and 10.99.0.1)
//	b 10.77.2.2 ── 10.77.2.1 ┘
type Network struct {
	number         byte
	a, b, nat, srv *namespace
	silent         *os.File // the tun device in nat that swallows all
	threads        sync.WaitGroup
	// ctx ends with the scenario.
	ctx  context.Context
	done []func()
}

// The networks of a and b, by their gateways.
func (n *Network) gatewayA() string { return fmt.Sprintf("10.77.%d.1", 2*n.number+1) }
func (n *Network) gatewayB() string { return fmt.Sprintf("10.77.%d.1", 2*n.number+2) }

// natAddress is what srv sees of a and b where the node masquerades them.
func (n *Network) natAddress() string { return fmt.Sprintf("10.88.%d.1", n.number) }

// server is a port of srv.
func (n *Network) server(port uint16) string { return fmt.Sprintf("%s:%d", n.serverAddress(), port) }

func (n *Network) serverAddress() string { return fmt.Sprintf("10.88.%d.2", n.number) }

// far is an address of srv, too, port 80. What goes there can be made to vanish.
func (n *Network) far() string { return n.farAddress() + ":80" }

func (n *Network) farAddress() string { return fmt.Sprintf("10.99.%d.1", n.number) }

// New makes the namespaces and what connects them. Networks that are there at the
// same time have different numbers, up to 126, so that a tracer which sees all of
// them can tell their addresses apart.
func New(number byte) (n *Network, err error) {
	n = &Network{number: number, ctx: context.Background()}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	for _, ns := range []struct {
		at   **namespace
		name string
	}{{&n.a, "a"}, {&n.b, "b"}, {&n.nat, "nat"}, {&n.srv, "srv"}} {
		if *ns.at, err = newNamespace(ns.name); err != nil {
			return n, err
		}
	}
	return n, errors.Join(
		n.join(n.a, fmt.Sprintf("10.77.%d.2/24", 2*number+1), n.gatewayA()+"/24"),
		n.join(n.b, fmt.Sprintf("10.77.%d.2/24", 2*number+2), n.gatewayB()+"/24"),
		n.join(n.srv, n.serverAddress()+"/24", n.natAddress()+"/24"),
		n.a.do(func() error { return route("0.0.0.0/0", n.gatewayA()) }),
		n.b.do(func() error { return route("0.0.0.0/0", n.gatewayB()) }),
		// On a slow machine a FIN comes twice, and its second answer finds no socket:
		// the RST for that would end a's TIME_WAIT.
		n.a.sysctl("ipv4/tcp_rfc1337", "1"),
		n.srv.do(func() error {
			return errors.Join(route("10.77.0.0/16", n.natAddress()), addAddress("lo", n.farAddress()+"/32"))
		}),
		n.nat.do(func() error {
			return errors.Join(setSysctl("ipv4/ip_forward", "1"), route(n.farAddress()+"/32", n.serverAddress()))
		}),
		n.makeSilence(),
	)
}

// Close takes all of it down.
func (n *Network) Close() {
	for i := len(n.done) - 1; i >= 0; i-- {
		n.done[i]()
	}
	n.done = nil
	n.threads.Wait()
	if n.silent != nil {
		n.silent.Close()
	}
	for _, ns := range []*namespace{n.a, n.b, n.nat, n.srv} {
		if ns != nil {
			ns.end()
		}
	}
}

// NetNS names the namespaces, by their inodes.
func (n *Network) NetNS() map[uint32]string {
	names := make(map[uint32]string)
	for _, ns := range []*namespace{n.a, n.b, n.nat, n.srv} {
		names[ns.inode] = ns.name
	}
	return names
}

// later has f done when the scenario is over.
func (n *Network) later(f func()) { n.done = append(n.done, f) }

// A namespace is a network namespace, held by a process of its own, as a pod's is by
// its pause container: so it is found where network namespaces are looked for.
type namespace struct {
	name   string
	inode  uint32
	file   *os.File // to enter it by
	holder *exec.Cmd
	hold   io.Closer // ends the holder; so does the end of this process
	work   chan func()
}

// holderName is what a holder is called: this same program, which does nothing but
// wait for its standard input to end.
const holderName = "lab-namespace"

func init() {
	if os.Args[0] == holderName {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
}

func newNamespace(name string) (_ *namespace, err error) {
	ns := &namespace{name: name, work: make(chan func())}
	defer func() {
		if err != nil {
			ns.end()
			err = fmt.Errorf("make a network namespace: %w", err)
		}
	}()
	ns.holder = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{holderName},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET},
	}
	if ns.hold, err = ns.holder.StdinPipe(); err != nil {
		return nil, err
	}
	if err := ns.holder.Start(); err != nil {
		return nil, err
	}
	if ns.file, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", ns.holder.Process.Pid)); err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(ns.file.Fd()), &stat); err != nil {
		return nil, err
	}
	ns.inode = uint32(stat.Ino)
	ready := make(chan error)
	go func() {
		_ = thread.Run(func() error {
			err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET)
			if err == nil {
				err = up("lo")
			}
			ready <- err
			for f := range ns.work {
				f()
			}
			return nil
		})
	}()
	return ns, <-ready
}

func (ns *namespace) end() {
	close(ns.work)
	if ns.file != nil {
		ns.file.Close()
	}
	if ns.holder.Process != nil {
		ns.hold.Close()
		_ = ns.holder.Wait() // it ends by itself
	}
}

// do runs f inside.
func (ns *namespace) do(f func() error) error {
	done := make(chan error)
	ns.work <- func() { done <- f() }
	return <-done
}

// as runs f inside on a thread of its own that has this name, which the tracer shows
// as the owner's.
func (ns *namespace) as(name string, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(bytePointer(name)), 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		return f()
	})
}

// join makes a link between a namespace and nat, with an address at each end.
func (n *Network) join(ns *namespace, here, there string) error {
	far := "to-" + ns.name
	err := ns.do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: far, PeerNamespace: netlink.NsFd(n.nat.file.Fd())}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return errors.Join(addAddress("eth0", here), up("eth0"))
	})
	if err != nil {
		return err
	}
	err = n.nat.do(func() error { return errors.Join(addAddress(far, there), up(far), carries(far)) })
	if err != nil {
		return err
	}
	return ns.do(func() error { return carries("eth0") })
}

// carries waits until the device carries packets. That both of its ends are up is not
// enough: the kernel looks after it later (linkwatch_event), and a packet that comes
// first is thrown away. If it asks for a neighbour's address it is asked again after a
// second.
func carries(name string) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
	}
	return fmt.Errorf("%s does not come up", name)
}

// makeSilence makes a device in nat whose reader throws all away: to the kernel the
// packets have left the machine.
func (n *Network) makeSilence() error {
	err := n.nat.do(func() error {
		tun := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: "silence"}, Mode: netlink.TUNTAP_MODE_TUN,
			Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1,
		}
		if err := netlink.LinkAdd(tun); err != nil {
			return fmt.Errorf("make a tun device: %w", err)
		}
		n.silent = tun.Fds[0]
		return up("silence")
	})
	if err != nil {
		return err
	}
	n.threads.Go(func() {
		buffer := make([]byte, 64<<10)
		for {
			if _, err := n.silent.Read(buffer); err != nil {
				return
			}
		}
	})
	// To close it would not interrupt a read that waits. The end of the device does.
	n.later(func() {
		_ = n.nat.do(func() error {
			link, err := netlink.LinkByName("silence")
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		})
	})
	return nil
}

// silence makes what goes to the far address vanish beyond this machine, or arrive.
func (n *Network) silence(on bool) error {
	return n.nat.do(func() error {
		_, far, err := net.ParseCIDR(n.farAddress() + "/32")
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: far, Gw: net.ParseIP(n.serverAddress())}
		if on {
			link, err := netlink.LinkByName("silence")
			if err != nil {
				return err
			}
			r = &netlink.Route{Dst: far, LinkIndex: link.Attrs().Index}
		}
		return netlink.RouteReplace(r)
	})
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func addAddress(device, cidr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, address)
}

func route(network, via string) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: destination, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("add a route to %s: %w", network, err)
	}
	return nil
}

// setSysctl sets a value of the thread's network namespace.
func setSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// sysctl sets a value of the namespace.
func (ns *namespace) sysctl(name, value string) error {
	return ns.do(func() error { return setSysctl(name, value) })
}

// unreachable adds a route that says so.
func unreachable(network string) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: destination, Type: unix.RTN_UNREACHABLE})
}
