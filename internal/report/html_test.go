package report

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
	"gonum.org/v1/plot"

	"github.com/twtrace/twtrace/internal/rendertest"
)

// hostile is a thread's name that tries to be more than a name.
const hostile = "<script>\x1b[2J\u202e\"'&\x00\xff"

func after(offset time.Duration) time.Time {
	return time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC).Add(offset)
}

// spread returns a distribution of counts, each five times to a power of ten.
func spread(from float64, counts ...uint64) Distribution {
	d := Distribution{Count: sum64(counts), Min: from}
	for i, n := range counts {
		d.Buckets = append(d.Buckets, Bucket{From: from * math.Pow(10, float64(i)/5), To: from * math.Pow(10, float64(i+1)/5), Count: n})
	}
	d.Max = d.Buckets[len(d.Buckets)-1].To
	d.P50, d.P90, d.P99, d.P999 = from*1.8, from*4, d.Max/40, d.Max/3
	return d
}

// rich returns a report with something in every section.
func rich() *Report {
	const slices = 120
	seq := uint64(4711)
	t := Timeline{From: after(0), Slice: 6250}
	busy := PortUse{NetNS: 4026532785, Local: "10.244.1.7", Peer: "20.1.2.3:443", PeakTimeWaits: 27000, PeakInUse: 28231, Usable: 28232}
	idle := PortUse{NetNS: 4026532785, Local: "2001:db8:1234:5678:9abc:def0:1234:5678", Peer: "[2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa]:8443", PeakTimeWaits: 240, PeakInUse: 312, Usable: 28232}
	for i := range slices {
		up := math.Exp(-math.Pow(float64(i-80)/22, 2))
		t.Established = append(t.Established, uint64(60+30*math.Sin(float64(i)/7)+20*up))
		t.Failed = append(t.Failed, 0)
		t.Late = append(t.Late, uint64(i%17/15))
		t.Lost = append(t.Lost, 0)
		busy.TimeWaits = append(busy.TimeWaits, uint64(27000*up))
		busy.Open = append(busy.Open, uint64(900+300*math.Sin(float64(i)/5)+100*up))
		idle.TimeWaits = append(idle.TimeWaits, uint64(120+120*math.Sin(float64(i)/9)))
		idle.Open = append(idle.Open, uint64(40+i%7))
	}
	for i, n := range []uint64{2, 5, 9, 12, 4, 3, 1, 1} {
		t.Failed[76+i] = n
	}
	t.Lost[90] = 12
	for _, p := range []struct {
		slice float64
		ratio float64
	}{{62, .5}, {69, .8}, {74, .95}, {78, 1}, {99, .49}} {
		n := uint64(p.ratio * 28232)
		busy.Pressure = append(busy.Pressure, Pressure{Time: after(time.Duration(p.slice * 6.25 * float64(time.Second))), InUse: n, TimeWait: n - 900, Ratio: p.ratio})
	}
	line := `{"schema":"twtrace/1","time":"2026-11-23T04:08:12.123456789Z","seq":4711,"event":"connect","network":{"type":"ipv4","local":{"address":"10.244.1.7"},"peer":{"address":"20.1.2.3","port":443}},"process":{"pid":4711,"comm":"` + hostile + `"},"connect":{"outcome":"no_local_port","duration_ms":0.021},"error":{"type":"EADDRNOTAVAIL"}}`
	established := spread(0.04, 12, 900, 4100, 5200, 1300, 300, 90, 40, 20, 8, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 3, 2)
	latency := established
	latency.Buckets = nil
	r := &Report{
		Schema: Schema, Window: Window{after(0), after(750 * time.Second)}, Lines: 48211, RepeatedLines: 12,
		Runs: []Run{
			{Node: "aks-pool1-12345678-vmss000003", Kernel: "6.8.0-1018-azure", Arch: "amd64", Version: "v1.4.0", Started: after(0), Complete: true, Filters: []string{"-D 443", "--netns pod"}, BlindSpots: []string{"no drop reasons before Linux 5.17", "no network namespace cookies (needs Linux 5.12)"}},
			{Node: "aks-pool1-12345678-vmss000004", Kernel: "5.15.0-1075-azure", Arch: "arm64", Started: after(5 * time.Second)},
		},
		Events: map[string]uint64{"connect": 12034}, Filters: []string{"--peer 20.1.2.3"},
		Connects: map[string]uint64{"established": 11997, "no_local_port": 31, "timed_out": 4, "abandoned": 2},
		TimeWait: TimeWait{Entered: 11800, Ended: map[string]uint64{"expired": 9800, "reused": 1700, "syn_accepted": 12, "killed": 3}, Duration: Distribution{Count: 11515, Min: 1004, P50: 60012, Max: 61440}},
		Reuses:   map[string]uint64{"tw_reuse": 1700, "after_time_wait": 420, "syn_accepted": 12},
		Verdicts: map[string]uint64{"local_ports_exhausted_time_wait": 31, "peer_per_host_paws": 18},
		Drops:    map[string]uint64{"NETFILTER_DROP": 12, "TCP_RFC7323_TW_PAWS": 3},
		Lost:     Lost{Kernel: 12, Output: 1},

		Truncated: true, DamagedLines: 3, MissingLines: 2,
		Damaged:      []Damaged{{"events.jsonl", 40123, "invalid character '\\x00' looking for beginning of value"}, {"events.jsonl", 40124, "unexpected end of JSON input"}},
		UnknownKinds: map[string]uint64{"quic": 4}, UnknownKeys: map[string]uint64{"connect.mptcp": 12},
		Incidents: []Incident{
			{
				Cause: "local_ports_exhausted_time_wait", Confidence: "likely", Peer: "20.1.2.3:443", From: after(485 * time.Second), To: after(524 * time.Second), Count: 31,
				Outcomes: map[string]uint64{"no_local_port": 31}, Processes: []Share{{"api (4711)", 29}, {hostile, 2}}, NetNS: []Share{{"4026532785", 31}}, Containers: []Share{{"shop/api-7c9f/api", 31}},
				Text:     "no local port is left toward this destination: 28,232 of 28,232 are taken, 27,000 of them by TIME_WAITs",
				Evidence: []Evidence{{Text: "EADDRNOTAVAIL, the kernel's word: certain. Who has the ports is counted", Seq: &seq, Line: line}, {Text: "net.ipv4.ip_local_port_range is 32768 60999 in this network namespace"}},
				RuledOut: []string{"ports held by open connections: 1,231 of 28,232"}, NotVisible: []string{"a range of the socket's own (IP_LOCAL_PORT_RANGE)"},
				Advice: `keep connections alive and pool them, or let the server close first; a wider range: in a pod securityContext.sysctls net.ipv4.ip_local_port_range "1024 65535"`,
				Line:   line,
			},
			{
				Cause: "peer_per_host_paws", Confidence: "possible", Peer: "[2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa]:8443", From: after(100 * time.Second), To: after(100 * time.Second), Count: 18,
				Wrappers: map[string]uint64{"late_success": 12, "app_gave_up": 2}, Outcomes: map[string]uint64{"established": 12, "timed_out": 4, "abandoned": 2}, Processes: []Share{{"curl (99)", 18}},
				Text: "the peer drops SYNs whose timestamp is older than the last that it saw from this address", Evidence: []Evidence{{Text: "the order of timestamps predicts 17 of 18 outcomes"}}, Line: line,
			},
		},
		MoreIncidents: 1, Unexplained: 1,
		Destinations: Table{
			Rows: []Row{
				{Name: "20.1.2.3:443", Connects: 10034, Failed: 31, Outcomes: map[string]uint64{"established": 10003, "no_local_port": 31}, Latency: &latency, Reuses: 1700, Drops: 12, TimeWait: RowTimeWait{Entered: 9900, Mean: 52000, Max: 61440}, With: []Share{{"api (4711)", 9800}, {hostile, 234}}},
				{Name: "[2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa]:8443", Connects: 2000, Failed: 6, Late: 12, Outcomes: map[string]uint64{"timed_out": 4, "abandoned": 2}, Latency: &latency, TimeWait: RowTimeWait{Entered: 1900, Mean: 60010, Max: 61000}, With: []Share{{"curl (99)", 2000}}},
				{Name: "10.244.1.7:8080", Accepted: true, Accepts: 812},
			},
			Others: &Row{Name: "others", Connects: 44, Failed: 1}, Gone: 9,
		},
		Processes:  Table{Rows: []Row{{Name: "api (4711)", Connects: 9800, Failed: 29, Outcomes: map[string]uint64{"no_local_port": 29}, Latency: &latency}, {Name: hostile, Connects: 234, Failed: 2, Outcomes: map[string]uint64{"no_local_port": 2}}}},
		Containers: Table{Rows: []Row{{Name: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c1f6b1e_8a3e_4a41_9d55_7f0a7f0f7a11.slice/cri-containerd-2f0c9f1d.scope", Connects: 12034, Failed: 37}}},
		Timeline:   t,
		PortUse:    []PortUse{busy, idle},
		Gaps:       spread(900, 40, 900, 700, 60, 12, 9, 30, 14, 12, 310, 80),
		ShortestReuses: []Reuse{
			{after(486 * time.Second), 1002.3, "port", "tw_reuse", "10.244.1.7:41988", "20.1.2.3:443", "api (4711)", hostile},
			{after(487 * time.Second), 1004, "tuple", "after_close", "[2001:db8:1234:5678:9abc:def0:1234:5678]:50000", "[2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa]:8443", "curl (99)", "curl (98)"},
		},
		NotShown: []string{"drop reasons: the kernel of aks-pool1-12345678-vmss000004 has none"},
		Connection: &Story{Cookie: "4123", Peer: "20.1.2.3:443", Owner: "api (4711)", Lines: []Event{
			{after(485 * time.Second), 0, "CLOSE -> SYN_SENT", line},
			{after(485*time.Second + 21*time.Microsecond), 0.021, "no local port: EADDRNOTAVAIL", line},
		}},
	}
	r.Latency.Established = established
	r.Latency.Failed = spread(0.01, 12, 14, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4)
	return r
}

// render returns the page, and what a reader sees of it as one line.
func render(t *testing.T, r *Report) (page []byte, text string) {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	var words []string
	z := html.NewTokenizer(bytes.NewReader(b.Bytes()))
	for hidden := false; ; {
		switch z.Next() {
		case html.ErrorToken:
			return b.Bytes(), strings.Join(words, " ")
		case html.StartTagToken:
			name, _ := z.TagName()
			hidden = string(name) == "style"
		case html.EndTagToken:
			hidden = false
		case html.TextToken:
			if !hidden {
				words = append(words, strings.Fields(string(z.Text()))...)
			}
		}
	}
}

// TestHTMLPages: whatever is in the report, its page is well-formed, needs nothing
// else, does nothing, and can be read without seeing it.
func TestHTMLPages(t *testing.T) {
	cut := rich()
	cut.Timeline = Timeline{From: after(0), Slice: 0.5, Established: []uint64{0}, Failed: []uint64{0}, Late: []uint64{0}, Lost: []uint64{0}}
	cut.PortUse = []PortUse{{Peer: hostile, PeakInUse: 1}, {Peer: "b", TimeWaits: []uint64{0}, Open: []uint64{0}}}
	cut.Latency.Established = Distribution{}
	cut.Latency.Failed = Distribution{Count: 1, Buckets: []Bucket{{From: 0, To: 1e-6, Count: 1}}}
	for len(cut.Incidents) < 60 {
		cut.Incidents = append(cut.Incidents, Incident{Cause: hostile, Peer: hostile, Count: 1, From: after(0), To: after(0)})
	}
	cut.Gaps = Distribution{Count: 1, Buckets: []Bucket{{From: 1e5, To: 1e9, Count: 1 << 40}}}
	days := rich()
	days.Timeline.Slice = 864e5
	days.Window.To = after(120 * 24 * time.Hour)
	for name, r := range map[string]*Report{"rich": rich(), "empty": {Schema: Schema}, "cut": cut, "days": days} {
		t.Run(name, func(t *testing.T) {
			page, _ := render(t, r)
			if again, _ := render(t, r); !bytes.Equal(page, again) {
				t.Error("the second time it is another page")
			}
			for _, c := range string(page) {
				if c != '\n' && !unicode.IsPrint(c) {
					t.Errorf("it has %q", c)
				}
			}
			if n := bytes.Count(page, []byte(`class="incident"`)); n != len(r.Incidents) {
				t.Errorf("%d incidents, not %d", n, len(r.Incidents))
			}
			checkMarkup(t, page)
		})
	}
}

// FuzzVisible: all that is written to a page can be seen, and what could be before is
// left as it is.
func FuzzVisible(f *testing.F) {
	for _, name := range rendertest.Names {
		f.Add([]byte(name))
	}
	f.Fuzz(func(t *testing.T, page []byte) {
		got := visible(page)
		rendertest.Check(t, string(got))
		if again := visible(got); !bytes.Equal(again, got) {
			t.Errorf("%q is %q, and that is %q", page, got, again)
		}
		if !bytes.ContainsFunc(page, func(r rune) bool { return r == utf8.RuneError || r != '\n' && !unicode.IsPrint(r) }) && !bytes.Equal(got, page) {
			t.Errorf("%q is %q", page, got)
		}
	})
}

func checkMarkup(t *testing.T, page []byte) {
	t.Helper()
	var open, referred []string
	ids := make(map[string]bool)
	level, captions, tables := 0, 0, 0
	void := []string{"meta", "br"}
	z := html.NewTokenizer(bytes.NewReader(page))
	for z.Next() != html.ErrorToken {
		tag := z.Token()
		switch tag.Type {
		case html.EndTagToken:
			if n := len(open); n == 0 || open[n-1] != tag.Data {
				t.Fatalf("</%s> within %q", tag.Data, open)
			}
			open = open[:len(open)-1]
			continue
		case html.StartTagToken:
			if !slices.Contains(void, tag.Data) {
				open = append(open, tag.Data)
			}
		case html.SelfClosingTagToken:
		case html.TextToken:
			if strings.TrimSpace(tag.Data) == "" && len(open) > 0 && slices.Contains([]string{"title", "desc"}, open[len(open)-1]) {
				t.Error("a title or desc is empty")
			}
			if len(open) > 0 && open[len(open)-1] == "style" && strings.Contains(tag.Data, "url(") {
				t.Error("the style sheet refers to something")
			}
			continue
		default:
			continue
		}
		attrs := make(map[string]string)
		for _, a := range tag.Attr {
			attrs[a.Key] = a.Val
			if strings.HasPrefix(a.Key, "on") || a.Key == "src" {
				t.Errorf("<%s %s=%q>", tag.Data, a.Key, a.Val)
			}
			if strings.Contains(a.Val, "://") && a.Key != "xmlns" {
				t.Errorf("<%s %s=%q> refers to the network", tag.Data, a.Key, a.Val)
			}
			if strings.Contains(a.Val, ":#0000") {
				t.Errorf("<%s %s=%q> has a colour of its own", tag.Data, a.Key, a.Val)
			}
			for _, m := range regexp.MustCompile(`url\(#?([^)]*)\)`).FindAllStringSubmatch(a.Val, -1) {
				referred = append(referred, m[1])
			}
		}
		if id, ok := attrs["id"]; ok {
			if ids[id] {
				t.Errorf("id %q is there twice", id)
			}
			ids[id] = true
		}
		referred = append(referred, strings.Fields(attrs["aria-labelledby"])...)
		switch tag.Data {
		case "script", "link", "iframe", "img", "image", "object":
			t.Errorf("there is a <%s>", tag.Data)
		case "a":
			referred = append(referred, strings.TrimPrefix(attrs["href"], "#"))
		case "svg":
			if attrs["role"] != "img" || attrs["viewbox"] == "" || len(strings.Fields(attrs["aria-labelledby"])) != 2 {
				t.Errorf("an svg has %q", attrs)
			}
		case "table":
			tables++
		case "caption":
			captions++
		case "th":
			if attrs["scope"] == "" {
				t.Error("a th has no scope")
			}
		case "h1", "h2", "h3", "h4":
			if now := int(tag.Data[1] - '0'); now > level+1 {
				t.Errorf("an h%d stands under an h%d", now, level)
			} else {
				level = now
			}
		case "html":
			if attrs["lang"] != "en" {
				t.Error("its language is not told")
			}
		}
	}
	if len(open) > 0 {
		t.Errorf("%q are not closed", open)
	}
	if tables != captions {
		t.Errorf("%d tables have %d captions", tables, captions)
	}
	for _, id := range referred {
		if !ids[id] {
			t.Errorf("%q is referred to, and not there", id)
		}
	}
}

// TestHTMLTells: what a reader looks for is there, in this order.
func TestHTMLTells(t *testing.T) {
	page, text := render(t, rich())
	for _, want := range []string{
		rich().Headline(),
		"23 November 2026, 04:00:00.000 to 04:12:30.000 UTC, 12m30s",
		"aks-pool1-12345678-vmss000003, aks-pool1-12345678-vmss000004", "Linux 6.8.0-1018-azure amd64", "--peer 20.1.2.3",
		"The log is truncated", "3 lines could not be read", "2 lines are missing", "12 events in the kernel and 1 line in the output",
		"unknown kinds and keys", "What this log can't show", "drop reasons: the kernel of",
		"1. local_ports_exhausted_time_wait toward 20.1.2.3:443 likely", "no local port is left", "What to do: keep connections alive",
		"31 times, from 04:08:05.000 to 04:08:44.000", "31 × no_local_port", "29 × api (4711)", "31 × shop/api-7c9f/api", "31 × 4026532785",
		"EADDRNOTAVAIL, the kernel's word", "(line 4711)", `"seq":4711,"event":"connect"`, "1,231 of 28,232", "a range of the socket's own",
		"2. peer_per_host_paws", "possible", "18 times, at 04:01:40.000", "12 × late_success , 2 × app_gave_up", "17 of 18 outcomes",
		"1 further incident was not kept", "1 connect failed without a verdict",
		"Timeline", "established, 14 of them late; 37 failed, at most 12 in one slice", "events lost",
		"Connects by outcome", "timed_out 4 <0.1 % ETIMEDOUT: the kernel gave up",
		"Destinations", "20.1.2.3:443", "31 0.3 %", "61.4 s", "10.244.1.7:8080 accepted here", "9 more had no room",
		"Processes", "Containers", "cri-containerd-2f0c9f1d.scope",
		"TIME_WAIT and local ports", "At most 27,000 TIME_WAITs, and 28,231 ports in use, of 28,232 usable: >99.9 %", "28,232 usable", "95 %", "100 %", "under 50 %",
		"would be far above the picture", "How TIME_WAITs ended", "expired 9,800 its 60 s were over",
		"Latency", "0.072 ms", "841 ms", "33.3 s", "Ports used again",
		"NAT after RST 16 s", "NAT half-open 30 s", "Linux TIME_WAIT 60 s", "NAT after FIN 65 s",
		"tw_reuse 1,700", "The shortest", "10.244.1.7:41988", "Drops", "NETFILTER_DROP 12",
		"Runs", "-D 443 , --netns pod", "no network namespace cookies", "its summary is missing",
		"Damaged lines", "The first 2 of 3", "40,123", "Unknown kinds and keys", "4 × quic", "12 × connect.mptcp",
		"One connection", "4123", "0.021 ms no local port: EADDRNOTAVAIL",
	} {
		_, after, found := strings.Cut(text, want)
		if !found {
			t.Fatalf("no %q in what follows: %.300s", want, text)
		}
		text = after
	}
	if name := `&lt;script&gt;\x1b[2J\u202e&#34;&#39;&amp;`; !bytes.Contains(page, []byte(name)) {
		t.Errorf("a hostile name is not spelled out as %s", name)
	}
}

func TestHTMLEmpty(t *testing.T) {
	page, text := render(t, &Report{Schema: Schema})
	for _, want := range []string{"No connect.", "None: no connect failed"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	for _, none := range []string{"<svg", "<table", "Before you rely", "0001"} {
		if bytes.Contains(page, []byte(none)) {
			t.Errorf("an empty report has %q", none)
		}
	}
}

func TestPercent(t *testing.T) {
	for got, want := range map[string]string{
		percent(0): "0 %", percent(0.0002): "<0.1 %", percent(0.031): "3.1 %", percent(0.5): "50 %",
		percent(0.9972): "99.7 %", percent(0.9996): ">99.9 %", percent(1): "100 %", per(1, 0): "",
	} {
		if got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

func TestTicks(t *testing.T) {
	day := seconds(after(0))
	for _, test := range []struct {
		name  string
		ticks interface {
			Ticks(_, _ float64) []plot.Tick
		}
		from, to float64
		want     string
	}{
		{"few", plot.TickerFunc(countTicks), 0, 3, "0 1 2 3"},
		{"many", plot.TickerFunc(countTicks), 0, 28232, "0 10,000 20,000"},
		{"few, logarithmic", plot.TickerFunc(logCountTicks), 0.7, 20, "1 2 5 10 20 50"},
		{"many, logarithmic", plot.TickerFunc(logCountTicks), 0.7, 2000, "1 10 100 1,000"},
		{"spans", spanTicks{}, 0.01, 1e5, "0.01 ms 0.1 ms 1 ms 10 ms 100 ms 1 s 10 s 100 s"},
		{"spans, narrow", spanTicks{narrow: true}, 0.01, 1e5, "0.01 ms 1 ms 100 ms 10 s"},
		{"milliseconds", clockTicks{3}, day, day + 0.03, "04:00:00.000 04:00:00.010 04:00:00.020 04:00:00.030"},
		{"minutes", clockTicks{8}, day + 7, day + 750, "04:02 04:04 04:06 04:08 04:10 04:12"},
		{"months", clockTicks{3}, day, day + 90*86400, "3 Dec 2 Jan 1 Feb"},
		{"hours", clockTicks{4}, day, day + 86400, "06:00 12:00 18:00 24 Nov"},
	} {
		var labels []string
		for _, tick := range test.ticks.Ticks(test.from, test.to) {
			if tick.Label != "" {
				labels = append(labels, tick.Label)
			}
		}
		if got := strings.Join(labels, " "); got != test.want {
			t.Errorf("%s: %s, not %s", test.name, got, test.want)
		}
	}
}

// TestContrast: text is as WCAG's AA asks, light and dark, on paper and in boxes.
func TestContrast(t *testing.T) {
	roots := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(styleSheet, -1)
	if len(roots) != 2 {
		t.Fatalf("%d sets of colours", len(roots))
	}
	for _, root := range roots {
		luminance := make(map[string]float64)
		for _, m := range regexp.MustCompile(`--([a-z-]+): #([0-9a-f]+);`).FindAllStringSubmatch(root[1], -1) {
			hex := m[2]
			if len(hex) == 3 {
				hex = fmt.Sprintf("%c%c%c%c%c%c", hex[0], hex[0], hex[1], hex[1], hex[2], hex[2])
			}
			for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
				v, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
				if err != nil {
					t.Fatal(err)
				}
				luminance[m[1]] += weight * math.Pow((float64(v)/255+0.055)/1.055, 2.4)
			}
		}
		for _, text := range []string{"ink", "muted", "good", "bad", "late", "wait"} {
			for _, ground := range []string{"paper", "shade", "warn"} {
				a, b := luminance[text]+0.05, luminance[ground]+0.05
				if ratio := max(a, b) / min(a, b); ratio < 4.5 {
					t.Errorf("--%s on --%s has a contrast of %.1f", text, ground, ratio)
				}
			}
		}
	}
}
