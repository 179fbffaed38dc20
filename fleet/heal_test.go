package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// healWorld is a fleet of n instances of image 1 that has served for hours.
func healWorld(t *testing.T, n int, change func(*fleet.Request)) (*world, []string) {
	w := newWorld(t, map[artifact.Digest]fake.Behaviour{})
	w.size = n
	req := request("1")
	req.Spec.Size = n
	if change != nil {
		change(&req)
	}
	if _, err := w.d.Deploy(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Hour)
	return w, w.names()
}

func (w *world) names() (ids []string) {
	_, gs := w.look()
	for _, g := range gs {
		for _, i := range g.Instances {
			ids = append(ids, i.ID)
		}
	}
	return ids
}

// kill ends instances, and waits until the router has noticed.
func (w *world) kill(ids ...string) {
	for _, id := range ids {
		w.killed[id] = true
		if !w.pool.Kill(id) {
			w.t.Fatal("no instance ", id)
		}
	}
	time.Sleep(300 * time.Millisecond)
}

func (w *world) started(id string) time.Time {
	_, gs := w.look()
	for _, g := range gs {
		for _, i := range g.Instances {
			if i.ID == id && i.Running {
				return i.Started
			}
		}
	}
	return time.Time{}
}

// fresh says which instances were started after a time.
func (w *world) fresh(since time.Time) (ids []string) {
	for _, id := range w.names() {
		if !w.started(id).Before(since) {
			ids = append(ids, id)
		}
	}
	return ids
}

// healed is sound, where records of kind heal are no steps of a deployment.
func (w *world) healed(version string) {
	w.t.Helper()
	for _, r := range w.recs {
		if r.Kind == "heal" {
			w.bad = slices.DeleteFunc(w.bad, func(b string) bool { return strings.HasPrefix(b, fmt.Sprintf("record %d: ", r.Seq)) })
		}
	}
	w.sound(version)
}

func replaced(h fleet.Healed) string {
	var all []string
	for _, r := range h.Replaced {
		all = append(all, strings.TrimPrefix(r.Instance, "web-blue-")[:1]+" "+r.Why)
	}
	return strings.Join(all, ", ")
}

func minHealthy(percent int) func(*fleet.Request) {
	return func(r *fleet.Request) { r.Policy.MinHealthy = percent }
}

func TestHealReplacesUnderLoad(t *testing.T) {
	for name, c := range map[string]struct {
		size, percent int
		dead, live    []int // indices
		want          string
		most          int // instances at once
	}{
		"nothing to do":              {size: 2, most: 2},
		"a dead one":                 {size: 2, dead: []int{0}, want: "1 dead", most: 2},
		"two dead ones of three":     {size: 3, dead: []int{0, 2}, want: "1 dead, 3 dead", most: 3},
		"a live one":                 {size: 2, live: []int{1}, want: "2 live", most: 2},
		"all live ones":              {size: 3, live: []int{0, 1, 2}, want: "1 live, 2 live, 3 live", most: 3},
		"a dead one and a live one":  {size: 3, dead: []int{1}, live: []int{2}, want: "2 dead, 3 live", most: 3},
		"one that is named and dead": {size: 2, dead: []int{1}, live: []int{1}, want: "2 dead", most: 2},
		"a fleet of one":             {size: 1, live: []int{0}, want: "1 live", most: 2},
		"where all must serve":       {size: 2, percent: 100, live: []int{0, 1}, want: "1 live, 2 live", most: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ids := healWorld(t, c.size, minHealthy(c.percent))
				var live, gone []string
				for _, i := range c.dead {
					gone = append(gone, ids[i])
				}
				for _, i := range c.live {
					live = append(live, ids[i])
				}
				w.kill(gone...)
				before := time.Now()
				stop := w.traffic()
				h, err := w.d.Heal(t.Context(), live...)
				time.Sleep(time.Second)
				sent, failed := stop()
				if err != nil || replaced(h) != c.want || h.Cut != 0 {
					t.Errorf("replaced %q, cut %d, %v", replaced(h), h.Cut, err)
				}
				if failed != 0 || sent < 40 {
					t.Errorf("%d of %d requests failed", failed, sent)
				}
				if w.pool.Peak() != c.most {
					t.Errorf("%d instances at once, want %d", w.pool.Peak(), c.most)
				}
				want := append(gone, live...)
				slices.Sort(want)
				want = slices.Compact(want)
				if got := w.fresh(before); !slices.Equal(got, want) {
					t.Errorf("fresh are %v, want %v", got, want)
				}
				w.healed("1")
				if h, err := w.d.Heal(t.Context()); err != nil || len(h.Replaced) != 0 {
					t.Errorf("again: %v %v", h, err)
				}
			})
		})
	}
}

func TestHealOfAFleetThatIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, nil)
		w.kill(ids...)
		if h, err := w.d.Heal(t.Context()); err != nil || replaced(h) != "1 dead, 2 dead" {
			t.Fatalf("%+v %v", h, err)
		}
		// Nobody was there to serve, so that attaching to a slot with traffic is no harm.
		w.bad = slices.DeleteFunc(w.bad, func(b string) bool {
			return strings.HasPrefix(b, "attached to slot blue, which has traffic and nobody")
		})
		w.healed("1")
	})
}

