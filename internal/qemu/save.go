package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Files that Save makes in its directory.
const (
	ramName   = "memory"
	stateName = "devices"
)

// maxDevices bounds the devices' state: it is about 1 MiB.
const maxDevices = 64 << 20

// Save freezes the machine's disk: what the file holds that was its disk stays
// as it is, and all that the guest writes from now on goes to next, an overlay
// that CreateLayer made on it. With memory it writes the machine's memory and
// devices into dir too, and a UEFI machine's variables in any case. The guest
// stands still for as long as this takes and goes on afterwards, also after an
// error; frozen says whether next is the machine's disk then. A machine of which
// that cannot be told, or which does not go on, is killed: what it would write is
// in no disk that anybody knows. Nothing is synced to the medium.
func (vm *VM) Save(ctx context.Context, dir, next string, memory bool) (frozen bool, err error) {
	if memory && vm.ram == nil || vm.mon == nil {
		return false, errors.New("this machine's state cannot be saved")
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	whole := context.WithoutCancel(ctx) // each of the three is done or not, never given up half way
	defer func() {
		if cerr := vm.mon.run(whole, "cont", nil); cerr != nil && vm.Running() {
			err = errors.Join(err, fmt.Errorf("the guest does not go on: %w", cerr), vm.Kill(whole))
		}
	}()
	if err := vm.mon.run(whole, "stop", nil); err != nil {
		return false, err
	}
	if err := vm.mon.run(whole, "blockdev-snapshot-sync", map[string]any{
		"device": "disk0", "snapshot-file": next, "format": "qcow2", "mode": "existing"}); errors.Is(err, errRefused) {
		return false, err
	} else if err != nil {
		return false, errors.Join(fmt.Errorf("which disk the machine writes to cannot be told: %w", err), vm.Kill(whole))
	}
	vm.cfg.Disk = next
	if err := copyVarsFile(vm.cfg.Dir, dir); err != nil {
		return true, err
	}
	if !memory {
		return true, nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return dumpRAM(gctx, vm.ram, vm.cfg.Memory, filepath.Join(dir, ramName)) })
	g.Go(func() error { return vm.saveDevices(gctx, filepath.Join(dir, stateName)) })
	return true, g.Wait()
}

// saveDevices has QEMU send its state, all but the memory that is a file.
func (vm *VM) saveDevices(ctx context.Context, path string) (err error) {
	sock := filepath.Join(vm.cfg.RunDir, "save.sock")
	if err := removeIfThere(sock); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", sock)
	if err != nil {
		return err
	}
	defer l.Close() // removes it
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := vm.ignoreShared(ctx, vm.mon); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			var n int64
			if n, err = io.Copy(out, io.LimitReader(c, maxDevices)); n == maxDevices {
				err = fmt.Errorf("the devices' state is more than %d bytes: the memory is in it", maxDevices)
			}
			c.Close()
		}
		received <- err
	}()
	if err := vm.mon.run(ctx, "migrate", map[string]any{"uri": "unix:" + sock}); err != nil {
		return err
	}
	err = vm.migrated(ctx, vm.mon)
	if err != nil {
		_ = vm.mon.run(context.WithoutCancel(ctx), "migrate_cancel", nil) // the error is on its way
		return err
	}
	return <-received
}

func (vm *VM) ignoreShared(ctx context.Context, mon *monitor) error {
	return mon.run(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []any{
		map[string]any{"capability": "x-ignore-shared", "state": true}}})
}

