package record

import (
	"time"

	"github.com/twtrace/twtrace/internal/event"
)

// An Encoder appends records as AppendJSON does, and remembers what it has
// appended: the lines of a connection come close together and have two thirds of
// their text in common. Its zero value is ready to use. It is for one goroutine.
type Encoder struct {
	// second is the time of day, to the second, of the line before: its text
	// is digits.
	second int64
	digits [len(`"2006-01-02T15:04:05.`)]byte

	sockets [remembered]text[event.Socket]
	owners  [rememberedOwners]text[event.Owner]
}

// How many sockets and owners an Encoder knows the text of: powers of two.
const (
	remembered       = 256
	rememberedOwners = 32
)

// A text is what was appended for a thing.
type text[T comparable] struct {
	of   T
	json []byte
}

// known reports whether it is the text of that thing. Where not it is empty, and
// to become that.
func (t *text[T]) known(of *T) bool {
	if len(t.json) > 0 && t.of == *of {
		return true
	}
	t.of, t.json = *of, t.json[:0]
	return false
}

// AppendJSON is r.AppendJSON.
func (e *Encoder) AppendJSON(b []byte, r *Record, seq uint64) []byte {
	return r.appendJSON(b, seq, e)
}

// appendTime is the function of that name.
func (e *Encoder) appendTime(b []byte, ns int64) []byte {
	if e == nil || ns < 0 {
		return appendTime(b, ns)
	}
	second := ns / int64(time.Second)
	if second != e.second || e.second == 0 {
		whole := appendTime(make([]byte, 0, 64), ns)
		if copy(e.digits[:], whole) != len(e.digits) || len(whole) != len(`"2006-01-02T15:04:05.000000000Z"`) {
			return append(b, whole...) // a year of five digits
		}
		e.second = second
	}
	b = append(b, e.digits[:]...)
	return append(appendDigits(b, int(ns%int64(time.Second)), 9), `Z"`...)
}

// appendSocket is the function of that name.
func (e *Encoder) appendSocket(b []byte, s *event.Socket) []byte {
	if e == nil {
		return appendSocket(b, s)
	}
	t := &e.sockets[(s.Cookie^s.Address>>6)%remembered]
	if !t.known(s) {
		t.json = e.appendOwner(appendPlace(t.json, s), &s.Owner)
	}
	return append(b, t.json...)
}

// appendOwner is the function of that name.
func (e *Encoder) appendOwner(b []byte, o *event.Owner) []byte {
	if *o == (event.Owner{}) {
		return b
	}
	t := &e.owners[(o.TID+o.PID)%rememberedOwners]
	if !t.known(o) {
		t.json = appendOwner(t.json, o)
	}
	return append(b, t.json...)
}
