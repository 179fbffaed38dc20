package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/template"
)

// LocalState is the address of the state directory's own fleets.
const LocalState = "local"

// Place is a fleet and where its state is.
type Place struct {
	Name  string
	State string // address of the shared state; "": the state directory
}

// home opens the fleets of an address, "" those of the state directory. A shared
// one is remembered: from then on no image is removed that its fleets need.
func (e Env) home(ctx context.Context, address string) (fleet.Home, error) {
	if address == "" {
		return fleet.Local(e.State.Fleets()), nil
	}
	if e.Backends.Home == nil {
		return nil, fmt.Errorf("there is no shared state %q", address)
	}
	h, err := e.Backends.Home(ctx, address)
	if err != nil {
		return nil, err
	}
	return h, e.State.AddShared(address)
}

// states are the addresses of all fleets that are known here: the only one of
// --state, or the state directory's and all that were ever used from it.
func (e Env) states() ([]string, error) {
	if e.Shared == LocalState {
		return []string{""}, nil
	}
	if e.Shared != "" {
		return []string{e.Shared}, nil
	}
	all, err := e.State.Shared()
	return append([]string{""}, all...), err
}

// everywhere are all that are known, whatever --state says.
func (e Env) everywhere() ([]string, error) {
	all, err := e.State.Shared()
	if e.Shared != "" && e.Shared != LocalState && !slices.Contains(all, e.Shared) {
		all = append(all, e.Shared)
	}
	return append([]string{""}, all...), err
}

// placeOf is where a template's fleet is.
func (e Env) placeOf(tpl *template.Template) Place {
	p := Place{tpl.Fleet.Name, tpl.Fleet.State}
	switch e.Shared {
	case "":
	case LocalState:
		p.State = ""
	default:
		p.State = e.Shared
	}
	return p
}

// books are the state of a fleet.
func (e Env) books(ctx context.Context, p Place) (fleet.Books, error) {
	h, err := e.home(ctx, p.State)
	if err != nil {
		return nil, err
	}
	return h.Books(p.Name), nil
}

// pastOf is what a template's fleet did so far.
func (e Env) pastOf(ctx context.Context, tpl *template.Template) (fleet.History, error) {
	b, err := e.books(ctx, e.placeOf(tpl))
	if err != nil {
		return nil, err
	}
	h, err := fleet.HistoryOf(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("fleet %s: %w", tpl.Fleet.Name, err)
	}
	return h, nil
}

// checkState refuses shared state for a fleet whose instances or router are of
// one machine: nobody else could do anything with what it says.
func checkState(env Env, tpl *template.Template) error {
	if tpl.Fleet == nil {
		return nil
	}
	f, p := tpl.Fleet, env.placeOf(tpl)
	if p.State == "" {
		return nil
	}
	const hint = "is of one machine, and what shared state says of it is of no use elsewhere: leave out state:, or say --state local"
	if slices.Contains(env.Backends.Bound, f.PoolKind) {
		return f.Pool.Errorf("", "a %s pool %s", f.PoolKind, hint)
	}
	if slices.Contains(env.Backends.Bound, f.RouterKind) {
		return f.Router.Errorf("", "a %s router %s", f.RouterKind, hint)
	}
	return nil
}

// onlyThere refuses a shared fleet of the same name as one of the state directory:
// commands that name it would mean that one.
func (e Env) onlyThere(ctx context.Context, p Place) error {
	if p.State == "" {
		return nil
	}
	_, err := fleet.Local(e.State.Fleets()).Books(p.Name).Config(ctx)
	if errors.Is(err, fleet.ErrNoFleet) {
		return nil
	}
	return fmt.Errorf("there is a fleet %s in the state directory, and one of the same name in %s could not be told from it: destroy that one (`rebake --state local fleet destroy %s`), or give the new one another fleet.name", p.Name, p.State, p.Name)
}

// Fleets lists the fleets, also those whose record cannot be read: whoever opens
// one is told. With an error it lists those of the other places.
func Fleets(ctx context.Context, env Env) ([]Place, error) {
	states, err := env.states()
	if err != nil {
		return nil, err
	}
	return env.fleetsIn(ctx, states)
}

func (e Env) fleetsIn(ctx context.Context, states []string) (all []Place, err error) {
	for _, s := range states {
		h, herr := e.home(ctx, s)
		var names []string
		if herr == nil {
			names, herr = h.Names(ctx)
		}
		for _, n := range names {
			all = append(all, Place{n, s})
		}
		err = errors.Join(err, herr)
	}
	return all, err
}

// Fleet opens a fleet that was deployed before, by name. One of the state
// directory goes before one of the same name elsewhere.
func Fleet(ctx context.Context, env Env, name string) (*fleet.Deployer, error) {
	states, err := env.states()
	if err != nil {
		return nil, err
	}
	var found []Place
	for _, s := range states {
		b, err := env.books(ctx, Place{name, s})
		if err == nil {
			_, err = b.Config(ctx)
		}
		switch {
		case errors.Is(err, fleet.ErrNoFleet):
			continue
		case err != nil && s != "":
			return nil, err
		case s == "":
			return FleetAt(ctx, env, Place{name, s})
		}
		found = append(found, Place{name, s})
	}
	switch len(found) {
	case 0:
		return nil, env.noFleet(ctx, name)
	case 1:
		return FleetAt(ctx, env, found[0])
	}
	return nil, fmt.Errorf("there is a fleet %s in %s and in %s: say which with --state", name, found[0].State, found[1].State)
}

// FleetAt opens a fleet that was deployed before.
func FleetAt(ctx context.Context, env Env, p Place) (*fleet.Deployer, error) {
	b, err := env.books(ctx, p)
	if err != nil {
		return nil, err
	}
	cfg, err := b.Config(ctx)
	if err != nil {
		return nil, err
	}
	return deployer(env, b, cfg)
}

func (e Env) noFleet(ctx context.Context, name string) error {
	all, err := Fleets(ctx, e)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%w: %s; there are none yet (`rebake up TEMPLATE` makes one)", fleet.ErrNoFleet, name)
	}
	return fmt.Errorf("%w: %s; there are: %s", fleet.ErrNoFleet, name, strings.Join(namesOf(all), ", "))
}

func namesOf(all []Place) (names []string) {
	for _, p := range all {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
