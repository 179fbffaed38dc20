package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	recordName  = "vm.json"
	consoleName = "console.log"
	varsName    = "efivars.fd"
)

// record is vm.json. It is on disk before the process is, without PID; so a
// process whose number was never written is found by its -pidfile argument.
type record struct {
	Name      string         `json:"name"`
	RunDir    string         `json:"run_dir"`
	PID       int            `json:"pid,omitempty"`
	Started   string         `json:"started,omitempty"` // process start time, as the kernel tells it: a pid alone is reused
	Ports     map[int]string `json:"ports"`
	Accel     Accel          `json:"accel"`
	QuitAfter time.Duration  `json:"quit_after"`
}

// VM is a machine that was started by this process (Start) or another (Attach).
type VM struct {
	cfg  Config
	rec  record
	mon  *monitor // kept open for machines bound to this process
	done chan struct{}
	poll sync.Once
	own  bool     // started by this process: done is closed by its waiter
	ram  *os.File // of a savable machine

	mu     sync.Mutex
	reason string // why QEMU says it ended
	broken error  // why it was ended by us
	exit   error
}

func (c Config) pidfile() string { return c.file("qemu.pid") }
func (c Config) socket() string  { return filepath.Join(c.RunDir, "qmp.sock") }
func (c Config) pipe() string    { return filepath.Join(c.RunDir, "pipe.sock") }

// Start boots a machine and returns once QEMU runs it. Its directory may hold a
// dead machine's files; a live one is an error. A forwarded host port that
// another process took meanwhile is replaced by another.
func Start(ctx context.Context, c Config) (*VM, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if old, err := Attach(c.Dir); err == nil && old.Running() {
		return nil, fmt.Errorf("machine %s runs already (pid %d)", c.Name, old.PID())
	}
	if err := private(c.Dir); err != nil {
		return nil, err
	}
	if err := private(filepath.Dir(c.RunDir)); err != nil {
		return nil, err
	}
	if err := private(c.RunDir); err != nil {
		return nil, err
	}
	accel := c.Accel
	if accel == "" {
		accel, _ = DetectAccel(ctx, hostArch(c.Arch))
	}
	seeds, err := c.Seed.write(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := c.copyVars(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		vm, err := c.launch(ctx, accel, seeds)
		if err == nil || ctx.Err() != nil || try == 5 || !strings.Contains(err.Error(), "Could not set up host forwarding rule") {
			return vm, err
		}
	}
}

func (c Config) check() error {
	switch {
	case c.Name == "" || c.Dir == "" || c.RunDir == "" || c.Disk == "" || c.DiskFormat == "":
		return errors.New("a machine needs a name, a directory, a run directory, a disk and its format")
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.RunDir) || !filepath.IsAbs(c.Disk):
		return errors.New("a machine's directories and disk must be absolute paths")
	case c.Memory < 64<<20:
		return fmt.Errorf("memory of %d bytes is too little to boot: give at least 64M", c.Memory)
	case c.Savable && !(CanSave && c.BindToOwner), c.Resume != "" && !c.Savable:
		return errors.New("this machine's memory cannot be saved")
	case len(c.socket()) > 100:
		return fmt.Errorf("run directory %s is too long for a socket", c.RunDir)
	}
	for _, p := range c.Ports {
		if p < 1 || p > 65535 {
			return fmt.Errorf("guest port %d is not a port", p)
		}
	}
	return nil
}

// copyVars gives a UEFI machine its own variables.
func (c Config) copyVars() error {
	if c.Firmware != "uefi" && hostArch(c.Arch) != "arm64" {
		return nil
	}
	_, vars, ok := UEFI(hostArch(c.Arch))
	if !ok || isFile(c.file(varsName)) {
		return nil // args says what is missing
	}
	data, err := os.ReadFile(vars)
	if err != nil {
		return err
	}
	return atomicfile.Write(c.file(varsName), data, 0o600)
}