// migrated waits for the end of a transfer of the state.
func (vm *VM) migrated(ctx context.Context, mon *monitor) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := mon.ask(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU could not transfer the machine's state: %s %s", s.Status, s.Error)
		}
		select {
		case <-tick.C:
		case <-vm.done:
			return errors.New("QEMU ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fill reads the memory of a machine that goes on from a saved state. QEMU
// itself writes none of it before the devices' state is loaded.
func (vm *VM) fill(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	if vm.cfg.Resume == "" {
		done <- nil
		return done
	}
	go func() {
		done <- fillRAM(ctx, filepath.Join(vm.cfg.Resume, ramName), vm.ram, vm.cfg.Memory)
	}()
	return done
}

// load reads the devices' state and lets the guest go on.
func (vm *VM) load(ctx context.Context, mon *monitor) error {
	in, err := os.Open(filepath.Join(vm.cfg.Resume, stateName))
	if err != nil {
		return err
	}
	defer in.Close()
	if err := vm.ignoreShared(ctx, mon); err != nil {
		return err
	}
	sock := filepath.Join(vm.cfg.RunDir, "load.sock")
	if err := removeIfThere(sock); err != nil {
		return err
	}
	if err := mon.run(ctx, "migrate-incoming", map[string]any{"uri": "unix:" + sock}); err != nil {
		return err
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", sock)
	if err != nil {
		return fmt.Errorf("hand QEMU the machine's state: %w", err)
	}
	_, err = io.Copy(c, in)
	if err = errors.Join(err, c.Close(), removeIfThere(sock)); err != nil {
		return fmt.Errorf("hand QEMU the machine's state: %w", err)
	}
	if err := vm.migrated(ctx, mon); err != nil {
		return err
	}
	return mon.run(ctx, "cont", nil)
}

func (vm *VM) closeRAM() error {
	if vm.ram == nil {
		return nil
	}
	return vm.ram.Close()
}

// volatile are the parts of a command line that a saved state does not hang on.
var volatile = regexp.MustCompile(`/[^, ]*|hostfwd=[^, ]*|guest=[^, ]*`)

// Fit names what a saved state of the machine needs to go on: QEMU's version,
// the devices, processors, memory and accelerator, and under an accelerator the
// host's processor. Two machines with one Fit can go on from each other's state.
func (c Config) Fit(ctx context.Context) (string, error) {
	version, err := Version(ctx)
	if err != nil {
		return "", err
	}
	accel := c.Accel
	if accel == "" {
		accel, _ = DetectAccel(ctx, hostArch(c.Arch))
	}
	c.Savable, c.Resume = true, ""
	seeds := seedFiles{}
	switch c.Seed.Kind {
	case "nocloud":
		seeds.iso = "/seed"
	case "credentials":
		seeds.smbios = []string{"/seed"}
	}
	argv, err := c.args(accel, map[int]int{22: 1}, seeds)
	if err != nil {
		return "", err
	}
	host := ""
	if accel != TCG {
		host = hostCPU()
	}
	line := volatile.ReplaceAllString(strings.Join(argv, " "), "")
	sum := sha256.Sum256([]byte("2 " + version + " " + string(accel) + " " + host + " " + line))
	return hex.EncodeToString(sum[:8]), nil
}

// hostCPU tells processors apart that a guest can.
func hostCPU() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	var lines []string
	for _, l := range strings.Split(string(raw), "\n") {
		if l == "" {
			break
		}
		for _, k := range []string{"vendor_id", "cpu family", "model", "stepping", "flags", "CPU part", "CPU variant", "Features"} {
			if name, _, _ := strings.Cut(l, ":"); strings.TrimSpace(name) == k {
				lines = append(lines, l)
			}
		}
	}
	return strings.Join(lines, "\n")
}

// RestoreVars gives the machine that will start in dir the variables that Save
// kept, if it has any.
func RestoreVars(from, dir string) error { return copyVarsFile(from, dir) }

func copyVarsFile(from, to string) error {
	data, err := os.ReadFile(filepath.Join(from, varsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, varsName), data, 0o600)
}

// CreateLayer makes the overlay that Save continues on. backing is the name
// under which the frozen disk will stay; it need not be there yet.
func CreateLayer(ctx context.Context, path, backing string, size int64) error {
	if err := Img(ctx, "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, path, fmt.Sprint(size)); err != nil {
		return errors.Join(err, removeIfThere(path))
	}
	return os.Chmod(path, 0o600)
}
