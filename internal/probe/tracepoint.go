package probe

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/tracefs"
)

// attachTracepoint attaches to group/name. It does not need tracefs to be
// mounted: containers and minimal systems often leave it out.
func attachTracepoint(tracepoint string, program *ebpf.Program) (io.Closer, error) {
	id, err := tracepointID(tracepoint)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_TRACEPOINT,
		Size:   unix.PERF_ATTR_SIZE_VER0,
		Config: id,
		Sample: 1,
		Wakeup: 1,
	}, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open the tracepoint: %w", err)
	}
	event := os.NewFile(uintptr(fd), tracepoint)
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		event.Close()
		return nil, fmt.Errorf("attach to the tracepoint: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		event.Close()
		return nil, fmt.Errorf("enable the tracepoint: %w", err)
	}
	return event, nil
}

// tracepointID reads a tracepoint's number.
func tracepointID(tracepoint string) (uint64, error) {
	root, err := tracefs.Open()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	fd, err := unix.Openat(int(root.Fd()), "events/"+tracepoint+"/id", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("this kernel has no tracepoint %s: %w", tracepoint, err)
	}
	file := os.NewFile(uintptr(fd), tracepoint)
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return 0, fmt.Errorf("read the tracepoint's id: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
