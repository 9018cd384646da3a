package doctor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Privileges are the capabilities that tracing takes.
type Privileges struct {
	Effective []string `json:"effective"`
	Missing   []string `json:"missing"`
}

// A capability is one that tracing takes.
type capability struct {
	number int
	name   string
	// purpose is what it is for.
	purpose string
	// within are others that contain it.
	within []int
}

// capabilities in the order of how much is lost without.
var capabilities = []capability{
	{unix.CAP_BPF, "CAP_BPF", "to load the programs", []int{unix.CAP_SYS_ADMIN}},
	{unix.CAP_PERFMON, "CAP_PERFMON", "to attach the programs", []int{unix.CAP_SYS_ADMIN}},
	{unix.CAP_SYSLOG, "CAP_SYSLOG", "to see TIME_WAITs, by addresses of kernel functions", nil},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to look into network namespaces and at system calls", nil},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "to find the processes in network namespaces", nil},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "to find the owners of older sockets", []int{unix.CAP_DAC_OVERRIDE}},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to try how timestamp offsets are chosen", nil},
}

// ReadPrivileges reads those of the calling thread.
func ReadPrivileges() (Privileges, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return Privileges{}, fmt.Errorf("read the capabilities: %w", err)
	}
	return privileges(uint64(data[1].Effective)<<32 | uint64(data[0].Effective)), nil
}

// privileges sorts a set of capabilities, a bit each.
func privileges(effective uint64) Privileges {
	p := Privileges{Effective: []string{}, Missing: []string{}}
	has := func(number int) bool { return effective>>number&1 != 0 }
	for _, c := range capabilities {
		there := has(c.number)
		if there {
			p.Effective = append(p.Effective, c.name)
		}
		for _, other := range c.within {
			there = there || has(other)
		}
		if !there {
			p.Missing = append(p.Missing, c.name)
		}
	}
	return p
}

// purpose is what a capability is for.
func purpose(name string) string {
	for _, c := range capabilities {
		if c.name == name {
			return c.purpose
		}
	}
	return ""
}
