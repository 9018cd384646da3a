package lab

import (
	"fmt"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
)

// recycle makes srv drop SYNs as a server with tcp_tw_recycle did.
func (n *Network) recycle() error {
	_ = rlimit.RemoveMemlock() // needed before 5.11; where it is refused the load says so
	var objects recycleObjects
	if err := loadRecycleObjects(&objects, nil); err != nil {
		return fmt.Errorf("load the stand-in for tcp_tw_recycle: %w", err)
	}
	n.later(func() { objects.Close() })
	// An interface's index is looked up in the thread's namespace.
	return n.srv.do(func() error {
		device, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attached, err := link.AttachXDP(link.XDPOptions{Program: objects.Recycle, Interface: device.Attrs().Index, Flags: link.XDPGenericMode})
		if err != nil {
			return fmt.Errorf("attach the stand-in for tcp_tw_recycle: %w", err)
		}
		n.later(func() { attached.Close() })
		return nil
	})
}
