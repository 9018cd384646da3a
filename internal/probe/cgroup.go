package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// CgroupPath returns the path, in its hierarchy, of a control group that was made
// since Open: "" where it was not, or where too many others were since.
func (t *Tracer) CgroupPath(id uint64) (string, error) {
	var value bpfCgroupPath
	err := t.maps["cgroup_paths"].Lookup(id, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the path of control group %d: %w", id, err)
	}
	path := make([]byte, len(value.Path))
	for i, c := range value.Path {
		path[i] = byte(c)
	}
	return unix.ByteSliceToString(path), nil
}

// LeaveOut has the kernel leave out what is in a control group, where the filter is
// by container. It is no promise: there is room for some thousands.
func (t *Tracer) LeaveOut(id uint64) error {
	if err := t.maps["unwanted"].Put(id, uint8(1)); err != nil {
		return fmt.Errorf("leave out control group %d: %w", id, err)
	}
	return nil
}
