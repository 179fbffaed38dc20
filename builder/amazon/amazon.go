// Package amazon is the builder that boots a temporary EC2 instance. What it
// captures is a snapshot of the root volume, read through the EBS direct APIs: so
// an image that was baked here is the same object as one that was baked elsewhere,
// and may run there. Before the image is registered an AMI is made of the snapshot.
//
// Everything is tagged rebake:build=ID where it is made, and every call that
// changes something is written down before it is made (internal/awscalls): Destroy
// needs nothing else.
package amazon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
)

// TagBuild is the tag of everything that a machine's id stands for, until an image
// that is in the store owns it.
const TagBuild = "rebake:build"

// Deps are what the builder stands on.
type Deps struct {
	State state.Dir
	Store artifact.Store
	// Dir is where relative paths of the configuration start.
	Dir string
	// Address is the store's, as Open takes it.
	Address string
	// Open opens the store of an address: that which a build was to register its
	// image in. nil: there is Store alone.
	Open func(address string) (artifact.Store, error)
	// Use says why an image of the store must not be a base, or nil; nil: all may.
	Use func(ctx context.Context, img artifact.Image) error
	// Config is of a region, "" the environment's; nil: ami.Config.
	Config func(ctx context.Context, region string) (aws.Config, error)

	poll   time.Duration // between questions about state; 0: 3 s
	settle time.Duration // after which what was made is seen by all; 0: 90 s
}

func (d Deps) pause() time.Duration {
	if d.poll > 0 {
		return d.poll
	}
	return 3 * time.Second
}

// wait is the pause before the next question about what was begun then: short at
// first, for much is there at once.
func (d Deps) wait(began time.Time) time.Duration {
	return min(d.pause(), max(300*time.Millisecond, time.Since(began)/4))
}

// calls is the journal of what a machine's calls change (internal/awscalls): it is
// how Destroy knows, with no other memory, in which regions something may be and what
// may not be seen yet.
func (d Deps) calls(id string) (*awscalls.Journal, error) { return awscalls.Open(d.callsPath(id)) }

func (d Deps) callsPath(id string) string { return filepath.Join(d.State.Build(id), awscalls.Name) }

// region is one region's services. Its clients write down what they change.
type region struct {
	name string
	ec2  *ec2.Client
	ebs  *ebs.Client
}

func (d Deps) connect(ctx context.Context, name string) (*region, error) {
	config := d.Config
	if config == nil {
		config = ami.Config
	}
	cfg, err := config(ctx, name)
	if err != nil {
		return nil, err
	}
	cfg = awscalls.ByContext(cfg, noCapacity)
	return &region{name: cfg.Region, ec2: ec2.NewFromConfig(cfg), ebs: ebs.NewFromConfig(cfg)}, nil
}

// Builder implements builder.Builder and builder.Publisher.
type Builder struct {
	cfg  Config
	deps Deps

	mu     sync.Mutex
	reg    *region
	src    *source
	live   map[string]*machine // of this process, by id
	watch  map[string]*machine // those that are asked about
	asking bool
}

var (
	_ builder.Publisher = (*Builder)(nil)
	_ builder.Checker   = (*Builder)(nil)
)

// New checks a configuration; it asks nobody.
func New(cfg Config, deps Deps) (*Builder, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Shutdown == 0 {
		cfg.Shutdown = 3 * time.Minute
	}
	if cfg.Metadata.Tokens == "" {
		cfg.Metadata.Tokens = "required"
	}
	if cfg.Network.Address == "" {
		cfg.Network.Address = "public"
		if cfg.SSH.SSM || cfg.SSH.Bastion != nil {
			cfg.Network.Address = "private"
		}
	}
	if cfg.SSH.Port == 0 {
		cfg.SSH.Port = 22
	}
	return &Builder{cfg: cfg, deps: deps, live: map[string]*machine{}, watch: map[string]*machine{}}, nil
}