// A fresh instance that may not serve ends it: the next live one is not touched.
func TestHealStopsAtAFreshInstanceThatMayNotServe(t *testing.T) {
	for name, c := range map[string]struct {
		b    fake.Behaviour // of instances that are young
		gate bool
		dies bool
		want string
	}{
		"does not become healthy":   {b: fake.Behaviour{Boot: time.Hour}, want: "did not become healthy within 10s: router sees L7TOUT"},
		"does not pass the gate":    {gate: true, want: "did not pass the gate: no good"},
		"dies before it is healthy": {b: fake.Behaviour{Boot: time.Hour}, dies: true, want: "died"},
	} {
		for _, how := range []string{"live", "dead"} {
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, ids := healWorld(t, 3, nil)
					w.pool.Behave["sha256:1"] = c.b
					if c.gate {
						w.d.Gate = func(context.Context, fleet.Instance) error { return errors.New("no good") }
					}
					if c.dies {
						go func() {
							for range 100 {
								time.Sleep(100 * time.Millisecond)
								if time.Since(w.started(ids[0])) < time.Minute {
									w.pool.Kill(ids[0])
									return
								}
							}
						}()
					}
					live := []string{ids[0], ids[1]}
					if how == "dead" {
						w.kill(ids[0])
						live = live[1:]
					}
					before := time.Now()
					stop := w.traffic()
					h, err := w.d.Heal(t.Context(), live...)
					sent, failed := stop()
					if !errors.Is(err, fleet.ErrUnhealthy) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), ids[0]) {
						t.Fatalf("%v, want %q", err, c.want)
					}
					if replaced(h) != "1 "+how {
						t.Errorf("replaced %q", replaced(h))
					}
					if got := w.fresh(before); len(got) > 1 || len(got) == 1 && got[0] != ids[0] {
						t.Errorf("fresh are %v", got)
					}
					if failed != 0 || sent == 0 {
						t.Errorf("%d of %d requests failed", failed, sent)
					}
					if st, _ := w.look(); slices.ContainsFunc(st.Members[fleet.Blue], func(m fleet.MemberStatus) bool { return m.ID == ids[0] && m.Admin == "ready" }) {
						t.Errorf("%s was let in", ids[0])
					}
					// Once it is mended the next one brings it right.
					w.pool.Behave["sha256:1"], w.d.Gate = fake.Behaviour{}, nil
					if _, err := w.d.Heal(t.Context()); err != nil {
						t.Fatal(err)
					}
					w.healed("1")
				})
			})
		}
	}
}

func TestHealWaitsForRequestsAtMostTheDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, nil)
		victim, end := w.router.Send()
		defer end()
		before := time.Now()
		h, err := w.d.Heal(t.Context(), victim)
		if took := time.Since(before); err != nil || h.Cut != 1 || took < 5*time.Second || took > 8*time.Second {
			t.Errorf("cut %d after %s, %v", h.Cut, took, err)
		}
		if got := w.fresh(before); !slices.Equal(got, []string{victim}) {
			t.Errorf("fresh are %v of %v", got, ids)
		}
		w.healed("1")
	})
}

// While one drains another one dies: the one that drains serves on.
func TestHealNeverGoesBelowTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, nil)
		victim, end := w.router.Send()
		other := ids[0]
		if other == victim {
			other = ids[1]
		}
		go func() {
			time.Sleep(time.Second)
			w.pool.Kill(other)
		}()
		before := time.Now()
		h, err := w.d.Heal(t.Context(), victim)
		if err == nil || !strings.Contains(err.Error(), "stays: another instance stopped to serve") || len(h.Replaced) != 0 {
			t.Fatalf("%v %v", h, err)
		}
		end()
		if id, end := w.router.Send(); id != victim {
			t.Errorf("%q serves", id)
		} else {
			end()
		}
		// One that serves badly gives no room, a temporary instance does.
		if h, err = w.d.Heal(t.Context(), victim); err != nil || len(h.Replaced) != 2 || len(w.fresh(before)) != 2 {
			t.Errorf("%v %v", h, err)
		}
		w.healed("1")
	})
}

// An instance that runs and does not serve is replaced when it is named, whatever
// else serves, and not before.
func TestHealReplacesASickInstanceByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, minHealthy(100))
		w.sicken(ids[0])
		if h, err := w.d.Heal(t.Context()); err != nil || len(h.Replaced) != 0 {
			t.Fatalf("%v %v", h, err)
		}
		if h, err := w.d.Heal(t.Context(), ids[0]); err != nil || replaced(h) != "1 live" || w.pool.Peak() != 2 {
			t.Errorf("%v %v, %d at once", h, err, w.pool.Peak())
		}
		w.healed("1")
		// Nor is one waited for that was never let in.
		w.sicken(ids[1])
		if err := w.router.Drain(t.Context(), fleet.Blue, ids[1]); err != nil {
			t.Fatal(err)
		}
		if h, err := w.d.Heal(t.Context()); !errors.Is(err, fleet.ErrUnhealthy) || len(h.Replaced) != 0 {
			t.Fatalf("%v %v", h, err)
		}
		began := time.Now()
		if h, err := w.d.Heal(t.Context(), ids[1]); err != nil || replaced(h) != "2 live" || time.Since(began) > 5*time.Second {
			t.Errorf("%v %v after %s", h, err, time.Since(began))
		}
		w.healed("1")
	})
}

