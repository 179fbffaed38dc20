package lifecycle_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/test/fake"
)

// revoked is why, at a time after the beginning.
func revoked(t *testing.T, s lifecycle.Store, img artifact.Image, after time.Duration) string {
	t.Helper()
	return must[string](t)(lifecycle.Revoked(t.Context(), s, img, began.Add(after)))
}

func TestARevocationIsInheritedAndTakenBack(t *testing.T) {
	each(t, func(t *testing.T, s lifecycle.Store) {
		debian := artifact.Image{Name: "debian", Version: "bookworm", Digest: artifact.Digest("sha256:" + strings.Repeat("a", 64))}
		base := bake(t, s, "base", "1.0.0", &debian, "")
		app := bake(t, s, "app", "1.0.0", &base, "base:stable")
		web := bake(t, s, "web", "1.0.0", &app, "app")
		other := bake(t, s, "other", "1.0.0", nil, "")
		must[lifecycle.Revocation](t)(lifecycle.Revoke(t.Context(), s, at("anna@ops", 0), base, time.Time{}, "CVE-2026-1\nin openssl"))
		const reason = "CVE-2026-1 in openssl (by anna@ops, since 2026-11-28 12:00 UTC)"
		for img, want := range map[*artifact.Image]string{
			&base: reason, &other: "",
			&app: "it was made from base:1.0.0, which is revoked: " + reason, &web: "it was made from base:1.0.0, which is revoked: " + reason,
		} {
			if got := revoked(t, s, *img, 0); got != want {
				t.Errorf("%s: %q, want %q", img.Name, got, want)
			}
		}
		_, err := lifecycle.Promote(t.Context(), s, at("anna", 0), web, "stable", "", nil)
		if !errors.Is(err, lifecycle.ErrRevoked) || !strings.Contains(err.Error(), "made from base:1.0.0") {
			t.Error(err)
		}
		if _, err := lifecycle.Restore(t.Context(), s, at("anna", 0), web, ""); !errors.Is(err, lifecycle.ErrNotRevoked) || !strings.Contains(err.Error(), "base:1.0.0") {
			t.Error(err)
		}
		if why, err := lifecycle.Needed(t.Context(), s, began, base); err != nil || !strings.Contains(why, "which would not be known to be revoked any more") {
			t.Errorf("%q, %v", why, err)
		}
		// The image between may go: its child knows what that was made from.
		if err := s.(artifact.Deleter).Remove(t.Context(), artifact.Ref{Name: "app", Tag: "1.0.0"}); err != nil {
			t.Fatal(err)
		}
		if revoked(t, s, web, 0) == "" {
			t.Error("the image between is gone, and web is not revoked any more")
		}
		// So may the base, if it leaves a tombstone.
		if err := s.(artifact.Retirer).Retire(t.Context(), base, "old", began); err != nil {
			t.Fatal(err)
		}
		if revoked(t, s, web, 0) == "" || revoked(t, s, base, 0) == "" {
			t.Error("the base is retired, and web is not revoked any more")
		}
		must[lifecycle.Revocation](t)(lifecycle.Restore(t.Context(), s, at("anna", 0), base, "a false alarm"))
		for _, img := range []artifact.Image{base, web} {
			if got := revoked(t, s, img, 0); got != "" {
				t.Errorf("%s, restored: %q", img.Name, got)
			}
		}
		if _, err := lifecycle.Restore(t.Context(), s, at("anna", 0), base, ""); !errors.Is(err, lifecycle.ErrNotRevoked) {
			t.Error(err)
		}
		for _, img := range []artifact.Image{base, other} {
			if why, err := lifecycle.Needed(t.Context(), s, began, img); err != nil || why != "" {
				t.Errorf("%s: %q, %v", img.Name, why, err)
			}
		}
	})
}

func TestARevocationHasItsTime(t *testing.T) {
	s := new(fake.Store)
	img := bake(t, s, "web", "1.0.0", nil, "")
	say := func(from time.Time, reason string) {
		t.Helper()
		must[lifecycle.Revocation](t)(lifecycle.Revoke(t.Context(), s, at("anna", 0), img, from, reason))
	}
	say(began.Add(time.Hour), "end of life")
	if now, later := revoked(t, s, img, 59*time.Minute), revoked(t, s, img, time.Hour); now != "" || !strings.HasPrefix(later, "end of life (by anna, since 2026-11-28 13:00") {
		t.Errorf("now %q, later %q", now, later)
	}
	must[lifecycle.Revocation](t)(lifecycle.Restore(t.Context(), s, at("anna", 0), img, "not yet"))
	if later := revoked(t, s, img, 2*time.Hour); later != "" {
		t.Errorf("it was called off: %q", later)
	}
	say(began.Add(-time.Hour), "leaks since then")
	if got := revoked(t, s, img, 0); !strings.Contains(got, "since 2026-11-28 11:00") {
		t.Error(got)
	}
	// One for later does not end one that holds; without a time it holds by any clock.
	say(began.Add(time.Hour), "end of life")
	if got := revoked(t, s, img, 0); !strings.HasPrefix(got, "leaks") {
		t.Error(got)
	}
	say(time.Time{}, "at once")
	if got := revoked(t, s, img, -24*time.Hour); !strings.HasPrefix(got, "at once") {
		t.Error(got)
	}
}