// SSHTimeout is how long a machine may take to accept SSH.
func (b *Builder) SSHTimeout() time.Duration {
	if b.cfg.SSH.Timeout > 0 {
		return b.cfg.SSH.Timeout
	}
	return 5 * time.Minute
}

// DestroyTimeout is how long Destroy may take: an instance takes its time to end.
func (b *Builder) DestroyTimeout() time.Duration { return destroyWithin }

const destroyWithin = 15 * time.Minute

// Parent is the name of the image in the store that the machine starts from, or "".
func (b *Builder) Parent() string {
	if ref, err := artifact.ParseRef(b.cfg.Source.Image); b.cfg.Source.Image != "" && err == nil {
		return ref.Name
	}
	return ""
}

// From is the base as the configuration names it, if it is an image of the store.
func (b *Builder) From() string { return b.cfg.Source.Image }

func (b *Builder) region(ctx context.Context) (*region, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reg == nil {
		r, err := b.deps.connect(ctx, b.cfg.Region)
		if err != nil {
			return nil, err
		}
		b.reg = r
	}
	return b.reg, nil
}

// Key implements builder.Builder.
func (b *Builder) Key(ctx context.Context) (in artifact.Inputs, err error) {
	defer func() { err = inWords(ctx, err) }()
	s, err := b.source(ctx)
	if err != nil {
		return "", err
	}
	s.key(&in)
	keyed := b.cfg
	if b.cfg.Keyed != nil {
		keyed = *b.cfg.Keyed
	}
	in.Add("arch", s.base.Arch)
	in.Add("firmware", s.base.Firmware)
	in.Add("root.size", template.Size(b.rootSize(s)).String())
	in.Add("ssh.user", b.cfg.SSH.User)
	in.Add("user_data", keyed.UserData)
	in.Add("ami.boot_mode", b.cfg.AMI.BootMode)
	return in, nil
}

// Prepare implements builder.Builder. The base stays where it is.
func (b *Builder) Prepare(ctx context.Context) (_ builder.Base, err error) {
	defer func() { err = inWords(ctx, err) }()
	s, err := b.source(ctx)
	if err != nil {
		return builder.Base{}, err
	}
	if size := b.rootSize(s); size < s.base.DiskSize {
		return builder.Base{}, fmt.Errorf("root.size: %s is smaller than the source's %s: a disk can only grow", template.Size(size), template.Size(s.base.DiskSize))
	}
	return s.base, nil
}

// rootSize is of the root volume, in bytes.
func (b *Builder) rootSize(s *source) int64 {
	if b.cfg.Root.Size > 0 {
		return int64(b.cfg.Root.Size)
	}
	return (s.base.DiskSize + 1<<30 - 1) >> 30 << 30
}

// Boot implements builder.Builder.
func (b *Builder) Boot(ctx context.Context, id string) (_ builder.Machine, err error) {
	defer func() { err = inWords(ctx, err) }()
	s, err := b.source(ctx)
	if err != nil {
		return nil, err
	}
	return b.start(ctx, launch{id: id, host: "build-" + id, source: s, image: s.ami, root: b.rootSize(s)})
}

// BootTest implements builder.Builder: on an AMI of the captured snapshot that is
// this machine's own, and goes with it.
func (b *Builder) BootTest(ctx context.Context, id string, d artifact.Disk, ports []int) (_ builder.Machine, err error) {
	defer func() { err = inWords(ctx, err) }()
	disk, ok := d.(*snapshotDisk)
	if !ok {
		return nil, fmt.Errorf("a %T was not captured by this builder", d)
	}
	if ports == nil {
		ports = []int{}
	}
	return b.start(ctx, launch{id: id, host: "test-" + id, source: disk.source, root: disk.size, disk: disk, ports: ports})
}

// launch is what a machine is to be.
type launch struct {
	id, host string
	source   *source
	image    string        // AMI; "": one is made of disk
	root     int64         // size of the root volume in bytes; 0: the AMI's
	disk     *snapshotDisk // of a test machine
	ports    []int         // nil: it is for a build
}

