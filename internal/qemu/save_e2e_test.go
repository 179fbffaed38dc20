//go:build e2e

package qemu_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/tinyguest"
	gossh "golang.org/x/crypto/ssh"
)

func output(t *testing.T, c *ssh.Client, line string) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Run(t.Context(), provisioner.Cmd{Line: line, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// Two machines go on from one saved state, while the saved one goes on itself:
// processes and files of before are there, what is written after is not shared.
func TestMachinesGoOnFromASavedState(t *testing.T) {
	ctx := t.Context()
	cache, err := filepath.Abs("../../.cache/e2e/tinyguest")
	if err != nil {
		t.Fatal(err)
	}
	disk, _, err := tinyguest.Build(ctx, cache)
	if err != nil {
		t.Fatal(err)
	}
	login, err := ssh.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	host, err := ssh.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "rq")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	config := func(name string) qemu.Config {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return qemu.Config{Name: name, Dir: dir, RunDir: filepath.Join(run, name), Disk: filepath.Join(dir, "disk.qcow2"), DiskFormat: "qcow2",
			Memory: 256 << 20, BindToOwner: true, Savable: true, MAC: "52:54:00:00:00:01",
			Seed: qemu.Seed{Kind: "credentials", InstanceID: "i", Hostname: "saved", User: "root",
				AuthorizedKeys: []string{ssh.AuthorizedLine(login.Signer.PublicKey())}, HostKeyPEM: host.PEM}}
	}
	start := func(c qemu.Config) (*qemu.VM, *ssh.Client, time.Duration) {
		began := time.Now()
		vm, err := qemu.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = vm.Kill(context.Background()) })
		running := time.Since(began)
		cl, err := ssh.Dial(ctx, ssh.Target{Addr: vm.Ports()[22], User: "root", Signer: login.Signer, HostKeys: []gossh.PublicKey{host.Signer.PublicKey()}},
			ssh.Options{Timeout: time.Minute})
		if err != nil {
			t.Fatalf("%v\n%s", err, vm.Console(3000))
		}
		t.Cleanup(func() { cl.Close() })
		t.Logf("%s: process up in %s, SSH in %s", c.Name, running.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		return vm, cl, time.Since(began)
	}

	first := config("first")
	if err := qemu.CreateOverlay(ctx, first.Disk, disk, "raw", 0); err != nil {
		t.Fatal(err)
	}
	vm, cl, cold := start(first)
	output(t, cl, "echo kept > /root/file; sync; (sleep 1000 & echo $! > /root/pid)")

	state := t.TempDir()
	layer := filepath.Join(state, "disk.qcow2")
	save := func(vm *qemu.VM, c qemu.Config, dir string) string {
		next := filepath.Join(c.Dir, "next.qcow2")
		if err := os.Link(c.Disk, filepath.Join(dir, "disk.qcow2")); err != nil {
			t.Fatal(err)
		}
		if err := qemu.CreateLayer(ctx, next, filepath.Join(dir, "disk.qcow2"), 96<<20); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		frozen, err := vm.Save(ctx, dir, next, true)
		if err != nil || !frozen {
			t.Fatalf("frozen %v: %v", frozen, err)
		}
		ram, _ := os.Stat(filepath.Join(dir, "memory"))
		dev, _ := os.Stat(filepath.Join(dir, "devices"))
		t.Logf("%s: saved in %s: memory %d KiB, devices %d KiB", c.Name, time.Since(began).Round(time.Millisecond), ram.Size()>>10, dev.Size()>>10)
		return next
	}
	save(vm, first, state)
	if got := output(t, cl, "cat /root/file; echo first > /root/own; sync; kill -0 $(cat /root/pid) && echo alive"); got != "kept\nalive" {
		t.Errorf("after the save the guest has %q", got)
	}

	for _, name := range []string{"second", "third"} {
		c := config(name)
		c.Resume = state
		if err := qemu.CreateOverlay(ctx, c.Disk, layer, "qcow2", 0); err != nil {
			t.Fatal(err)
		}
		vm, cl, warm := start(c)
		if got := output(t, cl, "cat /root/file; cat /root/own 2>/dev/null; kill -0 $(cat /root/pid) && echo alive; hostname"); got != "kept\nalive\nsaved" {
			t.Errorf("%s has %q", name, got)
		}
		t.Logf("%s: %.2f of a cold boot", name, warm.Seconds()/cold.Seconds())
		output(t, cl, "echo "+name+" > /root/own; sync")
		if name == "third" { // a machine that went on is saved as any other
			dir := t.TempDir()
			next := save(vm, c, dir)
			if got := output(t, cl, "cat /root/own"); got != "third" {
				t.Errorf("after its save it has %q", got)
			}
			_ = cl.Run(ctx, provisioner.Cmd{Line: "poweroff"})
			select {
			case <-vm.Done():
			case <-time.After(time.Minute):
				t.Fatal("it does not power off")
			}
			if err := vm.Clean(); err != nil {
				t.Error(err)
			}
			if err := qemu.Img(ctx, "check", "-q", next); err != nil {
				t.Error(err)
			}
		}
	}
	if err := qemu.Img(ctx, "check", "-q", layer); err != nil {
		t.Error(err)
	}
}
