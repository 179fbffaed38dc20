package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/template"
)

// link is a state that a build passes through: the booted machine, then what
// each step made of it. Its key is that of the state before and its own inputs:
// two builds with one key have the same state.
type link struct {
	name   string
	key    artifact.Digest
	inputs artifact.Inputs
	never  bool          // this state depends on what nobody can tell: it is not gone on from, nor any after it
	maxAge time.Duration // since the step ran; 0: no limit
}

// passed is a link as a build passed it, kept with the checkpoints after it.
type passed struct {
	Name   string          `json:"name"`
	Key    artifact.Digest `json:"key"`
	Inputs artifact.Inputs `json:"inputs"`
	Ran    time.Time       `json:"ran"`
}

// DefaultMaxAge is how long an image is good whose inputs have not changed, and
// the result of a step that may read the network: less than a day, so that a job
// that runs every night never gets the last one's.
const DefaultMaxAge = 20 * time.Hour

// bootLink is the machine as it boots.
func bootLink(in artifact.Inputs) link {
	var all artifact.Inputs
	all.Add("format", "rebake-boot-v1")
	return link{name: "boot", inputs: in, key: (all + in).Digest()}
}

// after is the state that a step makes of this one. probe is what the step's
// refresh command printed; nil where it has none.
func (l link) after(s step, probe *string) link {
	in := s.inputs
	if probe != nil {
		sum := sha256.Sum256([]byte(*probe))
		in.Add("refresh", "sha256:"+hex.EncodeToString(sum[:]))
	}
	var all artifact.Inputs
	all.Add("format", "rebake-step-v1")
	all.Add("before", string(l.key))
	all.Add("kind", s.Kind)
	return link{name: s.Name, inputs: in, key: (all + in).Digest(), never: l.never || !s.keyed || s.Cache.Never, maxAge: s.maxAge()}
}

func (s step) maxAge() time.Duration {
	if s.Cache.MaxAge != nil {
		return *s.Cache.MaxAge
	}
	if f, ok := s.Provisioner.(interface{ Fetches() bool }); ok && f.Fetches() {
		return DefaultMaxAge
	}
	return 0
}

// chain lists the states as far as they can be told: up to a step whose refresh
// command was not run yet. whole says whether that is all of them.
func (k *bake) chain() (links []link, whole bool) {
	links = []link{bootLink(k.base)}
	for i, s := range k.steps {
		var probe *string
		if s.Cache.Refresh != "" {
			out, ok := k.probes[i]
			if !ok {
				return links, false
			}
			probe = &out
		}
		links = append(links, links[i].after(s, probe))
	}
	return links, true
}

// imageInputs is the digest of all that decides the image: the last state, how
// it is sealed and what it was tested with. "" while it cannot be told.
func (k *bake) imageInputs() artifact.Digest {
	links, whole := k.chain()
	last := links[len(links)-1]
	if !whole || last.never || k.touched {
		return ""
	}
	var in artifact.Inputs
	in.Add("format", "rebake-inputs-v2")
	in.Add("name", k.tpl.Name)
	in.Add("state", string(last.key))
	in.Add("seal.skip", strings.Join(k.tpl.Seal.Skip, " "))
	for _, t := range k.tests {
		in.Add("test", t)
	}
	return in.Digest()
}

// tooOld says which of the links, passed when the trail says, is older than it
// may be; "" if none.
func (k *bake) tooOld(links []link, trail []passed) string {
	for i, l := range links {
		age := now().Sub(trail[i].Ran)
		for _, limit := range []time.Duration{l.maxAge, k.opts.MaxAge} {
			if i > 0 && limit > 0 && age > limit {
				return fmt.Sprintf("%q ran %s ago, and is good for %s", l.name, age.Round(time.Second), limit)
			}
		}
	}
	return ""
}

