package conformance

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/journal"
	"github.com/rebake/rebake/test/fake"
)

// HomeOptions are what the suite must know of a Home.
type HomeOptions struct {
	// Other opens the same home as another operator would, elsewhere.
	Other func(t *testing.T) fleet.Home
	// Damage changes a byte in the middle of a fleet's journal.
	Damage func(t *testing.T, name string)
	// Lose removes a fleet's Config and nothing else.
	Lose func(t *testing.T, name string)
	// Racers is how many operators race, and Rounds how often; 0: 8 and 10.
	Racers, Rounds int
}

// Home is the suite of fleet.Home. open makes an empty one.
func Home(t *testing.T, open func(t *testing.T) (fleet.Home, HomeOptions)) {
	for name, f := range map[string]func(*homeSuite){
		"an empty home has no fleets":                  (*homeSuite).empty,
		"what was written is read back, by others too": (*homeSuite).readBack,
		"one writer at a time, and the other is named": (*homeSuite).oneWriter,
		"of many who race for a fleet one wins":        (*homeSuite).race,
		"readers see whole records while one writes":   (*homeSuite).readWhileWriting,
		"a write is done whatever becomes of its ctx":  (*homeSuite).cancelled,
		"a long journal": (*homeSuite).long,
		"a damaged journal is corrupt, and left alone": (*homeSuite).damaged,
		"a journal without its record is an orphan":    (*homeSuite).orphan,
		"a removed fleet leaves nothing":               (*homeSuite).removed,
		"a whole fleet is deployed from two places":    (*homeSuite).deployed,
	} {
		t.Run(name, func(t *testing.T) {
			h, o := open(t)
			f(&homeSuite{t, h, o})
		})
	}
}

type homeSuite struct {
	*testing.T
	home fleet.Home
	o    HomeOptions
}

