package otlp

import (
	"math"
	"strings"
	"time"

	"github.com/valyala/fastjson"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"

	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/sink"
)

// The attributes of a record are the members of its JSON, whose names are made for
// that: they nest as OpenTelemetry's semantic conventions do, where there are some,
// and so what is added to the log is here as well.

// flattener makes attributes from records. It is for one goroutine.
type flattener struct {
	parser     fastjson.Parser
	json       []byte
	path       []byte
	attributes []attribute.KeyValue
	text       []byte
}

// fill fills in made from r; where it stands for a sum, of is that. It returns the
// size of its JSON in bytes.
func (f *flattener) fill(made *log.Record, r *record.Record, of *sum) int {
	seq := uint64(0)
	if r.Line > 0 {
		seq = r.Line - 1
	}
	f.json = r.AppendJSON(f.json[:0], seq)
	v, err := f.parser.ParseBytes(f.json)
	if err != nil {
		panic("a record's JSON does not parse: " + err.Error())
	}
	f.attributes = f.attributes[:0]
	f.object(v.GetObject())

	level := severity(r)
	made.SetTimestamp(time.Unix(0, r.Time))
	made.SetSeverity(level)
	made.SetSeverityText(level.String())
	if of == nil {
		made.SetEventName("twtrace." + r.Kind.String())
		if r.Line == 0 {
			f.omit("twtrace.seq")
		}
		if v := r.Verdict; v != nil {
			f.add("twtrace.verdict.cause", attribute.StringValue(v.Cause()))
		}
		f.text = sink.AppendSentence(f.text[:0], r)
	} else {
		made.SetEventName(sumEvent)
		f.omit("twtrace.seq", "twtrace.connect.syn_retransmits", "process.pid", "twtrace.process.tid")
		f.sum(of)
		f.text = of.appendSentence(f.text[:0], r)
	}
	made.SetBody(attribute.StringValue(string(f.text)))
	made.AddAttributes(f.attributes...)
	return len(f.json)
}

func (f *flattener) add(name string, value attribute.Value) {
	f.attributes = append(f.attributes, attribute.KeyValue{Key: attribute.Key(name), Value: value})
}

func (f *flattener) omit(names ...string) {
	kept := f.attributes[:0]
	for _, a := range f.attributes {
		omitted := false
		for _, name := range names {
			omitted = omitted || string(a.Key) == name
		}
		if !omitted {
			kept = append(kept, a)
		}
	}
	f.attributes = kept
}

// object adds the members of an object.
func (f *flattener) object(o *fastjson.Object) {
	start := len(f.path)
	o.Visit(func(key []byte, v *fastjson.Value) {
		if start > 0 {
			f.path = append(f.path, '.')
		}
		f.path = append(f.path, key...)
		if v.Type() == fastjson.TypeObject {
			f.object(v.GetObject())
		} else {
			f.member(v)
		}
		f.path = f.path[:start]
	})
}

// name is what the member at a path is called. The conventions (1.40) have what
// stands here; what they call something else is renamed, and all else is ours.
func name(path string) string {
	switch path {
	case "schema", "time", "event":
		return "" // the record has them
	case "process.pid":
		return path
	case "process.uid":
		return "process.user.id"
	case "container.runtime":
		return "container.runtime.name"
	}
	for _, theirs := range []string{"network.", "error.", "k8s.", "container."} {
		if strings.HasPrefix(path, theirs) {
			return path
		}
	}
	return "twtrace." + path
}

func (f *flattener) member(v *fastjson.Value) {
	name := name(string(f.path))
	if name == "" {
		return
	}
	switch v.Type() {
	case fastjson.TypeString:
		f.add(name, attribute.StringValue(string(v.GetStringBytes())))
	case fastjson.TypeTrue, fastjson.TypeFalse:
		f.add(name, attribute.BoolValue(v.GetBool()))
	case fastjson.TypeNumber:
		// By the name: what is a fraction now and then is always one.
		if strings.HasSuffix(name, "_ms") || strings.HasSuffix(name, "_s") || strings.HasSuffix(name, "_ratio") {
			f.add(name, attribute.Float64Value(v.GetFloat64()))
		} else {
			f.add(name, attribute.Int64Value(integer(v)))
		}
	case fastjson.TypeArray:
		f.list(name, v.GetArray())
	}
	if name == "network.type" {
		f.add("network.transport", attribute.StringValue("tcp"))
	}
}

// integer is a number; one that is too large for OTLP is as large as can be.
func integer(v *fastjson.Value) int64 {
	n, err := v.Int64()
	if err != nil {
		return math.MaxInt64
	}
	return n
}

// list adds a list: of strings, with the JSON of what is none; one of numbers
// alone as numbers. An empty one is left out.
func (f *flattener) list(name string, items []*fastjson.Value) {
	if len(items) == 0 {
		return
	}
	numbers := make([]int64, 0, len(items))
	texts := make([]string, 0, len(items))
	for _, item := range items {
		switch item.Type() {
		case fastjson.TypeNumber:
			numbers = append(numbers, integer(item))
		case fastjson.TypeString:
			texts = append(texts, string(item.GetStringBytes()))
		default:
			texts = append(texts, string(item.MarshalTo(nil)))
		}
	}
	if len(texts) == 0 {
		f.add(name, attribute.Int64SliceValue(numbers))
	} else {
		f.add(name, attribute.StringSliceValue(texts))
	}
}

// severity is how much a record deserves a look.
func severity(r *record.Record) log.Severity {
	switch r.Kind {
	case record.Connect:
		switch {
		case r.Connect.Outcome != record.Established:
			return log.SeverityError
		case r.Verdict != nil:
			return log.SeverityWarn
		}
		return log.SeverityInfo
	case record.Close:
		if r.Verdict != nil {
			return log.SeverityWarn
		}
		return log.SeverityInfo
	case record.Verdict, record.Lost, record.Drop, record.SynRetransmit, record.Reset:
		return log.SeverityWarn
	case record.PortPressure:
		if r.Ports.Usable > 0 && 10*r.Ports.InUse >= 8*r.Ports.Usable {
			return log.SeverityWarn
		}
		return log.SeverityInfo
	case record.State, record.TimeWaitEnter, record.TimeWaitEnd:
		return log.SeverityDebug
	}
	return log.SeverityInfo
}

// moment is a time as the log writes it, in Unix nanoseconds.
func moment(ns int64) attribute.Value {
	return attribute.StringValue(time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z"))
}

// lostRecord tells that records were dropped on the way here.
func lostRecord(count uint64, since, now int64) log.Record {
	var made log.Record
	made.SetEventName("twtrace." + record.Lost.String())
	made.SetTimestamp(time.Unix(0, now))
	made.SetSeverity(log.SeverityWarn)
	made.SetSeverityText(log.SeverityWarn.String())
	made.SetBody(attribute.StringValue("lost records on the way here"))
	made.AddAttributes(
		attribute.Int64("twtrace.lost.count", int64(count)),
		attribute.KeyValue{Key: "twtrace.lost.since", Value: moment(since)},
		attribute.String("twtrace.lost.where", "otlp"),
	)
	return made
}
