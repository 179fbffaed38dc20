package qemu

import (
	"context"
	"errors"
	"os"

	"github.com/rebake/rebake/internal/qemu"
)

// machines is what the pool asks of virtual machines, each known by its
// directory. processes is the real one; tests of the pool's own logic bring
// another.
type machines interface {
	overlay(ctx context.Context, path, backing string, size int64) error
	start(ctx context.Context, c qemu.Config) error
	// look fails with os.ErrNotExist where no machine was ever started.
	look(dir string) (machine, error)
	console(dir string, n int) (string, error)
	// remove shuts a machine down, or kills it after a grace, and deletes
	// its directory; nil where there is none.
	remove(ctx context.Context, dir string) error
}

type machine struct {
	pid     int
	running bool
	ports   map[int]string // guest port → host:port
}

type processes struct{}

func (processes) overlay(ctx context.Context, path, backing string, size int64) error {
	return qemu.CreateOverlay(ctx, path, backing, "raw", size)
}

func (processes) start(ctx context.Context, c qemu.Config) error {
	_, err := qemu.Start(ctx, c)
	return err
}

func (processes) look(dir string) (machine, error) {
	vm, err := qemu.Attach(dir)
	if err != nil {
		return machine{}, err
	}
	return machine{pid: vm.PID(), running: vm.Running(), ports: vm.Ports()}, nil
}

func (processes) console(dir string, n int) (string, error) {
	vm, err := qemu.Attach(dir)
	if err != nil {
		return "", err
	}
	return vm.Console(n), nil
}

func (processes) remove(ctx context.Context, dir string) error {
	vm, err := qemu.Attach(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil && vm.Running() {
		// A guest that does not obey in time is killed by Remove; only a
		// cancelled caller stops here, to be called again.
		if perr := vm.PowerDown(ctx); perr != nil && ctx.Err() != nil {
			return perr
		}
	}
	return qemu.Remove(ctx, dir)
}
