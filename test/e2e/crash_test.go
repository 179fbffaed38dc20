//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/haproxy"
	"github.com/rebake/rebake/fleet/qemu"
	"github.com/rebake/rebake/internal/load"
	"github.com/rebake/rebake/internal/state"
)

// A deployment, one that goes back, and a rollback, killed with SIGKILL at every
// record of the journal and after every call: by a process of its own, on real
// instances and a real router, under requests that nobody may send again. Then
// somebody says `deploy resume`.
//
// REBAKE_CRASH_MATRIX=all tries every point and writes docs/crash-matrix.md
// (make crash-matrix, a quarter of an hour); without it a few points are tried.

// Variables of the process that is killed.
const (
	crashHome = "REBAKE_CRASH_HOME"
	crashOp   = "REBAKE_CRASH_OP"   // deploy VERSION, or rollback
	crashAt   = "REBAKE_CRASH_AT"   // record N, or call N
	crashAddr = "REBAKE_CRASH_ADDR" // of the router
	crashSeen = "REBAKE_CRASH_SEEN" // file that tells where it was killed
)

// What is replaced in the images of a test; each is on the disk once.
const page, program = "tiny guest\n", "Content-Type: text/plain\\r\\n\\r\\n"

// crashRig is the fleet of the matrix.
type crashRig struct {
	home   state.Dir
	store  *oci.Store
	d      *fleet.Deployer
	pool   fleet.Pool
	router fleet.Router
	policy fleet.Policy
}

func newCrashRig(home, addr string) (*crashRig, error) {
	r := &crashRig{home: state.Dir(home)}
	var err error
	if r.store, err = oci.Open(r.home.Store()); err != nil {
		return nil, err
	}
	health := fleet.HealthCheck{Type: "http", Port: 80, Path: "/cgi-bin/page", Interval: 200 * time.Millisecond, Timeout: 3 * time.Second, Rise: 2, Fall: 3}
	r.policy, err = fleet.Policy{Port: 80, Within: time.Minute, Refuse: time.Second, KeepOld: time.Hour, Drain: 10 * time.Second,
		Steps: []fleet.Step{{Permille: 500, Hold: 300 * time.Millisecond}, {Permille: 1000, Hold: 300 * time.Millisecond}}}.Complete()
	if err != nil {
		return nil, err
	}
	dir := r.home.Fleet("crash")
	if r.pool, err = qemu.New(qemu.Config{Memory: 96 << 20}, qemu.Deps{State: r.home, Store: r.store}, "crash"); err != nil {
		return nil, err
	}
	if r.router, err = haproxy.New(haproxy.Config{Listen: addr}, dir, state.RunFor("router", dir), "crash", health); err != nil {
		return nil, err
	}
	r.d = &fleet.Deployer{Dir: dir, Pool: r.pool, Router: r.router,
		Config: fleet.Config{Name: "crash", Size: 1, PoolKind: "qemu", RouterKind: "haproxy", Health: health, Policy: r.policy}}
	return r, nil
}

func (r *crashRig) do(ctx context.Context, op string) error {
	if op == "rollback" {
		_, err := r.d.Rollback(ctx, "by hand")
		return err
	}
	img, err := r.store.Resolve(ctx, artifact.Ref{Name: "tiny", Tag: strings.TrimPrefix(op, "deploy ")})
	if err != nil {
		return err
	}
	_, err = r.d.Deploy(ctx, fleet.Request{Spec: fleet.Spec{Image: img, Size: 1, Ports: []int{80}}, Policy: r.policy})
	return err
}

