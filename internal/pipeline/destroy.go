package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
)

// Destroy ends a fleet. What was changed in a cloud for it stays in the logs: it is
// what an account's owner would ask for.
func Destroy(ctx context.Context, env Env, d *fleet.Deployer) error {
	name := d.Config.Name
	d.Books = ending{d.Books, func(ctx context.Context) {
		if err := env.keepCalls(name); err != nil {
			event.Warnf(ctx, "what was called for fleet %s is not kept: %v", name, err)
		}
	}}
	return d.Destroy(ctx)
}

// keepCalls moves what was called for a fleet to the logs.
func (e Env) keepCalls(name string) error {
	err := awscalls.Move(e.State.Calls(name), e.State.EndedCalls(name, e.clock()))
	_ = os.Remove(e.State.Fleet(name)) // where its state is in a bucket there was nothing else in it
	return err
}

// strays keeps what was called from here for fleets that are none of those there are.
// For a while it may be one that is just being made.
func (e Env) strays(fleets []string) (gone []Removed, err error) {
	dirs, err := os.ReadDir(e.State.Fleets())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the fleets: %w", err)
	}
	for _, d := range dirs {
		name := d.Name()
		st, err := os.Lstat(e.State.Calls(name))
		if err != nil || slices.Contains(fleets, name) || e.clock().Sub(st.ModTime()) < strayAfter {
			continue
		}
		if err := e.keepCalls(name); err != nil {
			return gone, fmt.Errorf("put %s away: %w", e.State.Calls(name), err)
		}
		gone = append(gone, Removed{e.State.Calls(name), "the fleet is gone; it is in " + e.State.Logs() + " now"})
	}
	return gone, nil
}

const strayAfter = 24 * time.Hour

// ending are the books of a fleet that is being destroyed: before they go, keep is called.
type ending struct {
	fleet.Books
	keep func(context.Context)
}

func (e ending) Take(ctx context.Context) (fleet.Desk, error) {
	d, err := e.Books.Take(ctx)
	if err != nil {
		return nil, err
	}
	kept := endingDesk{d, e.keep}
	if l, ok := d.(fleet.Lease); ok {
		return struct {
			endingDesk
			fleet.Lease
		}{kept, l}, nil
	}
	return kept, nil
}

type endingDesk struct {
	fleet.Desk
	keep func(context.Context)
}

func (d endingDesk) Remove(ctx context.Context) error {
	d.keep(ctx)
	return d.Desk.Remove(ctx)
}
