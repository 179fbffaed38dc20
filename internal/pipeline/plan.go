package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/seal"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
)

// BakeOptions are the choices of a bake.
type BakeOptions struct {
	Only      []string      // build names; none is all
	Version   string        // instead of the template's or a date serial
	Tags      []string      // besides the template's
	Force     bool          // bake even if nothing changed
	MaxAge    time.Duration // an unchanged image, or state after a step, older than this is made again; 0: never
	SkipTest  bool
	KeepFails bool // on failure keep the machine up until interrupted
	AskFails  bool // on failure of a step ask a person (Env.Ask)
	Parallel  int  // builds at once; 0: one for each processor
	FailFast  bool // stop all builds when one fails
	IfChanged bool // an image of the same inputs is the result whatever version was asked for

	// Unasked asks this machine and the store alone: what a cloud would have to be
	// asked for stays untold.
	Unasked bool

	AllowDirty bool // make a release from a tree with changes that are in no commit

	SignKey *statement.Key // signs what is baked, instead of the template's; nil: that one, if there is one

	NoCache     bool   // go on from no checkpoint; new ones are saved
	NoCacheFrom string // go on from none after this step, and run it
}

// bake is one build of one template, with all its parts made: whatever is
// wrong with the input was said before this exists.
type bake struct {
	env     Env
	tpl     *template.Template
	opts    BakeOptions
	build   template.Build
	builder builder.Builder
	steps   []step
	checks  []namedCheck
	version string
	serial  bool            // the version is a date serial: another will do
	inputs  artifact.Digest // of all that decides the image; "" while that cannot be told
	current *artifact.Image // an image of the same inputs
	stale   *artifact.Image // one that is too old; nil if there is none, or current
	unfit   string          // why one that is neither is no result; "" likewise

	base       artifact.Inputs    // of the machine as it boots
	tests      []string           // as they enter the image's inputs
	probes     map[int]string     // by step: what its refresh command printed
	touched    bool               // a person was in the machine
	unasked    bool               // what the base is only a cloud could tell
	distrusted map[time.Time]bool // checkpoints that could not be gone on from, by their time
	warned     map[string]bool
	key        *statement.Key // nil: nobody signs
	before     *lastBuild     // the build before this one; nil: not read yet
	reasons    []string       // why steps were run
	began      time.Time      // of run
	log        string         // its log, "": there is none
}

type step struct {
	template.Step
	provisioner.Provisioner
	inputs artifact.Inputs
	keyed  bool // the inputs decide what it does
}

type namedCheck struct {
	name string
	check.Check
}

