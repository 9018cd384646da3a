package record

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestEncoder: what it remembers never gets into a line that it does not belong
// to.
func TestEncoder(t *testing.T) {
	all := samples()
	var e Encoder
	random := rand.New(rand.NewPCG(1, 2))
	var got, want []byte
	moment := int64(start)
	for seq := range uint64(20_000) {
		r := all[random.IntN(len(all))]
		// Some of the sockets share a place in its memory, and differ in a part.
		switch random.IntN(6) {
		case 0:
			r.Socket.Cookie += remembered
		case 1:
			r.Socket.NetNS.Cookie++
		case 2:
			r.Socket.Owner.Comm += "x"
		}
		switch random.IntN(20) {
		case 0:
			moment -= random.Int64N(int64(time.Hour))
		case 1:
			moment += random.Int64N(int64(time.Hour))
		default:
			moment += random.Int64N(int64(100 * time.Millisecond))
		}
		r.Time = moment
		if seq < 2 {
			r.Time = int64(seq) - 1 // before and at the epoch
		}
		got, want = e.AppendJSON(got[:0], &r, seq), r.AppendJSON(want[:0], seq)
		if string(got) != string(want) {
			t.Fatalf("line %d:\n%s, want\n%s", seq, got, want)
		}
	}
}
