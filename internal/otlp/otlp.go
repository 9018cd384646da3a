// Package otlp sends records as OpenTelemetry logs, over HTTP with protobuf. The
// OpenTelemetry SDK makes batches, encodes and sends them; here is what the records
// are called there, and what becomes of those that can't be sent: they wait, within
// bounds, and are dropped and counted beyond. Whoever hands over a record never
// waits.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr/funcr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/twtrace/twtrace/internal/record"
)

const (
	// maxRecords and maxBytes bound what waits to be sent, and what is being
	// sent; the bytes are those of the records' JSON, of which attributes take
	// about three times as much.
	maxRecords = 8192
	maxBytes   = 8 << 20
	// patience is how long a batch is tried to be sent.
	patience = 5 * time.Minute
	// firstWait and longestWait are between two tries.
	firstWait   = time.Second
	longestWait = 5 * time.Second
	// slow is how long a batch is under way before the user is told.
	slow = 10 * time.Second
)

// Config says what to send and where to.
type Config struct {
	// URL is where to: "" for where the OTEL_* variables say.
	URL string
	// All sends every record, not only failures, causes, sums, and what is about
	// the run.
	All     bool
	Version string
	// Warn takes what the user should know, one line each, from any goroutine.
	Warn func(format string, args ...any)
}

// Sender sends records. Observe, Tick, Last and Close are for one goroutine, Counts
// is for any.
type Sender struct {
	config   Config
	provider *sdklog.LoggerProvider
	logger   log.Logger
	flatten  flattener
	sums     sums

	mu      sync.Mutex
	sizes   []int // of the records that wait or are being sent, the first first
	bytes   int   // their sum
	sent    uint64
	refused uint64    // there was no room
	failed  uint64    // could not be sent
	told    uint64    // of refused and failed, by a lost record
	since   int64     // when none was dropped, Unix nanoseconds
	began   time.Time // of what is being sent
	reason  error     // of the last failure
	said    bool      // that records are dropped
	late    bool      // was said
	// closing is closed when no more time is to be lost, but until is left.
	closing chan struct{}
	until   time.Time
}

// New returns a Sender; nil where neither config nor the environment says where to
// send to. An error is the user's.
func New(config Config) (*Sender, error) {
	enabled, err := enabled(config.URL)
	if err != nil || !enabled {
		return nil, err
	}
	s := &Sender{config: config, sums: newSums(), closing: make(chan struct{}), since: time.Now().UnixNano()}
	// The SDK tells of wrong variables in no other way.
	warn := func(text string) { config.Warn("otlp: %s", text) }
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { warn(err.Error()) }))
	otel.SetLogger(funcr.New(func(_, args string) { warn(args) }, funcr.Options{}))

	options := []otlploghttp.Option{
		otlploghttp.WithRetry(otlploghttp.RetryConfig{
			Enabled: true, InitialInterval: firstWait, MaxInterval: longestWait, MaxElapsedTime: patience,
		}),
	}
	if config.URL != "" {
		endpoint, err := endpoint(config.URL)
		if err != nil {
			return nil, err
		}
		options = append(options, otlploghttp.WithEndpointURL(endpoint))
	}
	ctx := context.Background()
	exporter, err := otlploghttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "twtrace"), attribute.String("service.version", config.Version)),
		resource.WithFromEnv(), // the last, so that it prevails
	)
	if err != nil {
		return nil, fmt.Errorf("otlp: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	s.provider = sdklog.NewLoggerProvider(
		sdklog.WithResource(about),
		sdklog.WithProcessor(sdklog.NewBatchProcessor(counting{exporter, s},
			sdklog.WithMaxQueueSize(maxRecords), sdklog.WithExportTimeout(patience))),
		sdklog.WithAllowKeyDuplication(), // there are none to look for
	)
	s.logger = s.provider.Logger("github.com/twtrace/twtrace", log.WithInstrumentationVersion(config.Version))
	return s, nil
}

// enabled reports whether somebody said where to send to.
func enabled(flag string) (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol != "" {
			if protocol != "http/protobuf" {
				return false, fmt.Errorf("%s=%s: only http/protobuf is spoken, on port 4318 as a rule", name, protocol)
			}
			break
		}
	}
	if flag != "" {
		return true, nil
	}
	switch kind := os.Getenv("OTEL_LOGS_EXPORTER"); kind {
	case "otlp":
		return true, nil
	case "":
		return os.Getenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "", nil
	case "none":
		return false, nil
	default:
		return false, fmt.Errorf("OTEL_LOGS_EXPORTER=%s: must be otlp or none", kind)
	}
}

// endpoint completes the URL, as the SDK does with OTEL_EXPORTER_OTLP_ENDPOINT.
func endpoint(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("otlp %q: must be a URL such as http://127.0.0.1:4318", text)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/logs"
	}
	return u.String(), nil
}

// Observe takes a record.
func (s *Sender) Observe(r *record.Record) {
	s.sums.add(r)
	if s.config.All || wanted(r) {
		s.send(r, nil)
	}
}

// wanted reports whether a record is sent when not all are.
func wanted(r *record.Record) bool {
	switch r.Kind {
	case record.Meta, record.Lost, record.Summary, record.Verdict, record.PortPressure:
		return true
	case record.Connect:
		return r.Connect.Outcome != record.Established || r.Verdict != nil
	}
	return r.Verdict != nil
}

