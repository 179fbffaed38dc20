package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/seal"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/sync/errgroup"
)

// Baked is what one build came to.
type Baked struct {
	Build   string         `json:"build"`
	Image   artifact.Image `json:"image"`
	Changed bool           `json:"changed"` // false: an image of the same inputs was there
	Seconds float64        `json:"seconds"`
	Log     string         `json:"log,omitempty"`
	Why     []string       `json:"why,omitempty"`    // it was baked
	Looked  *Looked        `json:"looked,omitempty"` // what was compared, so that it was not
}

// do bakes, unless nothing changed.
func (k *bake) do(ctx context.Context) (Baked, error) {
	if k.current != nil {
		event.Infof(ctx, "nothing changed since %s:%s was baked (--force bakes it again)", k.tpl.Name, k.current.Version)
		k.unsigned(ctx, *k.current)
		return Baked{Build: k.build.Name, Image: *k.current, Looked: k.looked()}, k.retag(ctx, k.current.Digest)
	}
	event.Infof(ctx, "%s", k.describe(ctx))
	began := k.env.clock()
	img, log, err := k.run(ctx)
	if err != nil {
		return Baked{Log: log}, err
	}
	done := Baked{Build: k.build.Name, Image: img, Changed: k.current == nil, Seconds: k.env.clock().Sub(began).Seconds(), Log: log}
	if k.current != nil { // the guest's refresh commands said so
		event.Infof(ctx, "nothing changed since %s:%s was baked", k.tpl.Name, k.current.Version)
		done.Looked = k.looked()
		return done, k.retag(ctx, k.current.Digest)
	}
	done.Why = k.needed()
	return done, nil
}

// run is the bake, from top to bottom.
func (k *bake) run(ctx context.Context) (img artifact.Image, logPath string, err error) {
	c, err := newClaim(k.env.State, k.build.Kind, k.tpl.Path)
	if err != nil {
		return img, "", err
	}
	logPath, ctx, closeLog := k.openLog(ctx, c.id)
	defer closeLog()
	k.began, k.log = k.env.clock(), logPath
	k.remember()
	defer func() {
		err = errors.Join(err, k.cleanUp(ctx, c))
		if err != nil && logPath != "" {
			event.Infof(ctx, "the build's log: %s", logPath)
		}
	}()

	var r *rig
	for again := true; again; {
		if r != nil { // a later state than this one turned out to be good
			r.close(ctx)
			if err := k.builder.Destroy(ctx, c.id); err != nil {
				return img, logPath, err
			}
		}
		if r, err = k.start(ctx, c.id); err == nil {
			again, err = k.provisionAll(ctx, r)
		}
		if err != nil {
			return img, logPath, k.failed(ctx, c.id, r, err)
		}
	}
	defer func() {
		if err != nil {
			k.keepConsole(ctx, r.mach, c.id)
		}
		r.close(ctx)
	}()
	if k.current != nil {
		return *k.current, logPath, nil
	}
	mach, guest := r.mach, r.guest
	if err := event.Run(ctx, "seal", func(ctx context.Context) error { return k.seal(ctx, guest, mach) }); err != nil {
		return img, logPath, k.keep(ctx, c.id, mach, guest, err)
	}
	holds, err := k.inventory(ctx, guest)
	if err != nil {
		return img, logPath, err
	}
	disk, err := event.Do(ctx, "shut down", func(ctx context.Context) (artifact.Disk, error) {
		if err := seal.Shutdown(ctx, guest); err != nil {
			return nil, err
		}
		return mach.Capture(ctx)
	})
	if err != nil {
		return img, logPath, err
	}
	defer disk.Close()
	stored, tests, err := k.storeAndTest(ctx, c.id, disk)
	if err != nil {
		return img, logPath, err
	}
	img, err = event.Do(ctx, "register", func(ctx context.Context) (artifact.Image, error) {
		return k.register(ctx, &baking{id: c.id, rig: r, disk: disk, got: stored, tests: tests, holds: holds})
	})
	return img, logPath, err
}

