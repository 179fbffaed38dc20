// Package breakpoint is a step that waits for a person, who may enter the guest.
package breakpoint

import (
	"context"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/provisioner"
)

// Config is a breakpoint: block of a template.
type Config struct {
	Note    string `yaml:"note" json:"note,omitempty" rebake:"shorthand" jsonschema_description:"what the person is told"`
	Disable bool   `yaml:"disable" json:"disable,omitempty" jsonschema_description:"pass over it"`
}

// New makes the step.
func New(cfg Config) provisioner.Provisioner {
	if cfg.Disable {
		return passed{}
	}
	if cfg.Note == "" {
		cfg.Note = "a breakpoint"
	}
	return step{passed{}, cfg.Note}
}

type passed struct{}

// Key implements provisioner.Provisioner: a breakpoint that nobody used changes
// nothing, and the pipeline knows when somebody did.
func (passed) Key(context.Context) (artifact.Inputs, bool, error) { return "", true, nil }

// Provision implements provisioner.Provisioner.
func (passed) Provision(ctx context.Context, _ provisioner.Guest) error {
	event.Infof(ctx, "breakpoint: disabled")
	return nil
}

// step is what the pipeline waits at.
type step struct {
	passed
	note string
}

// Breakpoint is what the person is told.
func (s step) Breakpoint() string { return s.note }
