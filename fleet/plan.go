package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
)

// Plan says what Deploy would do with the request now, and the id to approve it
// by. memory is what an instance takes, in bytes. It changes nothing and takes no lock.
func (d *Deployer) Plan(ctx context.Context, req Request, memory int64) (Forecast, string, error) {
	var err error
	if req.Policy, err = req.Policy.Complete(); err != nil {
		return Forecast{}, "", err
	}
	if err := req.Policy.fits(req.Spec.Size); err != nil {
		return Forecast{}, "", err
	}
	h, err := d.History(ctx)
	if err != nil {
		return Forecast{}, "", err
	}
	if r := h.Unfinished(); r != nil {
		return Forecast{}, "", unfinished(*r)
	}
	if cur := h.Current(); cur != nil && !req.Force && reflect.DeepEqual(cur.Spec, req.Spec) {
		return Forecast{}, "", fmt.Errorf("%w: fleet %s runs %s already (--redeploy replaces its instances all the same)", ErrNothing, d.Config.Name, name(*cur))
	}
	f, id := forecast(d.Config.Name, h.Current(), req, memory)
	return f, id, nil
}

// forecast is the forecast of a request and its id, in which the memory is not.
func forecast(fleet string, old *Release, req Request, memory int64) (Forecast, string) {
	size, from := 0, ""
	if old != nil {
		size, from = old.Spec.Size, string(old.Spec.Image.Digest)
	}
	f := ForecastFrom(req.Policy, req.Spec.Size, size, 0)
	id := f.ID(fleet, from, jsonOf(req.Spec), jsonOf(req.Policy))
	f.MemoryPeak = int64(f.MachinesPeak-f.MachinesNow) * memory
	return f, id
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error() // then nothing is ever approved
	}
	return string(b)
}
