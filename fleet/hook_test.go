package fleet_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// Hooks are told of each stage, once if nothing is killed, at least once if it is.
func TestHooksAreToldOfEachStage(t *testing.T) {
	for name, c := range map[string]struct {
		image string
		want  string
	}{
		"good": {"2", "start traffic traffic traffic promoted done"},
		"bad":  {"bad", "start traffic traffic failed rolled-back"},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				killed := false
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Breaks: 1500 * time.Millisecond}})
					if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
						t.Fatal(err)
					}
					if err := w.d.Tend(t.Context(), true); err != nil {
						t.Fatal(err)
					}
					var told []string
					w.d.Notify = notes(&told)
					req := request(c.image)
					req.Wait = true
					if n > 0 {
						w.crashAt = len(w.recs) + n
					}
					_, _, killed = w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), req) })
					if killed {
						synctest.Wait() // what the killed one is telling is told before anybody goes on, as its process would be gone
						if _, err := w.d.Resume(t.Context(), true); err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrNothing) {
							t.Fatal(err)
						}
						if err := w.d.Tend(t.Context(), true); err != nil {
							t.Fatal(err)
						}
					}
					h, _ := fleet.Replay(w.recs)
					if len(h) < 2 {
						return // killed before there was a deployment
					}
					got := strings.Join(told, " ")
					if killed {
						got = strings.Join(dedupe(told), " ")
					}
					if want := c.want; got != want && got != strings.Join(dedupe(strings.Fields(want)), " ") {
						t.Errorf("killed at %d: told %q, want %q", n, got, want)
					}
				})
				if t.Failed() || n > 0 && !killed {
					return
				}
			}
		})
	}
}

func notes(told *[]string) fleet.Notify {
	var mu sync.Mutex // a killed one may still be telling
	return func(_ context.Context, n fleet.Notice) error {
		mu.Lock()
		defer mu.Unlock()
		*told = append(*told, string(n.Stage))
		return errors.New("hooks may fail")
	}
}

// dedupe leaves out what follows itself.
func dedupe(all []string) (out []string) {
	for _, s := range all {
		if len(out) == 0 || out[len(out)-1] != s {
			out = append(out, s)
		}
	}
	return out
}

// A webhook that hangs delays neither the watch nor the way back.
func TestAHookThatHangsDelaysNothing(t *testing.T) {
	took := map[string]time.Duration{}
	for name, hook := range map[string]fleet.Notify{
		"none": nil,
		"hangs": func(ctx context.Context, _ fleet.Notice) error {
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Second):
			}
			return errors.New("no success within 30s")
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Breaks: 1500 * time.Millisecond}})
			if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
				t.Fatal(err)
			}
			w.d.Notify = hook
			began := time.Now()
			res, err := w.d.Deploy(t.Context(), request("bad"))
			if !errors.Is(err, fleet.ErrRolledBack) {
				t.Fatal(err)
			}
			back := res.Weights[len(res.Weights)-1]
			if back.Weights[fleet.Blue] != 1000 {
				t.Fatalf("the last weights are %v", back.Weights)
			}
			took[name] = back.Time.Sub(began)
			if hook != nil && (len(res.Told) != 5 || time.Since(began) < 5*30*time.Second) {
				t.Errorf("told %q in %s", res.Told, time.Since(began))
			}
			w.sound("1")
		})
	}
	if took["none"] != took["hangs"] {
		t.Errorf("traffic was back after %s, and %s with a hook that hangs", took["none"], took["hangs"])
	}
}

// Who is interrupted while a hook hangs is not held by it, and the hook is told
// again by who goes on.
func TestAnInterruptDoesNotWaitForAHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var told []string
		hang := notes(&told)
		w.d.Notify = func(ctx context.Context, n fleet.Notice) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := w.d.Deploy(ctx, request("1")); err == nil {
			t.Fatal("it was not interrupted")
		}
		w.d.Notify = hang
		if _, err := w.d.Resume(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(dedupe(told), " "); got != "start traffic promoted done" {
			t.Errorf("told %q", got)
		}
		w.sound("1")
	})
}
