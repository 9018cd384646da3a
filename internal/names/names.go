// Package names asks the container runtimes of this machine what their containers
// are called: those that speak the kubelet's CRI, and Docker. They are found by
// their sockets, and known for what they are by what they answer.
package names

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// A Name is what a container is called. What is not known is "".
type Name struct {
	// Runtime is who runs it: containerd, cri-o or docker.
	Runtime string
	// Container is its own name: "" for the one that holds a pod's network.
	Container string
	// Pod and Namespace are those of its pod, and PodUID is that one's uid.
	Pod, Namespace, PodUID string
}

// known reports whether it is one. The runtime alone is none.
func (n Name) known() bool { return n.Container != "" || n.Pod != "" }

const (
	// patience is how long the first event of a container waits for its name.
	patience = 200 * time.Millisecond
	// limit is how long a runtime has for an answer.
	limit = 5 * time.Second
	// rest is the time between two attempts, to ask for a name that was not known
	// or to watch a runtime that is not there.
	rest = 10 * time.Second
	// maxNames bounds the containers that are kept; the longest unused go.
	maxNames = 16 << 10
	// maxQuestions bounds those that wait for a runtime. Beyond it none is asked.
	maxQuestions = 1024
)

// A client speaks to a runtime. Its methods can be called at the same time.
type client interface {
	// find returns the name of a container; false where there is no such.
	find(ctx context.Context, id string) (Name, bool, error)
	// watch tells the names of all containers that there are, and of each that
	// comes, until it fails. It returns nil where the runtime tells of none.
	watch(ctx context.Context, found func(id string, name Name)) error
}

// Names are the names of containers. Its methods are safe for concurrent use.
type Names struct {
	cancel   context.CancelFunc
	done     sync.WaitGroup
	runtimes []*runtime

	mu    sync.Mutex
	known *lru.Cache[string, *answer]
}

// A runtime is asked one question at a time.
type runtime struct {
	client
	socket    socket
	questions chan question
	// asked is when the question was asked that it has not answered yet, Unix
	// nanoseconds, 0 for none, and slow whether it took too long for the last.
	asked atomic.Int64
	slow  atomic.Bool
}

// isLate reports whether it is not worth to wait for.
func (r *runtime) isLate() bool {
	asked := r.asked.Load()
	return r.slow.Load() || asked != 0 && time.Now().UnixNano()-asked > int64(patience)
}

type question struct {
	id string
	// answer is nil where nobody waits for it.
	answer *answer
}

// An answer is what is known of a container.
type answer struct {
	name Name
	ok   bool
	// waiting runtimes that are not late have not answered yet; ready is closed
	// when they have.
	waiting int
	ready   chan struct{}
	when    time.Time
	// overdue is set where somebody has waited in vain: nobody does so again.
	overdue bool
}

// Open begins to watch the runtimes, those that come later as well. Where they are
// can be said by the variables that their own tools read: DOCKER_HOST, and
// CONTAINER_RUNTIME_ENDPOINT for one that speaks CRI.
func Open() *Names {
	var runtimes []*runtime
	for _, s := range criSockets() {
		runtimes = append(runtimes, &runtime{client: newCRI(s), socket: s})
	}
	docker := dockerSocket()
	return open(append(runtimes, &runtime{client: newDocker(docker), socket: docker}))
}

