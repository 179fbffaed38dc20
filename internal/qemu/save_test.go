package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stood is a machine whose QEMU is a sleep, and whose control socket is the
// test's: answer returns the line for a command, "" hangs up.
func stood(t *testing.T, answer func(command string) string) (*VM, <-chan []string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked := make(chan []string, 1)
	go func() {
		var all []string
		defer func() { asked <- all }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, `{"QMP": {}}`+"\n")
		for sc := bufio.NewScanner(c); sc.Scan(); {
			var m struct{ Execute string }
			_ = json.Unmarshal(sc.Bytes(), &m)
			if all = append(all, m.Execute); answer(m.Execute) == "" {
				return
			}
			_, _ = io.WriteString(c, answer(m.Execute)+"\n")
		}
	}()
	mon, err := dialQMP(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mon.close)
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	vm := &VM{cfg: Config{Dir: dir}, rec: record{Name: "m", PID: cmd.Process.Pid}, mon: mon, own: true, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(vm.done) }()
	t.Cleanup(func() { _ = vm.Kill(context.Background()) })
	return vm, asked
}

const done, refused = `{"return": {}}`, `{"error": {"class": "GenericError", "desc": "no"}}`

func TestAMachineOfWhichTheDiskCannotBeToldIsKilled(t *testing.T) {
	for name, c := range map[string]struct {
		answer map[string]string
		lives  bool
		says   string
	}{
		"all is well":                {map[string]string{"blockdev-snapshot-sync": done, "cont": done}, true, ""},
		"the new disk is refused":    {map[string]string{"blockdev-snapshot-sync": refused, "cont": done}, true, "refused"},
		"hung up at the new disk":    {map[string]string{"cont": done}, false, "cannot be told"},
		"the guest does not go on":   {map[string]string{"blockdev-snapshot-sync": done, "cont": refused}, false, "does not go on"},
		"neither disk nor going on ": {map[string]string{"blockdev-snapshot-sync": refused, "cont": refused}, false, "does not go on"},
	} {
		t.Run(name, func(t *testing.T) {
			vm, asked := stood(t, func(command string) string {
				if command == "qmp_capabilities" || command == "stop" {
					return done
				}
				return c.answer[command]
			})
			frozen, err := vm.Save(t.Context(), t.TempDir(), "next", false)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if vm.Running() != c.lives {
				t.Errorf("it runs: %v", vm.Running())
			}
			if frozen != (c.answer["blockdev-snapshot-sync"] == done) {
				t.Errorf("frozen: %v", frozen)
			}
			vm.mon.close()
			if all := <-asked; c.lives && !slices.Contains(all, "cont") {
				t.Errorf("the guest stands: %q", all)
			}
		})
	}
}
