package fault_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/model"
)

var group = fleet.GroupID{Fleet: "web", Slot: fleet.Blue, Deployment: "01J00000000000000000000000"}

func launch(p fleet.Pool, size int) error {
	return p.Launch(context.Background(), group, fleet.Spec{Image: artifact.Image{Digest: "sha256:a"}, Size: size, Ports: []int{80}})
}

func count(t *testing.T, p fleet.Pool) int {
	t.Helper()
	gs, err := p.Groups(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range gs {
		n += len(g.Instances)
	}
	return n
}

func TestEachKindIsWhatItSays(t *testing.T) {
	for name, c := range map[string]struct {
		plan fault.Plan
		errs []error // of three launches of 1, 2 and 3 instances
		size []int   // that are there after each
	}{
		"nothing":                         {fault.Plan{}, []error{nil, nil, nil}, []int{1, 2, 3}},
		"the second call fails":           {fault.Plan{At: 2}, []error{nil, fault.ErrFailed, nil}, []int{1, 1, 3}},
		"the second is done all the same": {fault.Plan{At: 2, As: fault.Lost}, []error{nil, fault.ErrTimeout, nil}, []int{1, 2, 3}},
		"two are refused":                 {fault.Plan{At: 1, As: fault.Throttled, Burst: 2}, []error{fault.ErrThrottled, fault.ErrThrottled, nil}, []int{0, 0, 3}},
		"all fail":                        {fault.Plan{Fail: 1, Only: []string{"launch"}}, []error{fault.ErrFailed, fault.ErrFailed, fault.ErrFailed}, []int{0, 0, 0}},
		"all are lost":                    {fault.Plan{Lose: 1}, []error{fault.ErrTimeout, fault.ErrTimeout, fault.ErrTimeout}, []int{1, 2, 3}},
		"faults of others":                {fault.Plan{Fail: 1, Only: []string{"weigh"}}, []error{nil, nil, nil}, []int{1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			real := &model.Pool{}
			p := fault.New(c.plan).Pool(real)
			for n := range 3 {
				if err := launch(p, n+1); !errors.Is(err, c.errs[n]) || (err == nil) != (c.errs[n] == nil) {
					t.Errorf("launch %d: %v, want %v", n+1, err, c.errs[n])
				}
				if got := count(t, real); got != c.size[n] {
					t.Errorf("after launch %d there are %d instances, want %d", n+1, got, c.size[n])
				}
			}
		})
	}
}

func TestALieIsTheAnswerBefore(t *testing.T) {
	real := &model.Pool{}
	in := fault.New(fault.Plan{Lie: 1})
	p := in.Pool(real)
	if err := launch(p, 1); err != nil {
		t.Fatal(err)
	}
	if n := count(t, p); n != 1 { // there is no answer before
		t.Fatal(n)
	}
	if err := launch(p, 3); err != nil {
		t.Fatal(err)
	}
	if n := count(t, p); n != 1 {
		t.Errorf("%d instances, and the answer before was 1", n)
	}
	in.Set(false)
	if n := count(t, p); n != 3 {
		t.Errorf("%d instances without faults", n)
	}

	r := &model.Router{Check: func(string) string { return "L7OK" }}
	in = fault.New(fault.Plan{Lie: 1})
	lies := in.Router(r)
	ctx := t.Context()
	for _, err := range []error{lies.Ensure(ctx), func() error { _, err := lies.Status(ctx); return err }(), lies.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, err := lies.Status(ctx); err != nil || !st.Up || st.Weights[fleet.Blue] != 0 {
		t.Errorf("%v, %v", st.Weights, err)
	}
}

func TestASlowCallTakesItsTimeAndIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &model.Pool{}
		began := time.Now()
		if err := launch(fault.New(fault.Plan{Slow: 1, Delay: time.Minute}).Pool(p), 2); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Minute || count(t, p) != 2 {
			t.Errorf("%s, %d instances", took, count(t, p))
		}
	})
}

func TestTheSameSeedIsTheSameFaults(t *testing.T) {
	play := func(seed uint64) (told []fault.Injected) {
		plan := fault.Mixed(seed)
		in := fault.New(plan)
		in.Told = func(i fault.Injected) { told = append(told, i) }
		in.Sleep = func(context.Context, time.Duration) {}
		p := in.Pool(&model.Pool{})
		for range 300 {
			_ = launch(p, 1)
			_, _ = p.Groups(t.Context(), "web")
		}
		return told
	}
	first := play(7)
	if diff := cmp.Diff(first, play(7)); diff != "" {
		t.Error(diff)
	}
	if slices.Equal(first, play(8)) {
		t.Error("another seed is the same")
	}
	seen := map[fault.Kind]bool{}
	for _, i := range first {
		seen[i.Kind] = true
		if i.Call == "groups" && i.Kind == fault.Lost {
			t.Error("a call that only asks was lost")
		}
	}
	if len(seen) < 4 {
		t.Errorf("of 600 calls only %v went wrong", seen)
	}
}

// Powers that not every pool and router has go through.
func TestOptionalPowersGoThrough(t *testing.T) {
	ctx := t.Context()
	p := fault.New(fault.Plan{}).Pool(&model.Pool{})
	if text, err := p.(fleet.Witness).Evidence(ctx, group); err != nil || !strings.Contains(text, group.Deployment) {
		t.Errorf("%q, %v", text, err)
	}
	r := fault.New(fault.Plan{}).Router(&model.Router{}).(fleet.Fencer)
	if err := r.Fence(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if err := r.Fence(ctx, 6); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("an epoch went back: %v", err)
	}
	if _, ok := p.(interface{ Unwrap() fleet.Pool }).Unwrap().(*model.Pool); !ok {
		t.Error("the pool behind it cannot be reached")
	}
}
