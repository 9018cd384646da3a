package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// A scenario is told in order: what is about to happen, then what was seen of
// it, in which network namespace.
func TestLab(t *testing.T) {
	needRoot(t)
	cmd := twtrace("lab", "port-exhaustion")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	rest := stdout.String()
	for _, want := range []string{
		`(?m)^port-exhaustion: the second connect fails`,
		`(?m)^IN      PID COMM .* NEWSTATE`,
		`(?m)^> a has one local port: `,
		`(?m)^a .* client-a +10\.77\.1\.2:32768 +10\.88\.0\.2:80 +SYN_SENT +-> ESTABLISHED .*connected in`,
		`(?m)^srv .* server +10\.88\.0\.2:80 +10\.77\.1\.2:32768 +LAST_ACK +-> CLOSE`,
		`(?m)^> a connects again, while that port is in TIME_WAIT`,
		`(?m)^a .* client-a2 +10\.77\.1\.2:- +10\.88\.0\.2:80 .*no local port: EADDRNOTAVAIL`,
		`(?m)^a +1 of 1 taken, 1 in TIME_WAIT; next free in .*: client-a \(\d+\), port 32768`,
		`(?m)^a +why local_ports_exhausted_time_wait \(likely\): `,
		`(?m)^a +do +keep connections alive .*net\.ipv4\.tcp_tw_reuse=1 there \(now 2;`,
		`(?m)^> a connects to port 81 of the same server`,
		`(?m)^a .* client-a3 +10\.77\.1\.2:32768 +10\.88\.0\.2:81 +SYN_SENT +-> ESTABLISHED .*connected in`,
		`(?m)^twtrace says local_ports_exhausted_time_wait, likely, since:`,
		`(?m)^- ip_local_port_range of this network namespace is 32768-32768`,
		`(?m)^The connect failed with EADDRNOTAVAIL`,
	} {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("no %s, or not in this order:\n%s", want, &stdout)
		}
		rest = rest[at[1]:]
	}
	// The programs end with the namespaces: that is not told.
	if strings.Contains(stdout.String(), "LISTEN      -> CLOSE") {
		t.Errorf("told the end of the lab:\n%s", &stdout)
	}
}
