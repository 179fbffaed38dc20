// Package require says whether an image may run: signed, tested, documented, not
// revoked, young enough, in a channel, and whole. It reads what is attached to the
// image (internal/statement) and changes nothing.
package require

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/statement"
)

// Rules are what an image must have. The zero value asks for nothing. It is kept
// in a fleet's record as JSON, keys and all, so that a command without the
// template holds an image to the same.
type Rules struct {
	SignedBy   []Signer      `json:"signed_by,omitempty"` // one of them; then only what one of them signed counts
	Tests      bool          `json:"tests,omitempty"`     // a test result that passed
	SBOM       bool          `json:"sbom,omitempty"`
	Provenance bool          `json:"provenance,omitempty"`
	NotRevoked bool          `json:"not_revoked,omitempty"`
	MaxAge     time.Duration `json:"max_age,omitempty"` // since the image was made
	Channel    string        `json:"channel,omitempty"` // a tag that points at the image now
}

// Signer is a public key.
type Signer struct {
	Name string `json:"name"`
	PEM  string `json:"pem"`
}

// Empty says that nothing is asked for.
func (r Rules) Empty() bool {
	return len(r.SignedBy) == 0 && !r.Tests && !r.SBOM && !r.Provenance && !r.NotRevoked && r.MaxAge == 0 && r.Channel == ""
}

// Finding is one check.
type Finding struct {
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // a clause; of one that failed, it begins with the word for what is wrong
}

// Parts are what the checks ask.
type Parts struct {
	Store artifact.Store
	// Revoked is why the image, or one that it comes from, was revoked; "": it was
	// not. nil: nobody can tell, which refuses an image that must not be revoked.
	Revoked func(ctx context.Context, img artifact.Image) (reason string, err error)
	// Bytes compares what would boot with the digest; nil: it is not asked.
	Bytes func(ctx context.Context, img artifact.Image) error
	Now   func() time.Time
}

// sbomTypes are predicates and kinds of attachments that are an SBOM.
var sbomTypes = []string{
	"https://spdx.dev/Document", "https://cyclonedx.org/bom",
	"application/spdx+json", "application/vnd.cyclonedx+json",
}

// PredicateOf is the predicate type by which an SBOM attached as it is becomes a
// statement; "" for what is none.
func PredicateOf(kind string) string {
	switch {
	case strings.HasPrefix(kind, "application/spdx+json"):
		return sbomTypes[0]
	case strings.HasPrefix(kind, "application/vnd.cyclonedx+json"):
		return sbomTypes[1]
	}
	return ""
}

func isSBOM(kind string) bool {
	return slices.ContainsFunc(sbomTypes, func(t string) bool { return strings.HasPrefix(kind, t) })
}

// said is one statement about the image.
type said struct {
	kind string // predicate type
	statement.Statement
	by statement.Public // zero: nobody of those who count
}

// all is what is attached to an image.
type all struct {
	said     []said
	bundles  int      // that are signatures of somebody
	hints    []string // the keys that those claim
	unusable []string // what could not be read
}

// maxRead bounds how many attachments are read for one image.
const maxRead = 1000

// collect reads what is attached. keys are those that count; without any, every
// statement does, signed or not.
func collect(ctx context.Context, store artifact.Store, img artifact.Image, keys []statement.Public) (a all, err error) {
	at, ok := store.(artifact.Attacher)
	if !ok {
		return a, nil
	}
	list, err := at.Attached(ctx, img.Digest, "")
	if err != nil {
		return a, err
	}
	if len(list) > maxRead {
		return a, fmt.Errorf("%s has %d attachments, more than %d", name(img), len(list), maxRead)
	}
	for _, one := range list {
		media := one.Media
		if media != statement.Media && media != statement.BundleMedia && !isSBOM(media) || one.Size > statement.MaxBytes {
			continue
		}
		raw, err := at.ReadAttachment(ctx, one)
		if err != nil {
			if ctx.Err() != nil {
				return a, err
			}
			a.unusable = append(a.unusable, fmt.Sprintf("%s: %v", one.Digest, err))
			continue
		}
		a.add(media, raw, img, keys)
	}
	return a, nil
}

