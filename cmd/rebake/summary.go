package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/summary"
	"github.com/urfave/cli/v2"
)

// stepSummary is the variable by which GitHub Actions name a file for Markdown.
const stepSummary = "GITHUB_STEP_SUMMARY"

// mostStepSummary is how many bytes GitHub shows of it.
const mostStepSummary = 1 << 20

func summaryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "summary", Usage: "write what was done to this `FILE`, also if it failed: .md Markdown, .json JSON, else text; - is standard output, instead of the result (repeatable). $" + stepSummary + " gets Markdown without it"},
		&cli.StringFlag{Name: "junit", Usage: "write builds, tests and gates as JUnit XML to this `FILE`, also if it failed"},
	}
}

// account is kept of a run for those who were not there. The nil one keeps none.
type account struct {
	s     *session
	c     summary.Collector
	files []string // of --summary
	junit string
	began time.Time
	over  bool // nothing is done that could be told

	outcome string
	changed bool
	held    string
	fleet   *fleet.Result
	healed  []string
	pruned  []summary.Pruned
}

// summarised runs f like with, and then writes the summaries that were asked for,
// whatever came of f.
func summarised(f func(*session) error) cli.ActionFunc {
	return with(func(s *session) error {
		a := &account{s: s, files: s.c.StringSlice("summary"), junit: s.c.String("junit"), began: time.Now()}
		if err := a.check(); err != nil {
			return err
		}
		s.account = a
		s.ctx = event.Tee(s.ctx, a.c.Sink)
		err := f(s)
		return errors.Join(err, a.write(err))
	})
}

// check refuses what could not be written after an hour's work.
func (a *account) check() error {
	files := a.files
	if a.junit != "" {
		files = append(files[:len(files):len(files)], a.junit)
	}
	seen := map[string]bool{}
	for _, path := range files {
		switch st, err := os.Stat(filepath.Dir(path)); {
		case seen[path]:
			return usagef("give each file once", "%s is to be written twice", path)
		case path == "-" && path != a.junit:
			if a.s.c.String("output") == "json" {
				return usagef("--summary FILE.json, or the result without --summary", "--summary - and --output json both want standard output")
			}
		case path == "" || path == "-":
			return usagef("for example --junit rebake.xml", "%q is no file", path)
		case err != nil || !st.IsDir():
			return usagef("make the directory first", "%s cannot be written: %s is no directory", path, filepath.Dir(path))
		}
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			return usagef("give the name of a file in it", "%s is a directory", path)
		}
		seen[path] = true
	}
	return nil
}

// close ends an account of a run that does nothing.
func (a *account) close() error {
	a.over = true
	if len(a.files) > 0 || a.junit != "" {
		return usagef("leave them out", "--summary and --junit tell what was done; --plan and --rehearse do nothing")
	}
	return nil
}

// told says that standard output belongs to the summary.
func (a *account) told() bool {
	if a == nil {
		return false
	}
	for _, f := range a.files {
		if f == "-" {
			return true
		}
	}
	return false
}

// removed takes in which images went. The nil account forgets it.
func (a *account) removed(gone []artifact.Removed) {
	for _, r := range gone {
		if a != nil {
			a.pruned = append(a.pruned, summary.Pruned{Image: imageName(r.Image), Why: strings.TrimPrefix(r.Why, pipeline.ByRetention)})
		}
	}
}

// upped and ended take in what came of the work. The nil account forgets it.
func (a *account) upped(u pipeline.Upped) {
	if a == nil {
		return
	}
	a.outcome, a.changed, a.held = u.Outcome, u.Changed, u.Held
	for _, r := range u.Healed {
		a.healed = append(a.healed, r.Instance)
	}
	if u.Deployment.ID != "" {
		a.fleet = &u.Deployment
	}
}

func (a *account) ended(res fleet.Result, err error) {
	if a == nil {
		return
	}
	a.outcome, a.changed = pipeline.OutcomeOf(res, err), err == nil && !res.Unchanged
	if res.ID != "" {
		a.fleet = &res
	}
}