// send sends a record; of one that is a sum, with that.
func (s *Sender) send(r *record.Record, of *sum) {
	var made log.Record
	size := s.flatten.fill(&made, r, of)
	s.emit(made, size)
}

func (s *Sender) emit(made log.Record, size int) {
	s.mu.Lock()
	if len(s.sizes) >= maxRecords || s.bytes+size > maxBytes {
		s.refused++
		said := s.said
		s.said = true
		s.mu.Unlock()
		if !said {
			s.config.Warn("otlp: records come faster than they are taken: those without room are dropped, and counted")
		}
		return
	}
	s.sizes = append(s.sizes, size)
	s.bytes += size
	s.mu.Unlock()
	s.logger.Emit(context.Background(), made)
}

// Tick tells that it is now so late, Unix nanoseconds: the sums that are due are
// sent, and what was lost is told when there is room again.
func (s *Sender) Tick(now int64) {
	if s.sums.due(now) {
		s.sendSums(now)
	}
	s.tellLoss(now)
}

// Last sends the sums so far. Only what is about the run's end follows.
func (s *Sender) Last(now int64) {
	s.sendSums(now)
	s.tellLoss(now)
}

func (s *Sender) sendSums(now int64) {
	for r, sum := range s.sums.take(now) {
		s.send(r, sum)
	}
}

func (s *Sender) tellLoss(now int64) {
	s.mu.Lock()
	dropped := s.refused + s.failed
	count := dropped - s.told
	since, haveRoom := s.since, len(s.sizes) < maxRecords/2 && s.bytes < maxBytes/2
	if count > 0 && haveRoom {
		s.told = dropped
	}
	if count == 0 || haveRoom {
		s.since = now
	}
	slow := !s.began.IsZero() && time.Since(s.began) > slow && !s.late
	if slow {
		s.late = true
	}
	s.mu.Unlock()
	if slow {
		s.config.Warn("otlp: no batch was taken for %s: records wait, then are dropped, and counted", time.Since(s.began).Round(time.Second))
	}
	if count > 0 && haveRoom {
		s.emit(lostRecord(count, since, now), 1)
	}
}

// Counts are how many records were sent so far, and how many dropped.
func (s *Sender) Counts() (sent, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.refused + s.failed
}

// Close sends what is left until ctx ends, and says what could not be sent.
func (s *Sender) Close(ctx context.Context) {
	s.mu.Lock()
	s.until, _ = ctx.Deadline()
	s.mu.Unlock()
	close(s.closing)
	err := s.provider.Shutdown(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said, s.late = true, true // it is now
	if s.reason != nil {
		err = s.reason
	}
	dropped := s.refused + s.failed + uint64(len(s.sizes))
	if dropped == 0 {
		return
	}
	if err == nil {
		err = errors.New("they came faster than they were taken")
	}
	s.config.Warn("otlp: %d of %d records could not be sent: %v", dropped, dropped+s.sent, err)
}

// counting is the exporter, and counts.
type counting struct {
	sdklog.Exporter
	*Sender
}

// Export sends a batch. The exporter tries again what the other side has no time
// for, and here what does not reach it.
func (c counting) Export(ctx context.Context, records []sdklog.Record) error {
	c.mu.Lock()
	c.began = time.Now()
	c.mu.Unlock()
	var err error
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		err = c.Exporter.Export(ctx, records)
		if !errors.As(err, new(*url.Error)) || ctx.Err() != nil {
			break
		}
		c.warnOnce(err)
		if !c.waits(wait) {
			break
		}
	}
	failed := rejected(err, len(records))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent += uint64(len(records) - failed)
	c.failed += uint64(failed)
	for _, size := range c.sizes[:len(records)] {
		c.bytes -= size
	}
	c.sizes = append(c.sizes[:0], c.sizes[len(records):]...)
	c.began = time.Time{}
	if err == nil {
		c.late, c.reason = false, nil
	} else {
		c.reason = err
		if failed > 0 && !c.said {
			c.said = true
			c.config.Warn("otlp: %v: records are dropped, and counted", err)
		}
	}
	return nil // it is told here
}

// warnOnce says why a batch must wait.
func (c counting) warnOnce(err error) {
	c.mu.Lock()
	said := c.late
	c.late, c.reason = true, err
	c.mu.Unlock()
	if !said {
		c.config.Warn("otlp: %v: records wait, then are dropped, and counted", err)
	}
}

// waits waits before another try, and reports whether there is to be one.
func (c counting) waits(wait time.Duration) bool {
	select {
	case <-c.closing:
	case <-time.After(wait):
		return true
	}
	c.mu.Lock()
	left := time.Until(c.until)
	c.mu.Unlock()
	if left <= 0 {
		return false
	}
	time.Sleep(min(left, firstWait/4))
	return true
}

// partial is how the exporter words that not all of a batch was accepted; the
// error's type is its own.
var partial = regexp.MustCompile(`OTLP partial success: .*\((\d+) logs rejected\)`)

// rejected is how many of n records were not accepted.
func rejected(err error, n int) int {
	if err == nil {
		return 0
	}
	if found := partial.FindStringSubmatch(err.Error()); found != nil {
		if count, err := strconv.Atoi(found[1]); err == nil {
			return min(count, n)
		}
	}
	return n
}