// add takes one attachment in.
func (a *all) add(media string, raw []byte, img artifact.Image, keys []statement.Public) {
	var s statement.Statement
	var by statement.Public
	switch {
	case media == statement.BundleMedia:
		b, claimed, err := statement.Read(raw)
		if err != nil {
			a.unusable = append(a.unusable, err.Error())
			return
		}
		if claimed.About(img.Digest) {
			a.bundles++
			a.hints = append(a.hints, b.Hint())
		}
		s = claimed
		if len(keys) > 0 {
			if s, by, err = statement.Verify(raw, keys...); err != nil {
				return // of somebody else
			}
		}
	case len(keys) > 0:
		return // nobody stands for it
	case media == statement.Media:
		var err error
		if s, err = statement.Parse(raw); err != nil {
			a.unusable = append(a.unusable, err.Error())
			return
		}
	default: // an SBOM as it is
		a.said = append(a.said, said{kind: media})
		return
	}
	if s.About(img.Digest) {
		a.said = append(a.said, said{s.PredicateType, s, by})
	}
}

func (a all) of(match func(kind string) bool) (out []said) {
	for _, s := range a.said {
		if match(s.kind) {
			out = append(out, s)
		}
	}
	return out
}

func is(want string) func(string) bool { return func(kind string) bool { return kind == want } }

func name(img artifact.Image) string { return img.Name + ":" + img.Version }

