package record

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/valyala/fastjson"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// A decoder turns lines back into records. It is strict about what it knows, and
// counts what it doesn't: keys and values of a newer twtrace.
type decoder struct {
	parser fastjson.Parser
	// unknown counts keys and values that are not known, by their path.
	unknown map[string]uint64
	// names are strings that lines share.
	names map[string]string
	// second is the text of the last time's whole seconds, base the Unix
	// nanoseconds that they are.
	second string
	base   int64
	number []byte

	r    *Record
	line lineFields
	err  error
	// end, netns and owner are what the keys that can stand at several places
	// are for.
	end   *netip.AddrPort
	netns *event.NetNS
	owner *event.Owner
	// within are the control groups of the line's owners, in the making, and
	// cgroups those that lines share.
	within  []within
	cgroups map[event.Cgroup]*event.Cgroup
	// Bound once, since a bound method is allocated.
	onLine, onNetwork, onEnd, onSocket, onProcess, onCgroup                  func(key []byte, v *fastjson.Value)
	onContainer, onK8s                                                       func(key []byte, v *fastjson.Value)
	onState, onConnect, onClose, onTimeWait, onReuse, onSYN, onReset, onDrop func(key []byte, v *fastjson.Value)
}

// within is the control group that an owner is in.
type within struct {
	owner *event.Owner
	in    event.Cgroup
}

// lineFields are of the line, not of the record.
type lineFields struct {
	schema, time, seq, event bool
	kind                     string // as it is spelled
}

const (
	maxNames   = 16 << 10
	maxUnknown = 256
)

func newDecoder() *decoder {
	d := &decoder{unknown: make(map[string]uint64), names: make(map[string]string), cgroups: make(map[event.Cgroup]*event.Cgroup)}
	d.onContainer, d.onK8s = d.containerKey, d.k8sKey
	d.onLine, d.onNetwork, d.onEnd = d.lineKey, d.networkKey, d.endKey
	d.onSocket, d.onProcess, d.onCgroup = d.socketKey, d.processKey, d.cgroupKey
	d.onState, d.onConnect, d.onClose, d.onTimeWait = d.stateKey, d.connectKey, d.closeKey, d.timeWaitKey
	d.onReuse, d.onSYN, d.onReset, d.onDrop = d.reuseKey, d.synKey, d.resetKey, d.dropKey
	return d
}

// decode fills r with what the line says. The line's number is r.Line-1. A Kind of 0
// is one that is not known.
func (d *decoder) decode(line []byte, r *Record) error {
	*r = Record{}
	d.r, d.err, d.line, d.within = r, nil, lineFields{}, d.within[:0]
	v, err := d.parser.ParseBytes(line)
	if err != nil {
		return errors.New("not a JSON object")
	}
	object, err := v.Object()
	if err != nil {
		return errors.New("not a JSON object")
	}
	object.Visit(d.onLine)
	switch l := d.line; {
	case d.err != nil:
		return d.err
	case !l.schema:
		return errors.New("no schema " + strconv.Quote(Version))
	case !l.time || !l.seq || !l.event:
		return errors.New("no time, seq or event")
	}
	for i := range d.within {
		d.within[i].owner.In = d.share(&d.within[i].in)
	}
	return d.complete()
}

// share returns the control group, the same for all lines that say the same of it.
func (d *decoder) share(in *event.Cgroup) *event.Cgroup {
	if shared, ok := d.cgroups[*in]; ok {
		return shared
	}
	if *in == (event.Cgroup{}) {
		return nil
	}
	if len(d.cgroups) >= maxNames {
		clear(d.cgroups)
	}
	shared := *in
	d.cgroups[shared] = &shared
	return &shared
}

// in returns the control group of the owner that is read.
func (d *decoder) in() *event.Cgroup {
	for i := range d.within {
		if d.within[i].owner == d.owner {
			return &d.within[i].in
		}
	}
	d.within = append(d.within, within{owner: d.owner})
	return &d.within[len(d.within)-1].in
}