func (c Config) launch(ctx context.Context, accel Accel, seeds seedFiles) (*VM, error) {
	ports, err := freePorts(append([]int{22}, c.Ports...))
	if err != nil {
		return nil, err
	}
	rec := record{Name: c.Name, RunDir: c.RunDir, Ports: map[int]string{}, Accel: accel, QuitAfter: c.grace()}
	for guest, host := range ports {
		rec.Ports[guest] = fmt.Sprintf("127.0.0.1:%d", host)
	}
	if err := rec.save(c.Dir); err != nil {
		return nil, err
	}
	for _, stale := range []string{c.socket(), c.pidfile()} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if f, err := os.OpenFile(c.file(consoleName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	} else if err := f.Close(); err != nil {
		return nil, err
	}
	argv, err := c.args(accel, ports, seeds)
	if err != nil {
		return nil, err
	}
	bin, err := exec.LookPath(Binary(hostArch(c.Arch)))
	if err != nil {
		return nil, fmt.Errorf("%w (run `rebake doctor`)", err)
	}
	logf, err := os.OpenFile(c.file("qemu.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer logf.Close()
	vm := &VM{cfg: c, rec: rec, own: true, done: make(chan struct{})}
	cmd := exec.Command(bin, argv...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logf, logf
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.Savable {
		if vm.ram, err = newRAM(c.Memory); err != nil {
			return nil, err
		}
		cmd.ExtraFiles = []*os.File{vm.ram} // ramFD
	}
	wait, err := spawn(cmd, c.BindToOwner)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Base(bin), err), vm.closeRAM())
	}
	ended := make(chan error, 1)
	monDone := make(chan struct{})
	go func() {
		err := wait()
		ended <- err
		<-monDone // the reader has seen the last event
		vm.mu.Lock()
		vm.exit = errors.Join(err, vm.closeRAM())
		vm.mu.Unlock()
		close(vm.done)
	}()
	vm.rec.PID = cmd.Process.Pid
	vm.rec.Started, _ = startTime(vm.rec.PID)
	filled := vm.fill(ctx) // while QEMU starts
	mon, err := vm.connect(ctx, ended)
	err = errors.Join(err, <-filled)
	if err == nil && c.Resume != "" {
		err = vm.load(ctx, mon)
	}
	if err == nil {
		err = vm.rec.save(c.Dir)
	}
	if err != nil {
		close(monDone)
		_ = cmd.Process.Kill()
		<-vm.done
		return nil, err
	}
	if c.BindToOwner {
		vm.mon = mon
		go func() { <-mon.closed; close(monDone) }()
	} else {
		mon.close() // QEMU serves one client at a time: leave room for the next command
		close(monDone)
	}
	return vm, nil
}

// connect waits for QEMU's control socket: then it has opened its disks and ports.
func (vm *VM) connect(ctx context.Context, ended <-chan error) (*monitor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("QEMU did not open its control socket within 30s"))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		mon, err := dialQMP(ctx, vm.cfg.socket(), vm.event)
		if err == nil {
			return mon, nil
		}
		select {
		case werr := <-ended:
			out, _ := os.ReadFile(vm.cfg.file("qemu.log"))
			return nil, fmt.Errorf("QEMU ended at once (%w): %s", errOr(werr, "status 0"), strings.TrimSpace(string(tail(out, 2000))))
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

func (vm *VM) event(mon *monitor, m qmpMessage) {
	if m.Event == "STOP" {
		go vm.stopped(mon)
	}
	if m.Event != "SHUTDOWN" {
		return
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(m.Data, &d) == nil {
		vm.mu.Lock()
		vm.reason = d.Reason
		vm.mu.Unlock()
	}
}

// Attach finds the machine of a directory, running or not. os.ErrNotExist if
// there never was one.
func Attach(dir string) (*VM, error) {
	raw, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		return nil, err
	}
	vm := &VM{cfg: Config{Dir: dir}, done: make(chan struct{})}
	if err := json.Unmarshal(raw, &vm.rec); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, recordName), err)
	}
	vm.cfg.Name, vm.cfg.RunDir, vm.cfg.QuitAfter = vm.rec.Name, vm.rec.RunDir, vm.rec.QuitAfter
	if vm.rec.PID == 0 {
		if pid, err := findProcess("-pidfile", vm.cfg.pidfile()); err == nil && pid != 0 {
			vm.rec.PID = pid
			vm.rec.Started, _ = startTime(pid)
		}
	}
	return vm, nil
}

// PID is the QEMU process's number, 0 if it never ran.
func (vm *VM) PID() int { return vm.rec.PID }

// Accel is what runs the guest's code.
func (vm *VM) Accel() Accel { return vm.rec.Accel }

// Ports maps guest ports to host:port on 127.0.0.1.
func (vm *VM) Ports() map[int]string { return maps.Clone(vm.rec.Ports) }

