package owner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// counterNames are the counters that tell why TCP connects fail: of Tcp: in
// /proc/net/snmp and TcpExt: in /proc/net/netstat by the kernel's names, of
// /proc/net/stat/nf_conntrack with the file's name before theirs.
var counterNames = [...]string{
	"ActiveOpens", "AttemptFails", "EstabResets", "OutRsts",
	"TW", "TWRecycled", "TWKilled", "TCPTimeWaitOverflow",
	"PAWSActive", "PAWSEstab", "PAWSTimewait", "PAWSPassive", "TSEcrRejected",
	"ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies",
	"SyncookiesSent", "SyncookiesRecv", "SyncookiesFailed",
	"TCPTimeouts", "TCPSynRetrans", "TCPRetransFail", "TCPAbortOnTimeout",
	"TCPChallengeACK", "TCPSYNChallenge", "TCPACKSkippedTimeWait", "LockDroppedIcmps",
	"nf_conntrack_insert_failed", "nf_conntrack_drop", "nf_conntrack_early_drop", "nf_conntrack_clash_resolve",
}

// conntrackColumns are the columns of /proc/net/stat/nf_conntrack that are
// counted, with their names in counterNames.
var conntrackColumns = map[string]string{
	"insert_failed": "nf_conntrack_insert_failed",
	"drop":          "nf_conntrack_drop",
	"early_drop":    "nf_conntrack_early_drop",
	"clashres":      "nf_conntrack_clash_resolve",
}

var counterIndex = func() map[string]int {
	index := make(map[string]int, len(counterNames))
	for i, name := range counterNames {
		index[name] = i
	}
	return index
}()

// Counters are what the kernel counts in a network namespace, as far as it tells
// why connects fail. They are comparable.
type Counters struct {
	// values are those of counterNames; 0 where this kernel has none, which
	// then never moves.
	values [len(counterNames)]uint64

	// TimeWaits is how many TIME_WAITs there are now.
	TimeWaits uint64
	// ConntrackCount is how many connections nf_conntrack knows now, and
	// ConntrackMax how many it may: 0 where there is no conntrack.
	ConntrackCount, ConntrackMax uint64
}

// Since returns the counters that moved since before, and by how much.
func (c Counters) Since(before Counters) map[string]uint64 {
	if c.values == before.values {
		return nil
	}
	moved := make(map[string]uint64)
	for i, value := range c.values {
		if value > before.values[i] {
			moved[counterNames[i]] = value - before.values[i]
		}
	}
	return moved
}

// ReadCounters reads the counters of the network namespace at path, which it
// holds open no longer than it takes to enter, and its cookie: 0 before Linux 5.14,
// which doesn't tell.
func ReadCounters(path string) (c Counters, cookie uint64, err error) {
	err = inside(path, func() (err error) {
		c, err = readCounters("/proc")
		cookie = netnsCookie()
		return err
	})
	return c, cookie, err
}

// readCounters reads those of the thread's network namespace. A file that this
// kernel lacks is passed over, and so is conntrack's where it takes privileges.
func readCounters(proc string) (Counters, error) {
	var c Counters
	for _, file := range []struct {
		name  string
		parse func(*Counters, []byte) error
	}{
		{"thread-self/net/snmp", (*Counters).parseSNMP},
		{"thread-self/net/netstat", (*Counters).parseSNMP},
		{"thread-self/net/sockstat", (*Counters).parseSockstat},
		{"thread-self/net/stat/nf_conntrack", (*Counters).parseConntrack},
		{"sys/net/netfilter/nf_conntrack_count", func(c *Counters, text []byte) error { return parseNumber(&c.ConntrackCount, text) }},
		{"sys/net/netfilter/nf_conntrack_max", func(c *Counters, text []byte) error { return parseNumber(&c.ConntrackMax, text) }},
	} {
		text, err := os.ReadFile(filepath.Join(proc, file.name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return Counters{}, fmt.Errorf("read counters: %w", err)
		}
		if err := file.parse(&c, text); err != nil {
			return Counters{}, fmt.Errorf("read counters: %s: %w", file.name, err)
		}
	}
	return c, nil
}

// parseSNMP parses /proc/net/snmp or netstat: pairs of lines that begin with the
// same word, one with the names and one with the values.
func (c *Counters) parseSNMP(text []byte) error {
	for len(text) > 0 {
		var names, values []byte
		names, text, _ = bytes.Cut(text, []byte("\n"))
		values, text, _ = bytes.Cut(text, []byte("\n"))
		if !bytes.HasPrefix(names, []byte("Tcp: ")) && !bytes.HasPrefix(names, []byte("TcpExt: ")) {
			continue
		}
		columns, numbers := bytes.Fields(names), bytes.Fields(values)
		if len(columns) != len(numbers) || !bytes.Equal(columns[0], numbers[0]) {
			return fmt.Errorf("%d names, and %d values", len(columns), len(numbers))
		}
		for i, column := range columns {
			at, ok := counterIndex[string(column)]
			if !ok {
				continue
			}
			value, err := strconv.ParseUint(string(numbers[i]), 10, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", column, err)
			}
			c.values[at] = value
		}
	}
	return nil
}

// parseConntrack parses /proc/net/stat/nf_conntrack: a line of names, and a line
// of hexadecimal values for each CPU.
func (c *Counters) parseConntrack(text []byte) error {
	names, rest, _ := bytes.Cut(text, []byte("\n"))
	columns := bytes.Fields(names)
	for line := range bytes.Lines(rest) {
		for i, number := range bytes.Fields(line) {
			if i >= len(columns) {
				return errors.New("more values than names")
			}
			name, ok := conntrackColumns[string(columns[i])]
			if !ok {
				continue
			}
			value, err := strconv.ParseUint(string(number), 16, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			c.values[counterIndex[name]] += value
		}
	}
	return nil
}

// parseSockstat parses /proc/net/sockstat: lines such as
// "TCP: inuse 5 orphan 0 tw 17 alloc 9 mem 2".
func (c *Counters) parseSockstat(text []byte) error {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != "TCP:" {
			continue
		}
		for i := 1; i+1 < len(fields); i += 2 {
			if string(fields[i]) == "tw" {
				return parseNumber(&c.TimeWaits, fields[i+1])
			}
		}
	}
	return nil
}

func parseNumber(to *uint64, text []byte) (err error) {
	*to, err = strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	return err
}
