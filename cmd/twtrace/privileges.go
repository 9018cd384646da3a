package main

import (
	"fmt"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities of a run that traces already. Attaching took more;
// whoever takes the run over gets no more than these, on any of its threads.
var needed = []cap.Value{
	cap.BPF,             // tables of the programs: before Linux 5.19 each look at one takes it
	cap.SYS_ADMIN,       // entering network namespaces
	cap.SYS_PTRACE,      // the namespaces and sockets of other processes
	cap.DAC_READ_SEARCH, // the files of processes of other users
	cap.DAC_OVERRIDE,    // a log in another user's directory that goes on in a new file
	cap.SYSLOG,          // the addresses of functions of modules that are loaded later
	cap.KILL,            // a command that has become another user's
}

// shed gives up the capabilities that are not needed any more.
func shed() error {
	have := cap.GetProc()
	keep := cap.NewSet()
	for _, value := range needed {
		permitted, err := have.GetFlag(cap.Permitted, value)
		if err != nil || !permitted {
			continue // unknown to this kernel, or not given
		}
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			if err := keep.SetFlag(flag, true, value); err != nil {
				return fmt.Errorf("give up privileges: %w", err)
			}
		}
	}
	if err := keep.SetProc(); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	return nil
}