// Check holds an image to the rules: a finding for each of them, in a fixed
// order. An error is that the checks could not be made.
func Check(ctx context.Context, p Parts, img artifact.Image, r Rules) ([]Finding, error) {
	var keys []statement.Public
	var names []string
	for _, s := range r.SignedBy {
		k, err := statement.ParsePublic(s.Name, []byte(s.PEM))
		if err != nil {
			return nil, fmt.Errorf("key %s of signed_by: %w", s.Name, err)
		}
		keys, names = append(keys, k), append(names, k.String())
	}
	a, err := collect(ctx, p.Store, img, keys)
	if err != nil {
		return nil, fmt.Errorf("read what is attached to %s: %w", name(img), err)
	}
	var out []Finding
	add := func(check string, ok bool, format string, v ...any) {
		out = append(out, Finding{check, ok, fmt.Sprintf(format, v...)})
	}
	if len(keys) > 0 {
		out = append(out, a.signed(img, names))
	}
	if r.Tests {
		out = append(out, a.tested(img))
	}
	if r.SBOM {
		found := a.of(isSBOM)
		add("sbom", len(found) > 0, "%s", either(len(found) > 0, "an SBOM is attached", "without SBOM: none is attached"+a.whose(keys)))
	}
	if r.Provenance {
		out = append(out, a.built(img, keys))
	}
	if r.NotRevoked {
		f := Finding{"not revoked", true, "not revoked"}
		switch reason, err := revoked(ctx, p, img); {
		case err != nil:
			return nil, fmt.Errorf("ask whether %s was revoked: %w", name(img), err)
		case reason != "":
			f.OK, f.Detail = false, "revoked: "+reason
		}
		out = append(out, f)
	}
	if r.MaxAge > 0 {
		age := p.Now().Sub(img.Created).Round(time.Second)
		add("age", age <= r.MaxAge, "%s", either(age <= r.MaxAge, fmt.Sprintf("made %s ago, at most %s", age, r.MaxAge), fmt.Sprintf("too old: made %s ago, at most %s", age, r.MaxAge)))
	}
	if r.Channel != "" {
		f, err := inChannel(ctx, p, img, r.Channel)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	if p.Bytes != nil {
		f := Finding{"bytes", true, "what boots is what the digest names"}
		if err := p.Bytes(ctx, img); errors.Is(err, artifact.ErrCorrupt) || errors.Is(err, artifact.ErrNotFound) {
			f.OK, f.Detail = false, "tampered: "+err.Error()
		} else if err != nil {
			return nil, fmt.Errorf("compare the bytes of %s: %w", name(img), err)
		}
		out = append(out, f)
	}
	return out, nil
}

func either(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

// whose is why what is attached may not count.
func (a all) whose(keys []statement.Public) string {
	if len(keys) == 0 {
		return ""
	}
	return " that one of the keys of signed_by signed"
}

func (a all) signed(img artifact.Image, names []string) Finding {
	f := Finding{Check: "signed"}
	wanted := strings.Join(names, " or ")
	if found := a.of(is(statement.Signature)); len(found) > 0 {
		f.OK, f.Detail = true, "signed by "+found[0].by.String()
		return f
	}
	switch {
	case a.bundles == 0:
		f.Detail = "unsigned: it carries no signature, and one by " + wanted + " is needed (`rebake sign " + name(img) + " --key NAME`)"
	case len(a.said) > 0:
		f.Detail = "unsigned: statements by " + a.said[0].by.String() + " are attached, but no signature of the image (`rebake sign " + name(img) + " --key NAME`)"
	default:
		f.Detail = fmt.Sprintf("signed by another key: %d signatures of keys %s, and none by %s", a.bundles, claims(a.hints), wanted)
	}
	if len(a.unusable) > 0 {
		f.Detail += fmt.Sprintf("; %d attachments cannot be read: %s", len(a.unusable), a.unusable[0])
	}
	return f
}

// claims are the first hints, shortened: they are somebody's words.
func claims(hints []string) string {
	var out []string
	for _, h := range hints {
		if q := fmt.Sprintf("%.12q", h); !slices.Contains(out, q) && len(out) < 4 {
			out = append(out, q)
		}
	}
	return strings.Join(out, ", ")
}

func (a all) tested(img artifact.Image) Finding {
	f := Finding{Check: "tests"}
	found := a.of(is(statement.TestResult))
	if len(found) == 0 {
		f.Detail = "untested: no test result is attached that counts (`rebake build` without --skip-test makes one)"
		return f
	}
	passed := 0
	for _, s := range found { // each of them: one that failed is not made good by another
		t, err := s.Tests()
		switch {
		case err != nil:
			f.Detail = "tests failed: " + err.Error()
			return f
		case t.Result != statement.Passed:
			f.Detail = "tests failed: " + strings.Join(t.FailedTests[:min(5, len(t.FailedTests))], ", ")
			return f
		}
		passed = max(passed, len(t.PassedTests))
	}
	f.OK, f.Detail = true, fmt.Sprintf("%d tests passed", passed)
	return f
}

func (a all) built(img artifact.Image, keys []statement.Public) Finding {
	f := Finding{Check: "provenance"}
	found := a.of(is(statement.Provenance))
	if len(found) == 0 {
		f.Detail = "without provenance: none is attached" + a.whose(keys)
		return f
	}
	p, err := found[0].BuiltBy()
	if err != nil {
		f.Detail = "without provenance: " + err.Error()
		return f
	}
	f.OK, f.Detail = true, fmt.Sprintf("built as %.100s by %.200s", p.RunDetails.Metadata.InvocationID, p.RunDetails.Builder.ID)
	return f
}

func revoked(ctx context.Context, p Parts, img artifact.Image) (string, error) {
	if p.Revoked == nil {
		return "", errors.New("this store cannot tell")
	}
	return p.Revoked(ctx, img)
}

func inChannel(ctx context.Context, p Parts, img artifact.Image, channel string) (Finding, error) {
	f := Finding{Check: "channel"}
	now, err := p.Store.Resolve(ctx, artifact.Ref{Name: img.Name, Tag: channel})
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		f.Detail = fmt.Sprintf("not in channel %s: %s:%s points at nothing", channel, img.Name, channel)
	case err != nil:
		return f, err
	case now.Digest != img.Digest:
		f.Detail = fmt.Sprintf("not in channel %s: that is %s", channel, name(now))
	default:
		f.OK, f.Detail = true, "in channel "+channel
	}
	return f, nil
}

// Refusal is why an image may not run: a line for each rule that it breaks.
type Refusal struct {
	Image    string
	Findings []Finding // those that failed
}

// Error has one line for each.
func (r *Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s may not run here", r.Image)
	for _, f := range r.Findings {
		b.WriteString("\n  " + f.Detail)
	}
	return b.String()
}

// Refused is a *Refusal of what failed, or nil.
func Refused(img artifact.Image, fs []Finding) error {
	r := &Refusal{Image: name(img)}
	for _, f := range fs {
		if !f.OK {
			r.Findings = append(r.Findings, f)
		}
	}
	if len(r.Findings) == 0 {
		return nil
	}
	return r
}
