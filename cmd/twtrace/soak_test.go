package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/twtrace/twtrace/internal/load"
	"github.com/twtrace/twtrace/internal/metrics"
	"github.com/twtrace/twtrace/internal/record"
)

// envSoak is how long TestSoak makes connections: a minute by default.
const envSoak = "TWTRACE_TEST_SOAK"

// Four pods at a time make 2,000 connections a second. One lives as long as the load:
// its TIME_WAITs expire or are taken over. Of the others one goes and another comes
// every two seconds: their TIME_WAITs end with the network namespace.
const (
	podsAtOnce  = 4
	podEvery    = 2 * time.Second
	beatEvery   = 100 * time.Millisecond
	beatMade    = 45 // connections of a pod in a beat
	beatRefused = 5  // connects that are refused, besides
	soakRate    = podsAtOnce * (beatMade + beatRefused) * int(time.Second/beatEvery)

	// podNetwork is where they lead, and nobody else's: podWorker's of load.Work.
	podNetwork = "127.0.77.0/24"
	podWorker  = 77
	podNowhere = "127.0.77.1:1"

	// soakPlaces is how many pods have metrics of their own: fewer than there are.
	soakPlaces = 10
)

// beat connects at a steady rate until stdin ends, and tells how many beats that was.
func beat() error {
	over := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		over <- err
	}()
	began := time.Now()
	for beats := 1; ; beats++ {
		if err := load.Work(podWorker, beatMade, 80); err != nil {
			return err
		}
		for range beatRefused {
			if err := attempt(unix.AF_INET, podNowhere, unix.ECONNREFUSED); err != nil {
				return err
			}
		}
		select {
		case err := <-over:
			fmt.Println(beats)
			return errors.Join(err, load.Settle())
		case <-time.After(time.Until(began.Add(time.Duration(beats) * beatEvery))):
		}
	}
}

// A pod is a process in a network namespace and a control group of its own.
type pod struct {
	*netns
	cookie uint64
	dir    string // its container's control group
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout bytes.Buffer
	// When its process has ended: how many beats that was, and what the kernel says.
	beats    int
	counters map[string]int
	account
}

func startPod(t *testing.T, number int) *pod {
	t.Helper()
	p := &pod{netns: newNetNS(t), cmd: peerCommand("pod", "pod")}
	p.dir = filepath.Join(cgroupRoot(t), fmt.Sprintf("kubepods/burstable/pod%08x-0000-4000-8000-%012x/%064x", number, os.Getpid(), number))
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(p.cmd.Env, envCgroup+"="+p.dir)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, os.Stderr
	err := p.do(func() (err error) {
		if p.cookie, err = netnsCookie(); err != nil {
			return err
		}
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			return err
		}
		return p.cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // where the test did not get to it
		_ = p.stop()
		_ = p.remove()
	})
	return p
}

func netnsCookie() (uint64, error) {
	s, err := newSocket(unix.AF_INET)
	if err != nil {
		return 0, err
	}
	defer s.close()
	return unix.GetsockoptUint64(int(s), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// stop ends its process, and asks the kernel what that did.
func (p *pod) stop() error {
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		return err
	}
	var err error
	if p.beats, err = strconv.Atoi(strings.TrimSpace(p.stdout.String())); err != nil {
		return err
	}
	return p.do(func() (err error) {
		p.counters, err = kernelCounters()
		return err
	})
}

// count asks the kernel for its TIME_WAITs.
func (p *pod) count() error {
	return p.do(func() (err error) {
		p.account, err = kernelAccount()
		return err
	})
}

// remove lets its network namespace and its control groups go.
func (p *pod) remove() error {
	p.end()
	return errors.Join(removeCgroup(p.dir), removeCgroup(filepath.Dir(p.dir)))
}

// check checks what was told of it, in lines of each kind, against what it did and what
// the kernel counted of that. It returns how many events were not told, and how many
// ends of connects, of accepts and of connections.
func (p *pod) check(t *testing.T, told map[string]int) (events, outcomes int) {
	t.Helper()
	made, refused := p.beats*beatMade, p.beats*beatRefused
	for name, want := range map[string]int{
		"Tcp: ActiveOpens": made + refused, "Tcp: AttemptFails": refused, "Tcp: PassiveOpens": made,
		"TcpExt: TW": made, // counted where they begin
	} {
		if got := p.counters[name]; got != want {
			t.Errorf("the kernel counts %d of %s in pod %x, which made %d", got, name, p.cookie, want)
		}
	}
	for _, c := range []struct {
		line    string
		want    int
		missing *int
	}{
		{"state", p.beats*2*load.Listeners + made*load.StateChanges + refused*2, &events},
		{"time_wait.enter", made, &events},
		{"time_wait.end", made, &events},
		{"time_wait.end reused", p.counters["TcpExt: TWRecycled"], new(int)}, // one of those
		{"connect established", made, &outcomes},
		{"connect refused", refused, &outcomes},
		{"accept", made, &outcomes},
		{"close", 2 * made, &outcomes},
	} {
		switch got := told[c.line]; {
		case got > c.want:
			t.Errorf("pod %x: %d lines of %s, want %d", p.cookie, got, c.line, c.want)
		case got < c.want:
			t.Logf("pod %x: %d lines of %s, and there were %d", p.cookie, got, c.line, c.want)
			*c.missing += c.want - got
		}
	}
	return events, outcomes
}

// anyContainer is a runtime that has every container, in a pod of the same number.
type anyContainer struct {
	cri.UnimplementedRuntimeServiceServer
}

func (anyContainer) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd"}, nil
}

