package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/state"
)

// Cached lists the bases, disks and checkpoints of a state directory. A disk
// of the contents in keep is in use.
func Cached(d state.Dir, keep map[string]bool) ([]cache.Entry, error) {
	var out []cache.Entry
	for kind, dir := range map[string]string{"base": d.Bases(), "disk": d.Disks()} {
		found, err := filepath.Glob(filepath.Join(dir, "*.raw"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			hex := strings.TrimSuffix(filepath.Base(path), ".raw")
			e := cache.Entry{ID: path, Kind: kind, What: fmt.Sprintf("%.12s", hex), Size: occupied(info), Used: info.ModTime()}
			if st, err := os.Stat(path + useEnd); err == nil {
				e.Used = st.ModTime()
			}
			if kind == "disk" && keep[hex] {
				e.InUse = "a fleet"
			} else if held(path + useEnd) {
				e.InUse = "a build"
			}
			e.Remove = func(context.Context) error {
				return exclusively(path+useEnd, func() error {
					return removeAll(path+".content", path)
				})
			}
			out = append(out, e)
		}
	}
	checkpoints, err := filepath.Glob(filepath.Join(d.Checkpoints(), "*", metaName))
	if err != nil {
		return nil, err
	}
	for _, path := range checkpoints {
		dir := filepath.Dir(path)
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var m meta
		what := "unreadable"
		if json.Unmarshal(raw, &m) == nil {
			what = m.after()
		}
		e := cache.Entry{ID: dir, Kind: "checkpoint", What: what, Size: sizeOf(dir), Used: m.Taken, Needs: []string{m.BasePath}}
		for _, l := range m.Layers {
			e.Needs = append(e.Needs, filepath.Join(d.Checkpoints(), l))
		}
		if st, err := os.Stat(path); err == nil {
			e.Used = st.ModTime()
		}
		if held(dir + ".lock") {
			e.InUse = "a build"
		}
		e.Remove = func(context.Context) error {
			return exclusively(dir+".lock", func() error {
				// First what makes it a checkpoint: a cut-off removal leaves none.
				return errors.Join(removeAll(path), os.RemoveAll(dir))
			})
		}
		out = append(out, e)
	}
	return out, nil
}

// after names the step that a checkpoint was saved after, from its note.
func (m meta) after() string {
	var trail []struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(m.Note, &trail) != nil || len(trail) == 0 {
		return path.Base(m.Base.Ref)
	}
	return fmt.Sprintf("%s after %q", path.Base(m.Base.Ref), trail[len(trail)-1].Name)
}

func removeAll(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Contents lists what the store must keep for the cache and for builds: what cached
// bases are there, or every build on one would store it again, and the images that
// a build is on, whose chunks the new image inherits.
func Contents(d state.Dir) ([]artifact.Digest, error) {
	notes, err := filepath.Glob(filepath.Join(d.Bases(), "*.raw.content"))
	if err != nil {
		return nil, err
	}
	var out []artifact.Digest
	for _, n := range notes {
		if _, err := os.Stat(strings.TrimSuffix(n, ".content")); err != nil {
			continue // a note of nothing keeps nothing
		}
		raw, err := os.ReadFile(n)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if c := artifact.Digest(raw); c.Validate() == nil {
			out = append(out, c)
		}
	}
	used, err := filepath.Glob(filepath.Join(d.Disks(), "*.raw"+useEnd))
	for _, u := range used {
		c := artifact.Digest("sha256:" + strings.TrimSuffix(filepath.Base(u), ".raw"+useEnd))
		if c.Validate() == nil && held(u) {
			out = append(out, c)
		}
	}
	return out, err
}
