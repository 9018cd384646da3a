// Package tracefs opens the kernel's tracing files where they need not be mounted.
package tracefs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open returns the root of a tracefs that is mounted nowhere, and gone when it is
// closed. It needs Linux 5.2 and CAP_SYS_ADMIN.
func Open() (*os.File, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make tracefs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	return os.NewFile(uintptr(root), "tracefs"), nil
}
