// Package qemu is the builder that boots a temporary machine with QEMU on this
// computer: on an overlay of a base disk (Debian made here, a download, or an
// image of the store), never on a copy. What it leaves is named by the build's
// id, so that Destroy works after a kill -9.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	gossh "golang.org/x/crypto/ssh"
)

// Config is the build.qemu block of a template.
type Config struct {
	From     From          `yaml:"from" json:"from" rebake:"required" jsonschema:"required" jsonschema_description:"what the machine starts from"`
	Memory   template.Size `yaml:"memory" json:"memory,omitempty" jsonschema_description:"memory of the machine; default 512M"`
	Disk     template.Size `yaml:"disk" json:"disk,omitempty" jsonschema_description:"size of the disk; default 2G for debian, else the base's own"`
	CPUs     int           `yaml:"cpus" json:"cpus,omitempty" jsonschema_description:"processors; 0 chooses"`
	Arch     string        `yaml:"arch" json:"arch,omitempty" jsonschema:"enum=amd64,enum=arm64" jsonschema_description:"default: this computer's"`
	Firmware string        `yaml:"firmware" json:"firmware,omitempty" jsonschema:"enum=bios,enum=uefi" jsonschema_description:"default bios"`
	Shutdown time.Duration `yaml:"shutdown_timeout" json:"shutdown_timeout,omitempty" jsonschema_description:"longest clean shutdown; default 60s"`
	SSH      SSH           `yaml:"ssh" json:"ssh,omitempty" jsonschema_description:"how the machine is logged in to"`
}

// From names the base: exactly one of debian, url and image.
type From struct {
	Debian   string        `yaml:"debian" json:"debian,omitempty" jsonschema_description:"a Debian suite, for example bookworm: made here by mmdebstrap, from this computer's own mirrors"`
	MaxAge   time.Duration `yaml:"max_age" json:"max_age,omitempty" jsonschema_description:"make a Debian base anew once it is older; default 168h"`
	URL      string        `yaml:"url" json:"url,omitempty" jsonschema_description:"file:, http: or https: of a raw or qcow2 disk"`
	Checksum string        `yaml:"checksum" json:"checksum,omitempty" jsonschema_description:"sha256:… of the file; required with url"`
	Image    string        `yaml:"image" json:"image,omitempty" jsonschema_description:"an image of the store, name:version or name:tag"`
	Seed     string        `yaml:"seed" json:"seed,omitempty" jsonschema:"enum=nocloud,enum=credentials" jsonschema_description:"how a url's guest is told its keys: nocloud (cloud-init) or credentials (systemd 252 or later); default nocloud for qcow2, credentials for raw"`
}

