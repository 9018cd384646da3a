package metrics

const (
	// idle is how long what is not seen keeps its series, where something else
	// needs the room: as long as Prometheus looks back, and then some. Unix
	// nanoseconds, and so is sweepEvery.
	idle = int64(15 * 60 * 1e9)
	// sweepEvery is how often the idle are looked for, at most.
	sweepEvery = int64(10 * 1e9)
)

// bound lets in so many keys and no more. One that is idle gives way.
type bound[K comparable] struct {
	most   int
	seen   map[K]int64 // when, Unix nanoseconds
	swept  int64
	forget func(K)
}

func newBound[K comparable](most int, forget func(K)) bound[K] {
	return bound[K]{most: most, seen: make(map[K]int64), forget: forget}
}

// admit reports whether a key is among those let in, at the time now.
func (b *bound[K]) admit(k K, now int64) bool {
	if _, ok := b.seen[k]; !ok && len(b.seen) >= b.most {
		if now-b.swept < sweepEvery {
			return false
		}
		b.swept = now
		for k, seen := range b.seen {
			if now-seen >= idle {
				delete(b.seen, k)
				b.forget(k)
			}
		}
		if len(b.seen) >= b.most {
			return false
		}
	}
	b.seen[k] = now
	return true
}
