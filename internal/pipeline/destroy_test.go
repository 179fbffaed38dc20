package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/fake"
)

// leased are books whose writer can lose them.
type leased struct{ fleet.Books }

func (l leased) Take(ctx context.Context) (fleet.Desk, error) {
	d, err := l.Books.Take(ctx)
	return struct {
		fleet.Desk
		lost
	}{Desk: d}, err
}

type lost struct{}

func (lost) Lost() <-chan struct{} { return nil }

// What was called for a fleet outlives it, wherever its state was, and is no fleet.
func TestWhatWasCalledForAFleetOutlivesIt(t *testing.T) {
	for name, elsewhere := range map[string]bool{"state here": false, "state elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			store, pool := new(fake.Store), new(fake.Pool)
			env := Env{State: state.Dir(t.TempDir()), Store: store, Backends: Backends{
				Pool: func(Env, string, string, []byte) (fleet.Pool, error) { return pool, nil },
				Router: func(Env, string, string, []byte, fleet.HealthCheck) (fleet.Router, error) {
					return &fake.Router{Check: pool.Check, Rise: 1, Every: time.Millisecond}, nil
				}}}
			books := fleet.Local(env.State.Fleets()).Books("web")
			if elsewhere {
				books = leased{fleet.Local(t.TempDir()).Books("web")}
			}
			cfg := fleet.Config{Name: "web", Size: 1, Policy: fleet.Policy{Port: 80}}
			d, err := deployer(env, books, cfg)
			if err != nil {
				t.Fatal(err)
			}
			d.Poll = time.Millisecond
			img := stored(t, store, artifact.Image{Name: "web", Version: "1"})
			if _, err := d.Deploy(t.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: 1, Ports: []int{80}}, Policy: cfg.Policy, Wait: true}); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.MkdirAll(env.State.Fleet("web"), 0o700), os.WriteFile(env.State.Calls("web"), []byte("calls\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			desk, err := ending{books, nil}.Take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, is := desk.(fleet.Lease); is != elsewhere {
				t.Errorf("that books can be lost is forgotten while a fleet is destroyed: %t", is)
			}
			if err := errors.Join(desk.Release(t.Context()), Destroy(t.Context(), env, d)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(env.State.Fleet("web")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its directory: %v", err)
			}
			logs, err := os.ReadDir(env.State.Logs())
			if err != nil || len(logs) != 1 || !strings.HasPrefix(logs[0].Name(), "fleet-web-2") {
				t.Fatalf("%v, %v", logs, err)
			}
			if raw, err := os.ReadFile(filepath.Join(env.State.Logs(), logs[0].Name())); err != nil || string(raw) != "calls\n" {
				t.Errorf("%q, %v", raw, err)
			}
		})
	}
}

// A machine that called something for a fleet, and does not have its state, has no
// fleet of that name.
func TestCallsAloneAreNoFleet(t *testing.T) {
	env := Env{State: state.Dir(t.TempDir())}
	if err := errors.Join(os.MkdirAll(env.State.Fleet("web"), 0o700), os.WriteFile(env.State.Calls("web"), []byte("calls\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	home := fleet.Local(env.State.Fleets())
	names, err := home.Names(t.Context())
	orphans, oerr := home.Orphans(t.Context())
	if err := errors.Join(err, oerr); err != nil || len(names)+len(orphans) > 0 {
		t.Errorf("fleets %v, orphans %v, %v", names, orphans, err)
	}
	if gone, err := TendAll(t.Context(), env); err != nil || len(gone) != 0 {
		t.Errorf("what may be of a fleet that is being made was put away: %v, %v", gone, err)
	}
	env.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	env.Shared = "s3://elsewhere/x"
	env.Backends.Home = func(context.Context, string) (fleet.Home, error) { return fleet.Local(t.TempDir()), nil }
	if gone, err := TendAll(t.Context(), env); err != nil || len(gone) != 0 {
		t.Errorf("not all states were asked, and %v, %v", gone, err)
	}
	env.Shared = ""
	gone, err := TendAll(t.Context(), env)
	if err != nil || len(gone) != 1 || gone[0].What != env.State.Calls("web") {
		t.Errorf("%v, %v", gone, err)
	}
	if logs, err := os.ReadDir(env.State.Logs()); err != nil || len(logs) != 1 {
		t.Errorf("%v, %v", logs, err)
	}
	if _, err := os.Stat(env.State.Fleet("web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
}
