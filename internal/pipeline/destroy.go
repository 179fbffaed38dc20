package pipeline

import (
	"context"
	"os"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
)

// Destroy ends a fleet. What was changed in a cloud for it stays in the logs: it is
// what an account's owner would ask for.
func Destroy(ctx context.Context, env Env, d *fleet.Deployer) error {
	name := d.Config.Name
	d.Books = ending{d.Books, func(ctx context.Context) {
		if err := awscalls.Move(env.State.Calls(name), env.State.EndedCalls(name, env.clock())); err != nil {
			event.Warnf(ctx, "what was called for fleet %s is not kept: %v", name, err)
		}
		_ = os.Remove(env.State.Fleet(name)) // where its state is in a bucket there was nothing else in it
	}}
	return d.Destroy(ctx)
}

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
