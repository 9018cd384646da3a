package verdict

import (
	"fmt"

	"github.com/twtrace/twtrace/internal/record"
)

// OfNetNS returns the verdicts on a network namespace, by its counters: causes that
// belong to no single connect. maxTimeWaits is its tcp_max_tw_buckets, negative where
// that is not known; backlog is the fullest queue of a listener there, nil for none.
func OfNetNS(c *Counters, maxTimeWaits int64, backlog *Backlog) []*record.VerdictFields {
	var verdicts []*record.VerdictFields
	if n := c.Delta["TCPTimeWaitOverflow"]; n > 0 {
		v := &record.VerdictFields{
			ID: TimeWaitOverflow, Confidence: record.Certain,
			Text:     fmt.Sprintf("%s ended without a TIME_WAIT: there was no room for another", times(int(n), "connection", "connections")),
			Evidence: []record.Evidence{{Line: c.Line, Text: fmt.Sprintf("TCPTimeWaitOverflow moved by %d", n)}},
			RuledOut: []string{"TIME_WAITs that ended: these never began"},
			Advice:   "raise net.ipv4.tcp_max_tw_buckets in that network namespace, or pool connections",
		}
		if maxTimeWaits >= 0 {
			v.Advice = fmt.Sprintf("raise net.ipv4.tcp_max_tw_buckets in that network namespace (now %d), or pool connections", maxTimeWaits)
		}
		verdicts = append(verdicts, v)
	}
	if n := c.Delta["ListenOverflows"]; n > 0 {
		v := &record.VerdictFields{
			ID: ListenOverflow, Confidence: record.Certain,
			Text:       fmt.Sprintf("%s of clients dropped: the queue of a listener here is full, and nobody accepts its connections fast enough", times(int(n), "packet", "packets")),
			Evidence:   []record.Evidence{{Line: c.Line, Text: fmt.Sprintf("ListenOverflows moved by %d", n)}},
			NotVisible: []string{"which clients they were"},
			Advice:     "a larger backlog in listen(), net.core.somaxconn in that network namespace, and a look at the accept loop",
		}
		if c.Delta["TCPReqQFullDoCookies"] > 0 {
			v.RuledOut = append(v.RuledOut, "SYN cookies alone: those drop nothing")
		}
		if backlog != nil {
			v.Evidence = append(v.Evidence, record.Evidence{Text: backlog.String()})
		}
		verdicts = append(verdicts, v)
	}
	return verdicts
}
