package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/twtrace/twtrace/internal/owner"
)

// ofMachine finds what is wrong with the machine, or with how twtrace runs on it.
func (f *Findings) ofMachine() (problems []Problem) {
	add := func(what, why, hint string) { problems = append(problems, Problem{What: what, Why: why, Hint: hint}) }
	if f.Refused != nil {
		why, hint := f.Refused.Error(), f.Hint
		switch {
		case f.OwnUsers:
			why += "; this process is in a user namespace, whose root has no rights over the kernel"
			hint = "run twtrace outside of the user namespace (no rootless container, no userns-remap; in a pod, hostUsers: true)"
		case len(f.Privileges.Missing) > 0:
			why += "; missing: " + strings.Join(f.Privileges.Missing, ", ")
		}
		if f.Lockdown == "confidentiality" {
			why += "; the kernel is locked down (confidentiality), where no program may read its memory"
			hint = "boot with lockdown=integrity, or without Secure Boot's confidentiality mode"
		}
		// What else could be said of privileges follows from this.
		add("nothing can be traced", why, hint)
		return problems
	}
	if !f.BTF {
		add("this kernel carries no BTF", "its types were read from the file that --btf names, which must be of this very kernel",
			"run a kernel built with CONFIG_DEBUG_INFO_BTF")
	}
	if len(f.Privileges.Missing) > 0 {
		var missing []string
		for _, name := range f.Privileges.Missing {
			missing = append(missing, name+" "+purpose(name))
		}
		add("privileges are missing", strings.Join(missing, "; "),
			"run as root; in a container, privileged, or add these to securityContext.capabilities")
	}
	if f.OwnProcesses {
		add("the machine's processes are not visible", "this process is in a PID namespace of its own: the owners of older sockets and most network namespaces can't be found",
			"in Docker --pid=host, in a pod hostPID: true")
	}
	if !f.TimeWaits && !f.lacks("CAP_SYSLOG") {
		add("TIME_WAITs can't be seen", f.whyNot("timer_cancel"),
			"run as root or with CAP_SYSLOG, and with kernel.kptr_restrict 0 or 1")
	}
	if !f.lacks("CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN") {
		f.forbidden(add)
	}
	if f.Unseen != nil {
		lines := strings.Split(f.Unseen.Error(), "\n")
		why := lines[0]
		if len(lines) > 1 {
			why += fmt.Sprintf("; and %d more", len(lines)-1)
		}
		add("some network namespaces can't be looked into", why, "run as root; in a container, privileged")
	}
	return problems
}

// whyNot is why a hook is not available, by its first way.
func (f *Findings) whyNot(name string) string {
	for _, p := range f.Probes {
		if p.Name == name && !p.Available {
			return p.WhyNot
		}
	}
	return "none of the hooks that show it is available"
}

// lacks reports whether one of these privileges is missing.
func (f *Findings) lacks(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(f.Privileges.Missing, name) })
}

// forbidden finds hooks that the kernel has and does not permit, where something
// can't be seen without them.
func (f *Findings) forbidden(add func(what, why, hint string)) {
	var hooks []string
	why := ""
	// What is lost for another reason can be had by no permission.
	permitted := make(map[string]bool)
	for _, p := range f.Probes {
		switch {
		case p.Forbidden:
			hooks = append(hooks, p.Name+" ("+p.Via+")")
			why = p.WhyNot
			permitted[p.LostWithout] = false
		case !p.Available:
			if _, ok := permitted[p.LostWithout]; !ok {
				permitted[p.LostWithout] = true
			}
		}
	}
	spots := slices.DeleteFunc(slices.Clone(f.HookBlindSpots), func(spot string) bool { return permitted[spot] })
	if len(hooks) == 0 || len(spots) == 0 {
		return
	}
	hint := "permit tracing programs of BPF (fentry, fexit) in the policy that refuses them: a security module, seccomp, or the hypervisor's"
	if f.Lockdown == "confidentiality" {
		hint = "boot with lockdown=integrity"
	}
	add("hooks are forbidden: "+strings.Join(hooks, ", "),
		why+"; so these can't be seen: "+strings.Join(spots, "; "), hint)
}

// A place is a network namespace, to be judged.
type place struct {
	owner.Namespace
	host bool // it is the machine's
}

func (p place) String() string {
	if name := nameOf(p.Namespace); name != "" {
		return fmt.Sprintf("%s, network namespace %d", name, p.Inode)
	}
	return fmt.Sprintf("network namespace %d", p.Inode)
}

// set tells how to change a setting here.
func (p place) set(name, value string) string {
	if strings.Contains(value, " ") {
		value = `"` + value + `"`
	}
	command := "sysctl -w " + name + "=" + value
	switch {
	case p.host:
		return command
	case p.Name != "":
		return fmt.Sprintf("ip netns exec %s %s", quote(p.Name), command)
	case p.Oldest.PID != 0:
		return fmt.Sprintf("nsenter -t %d -n %s", p.Oldest.PID, command)
	}
	return command + ", inside"
}

