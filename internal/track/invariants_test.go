package track

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/twtrace/twtrace/internal/record"
)

// checkInvariants checks that what the tracker keeps is consistent.
func checkInvariants(t *testing.T, tracker *Tracker) {
	t.Helper()
	if err := broken(tracker); err != nil {
		t.Fatal(err)
	}
}

// members returns the numbers in a list, which is consistent both ways.
func members(l list, most int, of func(uint32) *link) (numbers []uint32, err error) {
	before := uint32(0)
	for n := l.first; n != 0; n = of(n).after {
		if of(n).before != before || len(numbers) > most {
			return nil, fmt.Errorf("%d stands before %d, which has %d", before, n, of(n).before)
		}
		numbers = append(numbers, n)
		before = n
	}
	if l.last != before {
		return nil, fmt.Errorf("the last of a list is %d, want %d", l.last, before)
	}
	return numbers, nil
}

// unused returns the numbers that a slab has given back.
func unused[T any](s *slab[T]) (map[uint32]bool, error) {
	free := make(map[uint32]bool)
	for _, n := range s.free {
		if n == 0 || n > s.made || free[n] {
			return nil, fmt.Errorf("%d is free twice, or was never made", n)
		}
		free[n] = true
	}
	if s.inUse() > s.max || int(s.made)/chunkSize+1 < len(s.chunks) {
		return nil, fmt.Errorf("%d in use of %d, in %d chunks", s.inUse(), s.max, len(s.chunks))
	}
	return free, nil
}

// broken reports an invariant that does not hold.
func broken(t *Tracker) error {
	u, p := &t.uses, &t.ports

	// Every use is in the chain of its pair, alone of its four-tuple.
	free, err := unused(&u.slab)
	if err != nil {
		return fmt.Errorf("uses: %w", err)
	}
	type identity struct {
		destinationKey
		port uint16
	}
	seen := make(map[identity]bool)
	chained := 0
	for hash, head := range u.heads {
		if head == 0 {
			return fmt.Errorf("a pair without a use")
		}
		for n := head; n != 0; n = u.at(n).next {
			use := u.at(n)
			id := identity{use.toward(), use.pair.lport}
			if free[n] || u.head(use.netns, use.pair) != hash || seen[id] {
				return fmt.Errorf("use %d is free, or in the chain of another pair, or there twice: %+v", n, use)
			}
			seen[id] = true
			chained++
		}
	}
	if chained != u.inUse() {
		return fmt.Errorf("%d uses in chains, %d in use", chained, u.inUse())
	}

	// Every use is in the list of its stage.
	stages := make(map[uint32]bool)
	same := make(map[uint64]uint32)
	holders := 0
	for _, l := range []list{u.past, u.waiting} {
		numbers, err := members(l, u.inUse(), u.byAge)
		if err != nil {
			return fmt.Errorf("uses by age: %w", err)
		}
		for _, n := range numbers {
			use := u.at(n)
			if free[n] || stages[n] || (use.stage == past) != (l == u.past) || use.stage == past && (use.where != 0 || use.armed) {
				return fmt.Errorf("use %d in the wrong list: %+v", n, use)
			}
			stages[n] = true
			if use.stage == inTimeWait {
				same[u.hash(use.toward())]++
			}
			if use.where != 0 {
				holders++
			}
			if use.ended != 0 && use.began > use.ended {
				return fmt.Errorf("use %d began after it ended: %+v", n, use)
			}
		}
	}
	if len(stages) != u.inUse() {
		return fmt.Errorf("%d uses in lists, %d in use", len(stages), u.inUse())
	}
	if !maps.Equal(same, u.sameDestination) {
		return fmt.Errorf("TIME_WAITs to the same destination: %v, want %v", u.sameDestination, same)
	}

	// Every destination counts what is in its lists.
	free, err = unused(&p.slab)
	if err != nil {
		return fmt.Errorf("destinations: %w", err)
	}
	if len(p.byKey) != p.slab.inUse() {
		return fmt.Errorf("%d destinations known, %d in use", len(p.byKey), p.slab.inUse())
	}
	sockets := 0
	for key, n := range p.byKey {
		d := p.at(n)
		if n == 0 || free[n] || d.key != key {
			return fmt.Errorf("destination %d of %v is free, or another: %+v", n, key, d)
		}
		numbers, err := members(d.sockets, p.sockets.inUse(), p.siblings)
		if err != nil {
			return fmt.Errorf("sockets of %v: %w", key, err)
		}
		sockets += len(numbers)
		var live, waiting uint32
		for _, s := range numbers {
			socket := p.sockets.at(s)
			if socket.where != n || p.byAddress[socket.address] != s {
				return fmt.Errorf("socket %d of %v: %+v", s, key, socket)
			}
			if d.holds(socket.port) {
				live++
			}
		}
		found := len(numbers)
		for _, stage := range []stage{inFinWait2, inTimeWait} {
			numbers, err := members(*d.list(stage), u.inUse(), u.siblings)
			if err != nil {
				return fmt.Errorf("uses of %v: %w", key, err)
			}
			found += len(numbers)
			holders -= len(numbers)
			for _, m := range numbers {
				use := u.at(m)
				if use.where != n || use.stage != stage || use.toward() != key {
					return fmt.Errorf("use %d of %v: %+v", m, key, use)
				}
				if d.holds(use.pair.lport) {
					if stage == inTimeWait {
						waiting++
					} else {
						live++
					}
				}
			}
		}
		if found == 0 && !slices.Contains(p.touched, n) { // else it goes with the next event
			return fmt.Errorf("nothing leads to %v", key)
		}
		if live != d.live || waiting != d.waiting {
			return fmt.Errorf("toward %v %d live and %d waiting, want %d and %d", key, d.live, d.waiting, live, waiting)
		}
		if d.level < 0 || d.level > len(levels) {
			return fmt.Errorf("toward %v level %d", key, d.level)
		}
	}
	if holders != 0 {
		return fmt.Errorf("%d uses hold a port and are in no list", holders)
	}
	if _, err := unused(&p.sockets); err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	if sockets != p.sockets.inUse() || sockets != len(p.byAddress) {
		return fmt.Errorf("%d sockets in lists, %d in use, %d by address", sockets, p.sockets.inUse(), len(p.byAddress))
	}
	if len(t.places) > maxPlaces || len(p.reserved) > maxNetNS || len(t.held) > maxHeld {
		return fmt.Errorf("%d places, %d network namespaces, %d held", len(t.places), len(p.reserved), len(t.held))
	}
	return nil
}

// TestNoPointers: of what there can be a million, the garbage collector has
// nothing to look at.
func TestNoPointers(t *testing.T) {
	for _, value := range []any{
		use{}, socket{}, destination{}, pair{}, destinationKey{}, place{}, record.UseEnd{},
	} {
		if path := pointerIn(reflect.TypeOf(value)); path != "" {
			t.Errorf("%T holds a pointer: %s", value, path)
		}
	}
	if pointerIn(reflect.TypeFor[record.PreviousUse]()) == "" {
		t.Error("no pointer is found where there is one")
	}
}

// pointerIn returns where in a type a pointer is, "" for nowhere.
func pointerIn(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Array:
		return pointerIn(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if path := pointerIn(t.Field(i).Type); path != "" {
				return t.Field(i).Name + "." + path
			}
		}
		return ""
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		return ""
	default:
		return t.String()
	}
}