// complete checks that what the kind is about is there.
func (d *decoder) complete() error {
	r := d.r
	missing := ""
	switch {
	case r.Kind == State && r.State.New == 0 && r.State.Old == 0:
		missing = "state"
	case r.Kind == PortReuse && r.Reuse == nil:
		missing = "reuse"
	case r.Kind == PortPressure && r.Ports == nil:
		missing = "ports"
	case r.Kind == NetNS && r.Sysctls == nil:
		missing = "sysctl"
	case r.Kind == Counters && r.Counters == nil:
		missing = "counters"
	case r.Kind == Verdict && r.Verdict == nil:
		missing = "verdict"
	case r.Kind == Meta && r.Meta == nil:
		missing = "meta"
	case r.Kind == Lost && r.Lost.Where == 0:
		missing = "lost"
	case r.Kind == Summary && r.Summary == nil:
		missing = "summary"
	default:
		return nil
	}
	return fmt.Errorf("a %s line without %q", r.Kind, missing)
}

func (d *decoder) lineKey(key []byte, v *fastjson.Value) {
	r := d.r
	switch string(key) {
	case "schema":
		d.line.schema = string(d.text(v)) == Version
	case "time":
		r.Time = d.time(v)
		d.line.time = true
	case "seq":
		r.Line = d.uint(v) + 1
		d.line.seq = true
	case "event":
		name := d.text(v)
		d.line.event = true
		for k := Meta; k < Kinds; k++ {
			if kindNames[k] == string(name) {
				r.Kind = k
				return
			}
		}
		d.line.kind = d.name(v)
	case "network":
		d.object(v, d.onNetwork)
	case "netns":
		r.Socket.NetNS.Inode = d.uint32(v)
	case "netns_cookie":
		r.Socket.NetNS.Cookie = d.identity(v)
	case "socket":
		d.object(v, d.onSocket)
	case "process", "cgroup", "container", "k8s":
		d.ownerKey(key, v, &r.Socket.Owner)
	case "state":
		d.object(v, d.onState)
	case "connect":
		d.object(v, d.onConnect)
	case "error":
		d.object(v, func(key []byte, v *fastjson.Value) {
			if string(key) != "type" {
				d.strange("error.", key)
				return
			}
			r.Connect.Errno = d.errno(v)
		})
	case "accept":
		d.object(v, func(key []byte, v *fastjson.Value) {
			if string(key) != "duration_ms" {
				d.strange("accept.", key)
				return
			}
			r.Accept.Duration = d.milliseconds(v)
		})
	case "close":
		d.object(v, d.onClose)
	case "time_wait":
		d.object(v, d.onTimeWait)
	case "reuse":
		r.Reuse = &ReuseFields{}
		d.object(v, d.onReuse)
	case "syn":
		d.object(v, d.onSYN)
	case "drop":
		d.netns = &r.Drop.NetNS
		d.object(v, d.onDrop)
	case "reset":
		d.object(v, d.onReset)
	case "ports":
		r.Ports = d.ports(v)
	case "sysctl":
		r.Sysctls = d.sysctls(v)
	case "counters":
		r.Counters = &CountersFields{}
		d.object(v, d.countersKey)
	case "verdict":
		r.Verdict = d.verdict(v)
	case "meta":
		r.Meta = &MetaFields{}
		d.object(v, d.metaKey)
	case "lost":
		d.object(v, d.lostKey)
	case "summary":
		r.Summary = &SummaryFields{}
		d.object(v, d.summaryKey)
	default:
		d.strange("", key)
	}
}

func (d *decoder) networkKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "type": // the addresses say it
	case "local":
		d.end = &d.r.Socket.Tuple.Local
		d.object(v, d.onEnd)
	case "peer":
		d.end = &d.r.Socket.Tuple.Peer
		d.object(v, d.onEnd)
	default:
		d.strange("network.", key)
	}
}

func (d *decoder) socketKey(key []byte, v *fastjson.Value) {
	if string(key) != "cookie" {
		d.strange("socket.", key)
		return
	}
	d.r.Socket.Cookie = d.identity(v)
}

func (d *decoder) endKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "address":
		*d.end = netip.AddrPortFrom(d.address(v), d.end.Port())
	case "port":
		*d.end = netip.AddrPortFrom(d.end.Addr(), uint16(d.upTo(v, 1<<16-1)))
	default:
		d.strange("network.", key)
	}
}