// failed closes a rig whose machine failed, once a person had a look if one was asked for.
func (k *bake) failed(ctx context.Context, id string, r *rig, err error) error {
	if r == nil {
		return err
	}
	var guest provisioner.Guest
	if r.guest != nil {
		guest = r.guest
	}
	err = k.keep(ctx, id, r.mach, guest, err)
	k.keepConsole(ctx, r.mach, id)
	r.close(ctx)
	return err
}

func (k *bake) provision(ctx context.Context, s step, g provisioner.Guest) error {
	p := provisioner.WithOptions(s.Provisioner, s.PauseBefore, s.Timeout, s.MaxRetries)
	err := event.Run(ctx, "provision: "+s.Name, func(ctx context.Context) error { return p.Provision(ctx, g) })
	if err != nil {
		return fmt.Errorf("step %q: %w", s.Name, err)
	}
	return nil
}

func (k *bake) seal(ctx context.Context, g provisioner.Guest, mach builder.Machine) error {
	ep, err := mach.Endpoint(ctx)
	if err != nil {
		return err
	}
	results, err := seal.Apply(ctx, g, k.tpl.Seal.Skip, ssh.AuthorizedLine(ep.Signer.PublicKey()))
	for _, r := range results {
		event.Infof(ctx, "%s", r)
	}
	return err
}

// chunks is what the store has of a disk that is not registered yet.
type chunks struct {
	content artifact.Digest
	added   int64
	size    int64
}

// storeAndTest writes the disk's chunks while the sealed image is tested: the
// two only read it, and nothing is visible until both went well.
func (k *bake) storeAndTest(ctx context.Context, id string, disk artifact.Disk) (chunks, []artifact.TestResult, error) {
	got := chunks{size: disk.Size()}
	var tests []artifact.TestResult
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		return event.Run(gctx, "capture", func(ctx context.Context) error {
			got.content, got.added, err = k.env.Store.Write(ctx, disk, event.Progressing(ctx))
			return err
		})
	})
	if k.opts.SkipTest {
		event.Warnf(ctx, "not tested: --skip-test")
	} else {
		g.Go(func() (err error) {
			return event.Run(gctx, "test", func(ctx context.Context) error {
				tests, err = k.test(ctx, id, disk)
				return err
			})
		})
	}
	err := g.Wait() // before got and tests are read
	return got, tests, err
}

func (k *bake) register(ctx context.Context, b *baking) (artifact.Image, error) {
	commit, changed := gitState(ctx, k.tpl.Dir)
	base := b.rig.base
	img := artifact.Image{
		Name: k.tpl.Name, Version: k.version, Content: b.got.content, Created: k.env.now(),
		Arch: base.Arch, Firmware: base.Firmware, Seed: base.Seed, User: base.User,
		DiskSize: b.got.size, StoredNew: b.got.added, Labels: k.labels(), Tests: b.tests,
		Lineage: artifact.Lineage{
			Template: k.tpl.Name, TemplateDigest: k.tpl.Digest, InputsDigest: k.inputs,
			Parent: base.Ref, ParentDigest: base.Digest, GitCommit: commit, GitDirty: len(changed) > 0,
			BuildID: b.id, Builder: k.build.Kind, Rebake: k.env.Version,
		},
	}
	if err := k.descend(ctx, &img.Lineage); err != nil {
		return img, err
	}
	img.Lineage.Holds = b.encode(ctx)
	for _, p := range b.rig.trail[1:] {
		img.Lineage.Ran = append(img.Lineage.Ran, p.Ran)
	}
	for {
		if err := k.attach(ctx, img, b); err != nil {
			return img, err
		}
		done, err := k.env.Store.Register(ctx, img)
		if err == nil {
			img = done
			break
		}
		if !k.serial || !errors.Is(err, artifact.ErrExists) {
			return img, err
		}
		if err := k.another(ctx); err != nil {
			return img, err
		}
		img.Version = k.version
	}
	img.Tags = k.tags()
	return img, k.retag(ctx, img.Digest)
}

