package pipeline

import (
	"context"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/rehearse"
	"github.com/rebake/rebake/internal/template"
)

// Rehearse plays the deployment of an image that the template asks for, on
// models of pool and router, for images that are good and bad. It starts
// nothing and changes nothing. faults go before each call; nil: none.
func Rehearse(ctx context.Context, env Env, tpl *template.Template, img artifact.Image, faults *fault.Plan) (rehearse.Report, error) {
	if tpl.Fleet == nil {
		return rehearse.Report{}, fmt.Errorf("%s has no fleet: block, so there is nothing to rehearse (`rebake docs fleet`)", tpl.Path)
	}
	cfg, err := fleetConfig(tpl)
	if err != nil {
		return rehearse.Report{}, err
	}
	if cfg.Policy.Strategy == fleet.Refresh {
		return rehearse.Report{}, fmt.Errorf("%s: fleet.deploy.strategy: a refresh is Auto Scaling's own doing, and there is no model of that to rehearse on: `rebake deploy %s --plan` says what it would do", tpl.Path, tpl.Path)
	}
	h, err := env.pastOf(ctx, tpl)
	if err != nil {
		return rehearse.Report{}, err
	}
	from := img.Name + ":(an image before it)"
	if cur := h.Current(); cur != nil {
		from = cur.Spec.Image.Name + ":" + cur.Spec.Image.Version
	}
	return rehearse.Run(ctx, rehearse.Options{
		Config: cfg, From: from, Faults: faults,
		Request: fleet.Request{Spec: fleet.Spec{Image: img, Size: cfg.Size, Ports: gatePorts(cfg.Policy)}, Policy: cfg.Policy},
	})
}
