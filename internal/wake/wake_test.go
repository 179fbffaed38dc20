package wake

import (
	"os/exec"
	"testing"
)

func TestScriptIsShell(t *testing.T) {
	if out, err := exec.Command("sh", "-n", "-c", script).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
