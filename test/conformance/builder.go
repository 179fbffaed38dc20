package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/seal"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	gossh "golang.org/x/crypto/ssh"
)

// BuilderWorld is a fresh builder and what the suite needs around it. Its guest
// is logged in to as root, starts sessions in its home, and answers HTTP on Port.
type BuilderWorld struct {
	Builder builder.Builder
	// Again makes another Builder of the same configuration on the same state,
	// which shares no memory with the first: a process after a kill -9.
	Again func(t *testing.T) builder.Builder
	// Other makes a builder of another base, on the same state.
	Other func(t *testing.T) builder.Builder
	// Fetched counts the reads of the base from where it comes from; nil: it stays
	// there, and is never read.
	Fetched func() int
	// Kill ends a machine as a crash would.
	Kill func(t *testing.T, id string)
	// Leftovers lists what is there of machines (files, processes), in words.
	Leftovers func(t *testing.T) []string
	Port      int
	// Patience is how long a machine may take to accept SSH or to shut down; default 10 s.
	Patience time.Duration
}

// Builder is the suite of builder.Builder. Machines are slow to boot where they
// are real, so its cases share them: at most two are up at a time.
func Builder(t *testing.T, open func(t *testing.T) BuilderWorld) {
	for _, c := range []struct {
		name string
		f    func(*builderSuite)
	}{
		{"a key is stable and reads nothing remote", (*builderSuite).key},
		{"prepare fetches once, however many ask", (*builderSuite).prepare},
		{"a killed machine is told from a shut down one", (*builderSuite).killed},
		{"destroy goes by the name alone", (*builderSuite).destroy},
		{"an ended context ends every method", (*builderSuite).ended},
		{"a machine is captured and booted again", (*builderSuite).life},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := open(t)
			if w.Patience == 0 {
				w.Patience = 10 * time.Second
			}
			s := &builderSuite{BuilderWorld: w, t: t, named: map[string]bool{}}
			t.Cleanup(s.nothingLeft)
			c.f(s)
		})
	}
}

type builderSuite struct {
	BuilderWorld
	t     *testing.T
	named map[string]bool
}

func (s *builderSuite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// id names a machine, before it is made.
func (s *builderSuite) id(name string) string {
	id := "01j000000000000000000000" + name
	s.named[id] = true
	return id
}

// nothingLeft destroys every machine with another Builder, twice.
func (s *builderSuite) nothingLeft() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b := s.Again(s.t)
	for range 2 {
		for id := range s.named {
			if err := b.Destroy(ctx, id); err != nil {
				s.t.Errorf("destroy %s: %v", id, err)
			}
		}
	}
	if left := s.Leftovers(s.t); len(left) > 0 {
		s.t.Errorf("left: %q", left)
	}
}

func (s *builderSuite) fetched() int {
	if s.Fetched == nil {
		return 0
	}
	return s.Fetched()
}

func (s *builderSuite) key() {
	before := s.fetched()
	key, err := s.Builder.Key(s.t.Context())
	s.ok(err)
	if key == "" {
		s.t.Error("nothing decides the booted machine")
	}
	for name, b := range map[string]builder.Builder{"the same": s.Builder, "another": s.Again(s.t)} {
		if again, err := b.Key(s.t.Context()); err != nil || again != key {
			s.t.Errorf("%s builder's key is %s, %v; was %s", name, again, err, key)
		}
	}
	if other, err := s.Other(s.t).Key(s.t.Context()); err != nil || other == key {
		s.t.Errorf("another base has key %s, %v", other, err)
	}
	if n := s.fetched() - before; n != 0 {
		s.t.Errorf("the base was read %d times", n)
	}
	_, err = s.Builder.Prepare(s.t.Context())
	s.ok(err)
	if again, err := s.Builder.Key(s.t.Context()); err != nil || again != key {
		s.t.Errorf("once prepared the key is %s, %v; was %s", again, err, key)
	}
}

