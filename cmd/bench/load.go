package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
)

// A cost is what a turn's connections took.
type cost struct {
	Wall time.Duration `json:"wall_ns"`
	CPU  time.Duration `json:"cpu_ns"` // the load's own, and what the kernel did in its name
}

// loadCommand is the process that makes the connections, in a network namespace of its
// own. It tells that this is ready, and makes some in advance, one after the other, until it reads a line.
func loadCommand() *cobra.Command {
	var connections int
	var tracked bool
	cmd := &cobra.Command{
		Use:    "load",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepare(tracked); err != nil {
				return err
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "ready"); err != nil {
				return err
			}
			in := bufio.NewReader(cmd.InOrStdin())
			if err := until(in, func() error {
				defer time.Sleep(time.Millisecond)
				return load.Work(0, 1, firstPort)
			}); err != nil {
				return err
			}
			c, err := run(connections)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(c); err != nil {
				return err
			}
			// The tracer can ask about its sockets until it is done with them.
			_, err = io.Copy(io.Discard, in)
			return err
		},
	}
	cmd.Flags().IntVar(&connections, "connections", 0, "")
	cmd.Flags().BoolVar(&tracked, "tracked", false, "")
	return cmd
}

func prepare(tracked bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if !tracked {
		return nil
	}
	// A rule that asks for it turns connection tracking on.
	nft := &nftables.Conn{}
	table := nft.AddTable(&nftables.Table{Name: "bench", Family: nftables.TableFamilyIPv4})
	nft.AddRule(&nftables.Rule{
		Table: table,
		Chain: nft.AddChain(&nftables.Chain{
			Name: "output", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		}),
		Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}},
	})
	if err := nft.Flush(); err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	return nil
}

// until repeats f until a line can be read.
func until(in *bufio.Reader, f func() error) error {
	line := make(chan error, 1)
	go func() {
		_, err := in.ReadString('\n')
		line <- err
	}()
	for {
		select {
		case err := <-line:
			return err
		default:
			if err := f(); err != nil {
				return err
			}
		}
	}
}

const workers = 2

func run(connections int) (c cost, err error) {
	before, err := cpuTime()
	if err != nil {
		return c, err
	}
	began := time.Now()
	results := make(chan error)
	for worker := range workers {
		go func() { results <- load.Work(worker+1, connections/workers, loadPort) }()
	}
	for range workers {
		err = errors.Join(err, <-results)
	}
	c.Wall = time.Since(began)
	after, timeErr := cpuTime()
	c.CPU = after - before
	return c, errors.Join(err, timeErr, load.Settle())
}

func cpuTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, os.NewSyscallError("getrusage", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
