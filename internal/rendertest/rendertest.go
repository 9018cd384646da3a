// Package rendertest is what the tests of all renderers ask of them: whatever others
// chose to be called, what a user reads stays harmless.
package rendertest

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// Names are those that do something, or look as if: seeds.
var Names = []string{
	"", "curl", " ", "日本語", "a\u0301\u0301", "👩‍👩‍👧", "<b>&amp;", "%s%d\\n",
	"\x1b[2J", "\x1b]0;title\a", "\u009b2J", "\x7f\b\r", "a\nb", "a\u2028b\u0085c", "\u202e\u2066\u200b\ufeff", "\xff\xfe\xc2",
}

// Record is one of a kind with all that a record can have; what is a text is this one.
func Record(kind record.Kind, text string) record.Record {
	owner := func() event.Owner { return event.Owner{PID: 1, TID: 1, Cgroup: 1, In: &event.Cgroup{}} }
	verdict := func(inner *record.VerdictFields) *record.VerdictFields {
		return &record.VerdictFields{
			Confidence: record.Likely, Evidence: make([]record.Evidence, 1),
			RuledOut: make([]string, 1), NotVisible: make([]string, 1), Inner: inner,
		}
	}
	r := record.Record{
		Kind: kind,
		Time: time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC).UnixNano(),
		Socket: event.Socket{
			Address: 1, Cookie: 1, NetNS: event.NetNS{Inode: 1, Cookie: 1}, Owner: owner(),
			Tuple: event.Tuple{Local: netip.MustParseAddrPort("10.0.0.1:1025"), Peer: netip.MustParseAddrPort("10.0.0.2:80")},
		},
		State:    record.StateFields{Old: event.SynSent, New: event.Close, Duration: 1},
		Connect:  record.ConnectFields{Outcome: record.NoLocalPort, Errno: unix.EADDRNOTAVAIL},
		Close:    record.CloseFields{By: record.ByLocal},
		TimeWait: record.TimeWaitFields{Ended: event.Reused},
		Drop:     record.DropFields{Packet: event.SYN},
		Lost:     record.LostFields{Count: 1, Where: record.InOutput},
		Reuse:    &record.ReuseFields{Scope: record.ScopePort, How: record.AfterClose, After: 1, Previous: record.PreviousUse{Owner: owner()}},
		Ports:    &record.PortsFields{InUse: 1, Usable: 1, Holder: &record.PortHolder{Port: 1, Owner: owner()}},
		Sysctls:  &event.Sysctls{},
		Counters: &record.CountersFields{Delta: map[string]uint64{"": 1}},
		Verdict:  verdict(verdict(nil)),
		Meta:     &record.MetaFields{Probes: make([]record.Probe, 1), BlindSpots: make([]string, 1), Filters: make([]string, 1)},
		Summary:  &record.SummaryFields{Verdicts: map[string]uint64{"": 1}},
	}
	Fill(&r, text)
	return r
}

// Fill sets every text in what p points to, those that are keys as well.
func Fill(p any, text string) { fill(reflect.ValueOf(p).Elem(), text) }

func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		if !v.IsNil() {
			fill(v.Elem(), text)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text)
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), text)
		}
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			return
		}
		for _, key := range v.MapKeys() {
			value := v.MapIndex(key)
			v.SetMapIndex(key, reflect.Value{})
			v.SetMapIndex(reflect.ValueOf(text).Convert(key.Type()), value)
		}
	}
}

// Check checks that a text is valid, and has nothing that moves a cursor, turns the
// direction of writing or can't be seen, but newlines.
func Check(t *testing.T, text string) {
	t.Helper()
	for i, r := range text {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(text[i:]); size > 1 {
				continue
			}
		} else if r == '\n' || unicode.IsPrint(r) {
			continue
		}
		t.Errorf("%q is not harmless: %q", r, text[max(i-40, 0):min(i+40, len(text))])
		return
	}
}
