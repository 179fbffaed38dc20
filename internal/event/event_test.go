package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWithoutASinkAllIsSilent(t *testing.T) {
	ctx := context.Background()
	got, err := Do(ctx, "task", func(ctx context.Context) (int, error) {
		Infof(ctx, "a")
		Warnf(ctx, "b")
		Waiting(ctx, "c")
		Progressing(ctx)(1, 1)
		w := Writer(ctx)
		fmt.Fprintln(w, "d")
		return 7, w.Close()
	})
	if got != 7 || err != nil {
		t.Error(got, err)
	}
}

func TestEventsComeInOrderAndNameTheirTask(t *testing.T) {
	var r recorder
	ctx := With(t.Context(), r.sink, nil)
	boom := errors.New("boom")
	err := Run(ctx, "build", func(ctx context.Context) error {
		Infof(ctx, "will %s", "boot")
		_, err := Do(ctx, "boot", func(ctx context.Context) (int, error) {
			Waiting(ctx, "the guest")
			w := Writer(ctx)
			fmt.Fprint(w, "line\nrest")
			return 1, w.Close()
		})
		if err != nil {
			return err
		}
		Warnf(ctx, "odd")
		return Run(ctx, "step", func(context.Context) error { return boom })
	})
	if err != boom {
		t.Errorf("the error is %v", err)
	}
	ids := map[uint64]string{0: "-"}
	var got []string
	for i, e := range r.events {
		if e.Kind == Start {
			if _, ok := ids[e.Task]; ok {
				t.Errorf("task %d starts twice", e.Task)
			}
			ids[e.Task] = e.Name
		}
		if ids[e.Task] != e.Name {
			t.Errorf("%s of task %d is called %q", e.Kind, e.Task, e.Name)
		}
		if i > 0 && e.Time.Before(r.events[i-1].Time) {
			t.Errorf("event %d is older than the one before", i)
		}
		got = append(got, fmt.Sprintf("%s %s<%s %s%s", e.Kind, e.Name, ids[e.Parent], e.Text, e.Err))
	}
	if d := cmp.Diff([]string{
		"start build<- ", "info build<- will boot",
		"start boot<build ", "wait boot<- the guest", "output boot<- line", "output boot<- rest", "end boot<build ",
		"warning build<- odd",
		"start step<build ", "end step<build boom",
		"end build<- boom",
	}, got); d != "" {
		t.Error(d)
	}
}

func TestAnEndSaysHowLongItTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		if err := Run(With(t.Context(), r.sink, nil), "task", func(context.Context) error {
			time.Sleep(90 * time.Second)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if end := r.events[1]; end.Kind != End || end.Seconds != 90 {
			t.Errorf("%+v", end)
		}
	})
}

func TestSecretsAreInNoEventOfAnyKind(t *testing.T) {
	const secret = "hunter2-hunter2"
	var first, second recorder
	ctx := With(t.Context(), first.sink, redactor(secret))
	ctx = Tee(ctx, second.sink)
	err := Run(ctx, "step "+secret, func(ctx context.Context) error {
		Infof(ctx, "info %s", secret)
		Warnf(ctx, "warning %s", secret)
		Waiting(ctx, "wait %s", secret)
		w := Writer(ctx)
		fmt.Fprint(w, "output hunter2")
		fmt.Fprint(w, "-hunter2\nand hunter2-hun")
		fmt.Fprint(w, "ter2")
		return errors.Join(w.Close(), fmt.Errorf("error %s", secret))
	})
	if err == nil || err.Error() != "error "+secret {
		t.Errorf("the error itself stays: %v", err)
	}
	for _, r := range []*recorder{&first, &second} {
		if len(r.events) != 7 {
			t.Errorf("%d events", len(r.events))
		}
		for _, e := range r.events {
			raw, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if s := string(raw); redactor(secret).Clean(s) != s {
				t.Errorf("%s: %s", e.Kind, s)
			}
		}
	}
}

func TestTeeAddsAReaderBelowIt(t *testing.T) {
	var outer, inner recorder
	ctx := With(t.Context(), outer.sink, nil)
	Infof(ctx, "before")
	Infof(Tee(ctx, inner.sink), "below")
	Infof(ctx, "after")
	Infof(Tee(context.Background(), inner.sink), "alone")
	if d := cmp.Diff([]string{"before", "below", "after"}, outer.texts()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"below", "alone"}, inner.texts()); d != "" {
		t.Error(d)
	}
}

func TestProgressIsTenASecondAndReachesTheTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		report := Progressing(With(t.Context(), r.sink, nil))
		for i := int64(1); i <= 1050; i++ { // a millisecond each
			report(i, 1050)
			time.Sleep(time.Millisecond)
		}
		var got []int64
		for _, e := range r.events {
			got = append(got, e.Done)
		}
		want := []int64{1, 101, 201, 301, 401, 501, 601, 701, 801, 901, 1001, 1050}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestTasksOfManyGoroutinesHaveTheirOwnIds(t *testing.T) {
	var r recorder
	ctx := With(t.Context(), r.sink, nil)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_ = Run(ctx, "task", func(ctx context.Context) error { Infof(ctx, "x"); return nil })
		})
	}
	wg.Wait()
	seen := map[uint64][]Kind{}
	for _, e := range r.events {
		seen[e.Task] = append(seen[e.Task], e.Kind)
	}
	if len(seen) != 50 {
		t.Errorf("%d tasks", len(seen))
	}
	for id, kinds := range seen {
		if !slices.Equal(kinds, []Kind{Start, Info, End}) {
			t.Errorf("task %d: %v", id, kinds)
		}
	}
}
