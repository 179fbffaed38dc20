package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/statement"
)

// state attaches how the image was made and what its tests came to. An image that
// was not tested has no test result.
func (k *bake) state(ctx context.Context, at artifact.Attacher, img artifact.Image, b *baking) error {
	made, err := statement.New(imageName(img), img.Digest, statement.Provenance, k.provenance(img, b.rig))
	if err != nil {
		return err
	}
	said := []statement.Statement{made}
	if result, tested := statement.Test(img.Tests, statement.Of(filepath.Base(k.tpl.Path), k.tpl.Digest)); tested {
		s, err := statement.New(imageName(img), img.Digest, statement.TestResult, result)
		if err != nil {
			return err
		}
		said = append(said, s)
	}
	for _, s := range said {
		_, err := at.Attach(ctx, img.Digest, artifact.Attachment{
			Kind: statement.Media, Media: statement.Media, Created: img.Created,
			Notes: map[string]string{statement.NotePredicate: s.PredicateType},
		}, s.Bytes())
		if err != nil {
			return err
		}
	}
	return nil
}

// sign signs the image and all that was attached before, where there is a key.
func (k *bake) sign(ctx context.Context, at artifact.Attacher, img artifact.Image, _ *baking) error {
	if k.key == nil {
		return nil
	}
	_, err := sign(ctx, at, img, k.key, img.Created)
	return err
}

func imageName(img artifact.Image) string { return img.Name + ":" + img.Version }

// unsigned says that an image of the same inputs, which is not baked again, lacks
// a signature that a new one would have.
func (k *bake) unsigned(ctx context.Context, img artifact.Image) {
	if k.key == nil {
		return
	}
	pub := k.key.Public()
	found, err := require.Check(ctx, require.Parts{Store: k.env.Store, Now: k.env.now}, img,
		require.Rules{SignedBy: []require.Signer{{Name: pub.Name, PEM: string(pub.PEM())}}})
	if err != nil || require.Refused(img, found) != nil {
		event.Warnf(ctx, "%s is not signed with this key: `rebake sign %s --key NAME` does it, --force bakes it again", imageName(img), imageName(img))
	}
}

// mostFiles is how many files the provenance names one by one.
const mostFiles = 20000

var ofSum = regexp.MustCompile(`sha256:([0-9a-f]{64})$`)

// provenance is how the image was made, as far as this run can tell.
func (k *bake) provenance(img artifact.Image, r *rig) statement.Provenanced {
	var clean event.Redactor // in case that a value is another variable's secret
	clean.Add(k.tpl.Secrets...)
	external := statement.External{
		Template: statement.Of(filepath.Base(k.tpl.Path), k.tpl.Digest), Secrets: k.tpl.Sensitive,
		Target: statement.Target{Build: k.build.Name, Image: imageName(img)}, Variables: map[string]string{},
	}
	for name, value := range k.tpl.Variables {
		external.Variables[name] = clean.Clean(value)
	}
	internal := statement.Internal{Builder: k.build.Kind, SealSkip: k.tpl.Seal.Skip, Inputs: k.inputs}
	deps := []statement.Resource{statement.Of("base: "+img.Lineage.Parent, img.Lineage.ParentDigest)}
	if c := img.Lineage.GitCommit; c != "" {
		deps = append(deps, statement.Resource{Name: "template's git commit", Digest: map[string]string{"gitCommit": c},
			Annotations: map[string]any{"dirty": img.Lineage.GitDirty}})
	}
	var files []statement.Resource
	var steps []statement.Resource
	by := []statement.Resource{}
	for i, p := range r.trail {
		if i > 0 {
			internal.Steps = append(internal.Steps, p.Name)
		}
		steps = append(steps, statement.Of("inputs of "+p.Name, p.Inputs.Digest()))
		for _, v := range p.Inputs.All() {
			if m := ofSum.FindStringSubmatch(v[1]); m != nil {
				files = append(files, statement.Resource{Name: clean.Clean(p.Name + ": " + v[0]), Digest: map[string]string{"sha256": m[1]}})
			}
		}
		if p.Build != r.id { // it was passed in another run
			by = append(by, statement.Resource{Name: "cached: " + p.Name, Digest: map[string]string{"sha256": p.Key.Hex()},
				Annotations: map[string]any{"invocationId": p.Build, "finishedOn": p.Ran.UTC().Format(time.RFC3339)}})
		}
	}
	if len(files) > mostFiles {
		files = nil // those of each step have one digest together
	}
	if log, ok := logSoFar(k.log); ok {
		by = append(by, log)
	}
	return statement.Provenanced{
		BuildDefinition: statement.BuildDefinition{
			BuildType: statement.BuildType, ExternalParameters: external, InternalParameters: internal,
			ResolvedDependencies: append(append(deps, steps...), files...),
		},
		RunDetails: statement.RunDetails{
			Builder:    statement.Builder{ID: "https://github.com/rebake/rebake/" + k.build.Kind, Version: map[string]string{"rebake": k.env.Version}},
			Metadata:   statement.Metadata{InvocationID: r.id, StartedOn: k.began.UTC().Truncate(time.Second), FinishedOn: img.Created.UTC()},
			Byproducts: by,
		},
	}
}

