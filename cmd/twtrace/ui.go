package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/sink"
)

// What the user reads besides the events themselves goes to stderr: a line that
// begins with the program's name, in lower case and without a full stop, and
// below it, where there is a way out, a hint.

// complain prints an error and the way out of it.
func complain(stderr io.Writer, err error) {
	say(stderr, "%v", err)
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
}

// say prints one line, made harmless: it may quote what others have chosen.
func say(stderr io.Writer, format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	text, _ := sink.AppendName(nil, line, math.MaxInt)
	fmt.Fprintf(stderr, "twtrace: %s\n", text)
}

func hintFor(err error) string {
	switch {
	case errors.As(err, new(usageError)):
		return "twtrace --help lists the flags"
	case errors.Is(err, probe.ErrNoBTF):
		return "give the kernel's types by --btf FILE, or run a kernel built with CONFIG_DEBUG_INFO_BTF"
	case errors.Is(err, probe.ErrNotPermitted) && os.Geteuid() != 0:
		return "tracing the kernel takes root: sudo twtrace"
	case errors.Is(err, probe.ErrNotPermitted):
		return "in a container, run it privileged; on a locked-down machine, see /sys/kernel/security/lockdown"
	case errors.Is(err, sink.ErrNotRegular):
		return "a pipe or a device takes --log without --log-max-size and --log-max-age"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return "choose a file in a directory that you may write to"
	}
	return ""
}
