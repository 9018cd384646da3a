package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// programs lists the programs in the kernel that have names of ours.
func programs(t *testing.T) []string {
	t.Helper()
	names := []string{"state_btf", "nested_btf", "destroy_btf"}
	var found []string
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return found // that was the last one
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if info, err := program.Info(); err == nil && slices.Contains(names, info.Name) {
			found = append(found, info.Name)
		}
		program.Close()
	}
}

// inForbiddingCgroup runs a peer in a cgroup whose program forbids every IPv4
// connect.
func inForbiddingCgroup(name, to string) (err error) {
	root, err := cgroup2()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "twtrace-test")
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := rlimit.RemoveMemlock(); err != nil { // before 5.11
		return err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.CGroupSockAddr,
		AttachType:   ebpf.AttachCGroupInet4Connect,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load a program that forbids: %w", err)
	}
	defer program.Close()
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	if err != nil {
		return fmt.Errorf("attach it: %w", err)
	}
	defer attached.Close()

	cmd := peerCommand(name, "denied", to)
	cmd.Stderr = os.Stderr
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	return cmd.Run()
}

// cgroup2 returns where cgroup v2 is mounted.
func cgroup2() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for mount := range strings.Lines(string(mounts)) {
		if strings.Contains(mount, " - cgroup2 ") {
			return filepath.Clean(strings.Fields(mount)[4]), nil
		}
	}
	return "", errors.New("cgroup v2 is mounted nowhere")
}

// landlockConnect forbids this thread every TCP connect (Landlock, ABI 4, Linux
// 6.7).
func landlockConnect() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	rules := struct{ fs, net uint64 }{net: unix.LANDLOCK_ACCESS_NET_CONNECT_TCP}
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return fmt.Errorf("make a ruleset: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return fmt.Errorf("restrict: %w", errno)
	}
	return nil
}

// landlockABI is what this kernel's Landlock can do, 0 where it has none.
func landlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// TestForbiddenBySecurityModule: by Landlock, where this kernel's knows TCP.
func TestForbiddenBySecurityModule(t *testing.T) {
	needRoot(t)
	const knowsTCP = 4
	if abi := landlockABI(); abi < knowsTCP {
		t.Logf("this kernel's landlock has ABI %d and forbids no connect: nothing to see", abi)
		return
	}
	n := newNetNS(t)
	tr := trace(t, "-o", "json")
	err := n.do(func() error {
		cmd := peerCommand("landlocked", "landlocked", "127.0.0.1:80")
		cmd.Stderr = os.Stderr
		return cmd.Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	connects := of(about(tr.stop(), n), "connect")
	if len(connects) != 1 || connects[0].String() != "connect denied EACCES" || connects[0].Process.Comm != "landlocked" {
		t.Errorf("connects: %+v, want one denied with EACCES", connects)
	}
}
