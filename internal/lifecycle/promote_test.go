package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/test/fake"
)

func TestAChannelMovesGoesBackAndRemembers(t *testing.T) {
	each(t, func(t *testing.T, s lifecycle.Store) {
		one, two := bake(t, s, "web", "1.0.0", nil, ""), bake(t, s, "web", "1.1.0", nil, "")
		diff := func(_ context.Context, from, to artifact.Image) lifecycle.Changes {
			return lifecycle.Changes{Summary: from.Version + " to " + to.Version, Detail: json.RawMessage(`{"packages":1}`)}
		}
		promote := func(img artifact.Image, reason string, after time.Duration) lifecycle.Outcome {
			t.Helper()
			return must[lifecycle.Outcome](t)(lifecycle.Promote(t.Context(), s, at("anna@ops", after), img, "stable", reason, diff))
		}
		if out := promote(one, "first", 0); !out.Changed || out.From != nil || out.Winner != nil {
			t.Errorf("the first: %+v", out)
		}
		if out := promote(one, "again", time.Second); out.Changed || out.Reason != "first" {
			t.Errorf("the same again: %+v", out)
		}
		promote(two, "second", 2*time.Second)
		promote(one, "back: 1.1.0 leaks", time.Nanosecond) // its clock was set back
		h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable"))
		var told []string
		for _, e := range h.Entries {
			from, changes := "nothing", ""
			if e.From != nil {
				from = e.From.Version
			}
			if e.Changes != nil {
				changes = e.Changes.Summary + string(e.Changes.Detail)
			}
			told = append(told, fmt.Sprintf("%d %s from %s by %s at %s: %s [%s] back=%t %s", e.Serial, e.To.Version, from, e.By, e.At.Sub(began), e.Reason, changes, e.Back, e.Note))
		}
		want := []string{
			`3 1.0.0 from 1.1.0 by anna@ops at 1ns: back: 1.1.0 leaks [1.1.0 to 1.0.0{"packages":1}] back=true `,
			`2 1.1.0 from 1.0.0 by anna@ops at 2s: second [1.0.0 to 1.1.0{"packages":1}] back=false `,
			`1 1.0.0 from nothing by anna@ops at 0s: first [] back=false `,
		}
		if !slices.Equal(told, want) || h.Holds == nil || h.Holds.Digest != one.Digest || h.Moved != "" {
			t.Errorf("holds %v, moved %q:\n%s", h.Holds, h.Moved, strings.Join(told, "\n"))
		}
		_ = s.Tag(t.Context(), "web", "nightly", one.Digest)
		images := must[[]artifact.Image](t)(s.List(t.Context(), "web"))
		if got := must[map[artifact.Digest][]string](t)(lifecycle.Promoted(t.Context(), s, images)); len(got) != 1 || !slices.Equal(got[one.Digest], []string{"stable"}) {
			t.Errorf("channels %v", got)
		}
		for tag, want := range map[string]bool{"stable": true, "latest": false, "1.0.0": false} {
			if is, err := lifecycle.IsChannel(t.Context(), s, "web", tag); err != nil || is != want {
				t.Errorf("%s is a channel: %t, %v", tag, is, err)
			}
		}
	})
}

func TestWhatIsNoChannel(t *testing.T) {
	s := new(fake.Store)
	img := bake(t, s, "web", "1.0.0", nil, "")
	for channel, want := range map[string]string{"latest": "each bake moves that tag", "1.0.0": "is a version", "a b": "no version or tag"} {
		if _, err := lifecycle.Promote(t.Context(), s, at("anna", 0), img, channel, "", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", channel, err)
		}
	}
	if h, err := lifecycle.History(t.Context(), s, "web", "stable"); err != nil || len(h.Entries) > 0 || h.Holds != nil {
		t.Errorf("%+v, %v", h, err)
	}
}

