package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/thread"
)

// Adopt learns of the sockets that were there before the trace, so that their
// next events have an owner, and hands each to found as an Existing event, which
// is Adopt's again when found returns. holders are the processes that hold them
// open, by the sockets' inodes; netns are paths of the network namespaces to
// walk. A namespace that is gone by now is passed over.
func (t *Tracer) Adopt(holders map[uint64]event.Owner, netns []string, found func(*event.Event)) error {
	hook := Hook{Name: "tcp", Via: "iter"}
	err := t.adopt(holders, netns, found)
	if err != nil {
		hook.WhyNot = explain(err).Error()
	}
	hook.Attached = err == nil
	t.hooks = append(t.hooks, hook)
	return err
}

func (t *Tracer) adopt(holders map[uint64]event.Owner, netns []string, found func(*event.Event)) error {
	program, owners, err := t.loadIterator(holders)
	if err != nil {
		return err
	}
	defer program.Close()
	defer owners.Close()

	// The walk covers the namespace of the thread that opens it.
	return thread.Run(func() error {
		var errs []error
		for _, path := range netns {
			errs = append(errs, t.walk(program, path, found))
		}
		return errors.Join(errs...)
	})
}

// loadIterator loads the walk with a table of holders that is just large
// enough, and gone when the walk is over.
func (t *Tracer) loadIterator(holders map[uint64]event.Owner) (*ebpf.Program, *ebpf.Map, error) {
	table := t.spec.Maps["holders"]
	table.MaxEntries = uint32(max(len(holders), 1))
	owners, err := ebpf.NewMap(table)
	if err != nil {
		return nil, nil, fmt.Errorf("create the table of holders: %w", err)
	}
	if err := fill(owners, holders); err != nil {
		owners.Close()
		return nil, nil, err
	}
	program, err := t.load("existing", map[string]*ebpf.Map{"holders": owners})
	if err != nil {
		owners.Close()
		return nil, nil, err
	}
	return program, owners, nil
}

func fill(owners *ebpf.Map, holders map[uint64]event.Owner) error {
	if len(holders) == 0 {
		return nil
	}
	keys, values := make([]uint64, 0, len(holders)), make([]bpfOwner, 0, len(holders))
	for inode, owner := range holders {
		value := bpfOwner{Cgroup: owner.Cgroup, Pid: owner.PID, Uid: owner.UID}
		for i := range min(len(owner.Comm), len(value.Comm)-1) {
			value.Comm[i] = int8(owner.Comm[i])
		}
		keys, values = append(keys, inode), append(values, value)
	}
	if _, err := owners.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("fill the table of holders: %w", err)
	}
	return nil
}

// walk runs the iterator in one network namespace. It holds the namespace open
// no longer than it takes to enter: an open file would keep it alive.
func (t *Tracer) walk(program *ebpf.Program, netns string, found func(*event.Event)) error {
	file, err := os.Open(netns)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
	file.Close()
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	if err := t.iterate(program, found); err != nil {
		return fmt.Errorf("walk the sockets of %s: %w", netns, err)
	}
	return nil
}

// Tables hands to found, as Existing events, what the programs know now: the
// sockets, by their address alone, and what is in FIN_WAIT2 or TIME_WAIT without
// one. It is what a reader who has lost events can go by. found's event is
// Tables' again when found returns.
func (t *Tracer) Tables(found func(*event.Event)) error {
	var e event.Event
	err := each(t.maps["sockets"], func(address *uint64, _ *bpfSockInfo) {
		e = event.Event{Kind: event.Existing, Socket: event.Socket{Address: *address}}
		found(&e)
	})
	if err != nil {
		return fmt.Errorf("read the table of sockets: %w", err)
	}
	now := uint64(Now())
	for _, table := range []string{"fin_wait2s", "time_waits"} {
		var undecodable error
		err := each(t.maps[table], func(key *bpfTuple, value *bpfTimeWait) {
			if !value.Wanted {
				return
			}
			record := recordOf(now, key, value)
			if err := t.decode.event(&e, record); err != nil {
				undecodable = err
				return
			}
			found(&e)
		})
		if err = errors.Join(err, undecodable); err != nil {
			return fmt.Errorf("read the table %s: %w", table, err)
		}
	}
	return nil
}

// recordOf is the entry of either table of small sockets as the programs would
// tell of it now: a struct event of bpf/event.h.
func recordOf(now uint64, key *bpfTuple, value *bpfTimeWait) []byte {
	r := bpfEvent{
		Kind:        uint8(event.Existing),
		Time:        now,
		Sock:        value.Tw,
		Netns:       value.Netns,
		NetnsCookie: value.NetnsCookie,
		Family:      unix.AF_INET6, // or IPv4-mapped
		Local:       key.Local,
		Peer:        key.Peer,
		Lport:       key.Lport,
		Pport:       key.Pport,
		Since:       value.Entered,
		New:         uint8(event.TimeWait),
		Owner:       value.Owner,
		Active:      value.Active,
	}
	// What the walk found in TIME_WAIT has neither a beginning nor a state before.
	if value.Entered == 0 && value.From != 0 {
		r.New = uint8(event.FinWait2)
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
}

// entries is how many of a table are read at once.
const entries = 4096

// each calls f for every entry of a hash table, by batches: they go from bucket
// to bucket, and so miss nothing where others are deleted meanwhile, as a walk
// from key to key does.
func each[Key, Value any](table *ebpf.Map, f func(*Key, *Value)) error {
	keys, values := make([]Key, entries), make([]Value, entries)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := table.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(&keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // That was the last.
		}
		if err != nil {
			return err
		}
	}
}

// iterate runs an iterator and hands on the events that it writes.
func (t *Tracer) iterate(program *ebpf.Program, found func(*event.Event)) error {
	iterator, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return err
	}
	defer iterator.Close()
	reader, err := iterator.Open()
	if err != nil {
		return err
	}
	defer reader.Close()
	records := bufio.NewReader(reader)
	record := make([]byte, unsafe.Sizeof(bpfEvent{}))
	var e event.Event
	for {
		if _, err := io.ReadFull(records, record); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := t.decode.event(&e, record); err != nil {
			return err
		}
		found(&e)
	}
}