// logSoFar is the digest of a build's log up to here: what comes after is only
// that the image was registered.
func logSoFar(path string) (statement.Resource, bool) {
	f, err := os.Open(path)
	if err != nil {
		return statement.Resource{}, false
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return statement.Resource{Name: "log: " + filepath.Base(path), Digest: map[string]string{"sha256": fmt.Sprintf("%x", h.Sum(nil))},
		Annotations: map[string]any{"bytes": n}}, err == nil
}

// Sign signs an image, and all that is said of it without a signature, with a
// key: who signs it stands for that. It returns the predicate types that were
// signed. The same again is no error.
func Sign(ctx context.Context, env Env, img artifact.Image, key *statement.Key) ([]string, error) {
	at, ok := env.Store.(artifact.Attacher)
	if !ok {
		return nil, fmt.Errorf("the store %T keeps no attachments, so nothing can be signed in it", env.Store)
	}
	return sign(ctx, at, img, key, env.now())
}

// sign signs first what is said, then the image: an image that is signed has the
// rest signed too.
func sign(ctx context.Context, at artifact.Attacher, img artifact.Image, key *statement.Key, now time.Time) (done []string, err error) {
	list, err := at.Attached(ctx, img.Digest, "")
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	var said []statement.Statement
	for _, a := range list {
		predicate := require.PredicateOf(a.Media)
		if a.Media != statement.Media && a.Media != statement.BundleMedia && predicate == "" {
			continue
		}
		raw, err := at.ReadAttachment(ctx, a)
		if err != nil {
			return nil, err
		}
		switch {
		case a.Media == statement.BundleMedia:
			if s, _, err := statement.Verify(raw, key.Public()); err == nil {
				have[string(s.Bytes())] = true
			}
		case predicate != "":
			s, err := statement.New(imageName(img), img.Digest, predicate, json.RawMessage(raw))
			if err != nil {
				return nil, err
			}
			said = append(said, s)
		default:
			s, err := statement.Parse(raw)
			if err != nil {
				return nil, fmt.Errorf("attachment %s: %w", a.Digest, err)
			}
			if !s.About(img.Digest) {
				return nil, fmt.Errorf("attachment %s is about another image: nothing was signed", a.Digest)
			}
			said = append(said, s)
		}
	}
	own, err := statement.New(imageName(img), img.Digest, statement.Signature, struct{}{})
	if err != nil {
		return nil, err
	}
	for _, s := range append(said, own) {
		done = append(done, s.PredicateType)
		if have[string(s.Bytes())] {
			continue
		}
		raw, err := statement.Sign(s, key)
		if err != nil {
			return nil, err
		}
		_, err = at.Attach(ctx, img.Digest, artifact.Attachment{
			Kind: statement.BundleMedia, Media: statement.BundleMedia, Created: now,
			Notes: map[string]string{statement.NoteContent: statement.ContentDSSE, statement.NoteBundlePredicate: s.PredicateType},
		}, raw)
		if err != nil {
			return nil, fmt.Errorf("attach a signature: %w", err)
		}
	}
	event.Infof(ctx, "signed %s with %s", imageName(img), key.Public())
	return done, ctx.Err()
}

var errNoBytes = errors.New("the pool cannot tell which bytes boot")