// crashChild is the process that kills itself.
func crashChild() int {
	r, err := newCrashRig(os.Getenv(crashHome), os.Getenv(crashAddr))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	kind, at, _ := strings.Cut(os.Getenv(crashAt), " ")
	n, err := strconv.Atoi(at)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	seen := 0
	die := func(of, what string) {
		if of != kind {
			return
		}
		if seen++; seen == n {
			_ = os.WriteFile(os.Getenv(crashSeen), []byte(what), 0o600)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it comes at once, not at once enough
		}
	}
	r.d.Recorded = func(kind, what string) { die("record", strings.TrimSuffix(kind+": "+what, ": ")) }
	r.d.Pool = dyingPool{r.pool, die}
	r.d.Router = dyingRouter{r.router, die}
	if err := r.do(context.Background(), os.Getenv(crashOp)); err != nil && !errors.Is(err, fleet.ErrRolledBack) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// dyingPool and dyingRouter die after a call that changed something, before
// anybody wrote down that it did.
type dyingPool struct {
	fleet.Pool
	die func(of, what string)
}

func (p dyingPool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	err := p.Pool.Launch(ctx, id, spec)
	p.die("call", "launch")
	return err
}

func (p dyingPool) Retire(ctx context.Context, id fleet.GroupID) error {
	err := p.Pool.Retire(ctx, id)
	p.die("call", "retire")
	return err
}

func (p dyingPool) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	return p.Pool.(fleet.Witness).Evidence(ctx, id)
}

type dyingRouter struct {
	fleet.Router
	die func(of, what string)
}

func (r dyingRouter) Attach(ctx context.Context, s fleet.Slot, m []fleet.Member) error {
	err := r.Router.Attach(ctx, s, m)
	r.die("call", "attach")
	return err
}

func (r dyingRouter) Ready(ctx context.Context, s fleet.Slot) error {
	err := r.Router.Ready(ctx, s)
	r.die("call", "ready")
	return err
}

func (r dyingRouter) SetWeights(ctx context.Context, w map[fleet.Slot]int) error {
	err := r.Router.SetWeights(ctx, w)
	r.die("call", "weigh")
	return err
}

func (r dyingRouter) Drain(ctx context.Context, s fleet.Slot, ids ...string) error {
	err := r.Router.Drain(ctx, s, ids...)
	r.die("call", "drain")
	return err
}

func (r dyingRouter) Detach(ctx context.Context, s fleet.Slot, force bool, ids ...string) (int, error) {
	n, err := r.Router.Detach(ctx, s, force, ids...)
	r.die("call", "detach")
	return n, err
}

// cell is a point of the matrix and what came of it.
type cell struct {
	op, at, where, state string
	sent, failed         int
	took                 time.Duration // of the resume
}

func TestCrashMatrix(t *testing.T) {
	t.Parallel() // it waits more than it works
	all := os.Getenv("REBAKE_CRASH_MATRIX") == "all"
	home, addr := t.TempDir(), freeAddr(t)
	r, err := newCrashRig(home, addr)
	must(t, err)
	tinyImage(t, r.store, "1.0.0", page, "version 01\n")
	tinyImage(t, r.store, "2.0.0", page, "version 02\n")
	tinyImage(t, r.store, "3.0.0", program, strings.Replace(program, "Content-Type: text/plain", "Status: 500 Broken image", 1))
	t.Cleanup(func() {
		if _, err := os.Stat(r.d.Dir); err == nil {
			must(t, r.d.Destroy(context.Background()))
		}
		if left := (&world{t: t, home: home}).processes(); len(left) > 0 {
			t.Errorf("still running: %v", left)
		}
	})
	must(t, r.do(t.Context(), "deploy 1.0.0"))
	must(t, r.d.Tend(t.Context(), true))

	var cells []cell
	for _, op := range []string{"deploy 2.0.0", "deploy 3.0.0", "rollback"} {
		for _, kind := range []string{"record", "call"} {
			step, first := 1, 1
			if !all { // a few points, others for each operation
				step, first = map[string]int{"record": 9, "call": 4}[kind], map[string]int{"deploy 2.0.0": 3, "deploy 3.0.0": 5, "rollback": 2}[op]
			}
			for n := first; ; n += step {
				c, more := r.crash(t, op, fmt.Sprintf("%s %d", kind, n), addr)
				if !more {
					break
				}
				cells = append(cells, c)
				t.Logf("%-13s %-10s %-28s %-12s %5d sent %d failed, resume %.1fs", c.op, c.at, c.where, c.state, c.sent, c.failed, c.took.Seconds())
				if t.Failed() {
					return
				}
			}
		}
	}
	if len(cells) < 8 {
		t.Errorf("only %d points were tried", len(cells))
	}
	if all {
		must(t, os.WriteFile(filepath.Join("..", "..", "docs", "crash-matrix.md"), []byte(crashPage(cells)), 0o644))
	}
}