// SSH is the ssh block.
type SSH struct {
	User    string        `yaml:"user" json:"user,omitempty" jsonschema_description:"account to log in to; default root"`
	Timeout time.Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema_description:"for the machine to accept SSH; default 5m, without an accelerator 10m"`
}

// Deps are what the builder stands on.
type Deps struct {
	State state.Dir
	Store artifact.Store
	// Use says why an image of the store must not be a base, or nil; nil: all may.
	Use func(ctx context.Context, img artifact.Image) error
}

// Builder implements builder.Builder.
type Builder struct {
	cfg  Config
	deps Deps
	src  source

	mu    sync.Mutex
	held  map[string][]*flock.Flock // locks of bases and checkpoints, by machine
	begun map[string][]string       // checkpoints of this process, by machine
}

var _ builder.Checkpointer = (*Builder)(nil)

// source is where a base comes from.
type source interface {
	// key decides the base's bytes; it downloads nothing.
	key(ctx context.Context, in *artifact.Inputs) error
	// prepare makes the base's raw disk available.
	prepare(ctx context.Context) (base, error)
}

// base is a raw disk that is never written to.
type base struct {
	builder.Base
	path    string
	content artifact.Digest // chunk map in the store, "" if not there yet
}

// New checks a configuration; it touches nothing.
func New(cfg Config, deps Deps) (*Builder, error) {
	b := &Builder{cfg: cfg, deps: deps}
	if cfg.Memory == 0 {
		b.cfg.Memory = 512 << 20
	}
	if cfg.Firmware == "" {
		b.cfg.Firmware = "bios"
	}
	n := 0
	for _, s := range []string{cfg.From.Debian, cfg.From.URL, cfg.From.Image} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		return nil, errors.New("from: give exactly one of debian, url and image")
	}
	var err error
	switch {
	case cfg.From.Debian != "":
		b.src, err = newDebian(b.cfg, deps)
	case cfg.From.URL != "":
		b.src, err = newDownload(b.cfg, deps)
	default:
		b.src, err = newStored(b.cfg, deps)
	}
	return b, err
}

// SSHTimeout is how long the machine may take to accept SSH: without an
// accelerator a boot on a busy computer takes minutes.
func (b *Builder) SSHTimeout() time.Duration {
	if b.cfg.SSH.Timeout > 0 {
		return b.cfg.SSH.Timeout
	}
	if accel, _ := qemu.DetectAccel(context.Background(), b.cfg.Arch); accel == qemu.TCG {
		return 10 * time.Minute
	}
	return 5 * time.Minute
}

// Parent is the name of the image in the store that the machine starts from, or "".
func (b *Builder) Parent() string {
	if s, ok := b.src.(*stored); ok {
		return s.ref.Name
	}
	return ""
}

// From is the base as the configuration names it, if it is an image of the store.
func (b *Builder) From() string {
	if s, ok := b.src.(*stored); ok {
		return s.ref.String()
	}
	return ""
}

// Memory is what a machine of the build has, in bytes.
func (b *Builder) Memory() int64 { return int64(b.cfg.Memory) }

// Key implements builder.Builder.
func (b *Builder) Key(ctx context.Context) (in artifact.Inputs, err error) {
	if err := b.src.key(ctx, &in); err != nil {
		return "", err
	}
	in.Add("arch", orElse(b.cfg.Arch, runtime.GOARCH))
	in.Add("firmware", b.cfg.Firmware)
	in.Add("disk", b.cfg.Disk.String())
	in.Add("ssh.user", b.cfg.SSH.User)
	return in, nil
}

// Prepare implements builder.Builder.
func (b *Builder) Prepare(ctx context.Context) (builder.Base, error) {
	base, err := b.src.prepare(ctx)
	return base.Base, err
}

// Boot implements builder.Builder.
func (b *Builder) Boot(ctx context.Context, id string) (builder.Machine, error) {
	var base base
	for ok := false; !ok; { // it may be evicted between the two
		var err error
		if base, err = b.src.prepare(ctx); err != nil {
			return nil, err
		}
		if ok, err = b.useBase(id, base.path); err != nil {
			return nil, err
		}
	}
	size := max(int64(b.cfg.Disk), base.DiskSize)
	if b.cfg.Disk != 0 && int64(b.cfg.Disk) < base.DiskSize {
		return nil, fmt.Errorf("disk: %s is smaller than the base's %s: a disk can only grow", b.cfg.Disk, template.Size(base.DiskSize))
	}
	return b.start(ctx, id, "build-"+id, base, base.path, "raw", size, nil)
}

// BootTest implements builder.Builder.
func (b *Builder) BootTest(ctx context.Context, id string, d artifact.Disk, ports []int) (builder.Machine, error) {
	cd, ok := d.(*captured)
	if !ok {
		return nil, fmt.Errorf("a %T was not captured by this builder", d)
	}
	if ports == nil {
		ports = []int{}
	}
	return b.start(ctx, id, "test-"+id, cd.base, cd.path, "qcow2", 0, ports)
}

// start boots a machine on a disk; with ports (even none) it is one for tests.
func (b *Builder) start(ctx context.Context, id, host string, base base, backing, format string, size int64, ports []int) (builder.Machine, error) {
	dir := b.deps.State.Build(id)
	if old, err := qemu.Attach(dir); err == nil && old.Running() {
		return nil, fmt.Errorf("machine %s runs already (pid %d)", id, old.PID()) // its disk must stay what it is
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	login, err := ssh.NewKey()
	if err != nil {
		return nil, err
	}
	hostKey, err := ssh.NewKey()
	if err != nil {
		return nil, err
	}
	overlay := filepath.Join(dir, layerName)
	if err := qemu.CreateOverlay(ctx, overlay, backing, format, size); err != nil {
		return nil, err
	}
	seed := qemu.Seed{Kind: base.Seed, InstanceID: id, Hostname: host, User: base.User,
		AuthorizedKeys: []string{ssh.AuthorizedLine(login.Signer.PublicKey())}, HostKeyPEM: hostKey.PEM}
	cfg := b.config(dir, overlay, base.Base, seed)
	cfg.Name = "rebake-" + host
	if ports != nil {
		cfg.Ports, cfg.MAC, cfg.Savable = ports, "", false
	} else {
		accel, why := qemu.DetectAccel(ctx, b.cfg.Arch)
		cfg.Accel = accel
		event.Infof(ctx, "accelerator %s: %s", accel, why)
	}
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &machine{b: b, id: id, vm: vm, base: base, overlay: overlay, size: size, seed: seed,
		loginPEM: login.PEM, login: login.Signer, host: hostKey.Signer.PublicKey()}, nil
}

// config is the machine of a build.
func (b *Builder) config(dir, disk string, base builder.Base, seed qemu.Seed) qemu.Config {
	return qemu.Config{
		Name: "rebake-" + seed.Hostname, Dir: dir, RunDir: runDir(dir), Disk: disk, DiskFormat: "qcow2",
		Memory: int64(b.cfg.Memory), CPUs: b.cfg.CPUs, Arch: b.cfg.Arch, Firmware: base.Firmware, MAC: buildMAC,
		BindToOwner: true, Pipe: true, Savable: qemu.CanSave, QuitAfter: b.cfg.Shutdown, Seed: seed,
	}
}

func runDir(dir string) string { return state.RunFor("b", dir) }

// Destroy implements builder.Builder.
func (b *Builder) Destroy(ctx context.Context, id string) error {
	return errors.Join(Destroy(ctx, b.deps.State, id), b.letGo(id))
}

// Destroy removes machine id of any builder of this kind.
func Destroy(ctx context.Context, d state.Dir, id string) error {
	dir := d.Build(id)
	if err := qemu.Remove(ctx, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(runDir(dir)); err != nil {
		return err
	}
	_ = os.Remove(state.RunRoot()) // only when it is empty: nothing else uses it
	return nil
}

// machine implements builder.Machine.
type machine struct {
	b        *Builder
	id       string
	vm       *qemu.VM
	base     base
	overlay  string   // what it writes now
	layers   []string // checkpoints below that, undermost first
	size     int64    // of the disk
	seed     qemu.Seed
	loginPEM []byte
	login    gossh.Signer
	host     gossh.PublicKey
}

func (m *machine) Done() <-chan struct{} { return m.vm.Done() }
func (m *machine) Console(n int) string  { return m.vm.Console(n) }

// Endpoint implements builder.Machine.
func (m *machine) Endpoint(ctx context.Context) (builder.Endpoint, error) {
	if ctx.Err() != nil {
		return builder.Endpoint{}, context.Cause(ctx)
	}
	if err := m.vm.Broken(); err != nil {
		return builder.Endpoint{}, err
	}
	if !m.vm.Running() {
		return builder.Endpoint{}, fmt.Errorf("the machine stopped; its console ends with:\n%s", m.vm.Console(2000))
	}
	user := m.base.User
	if user == "" {
		user = "root"
	}
	ports := m.vm.Ports()
	return builder.Endpoint{Addr: ports[22], User: user, Signer: m.login, HostKeys: []gossh.PublicKey{m.host}, Ports: ports,
		Pipe: &builder.Pipe{Name: qemu.PipeName, Dial: m.vm.Pipe}}, nil
}

// Capture implements builder.Machine.
func (m *machine) Capture(ctx context.Context) (artifact.Disk, error) {
	event.Waiting(ctx, "the guest to shut down")
	if err := m.vm.PowerDown(ctx); err != nil {
		return nil, err
	}
	select {
	case <-m.vm.Done():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := m.vm.Clean(); err != nil {
		return nil, err
	}
	content, err := m.b.baseContent(ctx, m.base)
	if err != nil {
		return nil, err
	}
	return m.captured(content)
}

// baseContent is the base's chunk map in the store; a base that came from
// elsewhere is written there once, so that every image on it shares its chunks.
func (b *Builder) baseContent(ctx context.Context, base base) (artifact.Digest, error) {
	has := func(c artifact.Digest) bool {
		h, ok := b.deps.Store.(interface{ Has(artifact.Digest) bool })
		return c != "" && (!ok || h.Has(c))
	}
	if has(base.content) {
		return base.content, nil
	}
	// Of two builds on one base, one writes it.
	lock := flock.New(base.path+".lock", flock.SetPermissions(0o600))
	defer lock.Close()
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return "", fmt.Errorf("lock the base: %w", err)
	}
	note := base.path + ".content"
	if raw, err := os.ReadFile(note); err == nil && has(artifact.Digest(raw)) {
		return artifact.Digest(raw), nil
	}
	return event.Do(ctx, "store the base", func(ctx context.Context) (artifact.Digest, error) {
		d, err := artifact.FileDisk(base.path)
		if err != nil {
			return "", err
		}
		defer d.Close()
		content, _, err := b.deps.Store.Write(ctx, d, event.Progressing(ctx))
		if err != nil {
			return "", fmt.Errorf("store the base: %w", err)
		}
		return content, atomicfile.Write(note, []byte(content), 0o600)
	})
}