// write writes everything that was asked for.
func (a *account) write(err error) error {
	if a.over || len(a.files) == 0 && a.junit == "" && os.Getenv(stepSummary) == "" {
		return nil
	}
	s := a.summary(err)
	var errs []error
	for _, path := range a.files {
		text, err := writers[ext(path)](s)
		if err == nil && path == "-" {
			_, err = a.s.c.App.Writer.Write(text)
		} else if err == nil {
			err = replaceFile(path, text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--summary %s: %w", path, err))
		}
	}
	if a.junit != "" {
		text, err := summary.JUnit(s)
		if err == nil {
			err = replaceFile(a.junit, text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--junit %s: %w", a.junit, err))
		}
	}
	if path := os.Getenv(stepSummary); path != "" {
		if err := appendSummary(path, summary.Markdown(s)); err != nil { // nobody asked for it
			fmt.Fprintf(a.s.c.App.ErrWriter, "rebake: warning: $%s: %s\n", stepSummary, a.s.red.Clean(err.Error()))
		}
	}
	return errors.Join(errs...)
}

var writers = map[string]func(summary.Summary) ([]byte, error){
	".json": summary.JSON,
	".md":   func(s summary.Summary) ([]byte, error) { return []byte(summary.Markdown(s)), nil },
	"":      func(s summary.Summary) ([]byte, error) { return []byte(summary.Text(s)), nil },
}

// ext is the form that a file's name asks for.
func ext(path string) string {
	if e := strings.ToLower(filepath.Ext(path)); e == ".json" || e == ".md" {
		return e
	}
	return ""
}

// summary is what there is to say once the run is over.
func (a *account) summary(err error) summary.Summary {
	s := a.c.Summary()
	s.Rebake, s.Command, s.Templates = version, a.s.c.Command.Name, a.s.c.Args().Slice()
	s.Host, _ = os.Hostname() // then it is said without
	s.Began, s.Seconds = a.began.UTC().Truncate(time.Second), time.Since(a.began).Seconds()
	if err != nil {
		if a.s.interrupted() {
			err = errors.Join(errInterrupted, err)
		}
		s.Error = err.Error()
	}
	s.Exit, s.Changed, s.Held = status(err), a.changed, a.held
	s.Outcome = a.cameTo(s, err)
	for _, b := range s.Builds {
		s.Changed = s.Changed || b.Outcome == event.Baked
	}
	if a.fleet != nil {
		s.Deployment = a.deployment(*a.fleet)
	}
	s.Pruned, s.Healed = a.pruned, a.healed
	for i := range s.Builds {
		a.compare(&s.Builds[i])
	}
	summary.Map(&s, a.s.red.Clean)
	return s
}

func (a *account) cameTo(s summary.Summary, err error) string {
	switch {
	case s.Exit == exitInterrupted:
		return summary.Interrupted
	case a.outcome != "":
		return a.outcome
	case err != nil:
		return summary.Failed
	}
	for _, b := range s.Builds {
		if b.Outcome == event.Baked {
			return summary.Baked
		}
	}
	return pipeline.OutcomeUnchanged
}

// deployment is a result as a summary tells it.
func (a *account) deployment(r fleet.Result) *summary.Deployment {
	img := r.New.Spec.Image
	d := &summary.Deployment{
		Fleet: r.Fleet, ID: r.ID, Image: img.Name + ":" + img.Version, Digest: string(img.Digest), Verdict: r.Verdict(), Reason: r.Reason,
		Instances: r.New.Spec.Size, Cut: r.Cut, Idle: r.SwapSeconds(), Writes: len(r.Weights), Override: strings.TrimPrefix(r.InFreeze+"; "+r.Override, "; "),
	}
	d.Override = strings.TrimSuffix(d.Override, "; ")
	if r.Serving != nil {
		d.Serving = r.Serving.Spec.Image.Name + ":" + r.Serving.Spec.Image.Version
	}
	if r.Unchanged {
		d.Verdict, d.Writes, d.Cut, d.Idle, d.Reason = "unchanged", 0, 0, 0, ""
		if r.Serving != nil {
			d.Image, d.Digest, d.Instances = d.Serving, string(r.Serving.Spec.Image.Digest), r.Serving.Spec.Size
		}
		return d
	}
	if r.Old != nil {
		d.Before = r.Old.Spec.Image.Name + ":" + r.Old.Spec.Image.Version
	}
	if n := len(r.Weights); n > 0 {
		d.Moved = r.Weights[n-1].Time.Sub(r.Weights[0].Time).Seconds()
	}
	if r.State == fleet.Baking && r.Old != nil {
		until := r.Deadline.UTC()
		d.KeptUntil = &until
	}
	for _, f := range r.Findings {
		d.Gates = append(d.Gates, summary.Gate{Gate: f.Gate, At: gateAt(r.Record, f), Verdict: string(f.Verdict), Detail: f.Detail})
	}
	d.Answers = a.answers(r)
	return d
}

// gateAt says at which step a gate was asked.
func gateAt(r fleet.Record, f fleet.Finding) string {
	if f.Step >= 0 && f.Step < len(r.Policy.Steps) {
		return fmt.Sprintf("at %d %%", r.Policy.Steps[f.Step].Permille/10)
	}
	return "before traffic"
}

// answers asks the router what the new instances answered, while they are there.
func (a *account) answers(r fleet.Result) *summary.Answers {
	ctx, cancel := a.after()
	defer cancel()
	d, err := pipeline.Fleet(ctx, a.s.Env, r.Fleet)
	if err != nil {
		return nil
	}
	st, err := d.Router.Status(ctx)
	if err != nil || len(st.Members[r.New.Group.Slot]) == 0 {
		return nil
	}
	var sum summary.Answers
	for _, m := range st.Members[r.New.Group.Slot] {
		sum.Requests, sum.Failed = sum.Requests+m.Requests, sum.Failed+m.Errors5x
	}
	return &sum
}

// after is a context for what is asked once a run is over, also an interrupted one.
func (a *account) after() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(a.s.ctx), 20*time.Second)
}