// crash brings the fleet to version 1 with nothing kept (for a rollback: to 2
// with 1 kept), kills op at the point, resumes, and says what it saw. more is
// false if op ended before the point.
func (r *crashRig) crash(t *testing.T, op, at, addr string) (c cell, more bool) {
	t.Helper()
	ctx := t.Context()
	if op == "rollback" {
		must(t, r.do(ctx, "deploy 2.0.0"))
	}
	seen := filepath.Join(t.TempDir(), "seen")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashHome+"="+string(r.home), crashOp+"="+op, crashAt+"="+at, crashAddr+"="+addr, crashSeen+"="+seen)
	var live load.Counter
	lctx, stop := context.WithCancel(ctx)
	done := make(chan load.Result, 1)
	go func() {
		done <- load.Run(lctx, load.Options{URL: "http://" + addr + "/cgi-bin/page", Concurrency: 2, Pause: 20 * time.Millisecond, Live: &live})
	}()
	defer stop()
	out, err := cmd.CombinedOutput()
	where, rerr := os.ReadFile(seen)
	more = rerr == nil
	if !more && err != nil {
		t.Fatalf("%s at %s: %v: %s", op, at, err, out)
	}
	began := time.Now()
	if _, err := r.d.Resume(ctx, false); err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrNothing) {
		t.Errorf("%s at %s (%s): resume: %v", op, at, where, err)
	}
	took := time.Since(began)
	stop()
	res := <-done
	h, err := fleet.ReadHistory(r.d.Dir)
	must(t, err)
	c = cell{op, at, string(where), string(h.Last().State), res.Sent, res.Failed, took}
	if s := h.Last().State; !s.Finished() && s != fleet.Baking {
		t.Errorf("%s at %s (%s): rests in %q", op, at, where, s)
	}
	if res.Failed > 0 {
		t.Errorf("%s at %s (%s): %d of %d requests failed: %v", op, at, where, res.Failed, res.Sent, res.FirstErrors)
	}
	// Back to where the next point begins, and nothing but the fleet is left.
	must(t, r.d.Tend(ctx, false))
	if cur := h.Current(); cur.Spec.Image.Version != "1.0.0" {
		if _, err := r.d.Rollback(ctx, "for the next point"); err != nil {
			t.Errorf("rollback: %v", err)
		}
	}
	must(t, r.d.Tend(ctx, true))
	groups, err := r.pool.Groups(ctx, "crash")
	must(t, err)
	st, err := r.router.Status(ctx)
	must(t, err)
	members := len(st.Members[fleet.Blue]) + len(st.Members[fleet.Green])
	dirs, err := os.ReadDir(filepath.Join(r.d.Dir, "instances"))
	must(t, err)
	if len(groups) != 1 || members != 1 || len(dirs) != 1 {
		t.Errorf("%s at %s (%s): %d groups, %d members, %d instance directories are left, want 1 of each", op, at, where, len(groups), members, len(dirs))
	}
	return c, more
}

func crashPage(cells []cell) string {
	var b strings.Builder
	sent, failed := 0, 0
	for _, c := range cells {
		sent, failed = sent+c.sent, failed+c.failed
	}
	fmt.Fprintf(&b, `# Crash matrix

Written by `+"`make crash-matrix`"+` (test/e2e/crash_test.go). A deployment of a good image, one of an
image that answers 500, and a rollback, each killed with SIGKILL after every record of the journal and
after every call that changed something (before its effect was written down), on real QEMU instances
and a real HAProxy, under POST requests that nobody may send again. Then `+"`deploy resume`"+`.

%d points, %d requests, **%d failed**. After each point one group of instances, one server and one
instance directory were left, and the deployment rested in the state of the table.

| operation | killed after | what that was | it came to | requests | failed | resume took |
|---|---|---|---|---|---|---|
`, len(cells), sent, failed)
	for _, c := range cells {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d | %d | %.1f s |\n", c.op, c.at, c.where, c.state, c.sent, c.failed, c.took.Seconds())
	}
	return b.String()
}
