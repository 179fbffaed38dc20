package qemu

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed" // the recipe's scripts
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/child"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/qemu/bootdisk"
)

//go:embed debian/essential.sh
var essentialHook string

//go:embed debian/customize.sh
var customizeHook string

// packages of a base: a kernel, an init that obeys ACPI, sshd, DHCP, apt.
const packages = "linux-image-cloud-amd64,initramfs-tools,zstd,systemd,systemd-sysv,systemd-resolved,systemd-timesyncd," +
	"dbus,openssh-server,ca-certificates,iproute2,e2fsprogs,fdisk,udev,kmod,sudo"

const recipeVersion = "debian-v1"

var suiteRE = regexp.MustCompile(`^[a-z][a-z0-9-]{1,31}$`)

// debian makes a base from packages, in the manner of a distribution's own
// cloud image, without downloading one.
type debian struct {
	suite  string
	size   int64
	maxAge time.Duration
	deps   Deps
	apt    aptSettings
}

// aptSettings are this computer's own, as far as they concern the suite.
type aptSettings struct {
	sources []string // one-line entries
	conf    []string // lines for the guest's apt.conf
	host    []string // options for mmdebstrap alone
}

func newDebian(cfg Config, deps Deps) (source, error) {
	d := &debian{suite: cfg.From.Debian, size: int64(cfg.Disk), maxAge: cfg.From.MaxAge, deps: deps}
	switch {
	case !suiteRE.MatchString(d.suite):
		return nil, fmt.Errorf("from.debian: %q is no suite: for example bookworm", d.suite)
	case cfg.From.Checksum != "" || cfg.From.Seed != "":
		return nil, errors.New("from.debian: checksum and seed belong to from.url")
	case cfg.Arch != "" && cfg.Arch != runtime.GOARCH || runtime.GOARCH != "amd64":
		return nil, fmt.Errorf("from.debian: bases are made for amd64 on amd64 alone so far; use from.url with an %s cloud image", orElse(cfg.Arch, runtime.GOARCH))
	case cfg.Firmware != "bios":
		return nil, errors.New("from.debian: bases boot by BIOS; leave firmware out")
	case cfg.SSH.User != "" && cfg.SSH.User != "root":
		return nil, errors.New("from.debian: the build logs in as root; leave ssh.user out")
	}
	if d.size == 0 {
		d.size = 2 << 30
	}
	if d.size < 1<<30 || d.size%4096 != 0 {
		return nil, errors.New("disk: a Debian base needs at least 1G")
	}
	if d.maxAge == 0 {
		d.maxAge = 7 * 24 * time.Hour
	}
	var err error
	d.apt, err = readApt(d.suite)
	return d, err
}

