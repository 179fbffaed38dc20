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
	id := strings.ToLower(ulid.Make().String())
	if err := os.MkdirAll(d.Builds(), 0o700); err != nil {
		return nil, err
	}
	c := &claim{id: id, lock: flock.New(lockPath(d, id), flock.SetPermissions(0o600))}
	if ok, err := c.lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("lock build %s: %w", id, err)
	}
	rec := claimed{ID: id, Kind: kind, Template: tpl, PID: os.Getpid(), Started: now()}
	if err := atomicfile.Write(claimPath(d, id), jsonLine(rec), 0o600); err != nil {
		return nil, errors.Join(err, c.release(d))
	}
	return c, nil
}

// release forgets a build whose machines are gone.
func (c *claim) release(d state.Dir) error {
	err := os.Remove(claimPath(d, c.id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(lockPath(d, c.id)), c.lock.Close())
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
	if strings.HasPrefix(name, ".tmp-") {
		return name
	}
	id, _, _ := strings.Cut(name, ".")
	id, _, _ = strings.Cut(id, "-")
	return id
}

// collect removes one build if nobody holds its lock.
func collect(env Env, id string) ([]Removed, error) {
	d := env.State
	if strings.HasPrefix(id, ".tmp-") {
		return []Removed{{id, "half-written file"}}, os.RemoveAll(filepath.Join(d.Builds(), id))
	}
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
	for _, m := range ids {
		_, statErr := os.Stat(d.Build(m))
		if err := destroy(m); err != nil {
			return gone, fmt.Errorf("destroy %s: %w", m, err)
		}
		if statErr == nil {
			gone = append(gone, Removed{"machine " + m, fmt.Sprintf("process %d that built %s is gone", rec.PID, rec.Template)})
		}
	}
	for _, p := range []string{claimPath(d, id), lockPath(d, id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, err
		}
	}
	if len(gone) == 0 {
		gone = append(gone, Removed{"build " + id, "its process is gone"})
	}
	return gone, nil
}
