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
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/template"
)

// link is a state that a build passes through: the booted machine, then what
// each step made of it. Its key is that of the state before and its own inputs:
// two builds with one key have the same state.
type link struct {
	name   string
	kind   string // of the step; "" for the boot
	key    artifact.Digest
	inputs artifact.Inputs
	never  bool          // this state depends on what nobody can tell: it is not gone on from, nor any after it
	maxAge time.Duration // since the step ran; 0: no limit
}

// passed is a link as a build passed it, kept with the checkpoints after it.
type passed struct {
	Name   string          `json:"name"`
	Kind   string          `json:"kind,omitempty"`
	Key    artifact.Digest `json:"key"`
	Inputs artifact.Inputs `json:"inputs"`
	Ran    time.Time       `json:"ran"`
	Build  string          `json:"build,omitempty"` // the run that it was passed in; "": one before that was kept
}

// DefaultMaxAge is how long an image is good whose inputs have not changed, and
// the result of a step that may read the network: less than a day, so that a job
// that runs every night never gets the last one's.
const DefaultMaxAge = 20 * time.Hour

// bootLink is the machine as it boots.
func bootLink(in artifact.Inputs) link {
	var all artifact.Inputs
	all.Add("format", "rebake-boot-v2")
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
	return link{name: s.Name, kind: s.Kind, inputs: in, key: (all + in).Digest(), never: l.never || !s.keyed || s.Cache.Never}
}

func (s step) fetches() bool {
	f, ok := s.Provisioner.(interface{ Fetches() bool })
	return ok && f.Fetches()
}

// tells says whether the template says for how long the step's result is good:
// its max_age, or until its refresh command prints something else.
func (s step) tells() bool { return s.Cache.MaxAge != nil || s.Cache.Refresh != "" }

// limits is for how long an image is good with the result of each step; 0 has no
// limit. What a step tells goes before --max-age, which the others obey, unless
// all steps that may read the network tell.
func (k *bake) limits() []time.Duration {
	general, told, open := k.opts.MaxAge, false, false
	for _, s := range k.steps {
		told, open = told || s.fetches() && s.tells(), open || s.fetches() && !s.tells()
	}
	if told && !open {
		general = 0
	}
	var out []time.Duration
	for _, s := range k.steps {
		l := general
		if s.Cache.MaxAge != nil {
			l = *s.Cache.MaxAge
		} else if s.tells() {
			l = 0
		}
		out = append(out, l)
	}
	return out
}

// chain lists the states as far as they can be told: up to a step whose refresh
// command was not run yet. whole says whether that is all of them.
func (k *bake) chain() (links []link, whole bool) {
	limits := k.limits()
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
		l := links[i].after(s, probe)
		l.maxAge = limits[i]
		if s.fetches() && !s.tells() && (l.maxAge <= 0 || l.maxAge > DefaultMaxAge) {
			l.maxAge = DefaultMaxAge
		}
		links = append(links, l)
	}
	return links, true
}

// imageInputs is the digest of all that decides the image: the last state, how
// it is sealed and what it was tested with. "" while it cannot be told.
func (k *bake) imageInputs() artifact.Digest {
	links, whole := k.chain()
	last := links[len(links)-1]
	if !whole || last.never || k.touched || k.unasked {
		return ""
	}
	var in artifact.Inputs
	in.Add("format", "rebake-inputs-v2")
	in.Add("name", k.tpl.Name)
	in.Add("state", string(last.key))
	in.Add("seal.skip", strings.Join(k.tpl.Seal.Skip, " "))
	if e := k.tpl.Seal.Inventory; e != "" { // as it was before there was one
		in.Add("seal.inventory", e)
	}
	for _, t := range k.tests {
		in.Add("test", t)
	}
	return in.Digest()
}