func (anyContainer) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	var found cri.ListContainersResponse
	if id := r.Filter.GetId(); id != "" {
		found.Containers = []*cri.Container{{Id: id, PodSandboxId: id, Metadata: &cri.ContainerMetadata{Name: "app"}}}
	}
	return &found, nil
}

func (anyContainer) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	var found cri.ListPodSandboxResponse
	if id := r.Filter.GetId(); id != "" {
		name := "pod-" + strings.TrimLeft(id, "0")
		found.Items = []*cri.PodSandbox{{Id: id, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "soak", Uid: id}}}
	}
	return &found, nil
}

// serveNames has the twtrace that this test starts ask anyContainer for names, and
// nobody else.
func serveNames(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, anyContainer{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix://"+path)
	t.Setenv("DOCKER_HOST", "unix://"+path+".none")
}

// A follower reads a log as it grows, and goes on in the next file where the log does.
type follower struct {
	path string
	file *os.File
	over <-chan struct{} // nothing is written any more
}

func (f *follower) Read(b []byte) (int, error) {
	for {
		last := false
		select {
		case <-f.over:
			last = true
		default:
		}
		// Asked before the file is read: by then nothing is written to it any more.
		moved, err := f.moved()
		if err != nil {
			return 0, err
		}
		if f.file != nil {
			if n, err := f.file.Read(b); n > 0 || err != io.EOF {
				return n, err
			}
		}
		switch {
		case moved:
			f.file.Close()
			if f.file, err = os.Open(f.path); err != nil {
				return 0, err
			}
		case last:
			return 0, io.EOF
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// moved reports whether the log has gone on in another file.
func (f *follower) moved() (bool, error) {
	named, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // for a moment
	}
	if err != nil || f.file == nil {
		return true, err
	}
	open, err := f.file.Stat()
	return !os.SameFile(named, open), err
}

// told is what the lines of a log tell, counted as they come.
type told struct {
	sync.Mutex
	kinds   [record.Kinds]uint64
	missing uint64 // lines, by their numbers
	lost    [record.InOutput + 1]uint64
	netns   map[uint64]map[string]int // by cookie, lines by what they tell
	summary *record.SummaryFields
}

// read counts lines until they end.
func (c *told) read(log io.Reader) error {
	reader, err := record.NewReader(log)
	if err != nil {
		return err
	}
	var l record.Record
	for next := uint64(1); ; next = l.Line + 1 {
		if err := reader.Read(&l); err == io.EOF {
			return reader.Torn()
		} else if err != nil {
			return err
		}
		c.add(&l, l.Line-next)
	}
}

func (c *told) add(l *record.Record, missing uint64) {
	c.Lock()
	defer c.Unlock()
	c.kinds[l.Kind]++
	c.missing += missing
	cookie := l.Socket.NetNS.Cookie
	if c.netns[cookie] == nil {
		c.netns[cookie] = make(map[string]int)
	}
	what := l.Kind.String()
	switch l.Kind {
	case record.Connect:
		what += " " + l.Connect.Outcome.String()
	case record.TimeWaitEnd:
		c.netns[cookie][what+" "+l.TimeWait.Ended.String()]++
	case record.Lost:
		c.lost[l.Lost.Where] += l.Lost.Count
	case record.Summary:
		c.summary = l.Summary
	}
	c.netns[cookie][what]++
}

// lines are how many there were so far.
func (c *told) lines() (lines uint64) {
	c.Lock()
	defer c.Unlock()
	for _, n := range c.kinds {
		lines += n
	}
	return lines
}

// check checks that what was lost was counted, and returns how much that was.
func (c *told) check(t *testing.T) (lost int) {
	t.Helper()
	if c.summary == nil {
		t.Fatal("there is no summary")
	}
	said := [...]uint64{record.InKernel: c.summary.LostKernel, record.InOutput: c.summary.LostOutput}
	if said != c.lost || c.missing > c.lost[record.InOutput] {
		t.Errorf("the summary says %d lost, the lines %d, and %d lines are missing", said, c.lost, c.missing)
	}
	c.kinds[record.Summary] = 0
	if c.missing == 0 && c.kinds != c.summary.Events {
		t.Errorf("the summary says %d, the lines are %d", c.summary.Events, c.kinds)
	}
	return int(c.summary.LostKernel + c.summary.LostOutput)
}

const mib = 1 << 20

// A footprint is what twtrace takes.
type footprint struct {
	at             time.Duration // since the load began
	anon           float64       // MiB of memory that is no file's
	heap           float64       // MiB of it that the collector found in use
	tables         float64       // MiB of the kernel's memory
	files, threads int
	cpu            float64 // seconds
	timeWaits      int
}

func (f footprint) String() string {
	return fmt.Sprintf("%6s: %.1f MiB, %.1f in use, tables %.1f, %d files, %d threads, %.1f s of processor, %d TIME_WAITs",
		f.at.Round(time.Second), f.anon, f.heap, f.tables, f.files, f.threads, f.cpu, f.timeWaits)
}

var (
	rssAnon = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)
	memlock = regexp.MustCompile(`(?m)^memlock:\s+(\d+)$`)
)

// measure asks the kernel, and twtrace's metrics.
func measure(t *testing.T, tr *tracer, m scraped, at time.Duration) footprint {
	t.Helper()
	only := func(name string) float64 {
		metric := m[name].GetMetric()[0]
		return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
	}
	f := footprint{
		at: at, heap: only("go_memstats_next_gc_bytes") / 2 / mib, // by default it comes at twice that
		cpu: only("process_cpu_seconds_total"), timeWaits: int(m.total("twtrace_time_wait_sockets")),
	}
	proc := fmt.Sprintf("/proc/%d/", tr.cmd.Process.Pid)
	number := func(file string, of *regexp.Regexp) (n float64) {
		text, err := os.ReadFile(proc + file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if match := of.FindSubmatch(text); match != nil {
			n, _ = strconv.ParseFloat(string(match[1]), 64)
		}
		return n
	}
	names := func(dir string) []os.DirEntry {
		entries, err := os.ReadDir(proc + dir)
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	f.anon = number("status", rssAnon) / 1024
	files := names("fdinfo")
	for _, file := range files {
		f.tables += number("fdinfo/"+file.Name(), memlock) / mib
	}
	f.files, f.threads = len(files), len(names("task"))
	return f
}

// checkFootprints checks that it takes no more than what it remembers, and no more as
// time goes by, where there was time enough to tell.
func checkFootprints(t *testing.T, first footprint, later []footprint) {
	t.Helper()
	const (
		memory = 125 * time.Second // of the uses of ports
		use    = 250               // bytes; each end of a connection is one
		idle   = 64                // MiB, with what waits for the log
	)
	for _, f := range later {
		uses := 2 * float64(soakRate) * min(f.at, memory).Seconds()
		if most := idle + 2*uses*use/mib; f.anon > most { // as much again until the collector comes
			t.Errorf("%s: want %.0f MiB at most", f, most)
		}
		if f.files > first.files+8 || f.threads > first.threads+8 { // for a moment, to look something up
			t.Errorf("%s: it began with %d files and %d threads", f, first.files, first.threads)
		}
	}
	later = slices.DeleteFunc(slices.Clone(later), func(f footprint) bool { return f.at < 2*memory })
	if len(later) < int(memory/podEvery) {
		return
	}
	var anon, heap, tables [2]float64
	for i, f := range later {
		half := 2 * i / len(later)
		anon[half] = max(anon[half], f.anon)
		heap[half] += f.heap * 2 / float64(len(later))
		tables[half] += f.tables * 2 / float64(len(later)) // others' sockets are there, too
	}
	t.Logf("after %s, by halves: at most %.1f MiB, %.1f in use on average, tables %.1f", 2*memory, anon, heap, tables)
	if anon[1] > 1.1*anon[0] || heap[1] > 1.05*heap[0] || tables[1] > 1.1*tables[0] {
		t.Error("memory grows")
	}
}

// TestSoak: a daemon, on a node where pods come and go, tells every connection or counts
// it as lost, agrees with the kernel's counters in every network namespace, and takes no
// more as time goes by.
func TestSoak(t *testing.T) {
	needRoot(t)
	noKernels(t)
	duration := time.Minute
	if text := os.Getenv(envSoak); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	newCgroup(t, "/kubepods/burstable") // so that it goes with the test
	serveNames(t)
	address := freeAddress(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	watch := watchWithheld()
	t.Cleanup(func() { _, _ = watch.stop() }) // where the test did not get to it
	tr := trace(t, "serve", "--listen", address, "--addr", podNetwork, "--metrics-containers", strconv.Itoa(soakPlaces),
		"--metrics-destinations", "20", "--log", log, "--log-max-size", "64M", "--log-keep", "2")
	over, end := context.WithCancel(t.Context())
	defer end()
	said, read := &told{netns: make(map[uint64]map[string]int)}, make(chan error, 1)
	go func() { read <- said.read(&follower{path: log, over: over.Done()}) }()

	began := time.Now()
	footprintNow := func() footprint { return measure(t, tr, scrape(t, address), time.Since(began)) }
	first := footprintNow()
	t.Log(first)
	always := startPod(t, 1)
	var pods, others []*pod
	var later []footprint
	for number := 2; time.Since(began) < duration; number++ {
		others = append(others, startPod(t, number))
		if len(others) == podsAtOnce {
			if err := errors.Join(others[0].stop(), others[0].remove()); err != nil {
				t.Fatal(err)
			}
			pods, others = append(pods, others[0]), others[1:]
		}
		time.Sleep(time.Until(began.Add(time.Duration(number-1) * podEvery)))
		m := scrape(t, address)
		later = append(later, measure(t, tr, m, time.Since(began)))
		if len(later)%max(5, int(duration/podEvery)/30) == 0 {
			t.Log(later[len(later)-1])
		}
		if places := m.by("twtrace_connect_total", "namespace", "pod"); len(places) > soakPlaces+1 {
			t.Errorf("%d pods have metrics of their own: %v", len(places), places)
		}
	}
	took := time.Since(began)
	others = append(others, always)
	for _, p := range others {
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
	ghosts := func() uint64 { // TIME_WAITs whose end no BPF program can have seen
		withheld, _ := watch.seen()
		return uint64(len(withheld))
	}
	until(t, "as many are in TIME_WAIT as the kernel says", func() bool {
		if err := always.count(); err != nil {
			t.Fatal(err)
		}
		told, waiting := scrape(t, address).by("twtrace_time_wait_sockets", "pod")["pod-1"], uint64(always.waiting)
		return waiting <= told && told <= waiting+ghosts()
	})
	t.Logf("%d are in TIME_WAIT in the pod that was there all the time", always.waiting)
	for _, p := range others {
		if err := p.remove(); err != nil {
			t.Fatal(err)
		}
	}
	pods = append(pods, others...)
	until(t, "nothing is left of the pods", func() bool {
		m := scrape(t, address)
		waiting, sockets := m.by("twtrace_time_wait_sockets", "namespace"), m.by("twtrace_egress_sockets", "namespace")
		return max(waiting["soak"]+waiting[metrics.Other], sockets["soak"]+sockets[metrics.Other]) <= ghosts()
	})
	until(t, "the metrics are of all lines, and of those that were lost", func() bool {
		lines, m := said.lines(), scrape(t, address)
		counted := m.total("twtrace_events_total")
		return lines <= counted && counted <= lines+m.by("twtrace_events_lost_total", "where")["output"]
	})
	t.Log(footprintNow())
	if files := logFiles(t, log); len(files) > 3 {
		t.Errorf("the log is kept in %q", files)
	}
	tr.end()
	end()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	withheld, err := watch.stop()
	if err != nil {
		t.Logf("whether something was withheld is not known: %v", err)
	}
	lost := said.check(t)
	if tr.stderr.Len() > 0 && lost == 0 {
		t.Errorf("it said %s", &tr.stderr)
	}
	made, events, outcomes := 0, 0, 0
	for _, p := range pods {
		made += p.beats * (beatMade + beatRefused)
		e, o := p.check(t, said.netns[p.cookie])
		events, outcomes = events+e, outcomes+o
	}
	t.Logf("%d pods made %d connections, %.0f a second; it took %.1f %% of a processor, lost %d events, and %d were withheld from every BPF program; %d and %d of their outcomes are missing",
		len(pods), made, float64(made)/took.Seconds(), 100*(later[len(later)-1].cpu-first.cpu)/took.Seconds(), lost, len(withheld), events, outcomes)
	if max(events, outcomes) > lost+len(withheld) {
		t.Errorf("more is missing than was lost or withheld:\n%s", strings.Join(withheld, "\n"))
	}
	checkFootprints(t, first, later)
}
