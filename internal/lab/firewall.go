package lab

import (
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule adds a rule to a chain of its own at a hook.
func (ns *namespace) rule(hook *nftables.ChainHook, kind nftables.ChainType, exprs ...expr.Any) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.file.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "lab"})
	priority := nftables.ChainPriorityFilter
	if kind == nftables.ChainTypeNAT {
		priority = nftables.ChainPriorityNATSource
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: fmt.Sprintf("%s-%d", kind, *hook), Table: table, Type: kind, Hooknum: hook, Priority: priority,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// port matches TCP packets by their destination port, or source port.
func port(number uint16, source bool) []expr.Any {
	offset := uint32(2)
	if source {
		offset = 0
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)},
	}
}

// drop drops what matches.
func (ns *namespace) drop(hook *nftables.ChainHook, match []expr.Any) error {
	return ns.rule(hook, nftables.ChainTypeFilter, append(match, &expr.Verdict{Kind: expr.VerdictDrop})...)
}

// reject answers what matches with ICMP host unreachable.
func (ns *namespace) reject(hook *nftables.ChainHook, match []expr.Any) error {
	const hostUnreachable = 1
	return ns.rule(hook, nftables.ChainTypeFilter, append(match, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: hostUnreachable})...)
}

// snat gives all that leaves nat for srv the address of nat, and one source port, or
// a random one where that is 0.
func (n *Network) snat(sourcePort uint16) error {
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("to-srv"), 0)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Immediate{Register: 1, Data: net.ParseIP(n.natAddress()).To4()},
	}
	nat := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, FullyRandom: sourcePort == 0}
	if sourcePort != 0 {
		exprs = append(exprs, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(sourcePort)})
		nat.RegProtoMin = 2
	}
	return n.nat.rule(nftables.ChainHookPostrouting, nftables.ChainTypeNAT, append(exprs, nat)...)
}