// readTrail reads the note of a checkpoint, which must be of these links.
func readTrail(note []byte, links []link) ([]passed, error) {
	var trail []passed
	if err := json.Unmarshal(note, &trail); err != nil {
		return nil, err
	}
	if len(trail) != len(links) {
		return nil, fmt.Errorf("a checkpoint of %d states for %d", len(trail), len(links))
	}
	for i, l := range links {
		if trail[i].Key != l.key {
			return nil, fmt.Errorf("a checkpoint of another %q", l.name)
		}
	}
	return trail, nil
}

// lastBuild is what the last build of this name passed, for telling what
// changed, and what a checkpoint of it cost.
type lastBuild struct {
	Passed []passed      `json:"passed"`
	Cost   time.Duration `json:"cost"`
}

func (k *bake) lastBuild() (last lastBuild, err error) {
	raw, err := os.ReadFile(k.trailPath())
	if errors.Is(err, fs.ErrNotExist) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	return last, json.Unmarshal(raw, &last)
}

func (k *bake) saveLast(last lastBuild) error {
	if err := os.MkdirAll(filepath.Dir(k.trailPath()), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(k.trailPath(), jsonLine(last), 0o600)
}

func (k *bake) trailPath() string {
	sum := sha256.Sum256([]byte(k.tpl.Name + "\x00" + k.build.Name))
	return filepath.Join(k.env.State.Trails(), hex.EncodeToString(sum[:8])+".json")
}

// addFiles adds the files of a step's inputs: to patterns relative to dir, a
// directory meaning all in it.
func addFiles(in *artifact.Inputs, s template.Step, dir string) error {
	for i, pattern := range s.Inputs {
		at := fmt.Sprintf("inputs.%d", i)
		if filepath.IsAbs(pattern) || strings.Contains(pattern, "..") && !filepath.IsLocal(pattern) {
			return s.Block.Errorf(at, "inputs: %s is not below the template's directory", pattern)
		}
		found, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
		if err != nil || len(found) == 0 {
			return s.Block.Errorf(at, "inputs: nothing matches %s below %s", pattern, dir)
		}
		for _, root := range found {
			if err := addTree(in, dir, root); err != nil {
				return s.Block.Errorf(at, "inputs: %v", err)
			}
		}
	}
	return nil
}

// addTree adds path, mode, type, link target and digest of all below root.
func addTree(in *artifact.Inputs, dir, root string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := "input " + filepath.ToSlash(rel)
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case st.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(p)
			in.Add(name, "-> "+to)
			return err
		case st.Mode().IsRegular():
			h := sha256.New()
			if err := hashFile(h, p); err != nil {
				return err
			}
			in.Add(name, st.Mode().Perm().String()+" sha256:"+hex.EncodeToString(h.Sum(nil)))
		default:
			in.Add(name, st.Mode().String())
		}
		return nil
	})
}

func hashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// deepest is the last state that is saved and still good, with its trail.
func (k *bake) deepest(ctx context.Context, links []link) (found *saved, err error) {
	cp, ok := k.checkpoints()
	if !ok || k.opts.NoCache {
		return nil, nil
	}
	for n := len(links) - 1; n >= 0; n-- {
		if links[n].never || k.opts.NoCacheFrom != "" && n > k.noCacheFrom() {
			continue
		}
		c, ok, err := cp.Find(ctx, links[n].key)
		if err != nil {
			return nil, err
		}
		if !ok || k.distrusted[c.Taken] {
			continue
		}
		trail, err := readTrail(c.Note, links[:n+1])
		if err != nil || k.tooOld(links[:n+1], trail) != "" {
			continue
		}
		return &saved{Checkpoint: c, at: n, trail: trail}, nil
	}
	return nil, nil
}

// noCacheFrom is how many steps there are before the one to start at.
func (k *bake) noCacheFrom() int {
	for i, s := range k.steps {
		if s.Name == k.opts.NoCacheFrom {
			return i
		}
	}
	return len(k.steps)
}