func open(runtimes []*runtime) *Names {
	known, err := lru.New[string, *answer](maxNames)
	if err != nil {
		panic(err) // no size
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Names{cancel: cancel, runtimes: runtimes, known: known}
	for _, r := range runtimes {
		r.questions = make(chan question, maxQuestions)
		n.done.Go(func() { n.serve(ctx, r) })
		n.done.Go(func() { n.watch(ctx, r) })
	}
	return n
}

// Close ends it.
func (n *Names) Close() {
	n.cancel()
	n.done.Wait()
}

// Any reports whether there is a runtime now.
func (n *Names) Any() bool {
	for _, r := range n.runtimes {
		if _, err := r.socket.find(); err == nil {
			return true
		}
	}
	return false
}

// Of returns the name of a container, and false where it is not known, at least not
// yet.
//
// Whoever writes lines calls it for every event of a container without a name. For
// the first it waits, so that all lines of a container have its name, of one that
// makes a single connect, too. It waits for 200 ms at most. After that the runtime
// is late, and nobody waits for it any more until it has answered in time again: one
// that hangs costs 200 ms in all. Lines go without the name then, until the answer
// comes. Where none of the runtimes knows the container, they are asked again after
// ten seconds.
func (n *Names) Of(id string) (Name, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.ask(id)
	if a.waiting > 0 && !a.overdue {
		n.mu.Unlock()
		timer := time.NewTimer(patience)
		select {
		case <-a.ready:
		case <-timer.C:
		}
		timer.Stop()
		n.mu.Lock()
		a.overdue = a.waiting > 0
	}
	return a.name, a.ok
}

// ask returns the answer, and asks for it where nobody has, or long ago. n.mu is held.
func (n *Names) ask(id string) *answer {
	before, again := n.known.Get(id)
	if again && (before.ok || before.waiting > 0 || time.Since(before.when) < rest) {
		return before
	}
	a := &answer{ready: make(chan struct{}), overdue: again, waiting: 1} // for this function to end
	n.known.Add(id, a)
	for _, r := range n.runtimes {
		q := question{id: id}
		if !r.isLate() {
			q.answer = a
			a.waiting++
		}
		select {
		case r.questions <- q:
		default:
			q.note(Name{}, false)
		}
	}
	a.note(Name{}, false)
	return a
}

func (q question) note(name Name, ok bool) {
	if q.answer != nil {
		q.answer.note(name, ok)
	}
}

// note takes what one runtime says. The first that knows the container is right: ids
// are random.
func (a *answer) note(name Name, ok bool) {
	if a.waiting == 0 {
		return // one was first
	}
	a.waiting--
	if ok {
		a.name, a.ok, a.waiting = name, true, 0
	}
	if a.waiting == 0 {
		a.when = time.Now()
		close(a.ready)
	}
}

// serve answers the questions to a runtime.
func (n *Names) serve(ctx context.Context, r *runtime) {
	for {
		var q question
		select {
		case q = <-r.questions:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		r.asked.Store(began.UnixNano())
		name, ok, _ := r.find(ctx, q.id) // a runtime that is not there does not know it
		r.slow.Store(time.Since(began) > patience)
		r.asked.Store(0)
		if ok && name.known() {
			n.found(q.id, name)
			continue
		}
		n.mu.Lock()
		q.note(Name{}, false)
		n.mu.Unlock()
	}
}

// watch keeps the names of containers before anybody asks: they are known when a
// container is gone.
func (n *Names) watch(ctx context.Context, r *runtime) {
	for {
		if _, err := r.socket.find(); err == nil {
			if r.watch(ctx, n.found) == nil {
				return
			}
		}
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return
		}
	}
}

func (n *Names) found(id string, name Name) {
	if !name.known() {
		return // it is asked for when it matters
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.known.Get(id); ok && a.waiting > 0 {
		a.note(name, true)
		return
	}
	a := &answer{ready: make(chan struct{}), waiting: 1}
	a.note(name, true)
	n.known.Add(id, a)
}

// A socket is where a runtime may listen: the first of these paths that is there.
type socket []string

// find returns the path where the socket is.
func (s socket) find() (string, error) {
	for _, path := range s {
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
			return path, nil
		}
	}
	return "", fs.ErrNotExist
}

func (s socket) dial(ctx context.Context) (net.Conn, error) {
	path, err := s.find()
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", path)
}

// onHost is a socket of the host, which in a container is seen through process 1 or
// mounted at the same place.
func onHost(paths ...string) (s socket) {
	for _, path := range paths {
		s = append(s, filepath.Join("/proc/1/root", path), path)
	}
	return s
}

// fromEnv is the socket that a variable names, nil where it names none.
func fromEnv(name string) socket {
	if path, ok := strings.CutPrefix(os.Getenv(name), "unix://"); ok {
		return socket{path}
	}
	return nil
}
