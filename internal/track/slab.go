package track

// A slab holds many values without a pointer among them, so that the garbage
// collector has nothing to look at, and gives each a number. Number 0 is none.
type slab[T any] struct {
	// chunks hold them, so that growing copies none.
	chunks [][]T
	made   uint32   // that were ever given out
	free   []uint32 // of these, those that were given back
	max    int
}

const chunkSize = 4096

func newSlab[T any](most int) slab[T] { return slab[T]{max: most} }

func (s *slab[T]) at(n uint32) *T { return &s.chunks[n/chunkSize][n%chunkSize] }

func (s *slab[T]) inUse() int { return int(s.made) - len(s.free) }

// add returns the number of a new value, 0 where the slab is full.
func (s *slab[T]) add(value T) uint32 {
	var n uint32
	switch last := len(s.free) - 1; {
	case s.inUse() >= s.max:
		return 0
	case last >= 0:
		n, s.free = s.free[last], s.free[:last]
	default:
		s.made++
		n = s.made
		if int(n/chunkSize) == len(s.chunks) {
			s.chunks = append(s.chunks, make([]T, chunkSize))
		}
	}
	*s.at(n) = value
	return n
}

// remove gives n back.
func (s *slab[T]) remove(n uint32) {
	var none T
	*s.at(n) = none
	s.free = append(s.free, n)
}

// A list of values of a slab, by their numbers.
type list struct{ first, last uint32 }

// A link holds a value's neighbours in a list.
type link struct{ before, after uint32 }

// push puts n at the end; of tells where a value's link for this list is.
func (l *list) push(n uint32, of func(uint32) *link) {
	*of(n) = link{before: l.last}
	if l.last != 0 {
		of(l.last).after = n
	} else {
		l.first = n
	}
	l.last = n
}

// remove takes n out.
func (l *list) remove(n uint32, of func(uint32) *link) {
	at := *of(n)
	if at.before != 0 {
		of(at.before).after = at.after
	} else {
		l.first = at.after
	}
	if at.after != 0 {
		of(at.after).before = at.before
	} else {
		l.last = at.before
	}
	*of(n) = link{}
}
