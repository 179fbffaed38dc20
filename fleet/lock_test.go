package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// The real lock and the real journal, on a real clock.
func onDisk(t *testing.T) *fleet.Deployer {
	p := &fake.Pool{}
	return &fleet.Deployer{Dir: filepath.Join(t.TempDir(), "web"), Config: fleet.Config{Name: "web", Size: size}, Poll: time.Millisecond,
		Pool: p, Router: &fake.Router{Check: p.Check, Every: time.Millisecond}}
}

func quick(version string) fleet.Request {
	r := request(version)
	r.Policy.Steps, r.Policy.KeepOld = nil, 0
	return r
}

func TestASecondOperatorIsRefusedByName(t *testing.T) {
	d := onDisk(t)
	second := *d
	asked := false
	d.Gate = func(ctx context.Context, _ fleet.Instance) error {
		asked = true
		_, err := second.Deploy(ctx, quick("2"))
		if !errors.Is(err, fleet.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("the second operator got: %v", err)
		}
		return nil
	}
	if _, err := d.Deploy(t.Context(), quick("1")); err != nil || !asked {
		t.Fatal(asked, err)
	}
	d.Gate = nil
	if res, err := d.Deploy(t.Context(), quick("2")); err != nil || res.State != fleet.Done {
		t.Fatal(res.State, err)
	}
	h, err := fleet.ReadHistory(d.Dir)
	if err != nil || len(h) != 2 || h.Current().Spec.Image.Version != "2" || h.Previous().Spec.Image.Version != "1" {
		t.Fatal(h, err)
	}
	st, err := d.Status(t.Context())
	if err != nil || st.Unfinished != nil || st.Current.Spec.Image.Version != "2" || len(st.Groups) != 1 {
		t.Fatalf("%+v %v", st, err)
	}
	if c, err := fleet.LoadConfig(d.Dir); err != nil || c.Size != size {
		t.Fatal(c, err)
	}
	if err := d.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

func TestAGateThatFailsIsARollback(t *testing.T) {
	d := onDisk(t)
	if _, err := d.Deploy(t.Context(), quick("1")); err != nil {
		t.Fatal(err)
	}
	calls := 0
	d.Gate = func(context.Context, fleet.Instance) error { calls++; return errors.New("exit status 7") }
	res, err := d.Deploy(t.Context(), quick("2"))
	if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(err.Error(), "did not pass the gate: exit status 7") {
		t.Fatal(err)
	}
	if calls != 3 || len(res.Weights) != 0 {
		t.Errorf("%d calls of the gate, weights %v", calls, res.Weights)
	}
}
