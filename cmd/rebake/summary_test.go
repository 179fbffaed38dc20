package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/summary"
	"github.com/rebake/rebake/test/fake"
)

// imageWith registers an image that says which version of openssl it holds; "" says nothing.
func imageWith(t *testing.T, s *fake.Store, version string, created time.Time, openssl string) artifact.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte(strings.Repeat(version, 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	content, _, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Describe(t.Context(), artifact.Image{Name: "web", Version: version, Content: content, Created: created})
	if err != nil {
		t.Fatal(err)
	}
	if openssl != "" {
		raw, err := inventory.Encode(&inventory.Inventory{Format: 1, Packages: []inventory.Package{{Manager: "dpkg", Name: "openssl", Version: openssl, Arch: "amd64"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(t.Context(), img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: created}, raw); err != nil {
			t.Fatal(err)
		}
	}
	if img, err = s.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestASummarySaysWhatWasUpgradedSinceTheImageBefore(t *testing.T) {
	store, at := new(fake.Store), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	first := imageWith(t, store, "1", at, "3.0.1")
	imageWith(t, store, "2", at.AddDate(0, 0, 1), "3.0.2")
	silent := imageWith(t, store, "3", at.AddDate(0, 0, 2), "")
	last := imageWith(t, store, "4", at.AddDate(0, 0, 3), "3.0.4")
	a := &account{s: &session{Env: pipeline.Env{Store: store}, ctx: t.Context()}}
	from := func(old *artifact.Image, is artifact.Image, outcome string) summary.Build {
		a.fleet = nil
		if old != nil {
			a.fleet = &fleet.Result{Record: fleet.Record{Plan: fleet.Plan{Old: &fleet.Release{Spec: fleet.Spec{Image: *old}}}}}
		}
		b := summary.Build{Build: event.Build{Image: "web", Outcome: outcome, Digest: string(is.Digest)}}
		a.compare(&b)
		return b
	}
	if b := from(&first, last, event.Baked); b.Before != "web:1" || b.Packages == nil || b.Packages.Packages[0].From != "3.0.1" || b.Packages.Packages[0].To != "3.0.4" {
		t.Errorf("since the one that the fleet ran: %+v", b)
	}
	second, err := store.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "2"})
	if err != nil {
		t.Fatal(err)
	}
	if b := from(nil, second, event.Baked); b.Before != "web:1" || b.Packages == nil {
		t.Errorf("since the newest one before: %+v", b)
	}
	for name, b := range map[string]summary.Build{
		"the first one": from(nil, first, event.Baked), "one without an inventory": from(nil, silent, event.Baked),
		"after one without": from(nil, last, event.Baked), "nothing baked": from(&first, last, event.Unchanged),
	} {
		if b.Packages != nil || b.Before != "" {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

func TestAFileIsWrittenWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.md")
	for _, text := range []string{"one, and longer", "two"} {
		if err := replaceFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 { // others read it, a web server for one
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := replaceFile(filepath.Join(dir, "no", "s.md"), nil); err == nil {
		t.Error("it was written into a directory that is not there")
	}

	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		f, err := os.Open(pipe)
		if err != nil {
			got <- err.Error()
			return
		}
		defer f.Close()
		raw, err := io.ReadAll(f)
		if err != nil {
			raw = []byte(err.Error())
		}
		got <- string(raw)
	}()
	if err := replaceFile(pipe, []byte("through a pipe")); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "through a pipe" {
		t.Errorf("the reader of the pipe got %q", text)
	}
}

func TestAStepSummaryHoldsWhatGitHubShows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "step")
	line := strings.Repeat("x", 99) + "\n"
	half := strings.Repeat(line, mostStepSummary/2/len(line))
	for range 4 {
		if err := appendSummary(path, half); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) > mostStepSummary || len(raw) < mostStepSummary-2*len(line) {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if err := appendSummary(path, half+half+half); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || len(again) > mostStepSummary {
		t.Errorf("%d bytes, %v", len(again), err)
	}
	if got := cutSummary(strings.Repeat(line, 10), 500); !strings.HasSuffix(got, "x\n"+cutNote) || len(got) > 500 {
		t.Errorf("%q", got)
	}
}