func (s *homeSuite) take(h fleet.Home, name string) (fleet.Desk, []journal.Record) {
	s.Helper()
	d, err := h.Books(name).Take(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	recs, err := d.Open(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return d, recs
}

func (s *homeSuite) release(d fleet.Desk) {
	s.Helper()
	if err := d.Release(s.Context()); err != nil {
		s.Fatal(err)
	}
}

func (s *homeSuite) append(d fleet.Desk, kind string, n int) journal.Record {
	s.Helper()
	r, err := d.Append(s.Context(), kind, map[string]int{"n": n})
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// wrote makes a fleet with so many records.
func (s *homeSuite) wrote(name string, n int) {
	s.Helper()
	d, _ := s.take(s.home, name)
	if err := d.Save(s.Context(), fleet.Config{Name: name, Size: 3}); err != nil {
		s.Fatal(err)
	}
	for i := range n {
		s.append(d, "note", i)
	}
	s.release(d)
}

func (s *homeSuite) empty() {
	names, err := s.home.Names(s.Context())
	if err != nil || len(names) != 0 {
		s.Error(names, err)
	}
	if lost, err := s.home.Orphans(s.Context()); err != nil || len(lost) != 0 {
		s.Error(lost, err)
	}
	b := s.home.Books("web")
	if _, err := b.Config(s.Context()); !errors.Is(err, fleet.ErrNoFleet) || !strings.Contains(err.Error(), "web") {
		s.Error(err)
	}
	if recs, err := b.Records(s.Context()); err != nil || len(recs) != 0 {
		s.Error(recs, err)
	}
}

func (s *homeSuite) readBack() {
	d, recs := s.take(s.home, "web")
	if len(recs) != 0 {
		s.Fatal(recs)
	}
	want := fleet.Config{Name: "web", Size: 3, PoolKind: "asg", Pool: []byte(`{"a":1}`)}
	for _, size := range []int{2, 3} {
		c := want
		c.Size = size
		if err := d.Save(s.Context(), c); err != nil {
			s.Fatal(err)
		}
	}
	for i := range 5 {
		if r := s.append(d, "note", i); r.Seq != i+1 {
			s.Errorf("record %d is %d", i+1, r.Seq)
		}
	}
	s.release(d)
	s.wrote("api", 1)
	for _, h := range []fleet.Home{s.home, s.o.Other(s.T)} {
		if names, err := h.Names(s.Context()); err != nil || !slices.Equal(names, []string{"api", "web"}) {
			s.Error(names, err)
		}
		c, err := h.Books("web").Config(s.Context())
		c.Pool = []byte(strings.NewReplacer("\n", "", " ", "").Replace(string(c.Pool)))
		if err != nil || !reflect.DeepEqual(c, want) {
			s.Errorf("%+v, %v", c, err)
		}
		recs, err := h.Books("web").Records(s.Context())
		if err != nil || len(recs) != 5 || string(recs[4].Data) != `{"n":4}` || recs[4].Prev != recs[3].Sum {
			s.Errorf("%+v %v", recs, err)
		}
		if lost, err := h.Orphans(s.Context()); err != nil || len(lost) != 0 {
			s.Error(lost, err)
		}
	}
	d, recs = s.take(s.o.Other(s.T), "web")
	if len(recs) != 5 {
		s.Errorf("%d records", len(recs))
	}
	if r := s.append(d, "more", 0); r.Seq != 6 || r.Prev != recs[4].Sum {
		s.Errorf("%+v", r)
	}
	s.release(d)
}

func (s *homeSuite) oneWriter() {
	d, _ := s.take(s.home, "web")
	me := fleet.Me()
	for _, h := range []fleet.Home{s.home, s.o.Other(s.T)} {
		_, err := h.Books("web").Take(s.Context())
		if !errors.Is(err, fleet.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("%s on %s, process %d, since ", me.User, me.Host, me.PID)) {
			s.Errorf("the second operator got: %v", err)
		}
	}
	other, _ := s.take(s.o.Other(s.T), "api") // another fleet is free
	s.release(other)
	s.append(d, "note", 0)
	s.release(d)
	d, _ = s.take(s.o.Other(s.T), "web")
	s.release(d)
}

func (s *homeSuite) race() {
	racers, rounds := s.o.Racers, s.o.Rounds
	if racers == 0 {
		racers, rounds = 8, 10
	}
	var homes []fleet.Home
	for range racers {
		homes = append(homes, s.o.Other(s.T))
	}
	for round := range rounds {
		var mu sync.Mutex
		var won []fleet.Desk
		var wg sync.WaitGroup
		start := make(chan struct{})
		for _, h := range homes {
			wg.Go(func() {
				<-start
				d, err := h.Books("web").Take(s.Context())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, d)
				} else if !errors.Is(err, fleet.ErrLocked) {
					s.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(start)
		wg.Wait()
		if len(won) != 1 {
			s.Fatalf("round %d: %d of %d won", round, len(won), racers)
		}
		recs, err := won[0].Open(s.Context())
		if err != nil || len(recs) != round {
			s.Fatalf("round %d: %d records, %v", round, len(recs), err)
		}
		s.append(won[0], "note", round)
		s.release(won[0])
	}
}

func (s *homeSuite) readWhileWriting() {
	d, _ := s.take(s.home, "web")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 40 {
			if _, err := d.Append(s.Context(), "note", i); err != nil {
				s.Error(err)
			}
		}
	}()
	b, last := s.o.Other(s.T).Books("web"), 0
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		recs, err := b.Records(s.Context())
		if err != nil || len(recs) < last {
			s.Fatalf("%d records after %d: %v", len(recs), last, err)
		}
		last = len(recs)
	}
	if last != 40 {
		s.Errorf("%d records", last)
	}
	s.release(d)
}

func (s *homeSuite) cancelled() {
	d, _ := s.take(s.home, "web")
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if err := d.Save(ctx, fleet.Config{Name: "web"}); err != nil {
		s.Error(err)
	}
	if _, err := d.Append(ctx, "note", 1); err != nil {
		s.Error(err)
	}
	if err := d.Release(ctx); err != nil {
		s.Error(err)
	}
	d, recs := s.take(s.o.Other(s.T), "web")
	if len(recs) != 1 {
		s.Errorf("%d records", len(recs))
	}
	s.release(d)
}

// Some hundred records, over several sessions.
func (s *homeSuite) long() {
	total := 0
	for session := range 5 {
		d, recs := s.take(s.home, "web")
		if len(recs) != total {
			s.Fatalf("session %d: %d records of %d", session, len(recs), total)
		}
		for range 70 {
			s.append(d, "note", total)
			total++
		}
		s.release(d)
		recs, err := s.o.Other(s.T).Books("web").Records(s.Context())
		if err != nil || len(recs) != total || string(recs[total-1].Data) != fmt.Sprintf(`{"n":%d}`, total-1) {
			s.Fatalf("session %d: %d records of %d, %v", session, len(recs), total, err)
		}
	}
}

func (s *homeSuite) damaged() {
	s.wrote("web", 5)
	s.o.Damage(s.T, "web")
	if _, err := s.home.Books("web").Records(s.Context()); !errors.Is(err, journal.ErrCorrupt) {
		s.Errorf("read: %v", err)
	}
	d, err := s.home.Books("web").Take(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if _, err := d.Open(s.Context()); !errors.Is(err, journal.ErrCorrupt) {
		s.Errorf("opened: %v", err)
	}
	s.release(d)
	if _, err := s.home.Books("web").Records(s.Context()); !errors.Is(err, journal.ErrCorrupt) {
		s.Errorf("read again: %v", err)
	}
}

func (s *homeSuite) orphan() {
	s.wrote("web", 2)
	s.wrote("api", 0)
	s.o.Lose(s.T, "web")
	if lost, err := s.home.Orphans(s.Context()); err != nil || len(lost) != 1 || !strings.Contains(lost[0], "web") {
		s.Error(lost, err)
	}
	if names, err := s.home.Names(s.Context()); err != nil || !slices.Equal(names, []string{"api"}) {
		s.Error(names, err)
	}
}

func (s *homeSuite) removed() {
	for range 2 { // a new one of the name begins anew
		s.wrote("web", 3)
		if recs, err := s.home.Books("web").Records(s.Context()); err != nil || len(recs) != 3 {
			s.Fatal(len(recs), err)
		}
		d, err := s.o.Other(s.T).Books("web").Take(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		if err := d.Remove(s.Context()); err != nil {
			s.Fatal(err)
		}
		s.release(d)
		s.empty()
	}
}

// Two operators, each with his own home of the same place, take turns.
func (s *homeSuite) deployed() {
	pool := &fake.Pool{}
	router := &fake.Router{Check: pool.Check, Every: time.Millisecond}
	var at []*fleet.Deployer
	for _, h := range []fleet.Home{s.home, s.o.Other(s.T)} {
		at = append(at, &fleet.Deployer{Books: h.Books("web"), Config: fleet.Config{Name: "web", Size: 2}, Pool: pool, Router: router, Poll: time.Millisecond})
	}
	for i, version := range []string{"1", "2", "3"} {
		img := artifact.Image{Name: "web", Version: version, Digest: artifact.Digest("sha256:" + version)}
		res, err := at[i%2].Deploy(s.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}}, Policy: fleet.Policy{Port: 80}})
		if err != nil || res.State != fleet.Done {
			s.Fatalf("%s: %s %v", version, res.State, err)
		}
	}
	if _, err := at[1].Rollback(s.Context(), "by hand"); err != nil {
		s.Fatal(err)
	}
	h, err := at[0].History(s.Context())
	if err != nil || len(h) != 4 || h.Current().Spec.Image.Version != "2" {
		s.Fatalf("%d deployments, current %+v, %v", len(h), h.Current(), err)
	}
	past, _, err := at[1].Timeline(s.Context())
	if err != nil || len(past) != 4 || past[3].Outcome == "" {
		s.Error(past, err)
	}
	if err := at[0].Destroy(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.empty()
}