func (d *decoder) address(v *fastjson.Value) netip.Addr {
	text := d.text(v)
	// No line has a zone, which could be any text.
	addr, err := netip.ParseAddr(string(text))
	if err != nil || addr.Zone() != "" {
		d.fail("no address: %q", text)
	}
	return addr
}

// ownerKey reads one of the keys that tell who the owner is.
func (d *decoder) ownerKey(key []byte, v *fastjson.Value, owner *event.Owner) {
	d.owner = owner
	switch string(key) {
	case "process":
		d.object(v, d.onProcess)
	case "cgroup":
		d.object(v, d.onCgroup)
	case "container":
		d.object(v, d.onContainer)
	case "k8s":
		d.object(v, d.onK8s)
	}
}

func (d *decoder) processKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "pid":
		d.owner.PID = d.uint32(v)
	case "tid":
		d.owner.TID = d.uint32(v)
	case "uid":
		d.owner.UID = d.uint32(v)
	case "comm":
		d.owner.Comm = d.name(v)
	default:
		d.strange("process.", key)
	}
}

func (d *decoder) cgroupKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "id":
		d.owner.Cgroup = d.identity(v)
	case "path":
		d.in().Path = d.name(v)
	default:
		d.strange("cgroup.", key)
	}
}

func (d *decoder) containerKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "id":
		d.in().Container = d.name(v)
	case "name":
		d.in().Name = d.name(v)
	case "runtime":
		d.in().Runtime = d.name(v)
	default:
		d.strange("container.", key)
	}
}

func (d *decoder) k8sKey(key []byte, v *fastjson.Value) {
	object := string(key)
	if object != "node" && object != "namespace" && object != "pod" && object != "container" {
		d.strange("k8s.", key)
		return
	}
	d.object(v, func(key []byte, v *fastjson.Value) {
		switch object + "." + string(key) {
		case "node.name":
			d.in().Node = d.name(v)
		case "namespace.name":
			d.in().Namespace = d.name(v)
		case "pod.name":
			d.in().Pod = d.name(v)
		case "pod.uid":
			d.in().PodUID = d.name(v)
		case "container.name": // container.name says it
		default:
			d.strange("k8s."+object+".", key)
		}
	})
}

func (d *decoder) stateKey(key []byte, v *fastjson.Value) {
	s := &d.r.State
	switch string(key) {
	case "old":
		s.Old = d.state(v)
	case "new":
		s.New = d.state(v)
	case "duration_ms":
		s.Duration = d.milliseconds(v)
	default:
		d.strange("state.", key)
	}
}

func (d *decoder) state(v *fastjson.Value) event.State {
	text := d.text(v)
	for s := event.Established; s <= event.NewSynRecv; s++ {
		if s.String() == string(text) {
			return s
		}
	}
	d.strange("state ", text)
	return 0
}

func (d *decoder) connectKey(key []byte, v *fastjson.Value) {
	c := &d.r.Connect
	switch string(key) {
	case "outcome":
		c.Outcome = Outcome(d.oneOf(v, outcomeNames[:], "connect.outcome="))
	case "duration_ms":
		c.Duration = d.milliseconds(v)
	case "syn_retransmits":
		c.Retransmits = d.uint32(v)
	case "tsval":
		c.TSVal, c.HasTSVal = d.uint32(v), true
	default:
		d.strange("connect.", key)
	}
}

func (d *decoder) errno(v *fastjson.Value) syscall.Errno {
	text := string(d.text(v))
	if number, ok := strings.CutPrefix(text, "ERRNO_"); ok {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			d.fail("no errno: %q", text)
		}
		return syscall.Errno(n)
	}
	if errno, ok := errnos[text]; ok {
		return errno
	}
	d.strange("error.type=", []byte(text))
	return 0
}

// errnos are the errnos of Linux, by their names.
var errnos = func() map[string]syscall.Errno {
	all := make(map[string]syscall.Errno)
	for errno := syscall.Errno(1); errno < 256; errno++ {
		if name := unix.ErrnoName(errno); name != "" {
			all[name] = errno
		}
	}
	return all
}()

