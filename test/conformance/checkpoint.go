package conformance

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
)

// Checkpointer is the suite of builder.Checkpointer, for a Builder that has the
// power. The guest's /run must be lost when it boots. Its one case shares the machines.
func Checkpointer(t *testing.T, open func(t *testing.T) BuilderWorld) {
	w := open(t)
	if w.Patience == 0 {
		w.Patience = 10 * time.Second
	}
	s := &checkpointSuite{builderSuite{BuilderWorld: w, t: t, named: map[string]bool{}}}
	t.Cleanup(s.nothingLeft)
	s.run()
}

type checkpointSuite struct{ builderSuite }

func (s *checkpointSuite) power(b builder.Builder) builder.Checkpointer {
	s.t.Helper()
	cp, ok := b.(builder.Checkpointer)
	if !ok {
		s.t.Fatalf("a %T makes no checkpoints", b)
	}
	return cp
}

func key(name string) artifact.Digest {
	var in artifact.Inputs
	in.Add("test", name)
	return in.Digest()
}

func (s *checkpointSuite) enter(m builder.Machine) *ssh.Client {
	s.t.Helper()
	ep, err := m.Endpoint(s.t.Context())
	s.ok(err)
	c, err := ssh.Dial(s.t.Context(), ssh.Target{Addr: ep.Addr, User: ep.User, Signer: ep.Signer, HostKeys: ep.HostKeys}, ssh.Options{Timeout: s.Patience})
	if err != nil {
		s.t.Fatalf("%v\n%s", err, m.Console(2000))
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// do runs a script in the guest and returns what it prints.
func (s *checkpointSuite) do(c *ssh.Client, script string) string {
	s.t.Helper()
	var out bytes.Buffer
	if err := c.Run(s.t.Context(), provisioner.Cmd{Line: script, Stdout: &out, Stderr: &out}); err != nil {
		s.t.Fatalf("%s: %v: %s", script, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func (s *checkpointSuite) run() {
	ctx := s.t.Context()
	first := s.power(s.Builder)
	if _, ok, err := first.Find(ctx, key("one")); ok || err != nil {
		s.t.Errorf("found %v, %v before there was any", ok, err)
	}
	m, err := s.Builder.Boot(ctx, s.id("a1"))
	s.ok(err)
	c := s.enter(m)
	s.do(c, "echo before >file; echo memory >/run/mem; sync")

	finish, err := first.Save(ctx, m, key("one"), true, []byte("a note"))
	s.ok(err)
	s.do(c, "echo after >file; echo after >/run/mem; sync")
	if _, ok, err := s.power(s.Again(s.t)).Find(ctx, key("one")); ok || err != nil {
		s.t.Errorf("one that is not finished: found %v, %v", ok, err)
	}
	s.ok(finish(ctx))
	finish, err = first.Save(ctx, m, key("disk"), false, nil)
	s.ok(err)
	s.ok(finish(ctx))
	if got := s.do(c, "cat file /run/mem"); got != "after\nafter" {
		s.t.Errorf("the machine that was saved has %q", got)
	}

	// Another process goes on from it, twice at once, while the first still runs.
	b := s.Again(s.t)
	cp, ok, err := s.power(b).Find(ctx, key("one"))
	s.ok(err)
	if !ok || string(cp.Note) != "a note" || cp.Key != key("one") || time.Since(cp.Taken).Abs() > time.Hour {
		s.t.Fatalf("found %v: %+v", ok, cp)
	}
	var guests []*ssh.Client
	var machines []builder.Machine
	for _, name := range []string{"b1", "c1"} {
		mm, err := s.power(b).BootFrom(ctx, s.id(name), cp)
		s.ok(err)
		g := s.enter(mm)
		want := "before\nmemory"
		if !cp.Memory {
			want = "before\nnone"
		}
		if got := s.do(g, "cat file; cat /run/mem 2>/dev/null || echo none"); got != want {
			s.t.Errorf("%s has %q, want %q", name, got, want)
		}
		s.do(g, "echo "+name+" >file; sync")
		guests, machines = append(guests, g), append(machines, mm)
	}
	if got := s.do(guests[0], "cat file"); got != "b1" {
		s.t.Errorf("the first of two has %q", got)
	}

	// One that went on is saved and captured as any other.
	finish, err = s.power(b).Save(ctx, machines[1], key("two"), true, nil)
	s.ok(err)
	s.ok(finish(ctx))
	s.do(guests[1], "echo last >file; sync")
	_ = guests[1].Run(ctx, provisioner.Cmd{Line: "poweroff"}) // the connection goes with it
	d, err := machines[1].Capture(ctx)
	s.ok(err)
	defer d.Close()
	for _, name := range []string{"a1", "b1"} {
		s.ok(b.Destroy(ctx, s.id(name)))
	}
	tm, err := b.BootTest(ctx, s.id("t1"), d, nil)
	s.ok(err)
	if got := s.do(s.enter(tm), "cat file; cat /run/mem 2>/dev/null || echo none"); got != "last\nnone" {
		s.t.Errorf("what was captured has %q", got)
	}
	s.ok(b.Destroy(ctx, s.id("t1")))

	// The disk alone boots, without what was in memory.
	dcp, ok, err := s.power(b).Find(ctx, key("disk"))
	s.ok(err)
	if !ok || dcp.Memory {
		s.t.Fatalf("the disk's checkpoint: found %v, memory %v", ok, dcp.Memory)
	}
	dm, err := s.power(b).BootFrom(ctx, s.id("d1"), dcp)
	s.ok(err)
	if got := s.do(s.enter(dm), "cat file; cat /run/mem 2>/dev/null || echo none"); got != "after\nnone" {
		s.t.Errorf("booted from the disk's checkpoint it has %q", got)
	}

	// A newer one of the key is found before it, and does it no harm.
	s.do(s.enter(dm), "echo newer >file; sync")
	finish, err = s.power(b).Save(ctx, dm, key("disk"), false, []byte("newer"))
	s.ok(err)
	if finish == nil {
		s.t.Fatal("a state is not saved anew")
	}
	s.ok(finish(ctx))
	newer, ok, err := first.Find(ctx, key("disk"))
	s.ok(err)
	if !ok || string(newer.Note) != "newer" {
		s.t.Fatalf("found %v: %+v", ok, newer)
	}
	for name, cp := range map[string]builder.Checkpoint{"after": dcp, "newer": newer} {
		id := s.id("f1" + name[:1])
		mm, err := s.power(b).BootFrom(ctx, id, cp)
		s.ok(err)
		if got := s.do(s.enter(mm), "cat file"); got != name {
			s.t.Errorf("one of two of a key has %q, want %q", got, name)
		}
		s.ok(b.Destroy(ctx, id))
	}
	s.do(s.enter(dm), "echo after >file; sync")

	if _, err := s.power(b).BootFrom(ctx, s.id("e1"), builder.Checkpoint{Key: key("none")}); !errors.Is(err, builder.ErrNoCheckpoint) {
		s.t.Errorf("going on from nothing: %v", err)
	}
	cut, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.power(b).Save(cut, dm, key("cut"), true, nil); err == nil {
		s.t.Error("saved in a context that has ended")
	}
	if _, ok, err := s.power(b).Find(ctx, key("cut")); ok || err != nil {
		s.t.Errorf("a save that was cut off: found %v, %v", ok, err)
	}
	if got := s.do(s.enter(dm), "cat file"); got != "after" {
		s.t.Errorf("after a save that was cut off the machine has %q", got)
	}
}
