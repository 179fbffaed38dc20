package pipeline

import (
	"regexp"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/template"
)

// suiter is the optional power of a pool or a router to refuse a policy that it
// cannot keep, as far as nobody need be asked for it. What it would complete the
// policy by is fleet.Fitter's.
type suiter interface {
	Suits(p fleet.Policy, size int) error
}

// CheckFleet says what is wrong with a template's fleet, with its place there. It
// asks no pool, no router and no cloud.
func CheckFleet(env Env, tpl *template.Template) error {
	if tpl.Fleet == nil {
		return nil
	}
	if err := checkState(env, tpl); err != nil {
		return err
	}
	cfg, err := fleetConfig(tpl)
	if err != nil {
		return err
	}
	return checkParts(env, tpl, cfg)
}

func checkParts(env Env, tpl *template.Template, cfg fleet.Config) error {
	f := tpl.Fleet
	pool, router, err := parts(env, cfg)
	if err != nil {
		return placed(f, err)
	}
	if _, ok := pool.(Doors); !ok && len(cfg.Commands) > 0 {
		return f.Block.Errorf("health.commands", "fleet.health.commands: the pool %s has no way to log in to an instance: take an http gate, or deploy.gates with a command", cfg.PoolKind)
	}
	for _, part := range []any{pool, router} {
		if s, ok := part.(suiter); ok {
			if err := s.Suits(cfg.Policy, cfg.Size); err != nil {
				return placed(f, err)
			}
		}
	}
	return nil
}

// keyRE is how pools and routers name what is wrong, below fleet.
var keyRE = regexp.MustCompile(`^(?:pool|router|health|deploy)\b[a-z0-9_.]*`)

// placed gives an error of a pool or a router the line of the template that it is of.
func placed(f *template.Fleet, err error) error {
	key := keyRE.FindString(err.Error())
	if key == "" {
		key = "pool"
	}
	return f.Block.Errorf(key, "%w", err)
}