// sicken has an instance answer 500 from now on, and waits until the router knows.
func (w *world) sicken(id string) {
	check, sick := w.router.Check, ""
	_, gs := w.look()
	for _, i := range gs[0].Instances {
		if i.ID == id {
			sick = i.Ports[80]
		}
	}
	w.router.Check = func(addr string) string {
		if addr == sick {
			return "L7STS/500"
		}
		return check(addr)
	}
	time.Sleep(time.Second)
}

// A temporary instance that a kill left serves on while it is the only one.
func TestHealLeavesATemporaryInstanceThatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 1, nil)
		w.crashAt = len(w.recs) + 5 // lease, launch, attach, ready, drain
		if _, _, killed := w.run(func() (fleet.Result, error) { _, err := w.d.Heal(t.Context(), ids[0]); return fleet.Result{}, err }); !killed || len(w.names()) != 2 {
			t.Fatal("not killed, or too early: ", w.names())
		}
		w.sicken(ids[0])
		stop := w.traffic()
		h, err := w.d.Heal(t.Context())
		time.Sleep(time.Second)
		if sent, failed := stop(); err != nil || len(h.Replaced) != 0 || failed != 0 || sent < 10 || len(w.names()) != 2 {
			t.Errorf("%v %v: %d of %d failed, there are %v", h, err, failed, sent, w.names())
		}
		if h, err := w.d.Heal(t.Context(), ids[0]); err != nil || replaced(h) != "1 live" {
			t.Errorf("%v %v", h, err)
		}
		w.healed("1")
	})
}

// The floor is that of the deployment that serves, with the defaults of now.
func TestHealKeepsTheFloorOfWhatServes(t *testing.T) {
	for name, c := range map[string]struct {
		size, percent int
		then          func(*world)
		most          int // instances at once, of this image
	}{
		"not of one that was rolled back since": {2, 100, func(w *world) {
			w.pool.Behave["sha256:bad"] = fake.Behaviour{Status: 500}
			if _, err := w.d.Deploy(w.t.Context(), request("bad")); !errors.Is(err, fleet.ErrRolledBack) {
				w.t.Fatal(err)
			}
		}, 3},
		"an older journal has none": {1, 50, func(w *world) { w.past.History[0].Policy.MinHealthy = 0 }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ids := healWorld(t, c.size, minHealthy(c.percent))
				c.then(w)
				most := 0
				w.d.Recorded = func(string, string) { most = max(most, len(w.names())) }
				if h, err := w.d.Heal(t.Context(), ids[0]); err != nil || replaced(h) != "1 live" || most != c.most {
					t.Errorf("%v %v, %d at once, want %d", h, err, most, c.most)
				}
			})
		})
	}
}

func TestHealGivesUpWhereThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, nil)
		w.kill(ids[0])
		w.pool.Max = 1
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if h, err := w.d.Heal(ctx); !errors.Is(err, fleet.ErrNoCapacity) || len(h.Replaced) != 0 {
			t.Errorf("%v %v", h, err)
		}
		w.pool.Max = 0
		if h, err := w.d.Heal(t.Context()); err != nil || replaced(h) == "" {
			t.Errorf("%v %v", h, err)
		}
		w.healed("1")
	})
}

// What a heal wrote down tells who did what to which instance.
func TestHealIsInTheJournal(t *testing.T) {
	for how, want := range map[string]string{"live": "drain detach end launch attach ready", "dead": "detach launch attach ready"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ids := healWorld(t, 2, nil)
				live := ids[:1]
				if how == "dead" {
					w.kill(ids[0])
					live = nil
				}
				from := len(w.recs)
				if _, err := w.d.Heal(t.Context(), live...); err != nil {
					t.Fatal(err)
				}
				var steps []string
				for _, r := range w.recs[from:] {
					var n struct {
						Heal, By, Step string
						Instances      []string
					}
					if err := json.Unmarshal(r.Data, &n); err != nil || r.Kind != "heal" {
						continue
					}
					if n.Heal == "" || !strings.Contains(n.By, "@") || !slices.Equal(n.Instances, ids[:1]) && n.Step != "launch" {
						t.Errorf("%s", r.Data)
					}
					steps = append(steps, n.Step)
				}
				if strings.Join(steps, " ") != want {
					t.Errorf("steps %v, want %s", steps, want)
				}
				if _, err := fleet.Replay(w.recs); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