// plain are names that mean themselves to a shell.
var plain = regexp.MustCompile(`^[\w.][\w.@:+-]*$`)

// quote makes of a name one word for a shell, whoever chose the name.
func quote(name string) string {
	if plain.MatchString(name) {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

func plural(noun string, n int) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// secondsInTimeWait is how long a TIME_WAIT holds its port, on every kernel.
const secondsInTimeWait = 60

// fewPorts are so few local ports that a busy client runs out of them.
const fewPorts = 1024

// problems finds what is wrong in a network namespace: rules that a healthy one
// never meets.
func (p place) problems() (problems []Problem) {
	add := func(of, what, why, hint string) {
		if !p.host && strings.Contains(hint, "net.ipv4.") {
			hint += "; for a pod, securityContext.sysctls"
		}
		problems = append(problems, Problem{What: p.String() + ": " + what, Why: why, Hint: hint, of: of})
	}
	c, s := p.Counters, p.Sysctls
	number := func(name string) uint64 { return uint64(max(s.Number(name), 0)) }
	usable := s.Usable()
	ports := fmt.Sprintf("ip_local_port_range is %d %d", s.Ports.Low, s.Ports.High)
	if len(s.Reserved) > 0 {
		ports += ", less ip_local_reserved_ports"
	}
	reuse := number("tcp_tw_reuse")

	d := p.Busiest
	toward := fmt.Sprintf("TIME_WAITs hold %d of %d local %s toward %s", d.TimeWait, usable, plural("port", usable), d.Peer)
	switch {
	case d.TimeWait > 0 && d.TimeWait*2 > usable:
		hint := "keep connections open"
		if usable < 60000 {
			hint += "; or have more ports: " + p.set("net.ipv4.ip_local_port_range", "1024 65535")
		}
		if reuse != 1 {
			hint += "; or use them again: " + p.set("net.ipv4.tcp_tw_reuse", "1")
		}
		add("ports", toward, fmt.Sprintf("each is held for %d s, and a connect that finds none fails with EADDRNOTAVAIL; %s, tcp_tw_reuse %d", secondsInTimeWait, ports, reuse), hint)
	case d.TimeWait > 0 && d.TimeWait*4 > usable && s.Number("tcp_tw_reuse") == 0:
		add("tcp_tw_reuse", toward+", and tcp_tw_reuse is 0",
			fmt.Sprintf("no connect may take over a TIME_WAIT, each of which is held for %d s; %s", secondsInTimeWait, ports),
			p.set("net.ipv4.tcp_tw_reuse", "1"))
	}
	if usable < fewPorts {
		add("few ports", fmt.Sprintf("only %d local %s to connect from", usable, plural("port", usable)),
			fmt.Sprintf("%s: toward one destination, who closes first can connect %d %s in %d s", ports, usable, plural("time", usable), secondsInTimeWait),
			p.set("net.ipv4.ip_local_port_range", "32768 60999"))
	}
	if buckets := number("tcp_max_tw_buckets"); c.TimeWaits > 0 && c.TimeWaits*10 >= buckets*9 {
		add("tcp_max_tw_buckets", fmt.Sprintf("%d %s, of at most %d", c.TimeWaits, plural("TIME_WAIT", int(c.TimeWaits)), buckets),
			"past tcp_max_tw_buckets connections end without a TIME_WAIT: late segments of an old one can end up in a new one",
			p.set("net.ipv4.tcp_max_tw_buckets", fmt.Sprint(max(buckets*4, 8192))))
	}
	if c.ConntrackMax > 0 && c.ConntrackCount*10 > c.ConntrackMax*8 {
		add("conntrack", fmt.Sprintf("conntrack knows %d connections, of at most %d", c.ConntrackCount, c.ConntrackMax),
			"when it is full, the packets of new connections are dropped, and their connects time out",
			fmt.Sprintf("on the host: sysctl -w net.netfilter.nf_conntrack_max=%d", c.ConntrackMax*2))
	}
	if p.Recycle > 0 {
		add("tcp_tw_recycle", "tcp_tw_recycle is on",
			"of clients behind one address (NAT), the SYNs of all whose timestamps are behind the last ones seen are dropped, unanswered",
			p.set("net.ipv4.tcp_tw_recycle", "0"))
	}
	if reuse == 1 && s.Number("tcp_timestamps") == 0 {
		add("tcp_timestamps", "tcp_tw_reuse is 1 and tcp_timestamps is 0",
			"a TIME_WAIT is taken over only where both ends send timestamps: tcp_tw_reuse has no effect",
			p.set("net.ipv4.tcp_timestamps", "1"))
	}
	return problems
}
