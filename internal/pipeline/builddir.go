package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/oklog/ulid/v2"
	"github.com/rebake/rebake/internal/state"
)

// claim is a build's place in the state directory. While its owner lives the
// lock beside it is held; a free lock is how GC knows a dead one.
type claim struct {
	id   string
	lock *flock.Flock
}

// claimed is build.json: written before anything else is made.
type claimed struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"` // of the builder
	Template string    `json:"template"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
}

func lockPath(d state.Dir, id string) string  { return filepath.Join(d.Builds(), id+".lock") }
func claimPath(d state.Dir, id string) string { return filepath.Join(d.Builds(), id+".json") }

// newClaim names a build before it exists.
func newClaim(d state.Dir, kind, tpl string) (*claim, error) {
	if err := os.MkdirAll(d.Builds(), 0o700); err != nil {
		return nil, err
	}
	c, err := lockNew(d)
	if err != nil {
		return nil, err
	}
	rec := claimed{ID: c.id, Kind: kind, Template: tpl, PID: os.Getpid(), Started: time.Now().UTC().Truncate(time.Second)}
	if err := atomicfile.Write(claimPath(d, c.id), jsonLine(rec), 0o600); err != nil {
		return nil, errors.Join(err, c.release(d))
	}
	return c, nil
}

// lockNew locks a name that is in the directory. A GC that comes between the
// file and its lock takes the file away: then another name is taken.
func lockNew(d state.Dir) (*claim, error) {
	for range 100 {
		id := strings.ToLower(ulid.Make().String())
		c := &claim{id: id, lock: flock.New(lockPath(d, id), flock.SetPermissions(0o600))}
		ok, err := c.lock.TryLock()
		if err != nil {
			return nil, fmt.Errorf("lock build %s: %w", id, err)
		}
		if ok {
			mine, err := c.lock.Stat()
			there, serr := os.Stat(lockPath(d, id))
			if err == nil && serr == nil && os.SameFile(mine, there) {
				return c, nil
			}
		}
		if err := c.lock.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("cannot lock a build in %s: something removes the lock files", d.Builds())
}

// release forgets a build whose machines are gone.
func (c *claim) release(d state.Dir) error {
	return errors.Join(forget(d, c.id), c.lock.Close())
}

// forget removes a claim's files, the lock last: while it is there a GC that
// was cut off is done again.
func forget(d state.Dir, id string) error {
	for _, p := range []string{claimPath(d, id), claimPath(d, id) + ".tmp", lockPath(d, id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// machines are the ids that a build may have used.
func machines(d state.Dir, id string) ([]string, error) {
	ids := []string{id, id + "-t1", id + "-t2"}
	entries, err := os.ReadDir(d.Builds())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if n := e.Name(); e.IsDir() && strings.HasPrefix(n, id) && !contains(ids, n) {
			ids = append(ids, n)
		}
	}
	return ids, nil
}

// Removed is one thing that GC took away.
type Removed struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// GC removes the machines and directories of builds whose process is gone, and
// the files that killed runs left half-made.
func GC(ctx context.Context, env Env) ([]Removed, error) {
	d := env.State
	entries, err := os.ReadDir(d.Builds())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var gone []Removed
	files, err := env.Backends.Sweep(ctx, env)
	for _, f := range files {
		gone = append(gone, Removed{f, "half-made; its process is gone"})
	}
	errs := []error{err}
	seen := map[string]bool{}
	for _, e := range entries {
		id := buildID(e.Name())
		if seen[id] || ctx.Err() != nil {
			continue
		}
		seen[id] = true
		r, err := collect(env, id)
		gone, errs = append(gone, r...), append(errs, err)
	}
	return gone, errors.Join(errs...)
}

func buildID(name string) string {
	id, _, _ := strings.Cut(name, ".")
	id, _, _ = strings.Cut(id, "-")
	return id
}

// alive says whether a process holds the build's lock.
func alive(d state.Dir, id string) (bool, error) {
	if _, err := os.Stat(lockPath(d, id)); err != nil {
		return false, nil
	}
	l := flock.New(lockPath(d, id), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	return !ok, errors.Join(err, l.Close())
}

// collect removes one build if nobody holds its lock.
func collect(env Env, id string) ([]Removed, error) {
	d := env.State
	lock := flock.New(lockPath(d, id), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil || !ok {
		return nil, err // it lives
	}
	defer lock.Close()
	rec := claimed{Kind: "qemu"}
	if raw, err := os.ReadFile(claimPath(d, id)); err == nil {
		if err := json.Unmarshal(raw, &rec); err != nil {
			return nil, fmt.Errorf("read %s: %w (delete it by hand once you know what it was)", claimPath(d, id), err)
		}
	}
	destroy := env.Backends.Destroy(env, rec.Kind)
	if destroy == nil {
		return nil, fmt.Errorf("build %s was made by unknown builder %q", id, rec.Kind)
	}
	ids, err := machines(d, id)
	if err != nil {
		return nil, err
	}
	var gone []Removed
	for i := len(ids) - 1; i >= 0; i-- { // what was made last may hold what was made before
		m := ids[i]
		_, statErr := os.Stat(d.Build(m))
		if err := destroy(m); err != nil {
			return gone, fmt.Errorf("destroy %s: %w", m, err)
		}
		if statErr == nil {
			gone = append(gone, Removed{"machine " + m, fmt.Sprintf("process %d that built %s is gone", rec.PID, rec.Template)})
		}
	}
	if err := forget(d, id); err != nil {
		return gone, err
	}
	if len(gone) == 0 {
		gone = append(gone, Removed{"build " + id, "its process is gone"})
	}
	return gone, nil
}