func (d *decoder) closeKey(key []byte, v *fastjson.Value) {
	c := &d.r.Close
	switch string(key) {
	case "by":
		c.By = CloseBy(d.oneOf(v, closeByNames[:], "close.by="))
	case "duration_ms":
		c.Duration = d.milliseconds(v)
	case "bytes_sent":
		c.BytesSent = d.uint(v)
	case "bytes_received":
		c.BytesReceived = d.uint(v)
	case "tsval_last":
		c.TSValLast, c.HasTSValLast = d.uint32(v), true
	default:
		d.strange("close.", key)
	}
}

func (d *decoder) timeWaitKey(key []byte, v *fastjson.Value) {
	t := &d.r.TimeWait
	switch string(key) {
	case "same_destination":
		t.SameDestination = d.uint32(v)
	case "ended":
		t.Ended = event.Ended(d.oneOf(v, endings[:], "time_wait.ended="))
	case "duration_ms":
		t.Duration = d.milliseconds(v)
	case "exact":
		t.Exact = d.bool(v)
	default:
		d.strange("time_wait.", key)
	}
}

var endings = func() (names [event.Endings]string) {
	for e := event.Expired; e < event.Endings; e++ {
		names[e] = e.String()
	}
	return names
}()

func (d *decoder) synKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "packet":
		d.r.SYN.SynAck = string(d.text(v)) == "SYN-ACK"
	case "attempt":
		d.r.SYN.Attempt = d.uint32(v)
	default:
		d.strange("syn.", key)
	}
}

func (d *decoder) resetKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "direction":
		d.r.Reset.Received = string(d.text(v)) == "received"
	case "reason":
		d.r.Reset.Reason = d.name(v)
	default:
		d.strange("reset.", key)
	}
}

var packets = [event.Packets]string{
	event.SYN: event.SYN.String(), event.SYNACK: event.SYNACK.String(),
	event.ACK: event.ACK.String(), event.RST: event.RST.String(),
}

func (d *decoder) dropKey(key []byte, v *fastjson.Value) {
	r := &d.r.Drop
	switch string(key) {
	case "packet":
		r.Packet = event.Packet(d.oneOf(v, packets[:], "drop.packet="))
	case "reason":
		r.Reason = d.name(v)
	case "location":
		r.Location = d.name(v)
	case "netns":
		r.NetNS.Inode = d.uint32(v)
	case "netns_cookie":
		r.NetNS.Cookie = d.identity(v)
	case "listener":
		r.Listener = d.bool(v)
	default:
		d.strange("drop.", key)
	}
}

func (d *decoder) reuseKey(key []byte, v *fastjson.Value) {
	r := d.r.Reuse
	switch string(key) {
	case "scope":
		r.Scope = ReuseScope(d.oneOf(v, []string{ScopeTuple: "tuple", ScopePort: "port"}, "reuse.scope="))
	case "how":
		r.How = ReuseHow(d.oneOf(v, reuseHowNames[:], "reuse.how="))
	case "after_ms":
		r.After = d.milliseconds(v)
	case "previous":
		d.object(v, d.previousKey)
	default:
		d.strange("reuse.", key)
	}
}

func (d *decoder) previousKey(key []byte, v *fastjson.Value) {
	p := &d.r.Reuse.Previous
	switch string(key) {
	case "time":
		p.Time = d.time(v)
	case "local":
		d.object(v, func(key []byte, v *fastjson.Value) {
			if string(key) != "address" {
				d.strange("reuse.previous.local.", key)
				return
			}
			p.Local = d.address(v)
		})
	case "netns":
		p.NetNS.Inode = d.uint32(v)
	case "netns_cookie":
		p.NetNS.Cookie = d.identity(v)
	case "process", "cgroup", "container", "k8s":
		d.ownerKey(key, v, &p.Owner)
	case "ended":
		d.object(v, func(key []byte, v *fastjson.Value) {
			switch string(key) {
			case "time":
				p.Ended = d.time(v)
			case "how":
				p.End = d.useEnd(v)
			default:
				d.strange("reuse.previous.ended.", key)
			}
		})
	default:
		d.strange("reuse.previous.", key)
	}
}