// start launches an instance and waits until it runs.
func (b *Builder) start(ctx context.Context, l launch) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	r, err := b.region(ctx)
	if err != nil {
		return nil, err
	}
	dead, err := r.deadOf(ctx, l.id)
	if err != nil {
		return nil, err
	}
	if err := b.letGo(l.id); err != nil { // of a dead one of that name
		return nil, err
	}
	j, err := b.deps.calls(l.id)
	if err != nil {
		return nil, err
	}
	ctx = awscalls.Writing(ctx, j)
	m := &machine{b: b, id: l.id, r: r, j: j, source: l.source, down: make(chan struct{})}
	if m.login, err = ssh.NewKey(); err == nil {
		m.host, err = ssh.NewKey()
	}
	if err != nil {
		return nil, err
	}
	if m.user = b.cfg.SSH.User; m.user == "" {
		m.user = l.source.base.User
	}
	use, err := b.using(ctx, l.source)
	if err != nil {
		return nil, err
	}
	if use != nil {
		m.closers = append(m.closers, use)
	}
	b.mu.Lock()
	b.live[l.id] = m // from here on letGo ends what it has
	b.mu.Unlock()
	if l.disk != nil {
		if l.image, err = b.testImage(ctx, l.id, l.disk); err != nil {
			return nil, err
		}
	}
	if err := b.launch(ctx, m, l, dead); err != nil {
		return nil, err
	}
	if err := m.run(ctx, l.ports); err != nil {
		return nil, err
	}
	return m, nil
}

// deadOf fails if an instance of this id is not dead; else it counts the dead.
func (r *region) deadOf(ctx context.Context, id string) (n int, err error) {
	all, err := r.instances(ctx, id)
	for _, i := range all {
		if i.State == nil || i.State.Name != types.InstanceStateNameTerminated {
			if i.State != nil && i.State.Name == types.InstanceStateNameShuttingDown {
				n++
				continue
			}
			return n, fmt.Errorf("machine %s runs already (%s)", id, aws.ToString(i.InstanceId))
		}
		n++
	}
	return n, err
}

// letGo ends what this process has of machine id.
func (b *Builder) letGo(id string) error {
	b.mu.Lock()
	m := b.live[id]
	delete(b.live, id)
	delete(b.watch, id)
	b.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.close()
}

// Destroy implements builder.Builder.
func (b *Builder) Destroy(ctx context.Context, id string) error {
	return errors.Join(Destroy(ctx, b.deps, id), b.letGo(id))
}

// Destroy removes machine id of any builder of this kind: in every region that its
// journal names, all that has its tag. What an image owns that was registered loses
// the tag instead.
func Destroy(ctx context.Context, d Deps, id string) (err error) {
	defer func() { err = inWords(ctx, err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, destroyWithin, fmt.Errorf("%s is not gone after %s", id, destroyWithin))
	defer cancel()
	dir := d.State.Build(id)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	all, err := awscalls.Read(d.callsPath(id))
	if err != nil {
		return err
	}
	if regions := awscalls.Regions(all); len(regions) > 0 {
		j, err := d.calls(id)
		if err != nil {
			return err
		}
		ctx := awscalls.Writing(ctx, j)
		kept, err := d.owned(ctx, dir)
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range regions {
			r, err := d.connect(ctx, name)
			if err == nil {
				err = (&sweep{d: d, r: r, id: id, kept: kept}).run(ctx)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		keepCalls(ctx, d, id)
	}
	return os.RemoveAll(dir)
}

// keepCalls moves the journal of calls to the logs: it is what an account's owner
// would ask for.
func keepCalls(ctx context.Context, d Deps, id string) {
	if err := awscalls.Move(d.callsPath(id), filepath.Join(d.State.Logs(), id+"-"+awscalls.Name)); err != nil {
		event.Warnf(ctx, "what %s called is not kept: %v", id, err)
	}
}