// compare tells what is in a new image from the one that its fleet ran, or else
// from the newest one before it. Without inventories there is nothing to tell.
func (a *account) compare(b *summary.Build) {
	if b.Outcome != event.Baked {
		return
	}
	ctx, cancel := a.after()
	defer cancel()
	l, ok := a.s.Store.(artifact.Lister)
	if !ok {
		return
	}
	images, err := l.List(ctx, b.Image)
	if err != nil {
		return
	}
	var is, was *artifact.Image
	for i := range images {
		switch {
		case string(images[i].Digest) == b.Digest:
			is = &images[i]
		case was == nil && is != nil:
			was = &images[i]
		}
	}
	if a.fleet != nil && a.fleet.Old != nil && a.fleet.Old.Spec.Image.Name == b.Image {
		was = &a.fleet.Old.Spec.Image
	}
	if is == nil || was == nil || was.Digest == is.Digest {
		return
	}
	d, err := pipeline.DiffSummary(ctx, a.s.Env, *was, *is)
	if err != nil {
		return // one of them has no inventory, or was removed meanwhile
	}
	b.Packages, b.Before = &d, was.Name+":"+was.Version
}

// replaceFile writes a file whole or not at all. What is no plain file (a pipe, a
// device) is written to.
func replaceFile(path string, text []byte) error {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// appendSummary adds to a step's summary as much as GitHub shows.
func appendSummary(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteString(cutSummary(text, mostStepSummary-st.Size()))
	}
	return errors.Join(err, f.Close())
}

const cutNote = "\n\nThe rest does not fit here.\n"

// cutSummary is text within room bytes, cut between lines.
func cutSummary(text string, room int64) string {
	if int64(len(text)) <= room {
		return text
	}
	room -= int64(len(cutNote))
	if room <= 0 {
		return ""
	}
	return text[:strings.LastIndexByte(text[:room], '\n')+1] + cutNote
}
