package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Say tells what is about to happen.
type Say func(format string, args ...any)

// Scenario is a failure that can be reproduced on one machine.
type Scenario struct {
	Name  string
	Title string // what it shows, in a line
	// Story tells a newcomer why it happens, a paragraph each.
	Story []string
	// Learned is what there was to see, and Live the command that shows it where
	// it is not made on purpose.
	Learned, Live string
	// Verdict is the id that the connect which fails or is late should get, or
	// the network namespace.
	Verdict string
	// Wrapper is the id that is wrapped round that one, "" for none.
	Wrapper string
	// Certain is set where the kernel itself tells the cause: else a verdict
	// that is certain would be wrong.
	Certain bool
	// Global is set where it changes a setting of the whole machine.
	Global bool
	run    func(n *Network, say Say) error
}

// Scenarios returns all, in the order of docs/verdicts.md.
func Scenarios() []Scenario { return slices.Clone(scenarios) }

// Find returns the scenario with this name.
func Find(name string) (Scenario, error) {
	i := slices.IndexFunc(scenarios, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		names := make([]string, len(scenarios))
		for i := range scenarios {
			names[i] = scenarios[i].Name
		}
		return Scenario{}, fmt.Errorf("scenario %q: must be one of %s", name, strings.Join(names, ", "))
	}
	return scenarios[i], nil
}

// Run makes it happen in n, where nothing else has happened. It returns an error
// where it did not come out as told. It can be stopped between two steps.
func (s Scenario) Run(ctx context.Context, n *Network, say Say) error {
	n.ctx = ctx
	defer func() { n.ctx = context.Background() }()
	if err := s.run(n, func(format string, args ...any) {
		if ctx.Err() == nil {
			say(format, args...)
		}
	}); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("scenario %s: %w", s.Name, err))
	}
	return ctx.Err()
}

// expect is an error unless err is want.
func expect(what string, err, want error) error {
	if errors.Is(err, want) || want == nil && err == nil {
		return nil
	}
	if want == nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err == nil {
		return fmt.Errorf("%s: it worked, want %v", what, want)
	}
	return fmt.Errorf("%s: %w, want %v", what, err, want)
}