func orElse(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

func (d *debian) key(_ context.Context, in *artifact.Inputs) error {
	epoch := time.Now().Unix() / int64(max(d.maxAge, time.Second)/time.Second)
	in.Add("from.debian", d.suite)
	in.Add("base made since", time.Unix(epoch*int64(d.maxAge/time.Second), 0).UTC().Format(time.RFC3339))
	in.Add("apt sources", strings.Join(d.apt.sources, "\n"))
	in.Add("apt settings", strings.Join(d.apt.conf, "\n"))
	in.Add("size", fmt.Sprint(d.size))
	recipe := sha256.Sum256([]byte(strings.Join([]string{recipeVersion, packages, essentialHook, customizeHook, bootdisk.ID, grubConfig()}, "\x00")))
	in.Add("recipe", hex.EncodeToString(recipe[:]))
	return nil
}

func grubConfig() string {
	return bootdisk.Command{Kernel: "/vmlinuz", Initrd: "/initrd.img", Options: "ro console=tty0 console=ttyS0 quiet"}.GrubConfig()
}

func (d *debian) prepare(ctx context.Context) (base, error) {
	var in artifact.Inputs
	if err := d.key(ctx, &in); err != nil {
		return base{}, err
	}
	key := in.Digest().Hex()
	b := base{path: filepath.Join(d.deps.State.Bases(), key+".raw"), Base: builder.Base{Ref: "debian:" + d.suite, Digest: in.Digest(),
		Arch: "amd64", Firmware: "bios", Seed: "credentials", User: "root", DiskSize: d.size}}
	return b, once(ctx, b.path, func(tmp string) error {
		event.Infof(ctx, "making a Debian %s base (kept for %s); this takes a minute or two", d.suite, d.maxAge)
		return d.make(ctx, tmp)
	})
}

// once makes path with make, unless it is there; of two processes one makes it.
func once(ctx context.Context, path string, make func(tmp string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	lock := flock.New(path+".lock", flock.SetPermissions(0o600))
	defer lock.Close()
	if ok, err := lock.TryLock(); err == nil && !ok {
		event.Waiting(ctx, "another rebake that makes %s", filepath.Base(path))
	}
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil { // of a killed run
		return err
	}
	if err := make(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	if err := atomicfile.Sync(tmp); err != nil {
		return err
	}
	return atomicfile.Rename(tmp, path)
}

// make runs mmdebstrap into a directory, and fills the disk's file system from
// it: without root in a user namespace, where the owners of files are the guest's.
func (d *debian) make(ctx context.Context, path string) (err error) {
	root, disk := strings.TrimSuffix(path, ".tmp")+".root", path
	// As root in mount and process namespaces of its own: mmdebstrap mounts /proc
	// and /sys below the directory and starts many processes, and with the first
	// process of the namespaces, which dies with this one, all of that is gone.
	mode, within, owner := "root", []string{"env"}, []string{"env"}
	own := []string{"unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"}
	if os.Geteuid() != 0 {
		mode, within, own = "unshare", []string{"mmdebstrap", "--unshare-helper"}, []string{"sh", "-c", killGroup, "rebake"} // it makes its own
		owner = ownerOfBoth
		dir, err := d.shared(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		root, disk = filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	}
	remove := func(ctx context.Context) (err error) {
		for range 5 { // what was just killed may still write there
			if err = runLogged(ctx, exec.CommandContext(ctx, owner[0], append(owner[1:], "rm", "-rf", "--one-file-system", root)...)); err == nil || ctx.Err() != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
		return err
	}
	if err := remove(ctx); err != nil { // of a killed run
		return err
	}
	defer func() { err = errors.Join(err, remove(context.WithoutCancel(ctx))) }()
	args := []string{"--mode=" + mode, "--variant=minbase", "--format=directory", "--quiet", "--include=" + packages,
		"--aptopt=Apt::Install-Recommends false",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
		// By the environment: mmdebstrap takes a hook of several lines for a file name first.
		`--essential-hook=eval "$ESSENTIAL"`, `--customize-hook=eval "$CUSTOMIZE"`}
	for _, o := range append(d.apt.conf, d.apt.host...) {
		args = append(args, "--aptopt="+o)
	}
	args = append(append(args, d.suite, root), d.apt.sources...)
	cmd := exec.CommandContext(ctx, own[0], append(append(own[1:], "mmdebstrap"), args...)...)
	cmd.WaitDelay = 30 * time.Second
	if mode == "unshare" {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		defer w.Close() // also by a kill: then the group goes
		cmd.ExtraFiles, cmd.SysProcAttr = []*os.File{r}, &syscall.SysProcAttr{Setpgid: true}
	}
	cmd.Env = append(os.Environ(), "ESSENTIAL="+essentialHook, "CUSTOMIZE="+customizeHook, "GRUB_CFG="+grubConfig(), "ROOT_ID="+bootdisk.ID,
		"SOURCES="+strings.Join(d.apt.sources, "\n"), "APT_CONF="+strings.Join(d.apt.conf, "\n"), "LC_ALL=C.UTF-8")
	if err := runLogged(ctx, cmd); err != nil {
		return err
	}
	if err := bootdisk.Create(disk, d.size); err != nil {
		return err
	}
	// Nobody but the guest's root, and then nobody but this user, can write to the disk.
	give := func(id string) error {
		if disk == path {
			return nil
		}
		return runLogged(ctx, exec.CommandContext(ctx, owner[0], append(owner[1:], "chown", id, disk)...))
	}
	if err := give("1:1"); err != nil {
		return err
	}
	mkfs := append(within[1:], "env", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "E2FSPROGS_FAKE_TIME=1700000000")
	if err := runLogged(ctx, exec.CommandContext(ctx, within[0], append(mkfs, bootdisk.MkfsArgs(disk, root, d.size)...)...)); err != nil {
		return err
	}
	if err := give("0:0"); err != nil {
		return err
	}
	if disk != path {
		if err := qemu.Img(ctx, "convert", "-f", "raw", "-O", "raw", disk, path); err != nil {
			return err
		}
	}
	return bootdisk.Finish(ctx, path, d.size)
}

// killGroup runs a command whose whole process group is killed once the other
// end of descriptor 3 is closed: mmdebstrap's processes in its user namespace do
// not die with it.
const killGroup = `(read -r _ <&3 || kill -9 0) </dev/null >/dev/null 2>&1 & exec "$@" 3<&-`

// ownerOfBoth runs a command as the owner of this user's files (id 0) and of
// those of mmdebstrap's user namespace (ids from 1).
var ownerOfBoth = []string{"unshare", "--user", "--map-root-user", "--map-auto", "--"}

// shared makes a directory that the subordinate ids of a user namespace can
// reach: /tmp is the only such place. Its name follows from the base's, so that
// what a killed run left is found by the next, and by Sweep.
func (d *debian) shared(path string) (string, error) {
	dir := sharedDir(path)
	if err := removeShared(dir); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

func sharedDir(path string) string {
	sum := sha256.Sum256([]byte(strings.TrimSuffix(path, ".tmp")))
	return filepath.Join(os.TempDir(), fmt.Sprintf("rebake-base-%d-%x", os.Getuid(), sum[:8]))
}

func removeShared(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if out, err := exec.Command(ownerOfBoth[0], append(ownerOfBoth[1:], "rm", "-rf", "--one-file-system", dir)...).CombinedOutput(); err != nil {
		return fmt.Errorf("remove %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runLogged runs a tool; its lines are events, the last ones are in its error.
func runLogged(ctx context.Context, cmd *exec.Cmd) error {
	out := event.Writer(ctx)
	defer out.Close()
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var last []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		sc := bufio.NewScanner(r)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			fmt.Fprintln(out, sc.Text())
			if last = append(last, sc.Text()); len(last) > 15 {
				last = last[1:]
			}
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	err := child.Run(cmd)
	w.Close()
	<-done
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w (`rebake doctor` says how to get it)", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, strings.Join(last, "\n"))
	}
	return nil
}

// readApt reads this computer's apt sources of the suite (Debian's own
// components), and the settings that they need to work.
func readApt(suite string) (aptSettings, error) {
	var a aptSettings
	files, err := filepath.Glob("/etc/apt/sources.list.d/*")
	if err != nil {
		return a, err
	}
	for _, f := range append([]string{"/etc/apt/sources.list"}, files...) {
		raw, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return a, err
		}
		switch filepath.Ext(f) {
		case ".list":
			a.sources = append(a.sources, listEntries(string(raw), suite)...)
		case ".sources":
			a.sources = append(a.sources, deb822Entries(string(raw), suite)...)
		}
	}
	if len(a.sources) == 0 {
		for _, s := range []string{"http://deb.debian.org/debian " + suite, "http://deb.debian.org/debian " + suite + "-updates", "http://deb.debian.org/debian-security " + suite + "-security"} {
			a.sources = append(a.sources, "deb "+s+" main")
		}
	}
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return a, nil // no apt here: mmdebstrap's own defaults
	}
	for _, l := range strings.Split(string(out), "\n") {
		switch name, _, _ := strings.Cut(l, " "); name {
		case "Acquire::Check-Valid-Until", "Acquire::Check-Date":
			if strings.Contains(l, `"false"`) || strings.Contains(l, `"0"`) {
				a.conf = append(a.conf, l)
			}
		case "Acquire::http::Proxy", "Acquire::https::Proxy":
			a.host = append(a.host, l)
		}
	}
	return a, nil
}

// ofSuite keeps Debian's own: the suite and its updates and security, main there.
func ofSuite(suite string, suites, components []string) []string {
	var out []string
	for _, c := range components {
		if c == "main" {
			for _, s := range suites {
				if s == suite || s == suite+"-updates" || s == suite+"-security" {
					out = append(out, s)
				}
			}
			break
		}
	}
	return out
}

func listEntries(text, suite string) []string {
	var out []string
	for _, l := range strings.Split(text, "\n") {
		l, _, _ = strings.Cut(l, "#")
		if i, j := strings.Index(l, "["), strings.Index(l, "]"); i >= 0 && j > i {
			l = l[:i] + l[j+1:]
		}
		if f := strings.Fields(l); len(f) >= 4 && f[0] == "deb" {
			for _, s := range ofSuite(suite, f[2:3], f[3:]) {
				out = append(out, fmt.Sprintf("deb %s %s %s", f[1], s, strings.Join(f[3:], " ")))
			}
		}
	}
	return out
}

func deb822Entries(text, suite string) []string {
	var out []string
	for _, stanza := range regexp.MustCompile(`\n\s*\n`).Split(text, -1) {
		field := map[string][]string{}
		name := ""
		for _, l := range strings.Split(stanza, "\n") {
			if strings.HasPrefix(l, "#") {
				continue
			}
			if l != "" && (l[0] == ' ' || l[0] == '\t') {
				field[name] = append(field[name], strings.Fields(l)...)
			} else if k, v, ok := strings.Cut(l, ":"); ok {
				name = strings.ToLower(k)
				field[name] = strings.Fields(v)
			}
		}
		if strings.Join(field["enabled"], "") == "no" || !strings.Contains(" "+strings.Join(field["types"], " ")+" ", " deb ") {
			continue
		}
		for _, uri := range field["uris"] {
			for _, s := range ofSuite(suite, field["suites"], field["components"]) {
				out = append(out, fmt.Sprintf("deb %s %s %s", uri, s, strings.Join(field["components"], " ")))
			}
		}
	}
	return out
}
