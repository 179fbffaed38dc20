package pipeline

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/template"
)

// Rules are a template's requirements with their keys read. base is where
// relative paths of keys begin.
func Rules(env Env, r template.Require, base string) (require.Rules, error) {
	out := require.Rules{Tests: r.Tests, SBOM: r.SBOM, Provenance: r.Provenance, NotRevoked: r.NotRevoked, MaxAge: r.MaxAge, Channel: r.Channel}
	for _, spec := range r.SignedBy {
		k, err := keyring.Dir(env.State.Keys()).Public(spec, base)
		if err != nil {
			return out, fmt.Errorf("signed_by: %w", err)
		}
		out.SignedBy = append(out.SignedBy, require.Signer{Name: k.Name, PEM: string(k.PEM())})
	}
	return out, nil
}

// rulesOf are the fleet's as its record keeps them: keys and all, so that no later
// change of a file loosens them unseen.
func rulesOf(env Env, tpl *template.Template) (json.RawMessage, error) {
	if tpl.Fleet.Require == nil {
		return nil, nil
	}
	rules, err := Rules(env, *tpl.Fleet.Require, tpl.Dir)
	if err != nil {
		return nil, fmt.Errorf("%s: fleet.require.%w", tpl.Path, err)
	}
	if rules.Empty() {
		return nil, nil
	}
	return json.Marshal(rules)
}

// diskChecker is the optional power of a pool to compare what its instances boot
// from with the image.
type diskChecker interface {
	CheckDisk(ctx context.Context, img artifact.Image) error
}

// admission is how a fleet's images are held to what it requires; nil if it
// requires nothing.
func admission(env Env, cfg fleet.Config, pool fleet.Pool) (fleet.Admit, error) {
	if len(cfg.Require) == 0 {
		return nil, nil
	}
	var rules require.Rules
	if err := json.Unmarshal(cfg.Require, &rules); err != nil {
		return nil, fmt.Errorf("read what fleet %s requires: %w", cfg.Name, err)
	}
	parts := env.parts()
	parts.Bytes = func(context.Context, artifact.Image) error { return errNoBytes }
	if c, ok := pool.(diskChecker); ok {
		parts.Bytes = c.CheckDisk
	}
	return func(ctx context.Context, img artifact.Image) error {
		found, err := require.Check(ctx, parts, img, rules)
		if err != nil {
			return err
		}
		if err := require.Refused(img, found); err != nil {
			return fmt.Errorf("%w: %w", fleet.ErrRefused, err)
		}
		event.Infof(ctx, "%s has what fleet %s requires: %d checks passed", imageName(img), cfg.Name, len(found))
		return nil
	}, nil
}

func (e Env) parts() require.Parts {
	return require.Parts{Store: e.Store, Revoked: e.Revoked, Now: e.clock}
}

// VerifyImage holds an image of the store to rules, and re-hashes all its bytes
// there. Without rules about them, signatures are not asked for, only listed.
func VerifyImage(ctx context.Context, env Env, img artifact.Image, rules require.Rules) ([]require.Finding, error) {
	parts := env.parts()
	parts.Bytes = func(ctx context.Context, img artifact.Image) error {
		v, ok := env.Store.(artifact.Verifier)
		if !ok {
			return fmt.Errorf("the store %T does not re-hash what it holds", env.Store)
		}
		return event.Run(ctx, "re-hash "+imageName(img), func(ctx context.Context) error {
			return v.Verify(ctx, img, event.Progressing(ctx))
		})
	}
	return require.Check(ctx, parts, img, rules)
}

// checkRequired is what Deploy would be refused for, without doing anything.
func checkRequired(ctx context.Context, d *fleet.Deployer, img artifact.Image) error {
	if d.Admit == nil {
		return nil
	}
	return d.Admit(ctx, img)
}