// Running tells whether the very process that was started still runs.
func (vm *VM) Running() bool {
	if vm.own {
		select {
		case <-vm.done:
			return false
		default:
			return true
		}
	}
	return same(vm.rec.PID, vm.rec.Started)
}

func same(pid int, started string) bool {
	if pid == 0 || started == "" {
		return false
	}
	now, err := startTime(pid)
	return err == nil && now == started
}

// Done is closed when the machine no longer runs.
func (vm *VM) Done() <-chan struct{} {
	if !vm.own {
		vm.poll.Do(func() {
			go func() {
				for vm.Running() {
					time.Sleep(50 * time.Millisecond)
				}
				close(vm.done)
			}()
		})
	}
	return vm.done
}

// Clean is nil if the guest itself shut down, for a machine that was started
// with BindToOwner and has ended.
func (vm *VM) Clean() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.reason == "guest-shutdown" && vm.exit == nil {
		return nil
	}
	out, _ := os.ReadFile(vm.cfg.file("qemu.log"))
	return fmt.Errorf("machine did not shut down by itself: %w, reason %q %s", errOr(vm.exit, "exit status 0"), vm.reason, tail(bytes.TrimSpace(out), 500))
}

// PowerDown presses the power button (ACPI) and waits until the guest has shut
// down. It fails when the grace (Config.QuitAfter) is over; the machine still runs then.
func (vm *VM) PowerDown(ctx context.Context) error {
	grace := vm.cfg.grace()
	ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("guest did not shut down within %s of the power button", grace))
	defer cancel()
	mon := vm.mon
	if mon == nil && vm.Running() {
		var err error
		if mon, err = dialQMP(ctx, vm.cfg.socket(), nil); err != nil && vm.Running() {
			return fmt.Errorf("reach QEMU: %w", err)
		}
		if mon != nil {
			defer mon.close()
		}
	}
	press := time.NewTicker(4 * time.Second) // a guest that still boots misses the first one
	defer press.Stop()
	for vm.Running() {
		if err := mon.run(ctx, "system_powerdown", nil); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.EPIPE) && ctx.Err() == nil {
			return err
		}
		select {
		case <-vm.Done():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-press.C:
		}
	}
	return nil
}

// Kill ends the machine now and waits until it is gone.
func (vm *VM) Kill(ctx context.Context) error {
	if !vm.Running() {
		return nil
	}
	if err := syscall.Kill(vm.rec.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill machine %s: %w", vm.rec.Name, err)
	}
	select {
	case <-vm.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for machine %s to end: %w", vm.rec.Name, context.Cause(ctx))
	}
}

// Console returns the last n bytes of the serial console.
func (vm *VM) Console(n int) string {
	f, err := os.Open(vm.cfg.file(consoleName))
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > int64(n) {
		if _, err := f.Seek(-int64(n), io.SeekEnd); err != nil {
			return ""
		}
	}
	out, _ := io.ReadAll(io.LimitReader(f, int64(n)))
	return strings.ReplaceAll(string(out), "\r", "")
}

// Remove ends the machine of a directory, if it runs, and deletes all it had.
// It may be called again, and after a kill -9 at any instant of Start.
func Remove(ctx context.Context, dir string) error {
	vm, err := Attach(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		vm = nil // unreadable: fall back on the process list
	}
	if vm != nil {
		if err := vm.Kill(ctx); err != nil {
			return err
		}
	}
	if pid, err := findProcess("-pidfile", Config{Dir: dir}.pidfile()); err != nil {
		return err
	} else if pid != 0 {
		started, _ := startTime(pid)
		left := &VM{rec: record{Name: filepath.Base(dir), PID: pid, Started: started}, done: make(chan struct{})}
		if err := left.Kill(ctx); err != nil {
			return err
		}
	}
	if vm != nil && vm.rec.RunDir != "" {
		if err := os.RemoveAll(vm.rec.RunDir); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

func (r record) save(dir string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, recordName), append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the machine's record: %w", err)
	}
	return nil
}

// private makes dir with mode 0700 and refuses one that is another user's.
func private(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || !ok || int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to somebody else: remove it", dir)
	}
	return os.Chmod(dir, 0o700)
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// Pipe connects to the machine's end of Config.Pipe.
func (vm *VM) Pipe(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", vm.cfg.pipe())
}