// What moved the tag besides promote, and what went with an image, is told.
func TestHistoryTellsWhatItDoesNotKnow(t *testing.T) {
	s := new(fake.Store)
	var img []artifact.Image
	for i := range 4 {
		img = append(img, bake(t, s, "web", fmt.Sprintf("1.%d.0", i), nil, ""))
	}
	promote := func(i int) {
		t.Helper()
		must[lifecycle.Outcome](t)(lifecycle.Promote(t.Context(), s, at("anna", time.Duration(i)), img[i], "stable", "", nil))
	}
	tell := func() string {
		t.Helper()
		h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable"))
		var b strings.Builder
		for _, e := range h.Entries {
			fmt.Fprintf(&b, "%d %s, %s; ", e.Serial, e.To.Version, e.Note)
		}
		return b.String() + h.Moved
	}
	_ = s.Tag(t.Context(), "web", "stable", img[0].Digest)
	promote(1)
	if got := tell(); got != "1 1.1.0, the tag was there before the channel; " {
		t.Error(got)
	}
	_ = s.Tag(t.Context(), "web", "stable", img[0].Digest)
	if got := tell(); !strings.HasSuffix(got, "; the tag points at 1.0.0: it was moved by other means, or the last promotion was cut off") {
		t.Error(got)
	}
	promote(2)
	promote(3)
	if err := s.Remove(t.Context(), artifact.Ref{Name: "web", Tag: "1.1.0"}); err != nil {
		t.Fatal(err)
	}
	if got := tell(); got != "3 1.3.0, ; 2 1.2.0, those before went with their images; " {
		t.Error(got)
	}
	if err := s.Remove(t.Context(), artifact.Ref{Name: "web", Tag: "1.3.0"}); err != nil {
		t.Fatal(err)
	}
	if got := tell(); got != "2 1.2.0, those before went with their images; the tag is gone" {
		t.Error(got)
	}
	// What was retired leaves its promotions.
	if err := s.Retire(t.Context(), must[artifact.Image](t)(s.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1.2.0"})), "old", began); err != nil {
		t.Fatal(err)
	}
	if h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable")); len(h.Entries) != 1 || !h.Entries[0].Gone {
		t.Errorf("%+v", h)
	}
	// Rubbish, and a record of another image, are told and stop nothing.
	raw := []byte("{}")
	attach := func(kind string, raw []byte) {
		t.Helper()
		must[artifact.Attachment](t)(s.Attach(t.Context(), img[2].Digest, artifact.Attachment{Kind: kind, Media: statement.Media, Created: began}, raw))
	}
	attach(lifecycle.PromotionKind, raw)
	about := must[statement.Statement](t)(statement.New("web:1.2.0", img[2].Digest, lifecycle.PromotionType, lifecycle.Promotion{Channel: "stable", To: lifecycle.Held{Version: "1.0.0", Digest: img[0].Digest}}))
	attach(lifecycle.PromotionKind, about.Bytes())
	promote(0)
	if h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable")); len(h.Broken) != 2 || h.Holds.Version != "1.0.0" || h.Entries[0].Serial != 3 {
		t.Errorf("%+v", h)
	}
}

// A registry without referrers keeps them in a list that the slower of two overwrites.
func TestAPromotionThatWasLostIsWrittenAgain(t *testing.T) {
	s := &forgetful{Store: new(fake.Store), times: 2}
	img := bake(t, s, "web", "1.0.0", nil, "")
	must[lifecycle.Outcome](t)(lifecycle.Promote(t.Context(), s, at("anna", 0), img, "stable", "", nil))
	s.times = 1
	must[lifecycle.Revocation](t)(lifecycle.Revoke(t.Context(), s, at("anna", 0), img, time.Time{}, "leaks"))
	h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable"))
	why := must[string](t)(lifecycle.Revoked(t.Context(), s, img, began))
	if len(h.Entries) != 1 || why == "" {
		t.Errorf("%+v, revoked %q", h, why)
	}
	s.times = 1000
	if _, err := lifecycle.Revoke(t.Context(), s, at("anna", 0), img, time.Time{}, "leaks"); err == nil {
		t.Error("it is said to be written, and is not")
	}
}

type forgetful struct {
	lifecycle.Store
	times int
}

func (f *forgetful) Attach(ctx context.Context, to artifact.Digest, a artifact.Attachment, body []byte) (artifact.Attachment, error) {
	if f.times > 0 {
		f.times--
		return a, nil
	}
	return f.Store.Attach(ctx, to, a, body)
}

// turns lets operators act on a store one call at a time, in an order that a seed decides.
type turns struct {
	r     *rand.Rand
	asks  chan int // who asks for a turn; ^who: who is done
	grant []chan bool
	tick  int // turns that were given
}

var errKilled = errors.New("killed")

// operator is a store as one of them sees it.
type operator struct {
	lifecycle.Store
	t    *turns
	who  int
	dead bool
}

func (o *operator) turn() error {
	if !o.dead {
		o.t.asks <- o.who
		o.dead = !<-o.t.grant[o.who]
	}
	if o.dead {
		return errKilled
	}
	return nil
}

func (o *operator) Resolve(ctx context.Context, ref artifact.Ref) (artifact.Image, error) {
	if err := o.turn(); err != nil {
		return artifact.Image{}, err
	}
	return o.Store.Resolve(ctx, ref)
}

func (o *operator) Tag(ctx context.Context, name, tag string, d artifact.Digest) error {
	if err := o.turn(); err != nil {
		return err
	}
	return o.Store.Tag(ctx, name, tag, d)
}

func (o *operator) List(ctx context.Context, name string) ([]artifact.Image, error) {
	if err := o.turn(); err != nil {
		return nil, err
	}
	return o.Store.List(ctx, name)
}

func (o *operator) Attach(ctx context.Context, to artifact.Digest, a artifact.Attachment, body []byte) (artifact.Attachment, error) {
	if err := o.turn(); err != nil {
		return a, err
	}
	return o.Store.Attach(ctx, to, a, body)
}

func (o *operator) Attached(ctx context.Context, to artifact.Digest, kind string) ([]artifact.Attachment, error) {
	if err := o.turn(); err != nil {
		return nil, err
	}
	return o.Store.Attached(ctx, to, kind)
}

