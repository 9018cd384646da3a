// Package otlptest receives what tests have sent by OTLP, over HTTP with protobuf.
package otlptest

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

// A Receiver is a server on loopback that keeps what it gets.
type Receiver struct {
	URL string

	mu       sync.Mutex
	answer   Answer
	records  []*logs.LogRecord
	resource map[string]any
	headers  http.Header
	requests int
	server   *http.Server
}

// An Answer decides on a request with n records. accepted is how many it takes;
// where status is no 200, none.
type Answer func(r *http.Request, n int) (status, accepted int)

// Accept takes all.
func Accept(_ *http.Request, n int) (status, accepted int) { return http.StatusOK, n }

// New returns a Receiver that answers by answer, until the test ends.
func New(t *testing.T, answer Answer) *Receiver {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := Serve(listener, answer)
	t.Cleanup(r.Close)
	return r
}

// Serve returns a Receiver behind a listener.
func Serve(listener net.Listener, answer Answer) *Receiver {
	r := &Receiver{URL: "http://" + listener.Addr().String(), answer: answer}
	r.server = &http.Server{Handler: r}
	go func() { _ = r.server.Serve(listener) }() // until Close
	return r
}

// Close stops it at once, with all connections.
func (r *Receiver) Close() { _ = r.server.Close() }

// ServeHTTP is http.Handler's.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	sent, err := read(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n := 0
	for _, resource := range sent.ResourceLogs {
		for _, scope := range resource.ScopeLogs {
			n += len(scope.LogRecords)
		}
	}
	r.mu.Lock()
	r.requests++
	answer := r.answer
	r.mu.Unlock()
	status, accepted := answer(req, n)
	if status != http.StatusOK {
		http.Error(w, http.StatusText(status), status)
		return
	}
	r.keep(sent, req.Header, accepted)
	var answered collector.ExportLogsServiceResponse
	if accepted < n {
		answered.PartialSuccess = &collector.ExportLogsPartialSuccess{
			RejectedLogRecords: int64(n - accepted), ErrorMessage: "too old",
		}
	}
	body, err := proto.Marshal(&answered)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(body) // the client has gone: it knows
}

func read(req *http.Request) (*collector.ExportLogsServiceRequest, error) {
	if req.Method != http.MethodPost || req.URL.Path != "/v1/logs" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		return nil, fmt.Errorf("%s %s of %s: must be POST /v1/logs of application/x-protobuf", req.Method, req.URL.Path, req.Header.Get("Content-Type"))
	}
	var body io.Reader = req.Body
	if req.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	var sent collector.ExportLogsServiceRequest
	return &sent, proto.Unmarshal(data, &sent)
}

func (r *Receiver) keep(sent *collector.ExportLogsServiceRequest, headers http.Header, accepted int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = headers
	for _, resource := range sent.ResourceLogs {
		r.resource = Attributes(resource.Resource.Attributes)
		for _, scope := range resource.ScopeLogs {
			for _, record := range scope.LogRecords {
				if accepted > 0 {
					r.records = append(r.records, record)
					accepted--
				}
			}
		}
	}
}

// Answer has it answer by another rule from now on.
func (r *Receiver) Answer(answer Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// Records are those that it took, in the order that they came in.
func (r *Receiver) Records() []*logs.LogRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[:len(r.records):len(r.records)]
}

// Requests counts the requests.
func (r *Receiver) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// Resource is what the last request said of its sender, and Headers what it
// came with.
func (r *Receiver) Resource() (attributes map[string]any, headers http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resource, r.headers
}

// Attributes are the attributes by their names: strings, bool, int64, float64, and
// lists of them.
func Attributes(attributes []*common.KeyValue) map[string]any {
	all := make(map[string]any, len(attributes))
	for _, a := range attributes {
		all[a.Key] = value(a.Value)
	}
	return all
}

func value(v *common.AnyValue) any {
	switch v := v.Value.(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_BoolValue:
		return v.BoolValue
	case *common.AnyValue_IntValue:
		return v.IntValue
	case *common.AnyValue_DoubleValue:
		return v.DoubleValue
	case *common.AnyValue_ArrayValue:
		items := []any{}
		for _, item := range v.ArrayValue.Values {
			items = append(items, value(item))
		}
		return items
	}
	return nil
}