// newBake makes the parts of a build and finds out whether it is needed.
func newBake(ctx context.Context, env Env, tpl *template.Template, b template.Build, opts BakeOptions) (*bake, error) {
	k := &bake{env: env, tpl: tpl, opts: opts, build: b, probes: map[int]string{}, distrusted: map[time.Time]bool{}, warned: map[string]bool{}}
	err := seal.CheckSkip(tpl.Seal.Skip)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tpl.Path, err)
	}
	if k.builder, err = env.Backends.Builder(env, b); err != nil {
		return nil, err
	}
	stepEnv := StepEnv{Dir: tpl.Dir, Secrets: tpl.Secrets, Env: map[string]string{
		"REBAKE_BUILD_NAME": tpl.Name, "REBAKE_BUILDER": b.Kind,
	}}
	if c, ok := k.builder.(builder.Checker); ok && opts.Unasked {
		k.unasked, err = true, c.Check(ctx)
	} else {
		k.base, err = k.builder.Key(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, s := range tpl.Steps {
		if !s.Applies(b.Name) {
			continue
		}
		p, err := env.Backends.Provisioner(s, stepEnv)
		if err != nil {
			return nil, err
		}
		one := step{Step: s, Provisioner: p}
		if one.inputs, one.keyed, err = one.read(ctx, tpl.Dir); err != nil {
			return nil, s.Block.Errorf("", "%w", err)
		}
		if _, waits := p.(breakpoint); waits && env.Ask != nil {
			one.keyed = false // a person who is there is asked every time
		}
		k.steps = append(k.steps, one)
	}
	for _, s := range tpl.Tests {
		if !s.Applies(b.Name) {
			continue
		}
		c, err := env.Backends.Check(s)
		if err != nil {
			return nil, err
		}
		canon, err := s.Block.Canonical()
		if err != nil {
			return nil, err
		}
		k.tests = append(k.tests, s.Kind+" "+string(canon))
		k.checks = append(k.checks, namedCheck{s.Name, c})
	}
	if from := opts.NoCacheFrom; from != "" && k.noCacheFrom() == len(k.steps) {
		return nil, fmt.Errorf("--no-cache-from: %s has no step %q in build %s", tpl.Path, from, b.Name)
	}
	if k.key = opts.SignKey; k.key == nil && tpl.Sign != "" {
		if k.key, err = keyring.Dir(env.State.Keys()).Private(tpl.Sign, tpl.Dir); err != nil {
			return nil, fmt.Errorf("%s: sign.key: %w", tpl.Path, err)
		}
	}
	if _, ok := env.Store.(artifact.Attacher); !ok && k.key != nil {
		return nil, fmt.Errorf("%s cannot be signed: the store %T keeps no attachments", tpl.Name, env.Store)
	}
	if err := k.choose(ctx); err != nil {
		return nil, err
	}
	return k, errors.Join(k.checkClean(ctx), k.checkTags(ctx))
}

// choose picks the version and looks for an image of the same inputs.
func (k *bake) choose(ctx context.Context) error {
	k.inputs, k.current, k.stale, k.unfit = k.imageInputs(), nil, nil, ""
	var images []artifact.Image
	if l, ok := k.env.Store.(artifact.Lister); ok {
		var err error
		if images, err = l.List(ctx, k.tpl.Name); err != nil {
			return err
		}
	}
	removed, err := k.env.removed(ctx, k.tpl.Name)
	if err != nil {
		return err
	}
	var versions []string
	for _, r := range removed {
		versions = append(versions, r.Version)
	}
	for i, img := range images {
		versions = append(versions, img.Version)
		switch same := k.inputs != "" && img.Lineage.InputsDigest == k.inputs; {
		case !same || k.current != nil:
		case !k.fresh(img):
			k.stale = &images[i]
		default:
			if k.unfit = k.env.withdrawn(ctx, img); k.unfit == "" && k.opts.IfChanged && !k.opts.SkipTest && len(img.Tests) == 0 {
				k.unfit = imageName(img) + " of the same inputs was not tested (--skip-test)"
			}
			if k.unfit == "" {
				k.current = &images[i]
			}
		}
	}
	if k.again() {
		k.current = nil
	}
	k.version = k.opts.Version
	if k.version == "" {
		k.version = k.tpl.Version
	}
	if k.version == "" {
		k.version, k.serial = artifact.NextSerial(versions, k.env.now()), true
		return nil
	}
	if k.opts.IfChanged && (k.current != nil || k.untold()) {
		return nil
	}
	for _, img := range images {
		if img.Version != k.version {
			continue
		}
		if k.unasked {
			return nil // it may be of the same inputs
		}
		if k.inputs != "" && img.Lineage.InputsDigest == k.inputs && !k.again() {
			if why := k.env.withdrawn(ctx, img); why != "" {
				return fmt.Errorf("%s: %w", why, artifact.ErrExists)
			}
			k.current = &img
			return nil
		}
		return fmt.Errorf("%s:%s: %w", k.tpl.Name, k.version, artifact.ErrExists)
	}
	for _, r := range removed {
		if r.Version == k.version {
			return fmt.Errorf("%w: %w, and a version is not used again", artifact.ErrExists, &artifact.RemovedError{Removed: r})
		}
	}
	if k.current != nil && k.current.Version != k.version {
		k.current = nil // a release was asked for by name
	}
	return nil
}

// untold says that the guest must be asked first, by a refresh command.
func (k *bake) untold() bool {
	_, whole := k.chain()
	return !whole
}

// again says that somebody wants a bake, changed or not.
func (k *bake) again() bool { return k.opts.Force || k.opts.NoCache || k.opts.NoCacheFrom != "" }

// fresh says whether an image of the same inputs is young enough: each step of it.
func (k *bake) fresh(img artifact.Image) bool {
	limits := k.limits()
	if len(limits) == 0 {
		limits = []time.Duration{k.opts.MaxAge}
	}
	for i, l := range limits {
		ran := img.Created
		if i < len(img.Lineage.Ran) {
			ran = img.Lineage.Ran[i]
		}
		if l > 0 && k.env.now().Sub(ran) >= l {
			return false
		}
	}
	return true
}

// another chooses the version after one that a bake at the same time has taken.
func (k *bake) another(ctx context.Context) error {
	taken := []string{k.version}
	if l, ok := k.env.Store.(artifact.Lister); ok {
		images, err := l.List(ctx, k.tpl.Name)
		if err != nil {
			return err
		}
		for _, img := range images {
			taken = append(taken, img.Version)
		}
	}
	removed, err := k.env.removed(ctx, k.tpl.Name)
	if err != nil {
		return err
	}
	for _, r := range removed {
		taken = append(taken, r.Version)
	}
	was := k.version
	k.version = artifact.NextSerial(taken, k.env.now())
	event.Infof(ctx, "version %s was taken meanwhile: this is %s", was, k.version)
	return nil
}

// describe says in a few lines what will happen.
func (k *bake) describe(ctx context.Context) string {
	links, _ := k.chain()
	from := k.deepest(ctx, links)
	begin, done := "boot", 0
	if from != nil {
		begin, done = fmt.Sprintf("go on after %q", links[from.at].name), from.at
	}
	var names []string
	for _, s := range k.steps[done:] {
		names = append(names, s.Name)
	}
	if len(names) > 0 {
		begin += fmt.Sprintf(", provision (%s)", strings.Join(names, ", "))
	}
	test := fmt.Sprintf("%d checks of its own and the built-in ones", len(k.checks))
	if k.opts.SkipTest {
		test = "no tests (--skip-test)"
	}
	return fmt.Sprintf("bake %s:%s with %s: %s, seal, capture, %s, store, tag %s",
		k.tpl.Name, k.version, k.build.Name, begin, test, strings.Join(k.tags(), ", "))
}

func (k *bake) tags() []string {
	return append(append([]string{"latest"}, k.tpl.Tags...), k.opts.Tags...)
}

func bakesOf(ctx context.Context, env Env, tpl *template.Template, opts BakeOptions) ([]*bake, error) {
	var bakes []*bake
	known := map[string]bool{}
	for _, b := range tpl.Builds {
		known[b.Name] = true
		if len(opts.Only) > 0 && !contains(opts.Only, b.Name) {
			continue
		}
		k, err := newBake(ctx, env, tpl, b, opts)
		if err != nil {
			return nil, err
		}
		bakes = append(bakes, k)
	}
	for _, o := range opts.Only {
		if !known[o] {
			return nil, fmt.Errorf("no build %q in %s", o, tpl.Path)
		}
	}
	if len(bakes) == 0 {
		return nil, errors.New("the template has no build")
	}
	if k := bakes[0]; len(bakes) > 1 && !k.serial {
		return nil, fmt.Errorf("%d builds cannot all be %s:%s: bake one of them (--only NAME), or give no version", len(bakes), tpl.Name, k.version)
	}
	return bakes, nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func jsonLine(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs only
	}
	return append(b, '\n')
}
