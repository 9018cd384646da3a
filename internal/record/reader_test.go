package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// golden is a log with lines of every kind, in every shape.
func golden(tb testing.TB) []byte {
	tb.Helper()
	log, err := os.ReadFile("testdata/lines.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	return log
}

// readAll returns the lines that can be read, and what is wrong with the others.
func readAll(tb testing.TB, log io.Reader) (lines []string, damaged []*DamagedError, reader *Reader) {
	tb.Helper()
	reader, err := NewReader(log)
	if err != nil {
		tb.Fatal(err)
	}
	defer reader.Close()
	for {
		var r Record
		err := reader.Read(&r)
		var damage *DamagedError
		switch {
		case err == io.EOF:
			return lines, damaged, reader
		case errors.As(err, &damage):
			damaged = append(damaged, damage)
		case err != nil:
			tb.Fatal(err)
		default:
			lines = append(lines, string(reader.Raw()))
		}
	}
}

// TestReadBack: what is read is what was written.
func TestReadBack(t *testing.T) {
	log := golden(t)
	reader, err := NewReader(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	var again []byte
	for {
		var r Record
		if err := reader.Read(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		again = r.AppendJSON(again, r.Line-1)
	}
	if diff := cmp.Diff(strings.Split(string(log), "\n"), strings.Split(string(again), "\n")); diff != "" {
		t.Errorf("written, and read and written again:\n%s", diff)
	}
	if kinds, keys := reader.Strange(); len(kinds)+len(keys) > 0 || reader.Torn() != nil {
		t.Errorf("kinds %v and keys %v are not known; torn: %v", kinds, keys, reader.Torn())
	}
}

// TestCut: a log that is cut anywhere is read to its last whole line.
func TestCut(t *testing.T) {
	log := golden(t)
	log = log[:bytes.LastIndexByte(log[:6000], '\n')+1] // every offset of all of it takes too long
	for cut := range len(log) + 1 {
		lines, damaged, reader := readAll(t, bytes.NewReader(log[:cut]))
		if want := bytes.Count(log[:cut], []byte("\n")); len(lines) != want || len(damaged) > 0 {
			t.Fatalf("cut at %d: %d lines and %v, want %d and none", cut, len(lines), damaged, want)
		}
		if whole := cut == 0 || log[cut-1] == '\n'; (reader.Torn() == nil) != whole {
			t.Fatalf("cut at %d: torn is %v", cut, reader.Torn())
		}
	}
}

func gzipped(tb testing.TB, log []byte) []byte {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(log); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return packed.Bytes()
}

func zstandard(tb testing.TB, log []byte) []byte {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return encoder.EncodeAll(log, nil)
}

// TestPacked: a packed log is read as a plain one, several parts after each other as
// one, and of one that is cut what can be unpacked.
func TestPacked(t *testing.T) {
	log := golden(t)
	want, _, _ := readAll(t, bytes.NewReader(log))
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"gzip": gzipped, "zstd": zstandard} {
		t.Run(name, func(t *testing.T) {
			packed := append(pack(t, log), pack(t, log)...)
			lines, damaged, reader := readAll(t, bytes.NewReader(packed))
			if diff := cmp.Diff(append(want[:len(want):len(want)], want...), lines); diff != "" || len(damaged) > 0 || reader.Torn() != nil {
				t.Fatalf("damaged %v, torn %v, lines:\n%s", damaged, reader.Torn(), diff)
			}
			for cut := 4; cut < len(packed); cut += 7 {
				lines, damaged, reader := readAll(t, bytes.NewReader(packed[:cut]))
				if len(damaged) > 0 || reader.Torn() == nil && cut != len(packed)/2 {
					t.Fatalf("cut at %d of %d: damaged %v, torn %v", cut, len(packed), damaged, reader.Torn())
				}
				if cut >= len(packed)/2 && len(lines) < len(want) {
					t.Fatalf("cut at %d of %d: %d lines, and the first part alone has %d", cut, len(packed), len(lines), len(want))
				}
			}
		})
	}
}

// TestDamaged: a damaged line is told by its number, and costs no other.
func TestDamaged(t *testing.T) {
	whole, _, _ := bytes.Cut(golden(t), []byte("\n"))
	for _, c := range []struct{ line, why string }{
		{"\x00\x01\x02", "not a JSON object"},
		{"[]", "not a JSON object"},
		{"{}", `no schema "twtrace/1"`},
		{`{"schema":"twtrace/2","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"meta"}`, `no schema "twtrace/1"`},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","event":"accept"}`, "no time, seq or event"},
		{`{"schema":"twtrace/1","time":"2026-11-23 04:00:00","seq":0,"event":"accept"}`, `not a time in UTC with nine digits: "2026-11-23 04:00:00"`},
		{`{"schema":"twtrace/1","time":"2026-13-23T04:00:00.123456789Z","seq":0,"event":"accept"}`, `no time: "2026-13-23T04:00:00.123456789Z"`},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":-1,"event":"accept"}`, "not a number up to 18446744073709551615: -1"},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"verdict"}`, `a verdict line without "verdict"`},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"close","network":{"peer":{"address":"x","port":1}}}`, `no address: "x"`},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"close","network":{"peer":{"address":"fe80::1%\"\n","port":1}}}`, `no address: "fe80::1%\"\n"`},
		{`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"close","network":{"peer":{"address":"::1","port":65536}}}`, "not a number up to 65535: 65536"},
		{strings.Repeat("x", 64<<10), "longer than 64 KiB"},
		{strings.Repeat("x", 1<<20), "longer than 64 KiB"},
		{strings.Repeat("[", 1000), "not a JSON object"},
	} {
		log := fmt.Appendf(nil, "%s\n\n%s\n%s\n", whole, c.line, whole)
		lines, damaged, _ := readAll(t, bytes.NewReader(log))
		if len(lines) != 2 || len(damaged) != 1 || damaged[0].Line != 3 || damaged[0].Why != c.why {
			t.Errorf("%.100s: %d lines, damaged %v, want 2 and line 3: %s", c.line, len(lines), damaged, c.why)
		}
	}
}

// TestStrange: what a newer twtrace has to say is counted, and the rest is read.
func TestStrange(t *testing.T) {
	const log = `{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"migration","migration":{}}
{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":1,"event":"connect","connect":{"outcome":"teleported","syn_retransmits":0,"color":1},"mood":[]}
`
	lines, damaged, reader := readAll(t, strings.NewReader(log))
	kinds, keys := reader.Strange()
	wantKinds := map[string]uint64{"migration": 1}
	wantKeys := map[string]uint64{"migration": 1, "connect.outcome=teleported": 1, "connect.color": 1, "mood": 1}
	if len(lines) != 2 || len(damaged) > 0 || !cmp.Equal(kinds, wantKinds) || !cmp.Equal(keys, wantKeys) {
		t.Errorf("%d lines, damaged %v, kinds %v, keys %v; want 2, none, %v, %v", len(lines), damaged, kinds, keys, wantKinds, wantKeys)
	}
}

// FuzzReader: whatever the bytes are, each line is read or told to be damaged, and
// what is read can be written.
func FuzzReader(f *testing.F) {
	log := golden(f)
	f.Add(log)
	f.Add(gzipped(f, log))
	f.Add(zstandard(f, log))
	for line := range bytes.Lines(log) {
		f.Add(line)
		f.Add(line[:len(line)/2])
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		reader, err := NewReader(bytes.NewReader(log))
		if err != nil {
			t.Skip() // can't be unpacked at all
		}
		defer reader.Close()
		var b []byte
		for {
			var r Record
			err := reader.Read(&r)
			if err == io.EOF {
				return
			}
			var damage *DamagedError
			if err != nil && !errors.As(err, &damage) {
				t.Fatal(err)
			}
			if err == nil && r.Kind != 0 {
				b = r.AppendJSON(b[:0], r.Line-1)
				again, err := NewReader(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				var same Record
				if err := again.Read(&same); err != nil {
					t.Fatalf("%s\nis written as\n%s\nwhich can't be read: %v", reader.Raw(), b, err)
				}
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	log := golden(b)
	lines := bytes.Count(log, []byte("\n"))
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		reader, err := NewReader(bytes.NewReader(log))
		if err != nil {
			b.Fatal(err)
		}
		for range lines {
			var r Record
			if err := reader.Read(&r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(lines*b.N)/b.Elapsed().Seconds(), "lines/s")
}
