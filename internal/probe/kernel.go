package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNotPermitted is wrapped by Open's error where the process lacks the
// privileges that tracing takes.
var ErrNotPermitted = errors.New("not permitted")

// ErrNoBTF is wrapped by Open's error where the kernel does not carry its own
// types and none were given.
var ErrNoBTF = errors.New("this kernel carries no BTF")

// The oldest kernel that twtrace is tested on: tp_btf with the helpers used
// came in 5.5, the ring buffer in 5.8, and 5.10 is the first long-term kernel
// with both.
const (
	minMajor = 5
	minMinor = 10
)

// A release is a kernel's version, as far as uname -r tells it.
type release struct{ major, minor int }

func (r release) before(major, minor int) bool {
	return r.major < major || r.major == major && r.minor < minor
}

// readRelease reads this kernel's release, and refuses one that is too old.
func readRelease() (release, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return release{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	text := unix.ByteSliceToString(name.Release[:])
	var r release
	if _, err := fmt.Sscanf(text, "%d.%d", &r.major, &r.minor); err != nil {
		return release{}, fmt.Errorf("read the kernel's release %q: %w", text, err)
	}
	if r.before(minMajor, minMinor) {
		return release{}, fmt.Errorf("linux %s is too old: needs %d.%d or newer", text, minMajor, minMinor)
	}
	return r, nil
}

// preemptsTracepoints reports whether tasks can meet a tracepoint's programs at
// work, see bpf/compat.h.
func (r release) preemptsTracepoints() bool { return !r.before(6, 19) }

// allocatesEntries reports whether programs at tracepoints can use hash tables whose
// entries are allocated when they are made, since 6.1 (fba1a1c6c912 "bpf: Convert
// hash map to bpf_mem_alloc."). Before, all of a table is allocated with it.
func (r release) allocatesEntries() bool { return !r.before(6, 1) }

func kernelTypes(cache *btf.Cache, path string) (*btf.Spec, error) {
	if path != "" {
		types, err := btf.LoadSpec(path)
		if err != nil {
			return nil, fmt.Errorf("read BTF: %w", err)
		}
		return types, nil
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoBTF
	}
	types, err := cache.Kernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	return types, nil
}

// facts fills in what bpf/compat.h asks of this kernel.
func facts(cache *btf.Cache, types *btf.Spec) bpfKernel {
	return bpfKernel{
		RetransmitErr: tracepointArgs(types, "tcp_retransmit_skb") >= 3,
		ResetReason:   tracepointArgs(types, "tcp_send_reset") >= 3,
		DropReason:    tracepointArgs(types, "kfree_skb") >= 3,
		DropReceiver:  tracepointArgs(types, "kfree_skb") >= 4,
		CookieHelper:  haveCookieHelper(cache, types),
		NetnsCookie:   haveNetNSCookie(types),
	}
}

// tracepointArgs leaves out the first parameter, which is not the
// tracepoint's.
func tracepointArgs(types *btf.Spec, name string) int {
	var typedef *btf.Typedef
	if types.TypeByName("btf_trace_"+name, &typedef) != nil {
		return 0
	}
	pointer, ok := typedef.Type.(*btf.Pointer)
	if !ok {
		return 0
	}
	proto, ok := pointer.Target.(*btf.FuncProto)
	if !ok {
		return 0
	}
	return len(proto.Params) - 1
}

// haveNetNSCookie reports whether struct net has the integer cookie of 5.12.
func haveNetNSCookie(types *btf.Spec) bool {
	var net *btf.Struct
	if types.TypeByName("net", &net) != nil {
		return false
	}
	for _, member := range net.Members {
		if member.Name == "net_cookie" {
			_, integer := btf.UnderlyingType(member.Type).(*btf.Int)
			return integer
		}
	}
	return false
}

// cgroupSubsys is the kernel's number of a controller of control groups.
func cgroupSubsys(types *btf.Spec, controller string) (uint32, error) {
	var enum *btf.Enum
	if err := types.TypeByName("cgroup_subsys_id", &enum); err != nil {
		return 0, fmt.Errorf("find the number of the controller %s: %w", controller, err)
	}
	for _, value := range enum.Values {
		if value.Name == controller+"_cgrp_id" {
			return uint32(value.Value), nil
		}
	}
	return 0, fmt.Errorf("find the number of the controller %s: the kernel has none", controller)
}

// haveCookieHelper tries: which helpers a tracing program may call stands
// nowhere.
func haveCookieHelper(cache *btf.Cache, types *btf.Spec) bool {
	trial := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"trial": {
		Name:       "trial",
		Type:       ebpf.Tracing,
		AttachType: ebpf.AttachTraceRawTp,
		AttachTo:   "tcp_destroy_sock",
		License:    "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.FnGetSocketCookie.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	}}}
	collection, err := ebpf.NewCollectionWithOptions(trial, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: types},
		Cache:    cache,
	})
	if err != nil {
		return false
	}
	collection.Close()
	return true
}

// reasons are this kernel's names of an enum such as sk_rst_reason, without the
// prefix that they share: every kernel numbers them differently. Nil where it has
// no such enum.
func reasons(types *btf.Spec, enumName, prefix string) map[uint32]string {
	var enum *btf.Enum
	if types.TypeByName(enumName, &enum) != nil {
		return nil
	}
	reasons := make(map[uint32]string)
	for _, value := range enum.Values {
		name := strings.TrimPrefix(value.Name, prefix)
		if name != "NOT_SPECIFIED" {
			reasons[uint32(value.Value)] = name
		}
	}
	return reasons
}

// kernelBlindSpots are those that this kernel has however it is hooked.
func (t *Tracer) kernelBlindSpots() []string {
	var spots []string
	if !t.kernel.CookieHelper {
		spots = append(spots, "cookies of sockets that nobody asked for (needs Linux 5.12)")
	}
	if !t.kernel.NetnsCookie {
		spots = append(spots, "cookies of network namespaces (needs Linux 5.12)")
	}
	if !t.kernel.ResetReason {
		spots = append(spots, "why a RST is sent, and RSTs that answer a packet without a socket (needs Linux 6.10)")
	}
	if !t.kernel.DropReason {
		spots = append(spots, "why a packet is dropped: only where (needs Linux 5.17)")
	}
	return spots
}

// explain turns an error of a load or an attachment into one line that says
// what a user can do with it. The library's own text for EPERM blames
// RLIMIT_MEMLOCK, which Open has raised already.
func explain(err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		return fmt.Errorf("%w (%s)", ErrNotPermitted, unix.ErrnoName(errno(err)))
	case errors.As(err, &verifier):
		return fmt.Errorf("refused by the kernel's verifier: %s", lastLine(verifier.Log))
	case errors.Is(err, btf.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return errors.New("this kernel has no such function or tracepoint")
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, link.ErrNotSupported), errors.Is(err, unix.Errno(524)):
		return errors.New("not supported by this kernel")
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(line)
}

func errno(err error) unix.Errno {
	var errno unix.Errno
	errors.As(err, &errno)
	return errno
}

// lastLine is the verifier's reason: before it stands how it got there, after
// it a count of instructions.
func lastLine(log []string) string {
	for i := len(log) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(log[i]); line != "" && !strings.HasPrefix(line, "processed ") {
			return line
		}
	}
	return "it does not say why"
}