// Of a revocation and a restoration that did not see each other, the revocation counts.
func TestRevokedAndRestoredAtOnce(t *testing.T) {
	for _, first := range []bool{true, false} {
		s := new(fake.Store)
		img := bake(t, s, "web", "1.0.0", nil, "")
		attach(t, s, img, lifecycle.Revocation{Said: lifecycle.Said{Serial: 1, ID: "0"}, Revoked: true})
		attach(t, s, img, lifecycle.Revocation{Said: lifecycle.Said{Serial: 2, ID: "1", At: began}, Revoked: first})
		attach(t, s, img, lifecycle.Revocation{Said: lifecycle.Said{Serial: 2, ID: "2", At: began.Add(time.Hour)}, Revoked: !first})
		if revoked(t, s, img, 0) == "" {
			t.Errorf("revoked first %t: it is not revoked", first)
		}
	}
}

func attach(t *testing.T, s lifecycle.Store, to artifact.Image, r any) {
	t.Helper()
	st := must[statement.Statement](t)(statement.New("", to.Digest, lifecycle.RevocationType, r))
	must[artifact.Attachment](t)(s.Attach(t.Context(), to.Digest, artifact.Attachment{Kind: lifecycle.RevocationKind, Media: statement.Media, Created: began}, st.Bytes()))
}

// What cannot be told is an error, and never "not revoked".
func TestWhatCannotBeToldIsNoPass(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(t *testing.T, s *fake.Store, base, web artifact.Image) lifecycle.Store
		want   string
	}{
		"rubbish": {func(t *testing.T, s *fake.Store, _, web artifact.Image) lifecycle.Store {
			must[artifact.Attachment](t)(s.Attach(t.Context(), web.Digest, artifact.Attachment{Kind: lifecycle.RevocationKind, Media: statement.Media, Created: began}, []byte("x")))
			return s
		}, "cannot be understood"},
		"rubbish on the base": {func(t *testing.T, s *fake.Store, base, _ artifact.Image) lifecycle.Store {
			attach(t, s, base, "x")
			return s
		}, "cannot be understood"},
		"a base that cannot be read": {func(_ *testing.T, s *fake.Store, _, _ artifact.Image) lifecycle.Store {
			return broken{s, errors.New("offline")}
		}, "read base:1.0.0, which web:1.0.0 was made from: offline"},
		"bytes that changed": {func(t *testing.T, s *fake.Store, base, _ artifact.Image) lifecycle.Store {
			r := lifecycle.Revocation{Said: lifecycle.Said{Serial: 1}, Revoked: true}
			attach(t, s, base, r)
			st := must[statement.Statement](t)(statement.New("", base.Digest, lifecycle.RevocationType, r))
			s.Tamper(st.Bytes())
			return s
		}, artifact.ErrCorrupt.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := new(fake.Store)
			base := bake(t, s, "base", "1.0.0", nil, "")
			web := bake(t, s, "web", "1.0.0", &base, "")
			why, err := lifecycle.Revoked(t.Context(), c.break_(t, s, base, web), web, began)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v", why, err)
			}
		})
	}
	if _, err := lifecycle.Revoked(t.Context(), struct{ artifact.Store }{new(fake.Store)}, artifact.Image{}, began); err == nil {
		t.Error("a store that keeps no attachments can tell")
	}
}

type broken struct {
	*fake.Store
	err error
}

func (b broken) Resolve(ctx context.Context, ref artifact.Ref) (artifact.Image, error) {
	if ref.Name == "base" {
		return artifact.Image{}, b.err
	}
	return b.Store.Resolve(ctx, ref)
}

func TestOutdated(t *testing.T) {
	each(t, func(t *testing.T, s lifecycle.Store) {
		tag := func(img artifact.Image, tag string) {
			t.Helper()
			if err := s.Tag(t.Context(), img.Name, tag, img.Digest); err != nil {
				t.Fatal(err)
			}
		}
		look := func(all bool) string {
			t.Helper()
			list, err := lifecycle.ListOutdated(t.Context(), s, began, all, func(d artifact.Digest) bool { return false })
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, o := range list {
				b.WriteString(o.Image.Name + ":" + o.Image.Version + " " + o.Base + "->" + o.Newer + " " + o.Through + "|")
			}
			return b.String()
		}
		base := bake(t, s, "base", "1.9.0", nil, "")
		tag(base, "stable")
		bake(t, s, "app", "1.0.0", &base, "base:1.9.0")
		app := bake(t, s, "app", "1.1.0", &base, "base:1.9.0")
		bake(t, s, "byname", "1.0.0", &base, "base:stable")
		bake(t, s, "web", "1.0.0", &app, "app:1.1.0")
		if got := look(true); got != "" {
			t.Errorf("all are of the newest: %q", got)
		}
		next := bake(t, s, "base", "1.10.0", nil, "")
		if got, want := look(false), "app:1.1.0 base:1.9.0->base:1.10.0 |web:1.0.0 base:1.9.0->base:1.10.0 app:1.1.0|"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := look(true); !strings.Contains(got, "app:1.0.0 base:1.9.0->base:1.10.0 |") {
			t.Errorf("all: %q", got)
		}
		tag(next, "stable")
		if got := look(false); !strings.Contains(got, "byname:1.0.0 base:1.9.0->base:1.10.0 |") {
			t.Errorf("the tag moved: %q", got)
		}
		tag(base, "stable")
		must[lifecycle.Revocation](t)(lifecycle.Revoke(t.Context(), s, at("anna", 0), next, time.Time{}, ""))
		if got := look(false); got != "" {
			t.Errorf("the newer one is revoked: %q", got)
		}
	})
}
