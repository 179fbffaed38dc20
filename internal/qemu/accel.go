package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// bootSector is a whole guest: it writes 0x10 to isa-debug-exit's port, which
// ends QEMU with status 0x10<<1|1, and halts.
func bootSector() []byte {
	s := make([]byte, 512)
	copy(s, []byte{
		0xfa,             // cli
		0xba, 0x01, 0x05, // mov dx, 0x501
		0xb0, 0x10, // mov al, 0x10
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp hlt
	})
	s[510], s[511] = 0x55, 0xaa
	return s
}

const (
	probeStatus = 0x10<<1 | 1
	probeLimit  = 5 * time.Second
)

// DetectAccel returns the accelerator that really works, and the reason. On
// amd64 it boots a guest of 512 bytes: that /dev/kvm opens does not say that a
// guest runs, nor that it runs faster than by emulation. The verdict is kept per
// boot and QEMU version in the user's cache, until a guest proves it wrong.
func DetectAccel(ctx context.Context, arch string) (Accel, string) {
	arch = hostArch(arch)
	if arch != runtime.GOARCH {
		return TCG, fmt.Sprintf("tcg: the guest is %s, this machine %s", arch, runtime.GOARCH)
	}
	want := KVM
	switch runtime.GOOS {
	case "darwin":
		want = HVF
	case "linux":
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if errors.Is(err, os.ErrPermission) {
			return TCG, "tcg: /dev/kvm is not yours to open (sudo usermod -aG kvm $USER, then log in again)"
		}
		if err != nil {
			return TCG, "tcg: no /dev/kvm"
		}
		f.Close()
	default:
		return TCG, "tcg: no accelerator is known for " + runtime.GOOS
	}
	if arch != "amd64" {
		return want, string(want) + ": available; not tried, there is no probe for " + arch
	}
	version, err := Version(ctx)
	if err != nil {
		return TCG, "tcg: " + err.Error()
	}
	cache, key := verdicts(), bootID()+" "+version
	if v, ok := readVerdict(cache, key); ok {
		return v.Accel, v.Reason
	}
	v := compare(ctx, want)
	if ctx.Err() != nil {
		return TCG, "tcg: not probed: " + ctx.Err().Error()
	}
	v.Key = key
	v.keep(cache)
	return v.Accel, v.Reason
}

// compare boots the probe under want and by emulation, one after the other. Where
// the processor's own virtualization is imitated (a cloud's machine within a
// machine), KVM was seen to take 2 s for what emulation does in 0.1 s, and then
// to fail in the guest's kernel; where it is real, it takes some 0.2 s.
func compare(ctx context.Context, want Accel) verdict {
	began := time.Now()
	if err := probe(ctx, want); err != nil {
		return verdict{Accel: TCG, Reason: fmt.Sprintf("tcg: %s is there but a probe guest did not run under it: %v", want, err)}
	}
	took := time.Since(began)
	if took > time.Second {
		began = time.Now()
		if err := probe(ctx, TCG); err == nil && took > 5*time.Since(began) {
			return verdict{Accel: TCG, Reason: fmt.Sprintf("tcg: a probe guest took %.1fs under %s and %.1fs by emulation", took.Seconds(), want, time.Since(began).Seconds())}
		}
	}
	return verdict{Accel: want, Reason: string(want) + ": a probe guest ran"}
}

// distrust makes emulation the verdict until this computer boots anew: a real
// guest failed under accel, which had run the probe.
func distrust(ctx context.Context, accel Accel, why string) {
	version, err := Version(ctx)
	if err != nil {
		return
	}
	v := verdict{Key: bootID() + " " + version, Accel: TCG, Reason: fmt.Sprintf("tcg: a guest failed under %s: %s", accel, why)}
	v.keep(verdicts())
}

type verdict struct {
	Key    string `json:"key"`
	Accel  Accel  `json:"accel"`
	Reason string `json:"reason"`
}

// keep writes the verdict down: only a saving of time, so that errors do not matter.
func (v verdict) keep(cache string) {
	if raw, err := json.Marshal(v); err == nil && cache != "" && os.MkdirAll(filepath.Dir(cache), 0o700) == nil {
		_ = atomicfile.Write(cache, raw, 0o600)
	}
}

func verdicts() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "rebake", "accel.json")
}

func readVerdict(path, key string) (verdict, bool) {
	var v verdict
	raw, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(raw, &v) != nil {
		return v, false
	}
	return v, v.Key == key && (v.Accel == KVM || v.Accel == HVF || v.Accel == TCG)
}

// probe boots the boot sector; nil if the guest ran.
func probe(ctx context.Context, accel Accel) error {
	disk, cleanup, err := probeDisk()
	if err != nil {
		return err
	}
	defer cleanup()
	ctx, cancel := context.WithTimeoutCause(ctx, probeLimit, fmt.Errorf("it hung for %s", probeLimit))
	defer cancel()
	cpu := "host"
	if accel == TCG {
		cpu = "max"
	}
	var out bytes.Buffer
	cmd := exec.Command(Binary("amd64"), "-no-user-config", "-nodefaults", "-machine", "pc,accel="+string(accel), "-cpu", cpu, "-m", "32",
		"-display", "none", "-vga", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
		"-drive", "if=ide,format=raw,file="+esc(disk))
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	wait, err := spawn(cmd, true)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		return context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == probeStatus {
		return nil
	}
	first, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	return fmt.Errorf("%w: %s", errOr(err, "it ended with status 0"), first)
}

// probeDisk is the boot sector as a file in the user's cache: the same for all.
func probeDisk() (path string, cleanup func(), err error) {
	sector := bootSector()
	if cache := verdicts(); cache != "" && os.MkdirAll(filepath.Dir(cache), 0o700) == nil {
		sum := sha256.Sum256(sector)
		path = filepath.Join(filepath.Dir(cache), fmt.Sprintf("probe-%x.img", sum[:4]))
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, sector) {
			return path, func() {}, nil
		}
		if err := atomicfile.Write(path, sector, 0o600); err == nil {
			return path, func() {}, nil
		}
	}
	f, err := os.CreateTemp("", "rebake-probe-*")
	if err != nil {
		return "", nil, err
	}
	_, err = f.Write(sector)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", nil, errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), func() { _ = os.Remove(f.Name()) }, nil
}
