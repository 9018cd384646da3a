package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/doctor"
	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/probe"
)

func newDoctorCommand(stdout *os.File) *cobra.Command {
	var output, btf string
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what twtrace can see here, and what is wrong with network namespaces",
		Long: `doctor tries every hook as the tail does, and tells which this kernel has and
permits, what each gives, and what can't be seen. It looks at each network
namespace: settings, TIME_WAITs and conntrack. What is wrong stands at the end,
with the way out. The exit status is 0 where tracing works, else 1.`,
		Example: `  sudo twtrace doctor
  sudo twtrace doctor -o json | jq .problems`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("output %q: must be text or json", output)}
			}
			return runDoctor(probe.Config{BTF: btf}, output == "json", stdout)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&output, "output", "o", "text", "what to write: `text|json`")
	flags.StringVar(&btf, "btf", "", "read the kernel's types from this `file`, where the kernel carries none")
	if err := command.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(completions["output"], cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag
	}
	return command
}

func runDoctor(config probe.Config, asJSON bool, stdout *os.File) error {
	findings, err := examine(config)
	if err != nil {
		return err
	}
	report := findings.Report()
	text := report.Text()
	if asJSON {
		if text, err = json.MarshalIndent(report, "", "  "); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		text = append(text, '\n')
	}
	if _, err := stdout.Write(text); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if !report.OK {
		return exitStatus(1)
	}
	return nil
}

// examine finds out all that doctor tells.
func examine(config probe.Config) (*doctor.Findings, error) {
	f := &doctor.Findings{Arch: runtime.GOARCH, Lockdown: lockdown("/sys/kernel/security/lockdown")}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	f.BTF = err == nil
	if f.Privileges, err = doctor.ReadPrivileges(); err != nil {
		return nil, err
	}
	f.OwnUsers = !isInitial("user", 0xeffffffd)
	f.OwnProcesses = !isInitial("pid", 0xeffffffc)
	examineHooks(f, config)

	f.Namespaces, f.Unseen = owner.Survey("/proc")
	if f.Namespaces == nil && f.Unseen != nil {
		return nil, f.Unseen
	}
	if !f.OwnProcesses {
		// Process 2 is the kernel's, so it is in the machine's own.
		if host, err := owner.FindNetNS("/proc", "pid:2"); err == nil {
			f.Host = uint64(host)
		}
	}
	return f, nil
}

// examineHooks traces, for a moment.
func examineHooks(f *doctor.Findings, config probe.Config) {
	tracer, err := probe.Open(config)
	if err != nil {
		f.Refused, f.Hint = err, hintFor(err)
		if f.Hint == "" {
			f.Hint = "see docs/kernels.md for the kernels that twtrace runs on"
		}
		if mode, err := probe.TSOffsets(); err == nil {
			f.TSOffsetMode = string(mode)
		}
		return
	}
	defer tracer.Close()
	// One walk tells whether walks work. It shows in the hooks if not.
	_ = tracer.Adopt(nil, []string{"/proc/self/ns/net"}, func(*event.Event) {})
	f.TSOffsetMode = string(tracer.TSOffsets())
	f.TimeWaits = tracer.SeesTimeWaits()
	f.BlindSpots, f.HookBlindSpots = tracer.BlindSpots(), tracer.HookBlindSpots()
	for _, hook := range tracer.Hooks() {
		gives, lost := tracer.Purpose(hook)
		f.Probes = append(f.Probes, doctor.Probe{
			Name: hook.Name, Available: hook.Attached, Via: hook.Via, WhyNot: hook.WhyNot, Gives: gives, LostWithout: lost,
			Forbidden: strings.HasPrefix(hook.WhyNot, probe.ErrNotPermitted.Error()),
		})
	}
}

// lockdown returns the kernel's lockdown by its file, "" where that is not known.
func lockdown(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "" // no such thing, or securityfs is not mounted
	}
	_, rest, _ := strings.Cut(string(text), "[") // "[none] integrity confidentiality"
	mode, _, _ := strings.Cut(rest, "]")
	return mode
}

// isInitial reports whether the process is in the machine's own namespace of a
// kind. Its inode is fixed (include/linux/proc_ns.h); where it can't be read
// there are no others.
func isInitial(kind string, inode uint64) bool {
	var stat unix.Stat_t
	return unix.Stat("/proc/self/ns/"+kind, &stat) != nil || stat.Ino == inode
}
