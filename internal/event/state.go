package event

import "strings"

// State is a TCP state, numbered as in include/net/tcp_states.h.
type State uint8

// The states.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv
)

var stateNames = [...]string{
	Established: "ESTABLISHED",
	SynSent:     "SYN_SENT",
	SynRecv:     "SYN_RECV",
	FinWait1:    "FIN_WAIT1",
	FinWait2:    "FIN_WAIT2",
	TimeWait:    "TIME_WAIT",
	Close:       "CLOSE",
	CloseWait:   "CLOSE_WAIT",
	LastAck:     "LAST_ACK",
	Listen:      "LISTEN",
	Closing:     "CLOSING",
	NewSynRecv:  "NEW_SYN_RECV",
}

// String spells the state as the kernel does, "" for a number that is none.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return ""
}

// StateSet is a set of states, bit n for the state with number n.
type StateSet uint16

// Has reports whether s is in the set.
func (set StateSet) Has(s State) bool { return set&(1<<s) != 0 }

// With returns the set with s in it.
func (set StateSet) With(s State) StateSet { return set | 1<<s }

// String lists the states, for test failures.
func (set StateSet) String() string {
	var names []string
	for s := Established; s <= NewSynRecv; s++ {
		if set.Has(s) {
			names = append(names, s.String())
		}
	}
	return strings.Join(names, "|")
}
