package qemu

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// stopped asks why the guest's processors stand still. Those of a guest that the
// accelerator could not run never go on: such a machine is ended at once, rather
// than when somebody has waited for it long enough, and the next one is emulated.
func (vm *VM) stopped(mon *monitor) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var s struct {
		Status string `json:"status"`
	}
	if err := mon.ask(ctx, "query-status", nil, &s); err != nil || s.Status != "internal-error" {
		return
	}
	why := "QEMU stopped it with an internal error"
	next := ""
	if vm.rec.Accel != TCG {
		distrust(ctx, vm.rec.Accel, why)
		next = "; from now on guests are emulated: run it again"
	}
	vm.mu.Lock()
	vm.broken = fmt.Errorf("this computer cannot run the guest under %s: %s%s", vm.rec.Accel, why, next)
	vm.mu.Unlock()
	_ = syscall.Kill(vm.rec.PID, syscall.SIGKILL)
}

// Broken says why the machine was ended by rebake itself, or nil: its accelerator
// could not run the guest. For a machine that was started with BindToOwner.
func (vm *VM) Broken() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.broken
}