func (s *builderSuite) prepare() {
	before := s.fetched()
	var bases [6]builder.Base
	var wg sync.WaitGroup
	for i := range bases {
		b := s.Builder
		if i%2 == 1 {
			b = s.Again(s.t)
		}
		wg.Go(func() {
			var err error
			if bases[i], err = b.Prepare(s.t.Context()); err != nil {
				s.t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, b := range bases {
		if b != bases[0] {
			s.t.Errorf("%+v, and %+v", b, bases[0])
		}
	}
	if b := bases[0]; b.Ref == "" || b.Digest == "" || b.Arch == "" || b.DiskSize <= 0 {
		s.t.Errorf("the base says too little of itself: %+v", b)
	}
	after := s.fetched()
	if after == before && s.Fetched != nil {
		s.t.Error("the base was never read: the test is blind")
	}
	_, err := s.Again(s.t).Prepare(s.t.Context())
	s.ok(err)
	if s.fetched() != after {
		s.t.Error("a prepared base was read again")
	}
}

func (s *builderSuite) boot(id string) builder.Machine {
	s.t.Helper()
	m, err := s.Builder.Boot(s.t.Context(), id)
	s.ok(err)
	return m
}

// gone waits for a machine's end.
func (s *builderSuite) gone(m builder.Machine) {
	s.t.Helper()
	select {
	case <-m.Done():
	case <-time.After(s.Patience):
		s.t.Fatal("the machine's end is not seen")
	}
}

// killed needs no guest that is up.
func (s *builderSuite) killed() {
	ctx, id := s.t.Context(), s.id("k1")
	m := s.boot(id)
	select {
	case <-m.Done():
		s.t.Fatal("it ended at once")
	default:
	}
	if _, err := s.Builder.Boot(ctx, id); err == nil {
		s.t.Error("a machine that runs was booted again")
	}
	if _, err := m.Endpoint(ctx); err != nil {
		s.t.Errorf("after a refused boot of its name: %v", err)
	}
	s.Kill(s.t, id)
	s.gone(m)
	if _, err := m.Endpoint(ctx); err == nil {
		s.t.Error("a dead machine has an endpoint")
	} else if end := strings.TrimSpace(m.Console(40)); !strings.Contains(err.Error(), end) {
		s.t.Errorf("error %q does not show the console's end %q", err, end)
	}
	if d, err := m.Capture(ctx); err == nil {
		s.t.Errorf("a killed machine was captured: %d bytes", d.Size())
	}
	again := s.boot(id) // over what the dead one left
	if _, err := again.Endpoint(ctx); err != nil {
		s.t.Error(err)
	}
	captured := make(chan error, 1)
	go func() {
		_, err := again.Capture(ctx)
		captured <- err
	}()
	s.Kill(s.t, id)
	select {
	case err := <-captured:
		if err == nil {
			s.t.Error("a machine that was killed while it shut down was captured")
		}
	case <-time.After(s.Patience):
		s.t.Error("a capture outlives the machine")
	}
}

func (s *builderSuite) destroy() {
	ctx := s.t.Context()
	s.ok(s.Builder.Destroy(ctx, s.id("d0"))) // there is none
	one, two := s.id("d1"), s.id("d1-t1")    // a name that another begins with
	m1, m2 := s.boot(one), s.boot(two)
	if left := s.Leftovers(s.t); len(left) == 0 {
		s.t.Fatal("two machines run and nothing of them is seen: the test is blind")
	}
	s.ok(s.Again(s.t).Destroy(ctx, one))
	s.gone(m1)
	if _, err := m2.Endpoint(ctx); err != nil {
		s.t.Errorf("the other machine: %v", err)
	}
	if d, err := m1.Capture(ctx); err == nil {
		s.t.Errorf("a destroyed machine was captured: %d bytes", d.Size())
	}
	for range 2 {
		s.ok(s.Again(s.t).Destroy(ctx, two))
	}
	s.gone(m2)
	if left := s.Leftovers(s.t); len(left) > 0 {
		s.t.Errorf("left: %q", left)
	}
	s.ok(s.Builder.Destroy(ctx, one))
}

func (s *builderSuite) ended() {
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(s.t.Context())
	m := s.boot(s.id("e1"))
	cancel(cause)
	for name, f := range map[string]func() error{
		"Boot":     func() error { _, err := s.Builder.Boot(ctx, s.id("e2")); return err },
		"Endpoint": func() error { _, err := m.Endpoint(ctx); return err },
		"Capture":  func() error { _, err := m.Capture(ctx); return err },
	} {
		began := time.Now()
		if err := f(); !errors.Is(err, cause) {
			s.t.Errorf("%s: %v, want the context's cause", name, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			s.t.Errorf("%s took %s to end", name, d)
		}
	}
	if _, err := m.Endpoint(s.t.Context()); err != nil {
		s.t.Errorf("the machine did not outlive a cancelled capture: %v", err)
	}
	// Cut off at any time: whatever was done by then, Destroy undoes.
	for i, after := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond} {
		ctx, cancel := context.WithTimeoutCause(s.t.Context(), after, cause)
		began := time.Now()
		m, err := s.Builder.Boot(ctx, s.id(fmt.Sprint("e3", i)))
		if err == nil {
			_, err = m.Capture(ctx)
		}
		if err != nil && !errors.Is(err, cause) {
			s.t.Errorf("cut off after %s: %v, want the context's cause", after, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			s.t.Errorf("cut off after %s, it took %s to end", after, d)
		}
		cancel()
	}
}

func (s *builderSuite) dial(m builder.Machine) *ssh.Client {
	s.t.Helper()
	ep := s.endpoint(m)
	c, err := ssh.Dial(s.t.Context(), ssh.Target{Addr: ep.Addr, User: ep.User, Signer: ep.Signer, HostKeys: ep.HostKeys},
		ssh.Options{Timeout: s.Patience, Alive: func() error {
			select {
			case <-m.Done():
				return errors.New("the machine stopped: " + m.Console(1000))
			default:
				return nil
			}
		}})
	s.ok(err)
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *builderSuite) endpoint(m builder.Machine) builder.Endpoint {
	s.t.Helper()
	ep, err := m.Endpoint(s.t.Context())
	s.ok(err)
	if len(ep.HostKeys) == 0 || ep.Signer == nil || ep.Addr == "" {
		s.t.Fatalf("endpoint %+v lacks something", ep)
	}
	return ep
}

func (s *builderSuite) sh(g provisioner.Guest, line string) string {
	s.t.Helper()
	var out bytes.Buffer
	if err := g.Run(s.t.Context(), provisioner.Cmd{Line: line, Stdout: &out}); err != nil {
		s.t.Errorf("%s: %v", line, err)
	}
	return strings.TrimSpace(out.String())
}

// differ: no key of one machine is another's, and none lets the other in.
func (s *builderSuite) differ(a, b builder.Machine) {
	s.t.Helper()
	one, two := s.endpoint(a), s.endpoint(b)
	if bytes.Equal(one.HostKeys[0].Marshal(), two.HostKeys[0].Marshal()) {
		s.t.Error("two machines have one host key")
	}
	seen, err := knock(two, one.Signer, s.Patience)
	if err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		s.t.Errorf("with another machine's key: %v, want a refusal", err)
	}
	if seen == nil || !bytes.Equal(seen.Marshal(), two.HostKeys[0].Marshal()) {
		s.t.Errorf("the machine's host key is not the pinned one: %v", seen)
	}
}

// knock logs in once and says which host key it saw.
func knock(ep builder.Endpoint, key gossh.Signer, timeout time.Duration) (seen gossh.PublicKey, err error) {
	c, err := gossh.Dial("tcp", ep.Addr, &gossh.ClientConfig{User: ep.User, Timeout: timeout, Auth: []gossh.AuthMethod{gossh.PublicKeys(key)},
		HostKeyAlgorithms: []string{ep.HostKeys[0].Type()},
		HostKeyCallback: func(_ string, _ net.Addr, k gossh.PublicKey) error {
			seen = k
			return nil
		}})
	if err == nil {
		err = c.Close()
	}
	return seen, err
}

// life is a build: boot, change, shut down, capture, two test boots.
func (s *builderSuite) life() {
	ctx := s.t.Context()
	build, button := s.boot(s.id("l1")), s.boot(s.id("l2"))
	g, up := s.dial(build), s.dial(button)
	s.sh(g, "echo built >made && sync")
	s.sh(up, "true")
	if _, err := s.Builder.Boot(ctx, s.id("l1")); err == nil {
		s.t.Error("a machine that runs was booted again")
	} // and its disk is what it was: seen below
	s.ok(seal.Shutdown(ctx, g)) // the guest goes down by itself
	s.gone(build)
	d, err := build.Capture(ctx)
	s.ok(err)
	defer d.Close()
	pressed, err := button.Capture(ctx) // somebody presses the power button
	s.ok(err)
	s.read(pressed)
	s.ok(pressed.Close())
	s.ok(s.Builder.Destroy(ctx, s.id("l2")))
	sum := s.read(d)

	m1, err := s.Builder.BootTest(ctx, s.id("l1-t1"), d, []int{s.Port})
	s.ok(err)
	m2, err := s.Builder.BootTest(ctx, s.id("l1-t2"), d, []int{s.Port})
	s.ok(err)
	g1, g2 := s.dial(m1), s.dial(m2)
	s.differ(m1, m2)
	for name, g := range map[string]provisioner.Guest{"first": g1, "second": g2} {
		if got := s.sh(g, "cat made"); got != "built" {
			s.t.Errorf("the %s test machine has %q of what was built", name, got)
		}
	}
	s.sh(g1, "echo changed >made; echo x >thrown-away; sync")
	if got := s.sh(g2, "cat made; ls thrown-away 2>/dev/null || true"); got != "built" {
		s.t.Errorf("what one test machine wrote, another has: %q", got)
	}
	s.serves(m1)
	if again := s.read(d); again != sum {
		s.t.Error("a test boot changed the captured disk")
	}
	s.ok(s.Builder.Destroy(ctx, s.id("l1-t1")))
	s.gone(m1)
	if again := s.read(d); again != sum {
		s.t.Error("destroying a test machine changed the captured disk")
	}
}

// serves: the port that was asked for answers, at an address of its own.
func (s *builderSuite) serves(m builder.Machine) {
	s.t.Helper()
	addr := s.endpoint(m).Ports[s.Port]
	for end := time.Now().Add(s.Patience); ; <-time.After(20 * time.Millisecond) {
		status, err := get(s.t.Context(), addr)
		if err == nil && status != "" {
			return
		}
		if time.Now().After(end) {
			s.t.Errorf("port %d at %q: %q, %v", s.Port, addr, status, err)
			return
		}
	}
}

// read reads a whole disk, and checks what its extents say of it.
func (s *builderSuite) read(d artifact.Disk) (sum [32]byte) {
	s.t.Helper()
	extents, err := d.Extents(s.t.Context())
	s.ok(err)
	h, at := sha256.New(), int64(0)
	buf := make([]byte, 1<<20)
	written := false
	for _, e := range extents {
		if e.Offset != at || e.Length <= 0 {
			s.t.Fatalf("extent %+v does not begin at %d", e, at)
		}
		if e.Inherited && d.Parent() == "" {
			s.t.Fatalf("extent %+v is inherited from nothing", e)
		}
		written = written || !e.Zero && !e.Inherited
		for end := at + e.Length; at < end; {
			if left := end - at; e.Zero && left > 64<<20 { // of a gigabyte of zeros some are enough
				fmt.Fprint(h, "zeros ", left)
				at = end - 1<<20
			}
			p := buf[:min(int64(len(buf)), end-at)]
			if n, err := d.ReadAt(p, at); n != len(p) || err != nil && !errors.Is(err, io.EOF) {
				s.t.Fatalf("read at %d: %d bytes, %v", at, n, err)
			}
			if e.Zero && len(bytes.Trim(p, "\x00")) > 0 {
				s.t.Fatalf("extent %+v is not zero", e)
			}
			h.Write(p)
			at += int64(len(p))
		}
	}
	if at != d.Size() {
		s.t.Errorf("the extents end at %d of %d", at, d.Size())
	}
	if !written {
		s.t.Error("the disk holds nothing that the machine wrote")
	}
	return [32]byte(h.Sum(nil))
}

func get(ctx context.Context, addr string) (status string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	return res.Status, res.Body.Close()
}