// run gives turns until all are done; one in lethal turns kills.
func (t *turns) run(n, lethal int) {
	var waiting []int
	for n > 0 {
		for len(waiting) < n {
			if who := <-t.asks; who >= 0 {
				waiting = append(waiting, who)
			} else {
				n--
			}
		}
		if n == 0 {
			return
		}
		slices.Sort(waiting) // the order of goroutines decides nothing
		i := t.r.IntN(len(waiting))
		who := waiting[i]
		waiting = slices.Delete(waiting, i, i+1)
		t.tick++
		t.grant[who] <- lethal == 0 || t.r.IntN(lethal) > 0
	}
}

type done struct {
	lifecycle.Outcome
	began, ended int // ticks
	err          error
}

// race has n operators promote images at once, several times each, by clocks that differ.
func race(t *testing.T, s lifecycle.Store, images []artifact.Image, r *rand.Rand, n, lethal int) (all []done) {
	tt := &turns{r: r, asks: make(chan int)}
	for range n {
		tt.grant = append(tt.grant, make(chan bool))
	}
	type job struct {
		img  artifact.Image
		skew time.Duration
	}
	plan := make([][]job, n)
	for who := range plan {
		for range 1 + r.IntN(2) {
			plan[who] = append(plan[who], job{images[r.IntN(len(images))], time.Duration(r.IntN(7200)-3600) * time.Second})
		}
	}
	results := make([][]done, n)
	var wg sync.WaitGroup
	for who := range n {
		wg.Go(func() {
			defer func() { tt.asks <- ^who }()
			o := &operator{Store: s, t: tt, who: who}
			for _, j := range plan[who] {
				var d done
				// Nobody acts between a grant and the next ask of who has it, so tick stands.
				if d.err = o.turn(); d.err == nil {
					d.began = tt.tick
					d.Outcome, d.err = lifecycle.Promote(t.Context(), o, at(fmt.Sprint("op", who), j.skew), j.img, "stable", "", nil)
					d.ended = tt.tick
				}
				results[who] = append(results[who], d)
			}
		})
	}
	tt.run(n, lethal)
	wg.Wait()
	return slices.Concat(results...)
}

// Whatever the order of their calls: every promotion is in the history, the one
// that began after another ended comes after it, and the tag is where the history ends.
func TestPromotionsAtOnce(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := new(fake.Store)
		var images []artifact.Image
		for i := range 3 {
			images = append(images, bake(t, s, "web", fmt.Sprintf("1.%d.0", i), nil, ""))
		}
		lethal := 0
		if seed%2 == 1 {
			lethal = 12
		}
		all := race(t, s, images, r, 3, lethal)
		if lethal > 0 { // a killed one left the tag behind: the next one mends it
			must[lifecycle.Outcome](t)(lifecycle.Promote(t.Context(), s, at("after", 0), images[0], "stable", "", nil))
		}
		h := must[lifecycle.Past](t)(lifecycle.History(t.Context(), s, "web", "stable"))
		if h.Moved != "" || h.Holds == nil || h.Holds.Digest != h.Entries[0].To.Digest || len(h.Broken) > 0 {
			t.Fatalf("seed %d: the tag holds %v, the history ends with %+v: %s", seed, h.Holds, h.Entries[0], h.Moved)
		}
		place := map[string]int{}
		for i, e := range h.Entries {
			place[e.ID] = len(h.Entries) - i
		}
		if len(place) != len(h.Entries) {
			t.Fatalf("seed %d: an entry is there twice", seed)
		}
		for _, a := range all {
			if a.err != nil {
				if lethal == 0 || !errors.Is(a.err, errKilled) {
					t.Fatalf("seed %d: %v", seed, a.err)
				}
				continue
			}
			if place[a.ID] == 0 {
				t.Fatalf("seed %d: promotion %+v is not in the history", seed, a.Promotion)
			}
			for _, b := range all {
				if b.err == nil && b.Changed && a.ended < b.began && place[a.ID] >= place[b.ID] {
					t.Fatalf("seed %d: %+v ended before %+v began, and comes after it", seed, a.Promotion, b.Promotion)
				}
			}
			if a.Winner != nil && place[a.Winner.ID] <= place[a.ID] {
				t.Fatalf("seed %d: the winner of %+v is the earlier %+v", seed, a.Promotion, a.Winner)
			}
		}
	}
}

// The same with nothing in between, on the layout on disk.
func TestPromotionsAtOnceOnDisk(t *testing.T) {
	each(t, func(t *testing.T, s lifecycle.Store) {
		var images []artifact.Image
		for i := range 6 {
			images = append(images, bake(t, s, "web", fmt.Sprintf("1.%d.0", i), nil, ""))
		}
		var wg sync.WaitGroup
		for i, img := range images {
			wg.Go(func() {
				if _, err := lifecycle.Promote(t.Context(), s, at("op", time.Duration(i)), img, "stable", "", nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		all, err := lifecycle.Channels(t.Context(), s, "web")
		if err != nil || len(all) != 1 || len(all[0].Entries) != 6 || all[0].Moved != "" || all[0].Holds.Digest != all[0].Entries[0].To.Digest {
			t.Errorf("%+v, %v", all, err)
		}
	})
}