func (k *bake) retag(ctx context.Context, d artifact.Digest) error {
	for _, t := range k.tags() {
		if err := k.env.Store.Tag(ctx, k.tpl.Name, t, d); err != nil {
			return fmt.Errorf("tag %s:%s: %w", k.tpl.Name, t, err)
		}
	}
	return nil
}

// cleanUp destroys the build's machines on a context that nobody cancelled.
func (k *bake) cleanUp(ctx context.Context, c *claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.destroyTimeout(time.Minute))
	defer cancel()
	ids, err := machines(k.env.State, c.id)
	for i := len(ids) - 1; i >= 0; i-- {
		err = errors.Join(err, k.builder.Destroy(ctx, ids[i]))
	}
	if err != nil {
		return fmt.Errorf("%w: %w (`rebake gc` tries again)", ErrLeftovers, errors.Join(err, c.lock.Close()))
	}
	return c.release(k.env.State)
}

func (k *bake) sshTimeout() time.Duration {
	if t, ok := k.builder.(interface{ SSHTimeout() time.Duration }); ok {
		return t.SSHTimeout()
	}
	return 5 * time.Minute
}

// destroyTimeout is how long the removal of a machine may take: a cloud's takes minutes.
func (k *bake) destroyTimeout(here time.Duration) time.Duration {
	if t, ok := k.builder.(interface{ DestroyTimeout() time.Duration }); ok {
		return t.DestroyTimeout()
	}
	return here
}

// openLog adds a file to the readers of the build's events.
func (k *bake) openLog(ctx context.Context, id string) (string, context.Context, func()) {
	path := filepath.Join(k.env.State.Logs(), k.tpl.Name+"-"+id+".log")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		event.Warnf(ctx, "no build log: %v", err)
		return "", ctx, func() {}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		event.Warnf(ctx, "no build log: %v", err)
		return "", ctx, func() {}
	}
	ctx = event.Tee(ctx, func(e event.Event) {
		if e.Kind != event.Progress {
			_, _ = f.Write(jsonLine(e)) // a full disk must not stop the build for its log
		}
	})
	return path, ctx, func() { f.Close() }
}

// connect dials a machine's guest.
func connect(ctx context.Context, m builder.Machine, timeout time.Duration) (*ssh.Client, error) {
	ep, err := m.Endpoint(ctx)
	if err != nil {
		return nil, err
	}
	event.Waiting(ctx, "SSH on %s as %s, at most %s", ep.Addr, ep.User, timeout)
	var pipe ssh.Pipe
	if ep.Pipe != nil {
		pipe = ssh.Pipe{Name: ep.Pipe.Name, Dial: ep.Pipe.Dial}
	}
	return ssh.Dial(ctx, ssh.Target{Addr: ep.Addr, User: ep.User, Signer: ep.Signer, HostKeys: ep.HostKeys},
		ssh.Options{Timeout: timeout, Pipe: pipe, Alive: func() error {
			select {
			case <-m.Done():
				if _, err := m.Endpoint(ctx); err != nil {
					return err // it may know why
				}
				return fmt.Errorf("the machine stopped; its console ends with:\n%s", indent(m.Console(2000)))
			default:
				return nil
			}
		}})
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

// gitState is the commit of the template's checkout, "" outside of one, and what
// in the template's folder is not as in that commit.
func gitState(ctx context.Context, dir string) (commit string, changed []string) {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false", "-C", dir}, args...)...).Output()
		return strings.TrimRight(string(out), "\n"), err
	}
	commit, err := git("rev-parse", "HEAD")
	if err != nil {
		return "", nil
	}
	st, err := git("status", "--porcelain", "--", dir)
	switch {
	case err != nil:
		return commit, []string{"git status fails"}
	case st == "":
		return commit, nil
	}
	return commit, strings.Split(st, "\n")
}