// useEnd is how an earlier use ended. "reset" is a TIME_WAIT's or a connect's: a
// connection's is reset_sent or reset_received.
func (d *decoder) useEnd(v *fastjson.Value) (e UseEnd) {
	text := string(d.text(v))
	if i := slices.Index(closeByNames[:], text); i > 0 {
		e.Close = CloseBy(i)
	} else if i := slices.Index(endings[:], text); i > 0 {
		e.TimeWait = event.Ended(i)
	} else if i := slices.Index(outcomeNames[:], text); i > 0 {
		e.Outcome = Outcome(i)
	} else {
		d.strange("reuse.previous.ended.how=", []byte(text))
	}
	return e
}

func (d *decoder) ports(v *fastjson.Value) *PortsFields {
	p := &PortsFields{Reserved: -1}
	ratio := false
	d.object(v, func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "in_use":
			p.InUse = d.uint32(v)
		case "time_wait":
			p.TimeWait = d.uint32(v)
		case "range":
			p.Range = d.portRange(v)
		case "reserved":
			p.Reserved = int(d.uint32(v))
		case "used_ratio":
			ratio = true
		case "exhausted_in_s":
			p.Exhausts = true
			p.ExhaustedIn = time.Duration(d.float(v) * float64(time.Second)).Round(time.Second / 10)
		case "holder":
			p.Holder = &PortHolder{}
			d.object(v, func(key []byte, v *fastjson.Value) { d.holderKey(p.Holder, key, v) })
		default:
			d.strange("ports.", key)
		}
	})
	if ratio && p.Range.High >= p.Range.Low {
		p.Usable = uint32(max(int(p.Range.High)-int(p.Range.Low)+1-max(p.Reserved, 0), 0))
	}
	return p
}

func (d *decoder) holderKey(h *PortHolder, key []byte, v *fastjson.Value) {
	switch string(key) {
	case "port":
		h.Port = uint16(d.upTo(v, 1<<16-1))
	case "process", "cgroup", "container", "k8s":
		d.ownerKey(key, v, &h.Owner)
	case "ends_in_ms":
		h.EndsIn = d.milliseconds(v)
	default:
		d.strange("ports.holder.", key)
	}
}

func (d *decoder) portRange(v *fastjson.Value) (r event.PortRange) {
	ends, err := v.Array()
	if err != nil || len(ends) != 2 {
		d.fail("no range of ports: %s", v)
		return r
	}
	return event.PortRange{Low: uint16(d.upTo(ends[0], 1<<16-1)), High: uint16(d.upTo(ends[1], 1<<16-1))}
}

func (d *decoder) sysctls(v *fastjson.Value) *event.Sysctls {
	s := &event.Sysctls{}
	for i := range s.Numbers {
		s.Numbers[i] = -1
	}
	d.object(v, func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "ip_local_port_range":
			s.Ports = d.portRange(v)
		case "ip_local_reserved_ports":
			for _, item := range d.array(v) {
				s.Reserved = append(s.Reserved, d.portRange(item))
			}
		default:
			i := slices.Index(event.SysctlNames[:], string(key))
			if i < 0 {
				d.strange("sysctl.", key)
				return
			}
			s.Numbers[i] = int64(d.upTo(v, 1<<63-1))
		}
	})
	return s
}

func (d *decoder) countersKey(key []byte, v *fastjson.Value) {
	switch string(key) {
	case "interval_ms":
		d.r.Counters.Interval = d.milliseconds(v)
	case "delta":
		d.r.Counters.Delta = d.numbers(v)
	default:
		d.strange("counters.", key)
	}
}

func (d *decoder) verdict(v *fastjson.Value) *VerdictFields {
	f := &VerdictFields{}
	d.object(v, func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "id":
			f.ID = d.name(v)
		case "confidence":
			f.Confidence = Confidence(d.oneOf(v, confidenceNames[:], "verdict.confidence="))
		case "text":
			f.Text = d.copied(v)
		case "advice":
			f.Advice = d.copied(v)
		case "evidence":
			for _, item := range d.array(v) {
				var e Evidence
				d.object(item, func(key []byte, v *fastjson.Value) {
					switch string(key) {
					case "seq":
						e.Line = d.uint(v) + 1
					case "text":
						e.Text = d.copied(v)
					default:
						d.strange("verdict.evidence.", key)
					}
				})
				f.Evidence = append(f.Evidence, e)
			}
		case "ruled_out":
			f.RuledOut = d.texts(v)
		case "not_visible":
			f.NotVisible = d.texts(v)
		case "inner":
			f.Inner = d.verdict(v)
		default:
			d.strange("verdict.", key)
		}
	})
	if f.ID == "" {
		d.fail("a verdict without an id")
	}
	return f
}

