package qemu

import (
	"bufio"
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A machine whose accelerator gives up (QEMU then stops it with internal-error)
// is ended at once and says why, and the next one is emulated. One that stands
// still for another reason, as while it is saved, is left alone.
func TestAGuestThatItsAcceleratorCannotRunIsEndedAtOnce(t *testing.T) {
	for status, ends := range map[string]bool{"internal-error": true, "paused": false} {
		t.Run(status, func(t *testing.T) {
			t.Setenv("XDG_CACHE_HOME", t.TempDir())
			guest := exec.Command("sleep", "100")
			if err := guest.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = guest.Wait(); close(ended) }()
			defer func() { _ = guest.Process.Kill(); <-ended }()

			asked := make(chan struct{})
			path := fakeQMP(t, func(c net.Conn, in *bufio.Scanner) {
				_, _ = io.WriteString(c, `{"event": "STOP"}`+"\n")
				in.Scan() // query-status
				if !strings.Contains(in.Text(), "query-status") {
					t.Errorf("asked %s", in.Text())
				}
				_, _ = io.WriteString(c, `{"return": {"status": "`+status+`"}}`+"\n")
				close(asked)
				in.Scan()
			})
			vm := &VM{rec: record{PID: guest.Process.Pid, Accel: KVM}}
			mon, err := dialQMP(t.Context(), path, vm.event)
			if err != nil {
				t.Fatal(err)
			}
			defer mon.close()
			<-asked
			if !ends {
				if err := mon.run(t.Context(), "cont", nil); err == nil {
					t.Error("the fake answers no more commands")
				}
				if vm.Broken() != nil || syscall.Kill(guest.Process.Pid, 0) != nil {
					t.Errorf("a machine that is %s was ended: %v", status, vm.Broken())
				}
				return
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Fatal("the machine still runs")
			}
			if err := vm.Broken(); err == nil || !strings.Contains(err.Error(), "cannot run the guest under kvm") {
				t.Errorf("it says %v", err)
			}
			if v, ok := readVerdict(verdicts(), bootID()+" "+mustVersion(t)); !ok || v.Accel != TCG {
				t.Errorf("the next machine would run under %q", v.Accel)
			}
		})
	}
}

func mustVersion(t *testing.T) string {
	t.Helper()
	v, err := Version(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
