package record

import (
	_ "embed"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// Version stands in every line as "schema". It changes only when a reader of
// the old one would break.
const Version = "twtrace/1"

//go:embed schema.json
var schema string

// Schema is the JSON Schema (2020-12) of one line of the log.
func Schema() string { return schema }

// Container runtimes split a line of 16 KiB or more, so no line reaches that:
// no text takes more than maxText bytes, and no list more than maxList and a
// few.
const (
	maxText = 512
	maxList = 4096
	// maxFacts is for the three lists of a verdict, which can hold another.
	maxFacts = 1000
)

// AppendJSON appends r as the line number seq of its log, newline included,
// and returns the extended slice. The line is shorter than 16 KiB: a longer
// text ends in "…", and so does a longer list.
func (r *Record) AppendJSON(b []byte, seq uint64) []byte { return r.appendJSON(b, seq, nil) }

// appendJSON is AppendJSON with what an encoder remembers, if there is one.
func (r *Record) appendJSON(b []byte, seq uint64, e *Encoder) []byte {
	b = append(b, `{"schema":"`+Version+`","time":`...)
	b = e.appendTime(b, r.Time)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"event":"`...)
	b = append(b, r.Kind.String()...)
	b = append(b, '"')
	b = e.appendSocket(b, &r.Socket)

	switch r.Kind {
	case Meta:
		b = r.Meta.appendJSON(b)
	case State:
		b = r.State.appendJSON(b)
	case Connect:
		b = r.Connect.appendJSON(b)
		if r.Ports != nil {
			b = r.Ports.appendJSON(b)
		}
		b = r.Verdict.appendJSON(b, `,"verdict":`)
	case Accept:
		if r.Accept.Duration > 0 {
			b = append(b, `,"accept":{`...)
			b = appendDuration(b, r.Accept.Duration)
			b = append(b, '}')
		}
	case Close:
		b = r.Close.appendJSON(b)
		b = r.Verdict.appendJSON(b, `,"verdict":`)
	case TimeWaitEnter:
		if r.TimeWait.SameDestination > 0 {
			b = append(b, `,"time_wait":{"same_destination":`...)
			b = strconv.AppendUint(b, uint64(r.TimeWait.SameDestination), 10)
			b = append(b, '}')
		}
	case TimeWaitEnd:
		b = r.TimeWait.appendEnd(b)
	case PortReuse:
		b = r.Reuse.appendJSON(b)
	case PortPressure:
		b = r.Ports.appendJSON(b)
	case SynRetransmit:
		b = r.SYN.appendJSON(b)
	case Drop:
		b = r.Drop.appendJSON(b)
	case Reset:
		b = r.Reset.appendJSON(b)
	case NetNS:
		b = AppendSysctls(append(b, `,"sysctl":`...), r.Sysctls)
	case Counters:
		b = r.Counters.appendJSON(b)
	case Verdict:
		b = r.Verdict.appendJSON(b, `,"verdict":`)
	case Lost:
		b = r.Lost.appendJSON(b)
	case Summary:
		b = r.Summary.appendJSON(b)
	}
	return append(b, '}', '\n')
}

func appendSocket(b []byte, s *event.Socket) []byte {
	return appendOwner(appendPlace(b, s), &s.Owner)
}

// appendPlace appends the socket without its owner.
func appendPlace(b []byte, s *event.Socket) []byte {
	b = appendNetwork(b, s.Tuple)
	b = appendNetNS(b, s.NetNS)
	if s.Cookie != 0 {
		b = append(b, `,"socket":{"cookie":`...)
		b = appendIdentity(b, s.Cookie)
		b = append(b, '}')
	}
	return b
}

func appendNetNS(b []byte, n event.NetNS) []byte {
	if n.Inode != 0 {
		b = append(b, `,"netns":`...)
		b = strconv.AppendUint(b, uint64(n.Inode), 10)
	}
	if n.Cookie != 0 {
		b = append(b, `,"netns_cookie":`...)
		b = appendIdentity(b, n.Cookie)
	}
	return b
}

func appendOwner(b []byte, o *event.Owner) []byte {
	if o.Known() {
		b = append(b, `,"process":{"pid":`...)
		b = strconv.AppendUint(b, uint64(o.PID), 10)
		if o.TID != 0 {
			b = append(b, `,"tid":`...)
			b = strconv.AppendUint(b, uint64(o.TID), 10)
		}
		b = appendMember(b, `,"comm":`, o.Comm)
		b = append(b, `,"uid":`...)
		b = strconv.AppendUint(b, uint64(o.UID), 10)
		b = append(b, '}')
	}
	if o.Cgroup == 0 {
		return b
	}
	b = append(b, `,"cgroup":{"id":`...)
	b = appendIdentity(b, o.Cgroup)
	if o.In != nil {
		b = appendMember(b, `,"path":`, o.In.Path)
	}
	b = append(b, '}')
	return appendContainer(b, o.In)
}

// appendContainer appends the container and the pod, as far as they are known.
func appendContainer(b []byte, in *event.Cgroup) []byte {
	if in == nil {
		return b
	}
	if in.Container != "" {
		b = appendMember(b, `,"container":{"id":`, in.Container)
		b = appendMember(b, `,"name":`, in.Name)
		b = appendMember(b, `,"runtime":`, in.Runtime)
		b = append(b, '}')
	}
	if in.PodUID == "" && in.Pod == "" {
		return b
	}
	b = append(b, `,"k8s":{`...)
	start := len(b)
	if in.Node != "" {
		b = append(appendMember(b, `,"node":{"name":`, in.Node), '}')
	}
	if in.Namespace != "" {
		b = append(appendMember(b, `,"namespace":{"name":`, in.Namespace), '}')
	}
	b = append(b, `,"pod":{`...)
	inner := len(b)
	b = appendMember(b, `,"name":`, in.Pod)
	b = appendMember(b, `,"uid":`, in.PodUID)
	b = append(dropComma(b, inner), '}')
	if in.Pod != "" && in.Name != "" {
		b = append(appendMember(b, `,"container":{"name":`, in.Name), '}')
	}
	return append(dropComma(b, start), '}')
}

func appendNetwork(b []byte, t event.Tuple) []byte {
	addr := t.Local.Addr()
	if !addr.IsValid() {
		addr = t.Peer.Addr()
	}
	switch {
	case !addr.IsValid():
		return b
	case addr.Unmap().Is4():
		b = append(b, `,"network":{"type":"ipv4"`...)
	default:
		b = append(b, `,"network":{"type":"ipv6"`...)
	}
	b = appendEnd(b, `,"local":`, t.Local)
	b = appendEnd(b, `,"peer":`, t.Peer)
	return append(b, '}')
}

func appendEnd(b []byte, key string, end netip.AddrPort) []byte {
	if !end.IsValid() {
		return b
	}
	b = append(b, key...)
	b = append(b, `{"address":"`...)
	b = end.Addr().Unmap().AppendTo(b)
	b = append(b, '"')
	if end.Port() != 0 {
		b = append(b, `,"port":`...)
		b = strconv.AppendUint(b, uint64(end.Port()), 10)
	}
	return append(b, '}')
}

func (m *MetaFields) appendJSON(b []byte) []byte {
	b = append(b, `,"meta":{`...)
	start := len(b)
	b = appendMember(b, `,"version":`, m.Version)
	b = appendMember(b, `,"kernel":`, m.Kernel)
	b = appendMember(b, `,"arch":`, m.Arch)
	b = appendMember(b, `,"boot_id":`, m.BootID)
	b = appendMember(b, `,"node":`, m.Node)
	if m.Started != 0 {
		b = append(b, `,"started":`...)
		b = appendTime(b, m.Started)
	}
	b = appendMember(b, `,"ts_offset_mode":`, m.TSOffsetMode)
	b = append(b, `,"probes":`...)
	b = appendList(b, maxList, m.Probes, Probe{Name: "…"}, appendProbe)
	b = append(b, `,"blind_spots":`...)
	b = appendList(b, maxList, m.BlindSpots, "…", appendString)
	if len(m.Filters) > 0 {
		b = append(b, `,"filters":`...)
		b = appendList(b, maxList, m.Filters, "…", appendString)
	}
	return append(dropComma(b, start), '}')
}

func appendProbe(b []byte, p Probe) []byte {
	b = append(b, `{"name":`...)
	b = appendString(b, p.Name)
	b = append(b, `,"attached":`...)
	b = strconv.AppendBool(b, p.Attached)
	b = appendMember(b, `,"via":`, p.Via)
	b = appendMember(b, `,"why_not":`, p.WhyNot)
	return append(b, '}')
}

func (s *StateFields) appendJSON(b []byte) []byte {
	b = append(b, `,"state":{"old":"`...)
	b = append(b, s.Old.String()...)
	b = append(b, `","new":"`...)
	b = append(b, s.New.String()...)
	b = append(b, '"')
	if s.Duration > 0 {
		b = append(b, ',')
		b = appendDuration(b, s.Duration)
	}
	return append(b, '}')
}

func (c *ConnectFields) appendJSON(b []byte) []byte {
	b = append(b, `,"connect":{"outcome":"`...)
	b = append(b, c.Outcome.String()...)
	b = append(b, `",`...)
	if c.Duration > 0 {
		b = appendDuration(b, c.Duration)
		b = append(b, ',')
	}
	b = append(b, `"syn_retransmits":`...)
	b = strconv.AppendUint(b, uint64(c.Retransmits), 10)
	if c.HasTSVal {
		b = append(b, `,"tsval":`...)
		b = strconv.AppendUint(b, uint64(c.TSVal), 10)
	}
	b = append(b, '}')
	if c.Errno != 0 {
		b = append(b, `,"error":{"type":"`...)
		b = AppendErrno(b, c.Errno)
		b = append(b, `"}`...)
	}
	return b
}

// AppendErrno appends the errno's name, or ERRNO_524 for a number that has
// none: some of the kernel's inner ones reach programs.
func AppendErrno(b []byte, errno syscall.Errno) []byte {
	if name := unix.ErrnoName(errno); name != "" {
		return append(b, name...)
	}
	b = append(b, "ERRNO_"...)
	return strconv.AppendUint(b, uint64(errno), 10)
}

// ErrnoName is what AppendErrno appends, and "" for none.
func ErrnoName(errno syscall.Errno) string {
	if errno == 0 {
		return ""
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return string(AppendErrno(nil, errno))
}

func (c *CloseFields) appendJSON(b []byte) []byte {
	b = append(b, `,"close":{"by":"`...)
	b = append(b, c.By.String()...)
	b = append(b, `",`...)
	if c.Duration > 0 {
		b = appendDuration(b, c.Duration)
		b = append(b, ',')
	}
	b = append(b, `"bytes_sent":`...)
	b = strconv.AppendUint(b, c.BytesSent, 10)
	b = append(b, `,"bytes_received":`...)
	b = strconv.AppendUint(b, c.BytesReceived, 10)
	if c.HasTSValLast {
		b = append(b, `,"tsval_last":`...)
		b = strconv.AppendUint(b, uint64(c.TSValLast), 10)
	}
	return append(b, '}')
}

func (t *TimeWaitFields) appendEnd(b []byte) []byte {
	b = append(b, `,"time_wait":{"ended":"`...)
	b = append(b, t.Ended.String()...)
	b = append(b, `",`...)
	if t.Duration > 0 {
		b = appendDuration(b, t.Duration)
		b = append(b, ',')
	}
	b = append(b, `"exact":`...)
	b = strconv.AppendBool(b, t.Exact)
	return append(b, '}')
}

func (r *ReuseFields) appendJSON(b []byte) []byte {
	b = append(b, `,"reuse":{"scope":"`...)
	b = append(b, r.Scope.String()...)
	b = append(b, `","how":"`...)
	b = append(b, r.How.String()...)
	b = append(b, '"')
	if r.After > 0 {
		b = append(b, `,"after_ms":`...)
		b = appendMilliseconds(b, r.After)
	}
	b = append(b, `,"previous":{`...)
	start := len(b)
	p := &r.Previous
	if p.Time != 0 {
		b = append(b, `,"time":`...)
		b = appendTime(b, p.Time)
	}
	if p.Local.IsValid() {
		b = append(b, `,"local":{"address":"`...)
		b = p.Local.Unmap().AppendTo(b)
		b = append(b, `"}`...)
	}
	b = appendNetNS(b, p.NetNS)
	b = appendOwner(b, &p.Owner)
	if how := p.End.String(); p.Ended != 0 || how != "" {
		b = append(b, `,"ended":{`...)
		inner := len(b)
		if p.Ended != 0 {
			b = append(b, `,"time":`...)
			b = appendTime(b, p.Ended)
		}
		b = appendMember(b, `,"how":`, how)
		b = append(dropComma(b, inner), '}')
	}
	return append(dropComma(b, start), `}}`...)
}

func (p *PortsFields) appendJSON(b []byte) []byte {
	b = append(b, `,"ports":{"in_use":`...)
	b = strconv.AppendUint(b, uint64(p.InUse), 10)
	b = append(b, `,"time_wait":`...)
	b = strconv.AppendUint(b, uint64(p.TimeWait), 10)
	b = append(b, `,"range":`...)
	b = appendRange(b, p.Range)
	if p.Reserved >= 0 {
		b = append(b, `,"reserved":`...)
		b = strconv.AppendInt(b, int64(p.Reserved), 10)
	}
	if p.Usable > 0 {
		b = append(b, `,"used_ratio":`...)
		b = strconv.AppendFloat(b, float64(p.InUse)/float64(p.Usable), 'f', -1, 32)
	}
	if p.Exhausts {
		// An estimate: no more than tenths of a second are worth writing.
		tenths := p.ExhaustedIn.Round(time.Second / 10)
		b = append(b, `,"exhausted_in_s":`...)
		b = strconv.AppendFloat(b, tenths.Seconds(), 'f', -1, 64)
	}
	if h := p.Holder; h != nil {
		b = append(b, `,"holder":{"port":`...)
		b = strconv.AppendUint(b, uint64(h.Port), 10)
		b = appendOwner(b, &h.Owner)
		if h.EndsIn > 0 {
			b = append(b, `,"ends_in_ms":`...)
			b = appendMilliseconds(b, h.EndsIn)
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// AppendSysctls appends the settings of a network namespace, as an object.
func AppendSysctls(b []byte, s *event.Sysctls) []byte {
	b = append(b, `{"ip_local_port_range":`...)
	b = appendRange(b, s.Ports)
	b = append(b, `,"ip_local_reserved_ports":`...)
	b = appendList(b, maxList, s.Reserved, event.PortRange{}, appendRange)
	for i, value := range s.Numbers {
		if value < 0 {
			continue
		}
		b = append(b, `,"`...)
		b = append(b, event.SysctlNames[i]...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, value, 10)
	}
	return append(b, '}')
}

func appendRange(b []byte, r event.PortRange) []byte {
	b = append(b, '[')
	b = strconv.AppendUint(b, uint64(r.Low), 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, uint64(r.High), 10)
	return append(b, ']')
}

func (s *SYNFields) appendJSON(b []byte) []byte {
	b = append(b, `,"syn":{"packet":"`...)
	if s.SynAck {
		b = append(b, "SYN-ACK"...)
	} else {
		b = append(b, "SYN"...)
	}
	b = append(b, '"')
	if s.Attempt > 0 {
		b = append(b, `,"attempt":`...)
		b = strconv.AppendUint(b, uint64(s.Attempt), 10)
	}
	return append(b, '}')
}

func (r *ResetFields) appendJSON(b []byte) []byte {
	if r.Received {
		b = append(b, `,"reset":{"direction":"received"`...)
	} else {
		b = append(b, `,"reset":{"direction":"sent"`...)
	}
	b = appendMember(b, `,"reason":`, r.Reason)
	return append(b, '}')
}

func (d *DropFields) appendJSON(b []byte) []byte {
	b = append(b, `,"drop":{"packet":"`...)
	b = append(b, d.Packet.String()...)
	b = append(b, '"')
	b = appendMember(b, `,"reason":`, d.Reason)
	b = appendMember(b, `,"location":`, d.Location)
	b = appendNetNS(b, d.NetNS)
	if d.Listener {
		b = append(b, `,"listener":true`...)
	}
	return append(b, '}')
}

func (c *CountersFields) appendJSON(b []byte) []byte {
	b = append(b, `,"counters":{`...)
	start := len(b)
	if c.Interval > 0 {
		b = append(b, `,"interval_ms":`...)
		b = appendMilliseconds(b, c.Interval)
	}
	b = append(b, `,"delta":{`...)
	b = append(appendNumbers(b, c.Delta), '}')
	return append(dropComma(b, start), '}')
}

// appendNumbers appends the members of an object, in the order of their names.
func appendNumbers(b []byte, numbers map[string]uint64) []byte {
	start := len(b)
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		b = append(b, ',')
		b = appendString(b, name)
		b = append(b, ':')
		b = strconv.AppendUint(b, numbers[name], 10)
	}
	return dropComma(b, start)
}

// appendJSON appends key, which holds its own punctuation, and the verdict, and
// nothing where there is none.
func (v *VerdictFields) appendJSON(b []byte, key string) []byte {
	if v == nil {
		return b
	}
	b = append(b, key...)
	b = append(b, `{"id":`...)
	b = appendString(b, v.ID)
	b = append(b, `,"confidence":"`...)
	b = append(b, v.Confidence.String()...)
	b = append(b, '"')
	b = appendMember(b, `,"text":`, v.Text)
	b = append(b, `,"evidence":`...)
	b = appendList(b, maxFacts, v.Evidence, Evidence{Text: "…"}, appendEvidence)
	b = append(b, `,"ruled_out":`...)
	b = appendList(b, maxFacts, v.RuledOut, "…", appendString)
	b = append(b, `,"not_visible":`...)
	b = appendList(b, maxFacts, v.NotVisible, "…", appendString)
	b = appendMember(b, `,"advice":`, v.Advice)
	b = v.Inner.appendJSON(b, `,"inner":`)
	return append(b, '}')
}

func appendEvidence(b []byte, e Evidence) []byte {
	b = append(b, '{')
	start := len(b)
	if e.Line > 0 {
		b = append(b, `,"seq":`...)
		b = strconv.AppendUint(b, e.Line-1, 10)
	}
	b = appendMember(b, `,"text":`, e.Text)
	return append(dropComma(b, start), '}')
}

func (l *LostFields) appendJSON(b []byte) []byte {
	b = append(b, `,"lost":{"count":`...)
	b = strconv.AppendUint(b, l.Count, 10)
	b = append(b, `,"since":`...)
	b = appendTime(b, l.Since)
	b = append(b, `,"where":"`...)
	b = append(b, l.Where.String()...)
	b = append(b, '"')
	if l.Kinds != nil {
		b = append(b, `,"kinds":{`...)
		b = appendCounts(b, l.Kinds[:], func(i int) string { return Kind(i).String() })
		b = append(b, '}')
	}
	return append(b, '}')
}

func (s *SummaryFields) appendJSON(b []byte) []byte {
	b = append(b, `,"summary":{`...)
	b = appendDuration(b, s.Duration)
	b = append(b, `,"events":{`...)
	b = appendCounts(b, s.Events[:], func(i int) string { return Kind(i).String() })
	b = append(b, `},"connects":{`...)
	b = appendCounts(b, s.Connects[:], func(i int) string { return Outcome(i).String() })
	if len(s.Verdicts) > 0 {
		b = append(b, `},"verdicts":{`...)
		b = appendNumbers(b, s.Verdicts)
	}
	b = append(b, `},"lost":{"kernel":`...)
	b = strconv.AppendUint(b, s.LostKernel, 10)
	b = append(b, `,"output":`...)
	b = strconv.AppendUint(b, s.LostOutput, 10)
	b = append(b, '}')
	if s.Forgotten > 0 {
		b = append(b, `,"forgotten":`...)
		b = strconv.AppendUint(b, s.Forgotten, 10)
	}
	return append(b, '}')
}

func appendCounts(b []byte, counts []uint64, name func(int) string) []byte {
	start := len(b)
	for i, n := range counts {
		if n == 0 {
			continue
		}
		b = append(b, `,"`...)
		b = append(b, name(i)...)
		b = append(b, `":`...)
		b = strconv.AppendUint(b, n, 10)
	}
	return dropComma(b, start)
}

// appendList appends a JSON array of the items, as many as fit into limit bytes,
// and more in place of the others.
func appendList[T any](b []byte, limit int, items []T, more T, appendItem func([]byte, T) []byte) []byte {
	b = append(b, '[')
	start := len(b)
	for _, item := range items {
		end := len(b)
		b = append(b, ',')
		b = appendItem(b, item)
		if len(b)-start > limit {
			b = append(b[:end], ',')
			b = appendItem(b, more)
			break
		}
	}
	return append(dropComma(b, start), ']')
}

// dropComma takes away the comma at b[at], if there is one: members are
// appended with a comma before each, and the first has none.
func dropComma(b []byte, at int) []byte {
	if at < len(b) && b[at] == ',' {
		b = append(b[:at], b[at+1:]...)
	}
	return b
}

// appendMember appends key, which holds its own punctuation, and the text,
// and nothing where there is no text.
func appendMember(b []byte, key, text string) []byte {
	if text == "" {
		return b
	}
	return appendString(append(b, key...), text)
}

// appendTime appends a moment in Unix nanoseconds. Its digits are always nine,
// so that the order of the texts is the order of the moments.
func appendTime(b []byte, ns int64) []byte {
	t := time.Unix(0, ns).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = append(b, '"')
	b = append(appendDigits(b, year, 4), '-')
	b = append(appendDigits(b, int(month), 2), '-')
	b = append(appendDigits(b, day, 2), 'T')
	b = append(appendDigits(b, hour, 2), ':')
	b = append(appendDigits(b, minute, 2), ':')
	b = append(appendDigits(b, second, 2), '.')
	return append(appendDigits(b, t.Nanosecond(), 9), `Z"`...)
}

// appendDigits appends the last width digits of n. Parsing a layout for every line, as
// AppendFormat does, took a fifth of the time of tracing.
func appendDigits(b []byte, n, width int) []byte {
	b = append(b, "000000000"[:width]...)
	for i := len(b) - 1; n > 0 && width > 0; i, width = i-1, width-1 {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

// appendDuration appends the member duration_ms.
func appendDuration(b []byte, d time.Duration) []byte {
	return appendMilliseconds(append(b, `"duration_ms":`...), d)
}

// appendMilliseconds appends d in milliseconds, to the nanosecond. It reckons in
// integers: a float would lose nanoseconds in a connection of some weeks, and
// spell small ones with an exponent.
func appendMilliseconds(b []byte, d time.Duration) []byte {
	ms, ns := int64(d/time.Millisecond), int64(d%time.Millisecond)
	b = strconv.AppendInt(b, ms, 10)
	if ns == 0 {
		return b
	}
	// The digit before the fraction holds its leading zeros.
	point := len(b)
	b = strconv.AppendInt(b, int64(time.Millisecond)+ns, 10)
	b[point] = '.'
	for b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}

// appendIdentity appends a number as a string: most readers keep numbers in
// floats, which can't tell large identities apart.
func appendIdentity(b []byte, id uint64) []byte {
	b = append(b, '"')
	b = strconv.AppendUint(b, id, 10)
	return append(b, '"')
}

// appendString appends s as a JSON string that takes maxText bytes or less.
func appendString(b []byte, s string) []byte { return appendQuoted(b, s, maxText) }

// appendQuoted appends s as a JSON string. A process can give itself any bytes
// as its name: those that are no UTF-8 become U+FFFD, as in encoding/json.
// Where the string would take more than limit bytes, it ends in "…".
func appendQuoted(b []byte, s string, limit int) []byte {
	const (
		hex  = "0123456789abcdef"
		more = "…"
	)
	b = append(b, '"')
	if len(s)+len(`""`) <= limit && isPlain(s) {
		b = append(b, s...)
		return append(b, '"')
	}
	start := len(b) - 1
	cut := len(b)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		i += size
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\t':
			b = append(b, '\\', 't')
		case r < ' ' || r == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&0xf])
		case r == '\u2028' || r == '\u2029':
			// They end a line in JavaScript, and in some log viewers.
			b = append(b, '\\', 'u', '2', '0', '2', hex[r&0xf])
		default:
			b = utf8.AppendRune(b, r)
		}
		if len(b)-start+len(`"`) > limit {
			b = append(b[:cut], more...)
			break
		}
		if len(b)-start+len(more)+len(`"`) <= limit {
			cut = len(b)
		}
	}
	return append(b, '"')
}

// isPlain reports whether s stands in a JSON string as it is, as nearly all names
// do.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