func (d *decoder) metaKey(key []byte, v *fastjson.Value) {
	m := d.r.Meta
	switch string(key) {
	case "version":
		m.Version = d.copied(v)
	case "kernel":
		m.Kernel = d.copied(v)
	case "arch":
		m.Arch = d.copied(v)
	case "boot_id":
		m.BootID = d.copied(v)
	case "node":
		m.Node = d.copied(v)
	case "started":
		m.Started = d.time(v)
	case "ts_offset_mode":
		m.TSOffsetMode = d.copied(v)
	case "probes":
		for _, item := range d.array(v) {
			var p Probe
			d.object(item, func(key []byte, v *fastjson.Value) {
				switch string(key) {
				case "name":
					p.Name = d.copied(v)
				case "attached":
					p.Attached = d.bool(v)
				case "via":
					p.Via = d.copied(v)
				case "why_not":
					p.WhyNot = d.copied(v)
				default:
					d.strange("meta.probes.", key)
				}
			})
			m.Probes = append(m.Probes, p)
		}
	case "blind_spots":
		m.BlindSpots = d.texts(v)
	case "filters":
		m.Filters = d.texts(v)
	default:
		d.strange("meta.", key)
	}
}

func (d *decoder) lostKey(key []byte, v *fastjson.Value) {
	l := &d.r.Lost
	switch string(key) {
	case "count":
		l.Count = d.uint(v)
	case "since":
		l.Since = d.time(v)
	case "where":
		switch text := string(d.text(v)); text {
		case InKernel.String():
			l.Where = InKernel
		case InOutput.String():
			l.Where = InOutput
		default:
			d.fail("lost.where is %q", text)
		}
	case "kinds":
		l.Kinds = new([Kinds]uint64)
		d.kinds(l.Kinds, v)
	default:
		d.strange("lost.", key)
	}
}

func (d *decoder) summaryKey(key []byte, v *fastjson.Value) {
	s := d.r.Summary
	switch string(key) {
	case "duration_ms":
		s.Duration = d.milliseconds(v)
	case "events":
		d.kinds(&s.Events, v)
	case "connects":
		for name, n := range d.numbers(v) {
			if i := slices.Index(outcomeNames[:], name); i > 0 {
				s.Connects[i] = n
			}
		}
	case "verdicts":
		s.Verdicts = d.numbers(v)
	case "lost":
		lost := d.numbers(v)
		s.LostKernel, s.LostOutput = lost[InKernel.String()], lost[InOutput.String()]
	case "forgotten":
		s.Forgotten = d.uint(v)
	default:
		d.strange("summary.", key)
	}
}

func (d *decoder) kinds(counts *[Kinds]uint64, v *fastjson.Value) {
	for name, n := range d.numbers(v) {
		if k, ok := ParseKind(name); ok {
			counts[k] = n
		}
	}
}

// Below are the values that JSON has. Each notes what is wrong with one, and returns
// what serves until that is reported.

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

// strange counts a key or value that is not known.
func (d *decoder) strange(path string, key []byte) {
	name := path + string(key)
	if _, ok := d.unknown[name]; !ok && len(d.unknown) >= maxUnknown {
		name = "…"
	}
	d.unknown[name]++
}

func (d *decoder) object(v *fastjson.Value, visit func(key []byte, v *fastjson.Value)) {
	object, err := v.Object()
	if err != nil {
		d.fail("not as the log has it: %s", v)
		return
	}
	object.Visit(visit)
}

func (d *decoder) array(v *fastjson.Value) []*fastjson.Value {
	items, err := v.Array()
	if err != nil {
		d.fail("not a list: %s", v)
	}
	return items
}

// text is valid until the next line.
func (d *decoder) text(v *fastjson.Value) []byte {
	text, err := v.StringBytes()
	if err != nil {
		d.fail("not a text: %s", v)
	}
	return text
}

func (d *decoder) copied(v *fastjson.Value) string {
	return strings.ToValidUTF8(string(d.text(v)), "�")
}

