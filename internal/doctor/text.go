package doctor

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/twtrace/twtrace/internal/sink"
)

const (
	// width is that of the text, but for lines that can't be broken: names,
	// and commands to be copied.
	width = 80
	// mostName is the width of a namespace's name in the table.
	mostName = 19
	// mostRows is how many namespaces the table shows.
	mostRows = 40
	// mostAlike is how many problems of one kind are told.
	mostAlike = 3
)

// Text renders the report for reading.
func (r *Report) Text() []byte {
	var b bytes.Buffer
	r.writeHead(&b)
	r.writeProbes(&b)
	r.writeNetNS(&b)
	r.writeProblems(&b)
	return b.Bytes()
}

func (r *Report) writeHead(b *bytes.Buffer) {
	fact := func(name, format string, args ...any) {
		fmt.Fprintf(b, "%-11s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	if r.OK {
		fact("tracing", "works")
	} else {
		fact("tracing", "does not work, see below")
	}
	btf := "with BTF"
	if !r.BTF {
		btf = "without BTF"
	}
	fact("kernel", "%s, %s, %s", known(r.Kernel), r.Arch, btf)
	fact("lockdown", "%s", known(r.Lockdown))
	offsets := map[string]string{
		"per_host":       "per_host: one offset for all connections between two addresses",
		"per_connection": "per_connection: each connection has an offset of its own",
		"none":           "none: no offset",
	}
	fact("timestamps", "%s", known(offsets[r.TSOffsetMode]))
	if len(r.Privileges.Missing) == 0 {
		fact("privileges", "all that it takes")
	}
	for i, name := range r.Privileges.Missing {
		title := ""
		if i == 0 {
			title = "privileges"
		}
		fact(title, "no %s, %s", name, purpose(name))
	}
}

func known(text string) string {
	if text == "" {
		return "not known"
	}
	return text
}

func (r *Report) writeProbes(b *bytes.Buffer) {
	if len(r.Probes) > 0 {
		fmt.Fprintf(b, "\n%-24s %-10s %s\n", "HOOK", "BY", "GIVES")
	}
	for _, p := range r.Probes {
		if p.Available {
			fmt.Fprintf(b, "%-24s %-10s %s\n", p.Name, p.Via, p.Gives)
		} else {
			writeWrapped(b, fmt.Sprintf("%-24s %-10s ", p.Name, "-"), "no "+p.Via+": "+p.WhyNot)
		}
	}
	if len(r.blindSpots) > 0 {
		b.WriteString("\ncan't be seen\n")
	}
	for _, spot := range r.blindSpots {
		writeWrapped(b, "  - ", spot)
	}
}

func (r *Report) writeNetNS(b *bytes.Buffer) {
	if len(r.NetNS) == 0 {
		return
	}
	shown := r.NetNS[:min(len(r.NetNS), mostRows)]
	widest := len("NAME")
	for _, n := range shown {
		_, columns := sink.AppendName(nil, n.Name, mostName)
		widest = max(widest, columns)
	}
	row := func(netns, name, timeWait, buckets, ports, reuse, timestamps, conntrack string) {
		text, columns := sink.AppendName(nil, name, mostName)
		fmt.Fprintf(b, "%10s %s%*s %9s %7s %-12s %5s %2s %9s\n",
			netns, text, widest-columns, "", timeWait, buckets, ports, reuse, timestamps, conntrack)
	}
	b.WriteByte('\n')
	row("NETNS", "NAME", "TIME_WAIT", "OF MAX", "LOCAL PORTS", "REUSE", "TS", "CONNTRACK")
	reserved := false
	for _, n := range shown {
		setting := func(name string) string {
			if value := n.Sysctl.Number(name); value >= 0 {
				return fmt.Sprint(value)
			}
			return "-"
		}
		name := n.Name
		if name == "" {
			name = "-"
		}
		ports := fmt.Sprintf("%d-%d", n.Sysctl.Ports.Low, n.Sysctl.Ports.High)
		if len(n.Sysctl.Reserved) > 0 {
			ports += "*"
			reserved = true
		}
		conntrack := "-"
		if n.Conntrack != nil {
			conntrack = fmt.Sprintf("%d %%", n.Conntrack.Count*100/n.Conntrack.Max)
		}
		row(fmt.Sprint(n.Inode), name, fmt.Sprint(n.TimeWait), setting("tcp_max_tw_buckets"), ports,
			setting("tcp_tw_reuse"), setting("tcp_timestamps"), conntrack)
	}
	if more := r.NetNS[len(shown):]; len(more) > 0 {
		each := "without a TIME_WAIT"
		if most := int(more[0].TimeWait); most > 0 {
			each = fmt.Sprintf("with at most %d %s each", most, plural("TIME_WAIT", most))
		}
		fmt.Fprintf(b, "and %d more, %s: see -o json\n", len(more), each)
	}
	if reserved {
		b.WriteString("* less ip_local_reserved_ports\n")
	}
}

func (r *Report) writeProblems(b *bytes.Buffer) {
	if len(r.Problems) == 0 {
		b.WriteString("\nproblems: none\n")
		return
	}
	fmt.Fprintf(b, "\nproblems: %d\n", len(r.Problems))
	alike := make(map[string]int)
	for _, p := range r.Problems {
		if alike[p.of]++; p.of != "" && alike[p.of] > mostAlike {
			continue
		}
		fmt.Fprintf(b, "\n* %s\n", printable(p.What))
		writeWrapped(b, "  why:  ", p.Why)
		fmt.Fprintf(b, "  hint: %s\n", printable(p.Hint))
	}
	told := make(map[string]bool)
	for _, p := range r.Problems {
		if p.of != "" && alike[p.of] > mostAlike && !told[p.of] {
			told[p.of] = true
			fmt.Fprintf(b, "\n* %s: the same in %d more network %s, see -o json\n", p.of, alike[p.of]-mostAlike, plural("namespace", alike[p.of]-mostAlike))
		}
	}
}

// printable replaces what would do something to the terminal: names are chosen by
// others, and errors quote them.
func printable(text string) string {
	b, _ := sink.AppendName(nil, text, 1<<20)
	return string(b)
}

// writeWrapped writes text after a head, made harmless, and breaks it between words.
// What follows the first line stands under its text.
func writeWrapped(b *bytes.Buffer, head, text string) {
	b.WriteString(head)
	column := len(head)
	for i, word := range strings.Fields(text) {
		word = printable(word)
		if i > 0 && column+1+len(word) > width {
			fmt.Fprintf(b, "\n%*s", len(head), "")
			column = len(head)
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}