// tooOld says which of the links, passed when the trail says, is older than it
// may be; "" if none.
func (k *bake) tooOld(links []link, trail []passed) string {
	for i, l := range links {
		if age := k.env.now().Sub(trail[i].Ran); l.maxAge > 0 && age >= l.maxAge {
			return fmt.Sprintf("%q ran %s ago, and is good for %s", l.name, age.Round(time.Second), l.maxAge)
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
	Passed []passed          `json:"passed"`
	Cost   time.Duration     `json:"cost"`
	Probes map[string]string `json:"probes,omitempty"` // what refresh commands printed, by step
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
		if !filepath.IsLocal(filepath.FromSlash(pattern)) {
			return s.Block.Errorf(at, "inputs: %s is not below the template's directory", pattern)
		}
		found, err := fs.Glob(os.DirFS(dir), path.Clean(filepath.ToSlash(pattern))) // dir itself is no pattern
		if err != nil || len(found) == 0 {
			return s.Block.Errorf(at, "inputs: nothing matches %s below %s", pattern, dir)
		}
		for _, root := range found {
			if err := addTree(in, dir, filepath.Join(dir, filepath.FromSlash(root))); err != nil {
				return s.Block.Errorf(at, "inputs: %v", err)
			}
		}
	}
	return nil
}

// addTree adds all below root as artifact.FileLine tells it.
func addTree(in *artifact.Inputs, dir, root string) error {
	var lines []byte
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		var link string
		if st.Mode().Type() == fs.ModeSymlink {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		line, err := artifact.FileLine("input "+filepath.ToSlash(rel), st.Mode(), link, func() (io.ReadCloser, error) { return os.Open(p) })
		lines = append(lines, line...)
		return err
	})
	in.AddFiles(lines)
	return err
}

// deepest is the last state that is saved and still good, with its trail.
func (k *bake) deepest(ctx context.Context, links []link) *saved {
	cp, ok := k.checkpoints()
	for n := len(links); ok && n > 0; n-- {
		if found := k.usable(ctx, cp, links[:n]); found != nil {
			return found
		}
	}
	return nil
}

// usable is the checkpoint of the last link, if there is one to go on from. What
// is wrong with one costs time, never the build.
func (k *bake) usable(ctx context.Context, cp builder.Checkpointer, links []link) *saved {
	at := len(links) - 1
	if k.opts.NoCache || links[at].never || k.opts.NoCacheFrom != "" && at > k.noCacheFrom() {
		return nil
	}
	c, ok, err := cp.Find(ctx, links[at].key)
	if err != nil {
		if ctx.Err() == nil {
			k.warnOnce(ctx, fmt.Sprintf("a checkpoint cannot be read: %v", err))
		}
		return nil
	}
	if !ok || k.distrusted[c.Taken] {
		return nil
	}
	trail, err := readTrail(c.Note, links)
	if err != nil || k.tooOld(links, trail) != "" {
		return nil
	}
	return &saved{Checkpoint: c, at: at, trail: trail}
}

// outdates says whether this build was told not to go on from a checkpoint that
// the next one would find: then it makes a newer one.
func (k *bake) outdates(ctx context.Context, cp builder.Checkpointer, key artifact.Digest) bool {
	if !k.opts.NoCache && k.opts.NoCacheFrom == "" {
		return false
	}
	_, ok, err := cp.Find(ctx, key)
	return ok && err == nil
}

func (k *bake) warnOnce(ctx context.Context, text string) {
	if !k.warned[text] {
		k.warned[text] = true
		event.Warnf(ctx, "%s", text)
	}
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

// read is what decides the step's effect, its declared files too.
func (s step) read(ctx context.Context, dir string) (in artifact.Inputs, ok bool, err error) {
	if in, ok, err = s.Provisioner.Key(ctx); err == nil {
		err = addFiles(&in, s.Step, dir)
	}
	return in, ok, err
}

// unchanged fails if a local file of a step is not what it was when the build
// began: the step may have met either.
func (k *bake) unchanged(ctx context.Context, s step) error {
	in, _, err := s.read(ctx, k.tpl.Dir)
	if err != nil {
		return fmt.Errorf("step %q: %w", s.Name, err)
	}
	if field, _, _ := in.Difference(s.inputs); field != "" {
		return fmt.Errorf("step %q: %s changed while it was baked", s.Name, field)
	}
	return nil
}