// name is a text that comes again and again.
func (d *decoder) name(v *fastjson.Value) string {
	text := d.text(v)
	if name, ok := d.names[string(text)]; ok {
		return name
	}
	if len(d.names) >= maxNames {
		clear(d.names)
	}
	name := strings.ToValidUTF8(string(text), "�")
	d.names[string(bytes.Clone(text))] = name
	return name
}

func (d *decoder) texts(v *fastjson.Value) (texts []string) {
	for _, item := range d.array(v) {
		texts = append(texts, d.copied(item))
	}
	return texts
}

// oneOf returns which of the names it is, 0 for one that is not known.
func (d *decoder) oneOf(v *fastjson.Value, names []string, path string) int {
	text := d.text(v)
	for i, name := range names {
		if i > 0 && name == string(text) {
			return i
		}
	}
	d.strange(path, text)
	return 0
}

func (d *decoder) uint(v *fastjson.Value) uint64 { return d.upTo(v, 1<<64-1) }

func (d *decoder) uint32(v *fastjson.Value) uint32 { return uint32(d.upTo(v, 1<<32-1)) }

func (d *decoder) upTo(v *fastjson.Value, most uint64) uint64 {
	n, err := v.Uint64()
	if err != nil || n > most {
		d.fail("not a number up to %d: %s", most, v)
		return 0
	}
	return n
}

func (d *decoder) float(v *fastjson.Value) float64 {
	n, err := v.Float64()
	if err != nil {
		d.fail("not a number: %s", v)
	}
	return n
}

func (d *decoder) bool(v *fastjson.Value) bool {
	b, err := v.Bool()
	if err != nil {
		d.fail("neither true nor false: %s", v)
	}
	return b
}

func (d *decoder) numbers(v *fastjson.Value) map[string]uint64 {
	numbers := make(map[string]uint64)
	d.object(v, func(key []byte, v *fastjson.Value) { numbers[string(key)] = d.uint(v) })
	return numbers
}

// identity is a number that is written as a text, so that no reader rounds it.
func (d *decoder) identity(v *fastjson.Value) uint64 {
	text := d.text(v)
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		d.fail("no identity: %q", text)
	}
	return n
}

// milliseconds reads a duration to the nanosecond: a float64 does not hold all of
// them.
func (d *decoder) milliseconds(v *fastjson.Value) time.Duration {
	if v.Type() != fastjson.TypeNumber {
		d.fail("not a number of milliseconds: %s", v)
		return 0
	}
	d.number = v.MarshalTo(d.number[:0])
	whole, fraction, _ := bytes.Cut(d.number, []byte{'.'})
	const digits = 6
	ms, err := strconv.ParseUint(string(whole), 10, 64)
	if err != nil || ms > math.MaxInt64/uint64(time.Millisecond) || len(fraction) > digits {
		d.fail("not a number of milliseconds: %s", d.number)
		return 0
	}
	ns := uint64(0)
	for i := range digits {
		ns *= 10
		if i >= len(fraction) {
			continue
		}
		if fraction[i] < '0' || fraction[i] > '9' {
			d.fail("not a number of milliseconds: %s", d.number)
			return 0
		}
		ns += uint64(fraction[i] - '0')
	}
	return time.Duration(min(ms*uint64(time.Millisecond)+ns, math.MaxInt64))
}

// time reads the time: most lines are of the same second as the one before.
func (d *decoder) time(v *fastjson.Value) int64 {
	text := d.text(v)
	const second, whole = len("2006-01-02T15:04:05"), len("2006-01-02T15:04:05.000000000Z")
	if len(text) != whole || text[second] != '.' || text[whole-1] != 'Z' {
		d.fail("not a time in UTC with nine digits: %q", text)
		return 0
	}
	if string(text[:second]) != d.second {
		at, err := time.Parse("2006-01-02T15:04:05", string(text[:second]))
		if err != nil || at.Year() < 1970 || at.Year() > 2261 {
			d.fail("no time: %q", text)
			return 0
		}
		d.second, d.base = string(text[:second]), at.UnixNano()
	}
	ns, err := strconv.ParseUint(string(text[second+1:whole-1]), 10, 32)
	if err != nil {
		d.fail("no time: %q", text)
	}
	return d.base + int64(ns)
}
