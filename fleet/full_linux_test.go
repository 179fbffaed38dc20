package fleet_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rebake/rebake/fleet"
)

// The disk of the journal is full at any point of a deployment: it stops there and
// says so, the old image or the new one serves, and once there is room it goes on.
// A limit of file sizes stands for the disk; it holds for a whole process, so that
// the test runs itself as another one.
func TestTheJournalsDiskIsFull(t *testing.T) {
	if os.Getenv("REBAKE_TEST_FULL") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTheJournalsDiskIsFull$", "-test.v")
		cmd.Env = append(os.Environ(), "REBAKE_TEST_FULL=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "stopped at") {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	stopped, states := 0, map[fleet.State]bool{}
	for room := int64(200); ; room += 900 {
		d := onDisk(t)
		if _, err := d.Deploy(t.Context(), quick("1")); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(filepath.Join(d.Dir, "journal.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		if err := limit(uint64(fi.Size() + room)); err != nil {
			t.Fatal(err)
		}
		res, err := d.Deploy(t.Context(), quick("2"))
		if lerr := limit(math.MaxUint64); lerr != nil {
			t.Fatal(lerr)
		}
		if err == nil {
			if res.State != fleet.Done {
				t.Errorf("with room for %d bytes: %s", room, res.State)
			}
			break
		}
		stopped++
		if !errors.Is(err, syscall.EFBIG) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
		st, serr := d.Router.Status(t.Context())
		if serr != nil || st.Weights[fleet.Blue]+st.Weights[fleet.Green] != 1000 {
			t.Errorf("with room for %d bytes the traffic is %v, %v", room, st.Weights, serr)
		}
		h, herr := fleet.ReadHistory(d.Dir)
		if herr != nil {
			t.Fatalf("with room for %d bytes: %v", room, herr)
		}
		if r := h.Unfinished(); r != nil {
			states[r.State] = true
			if !strings.Contains(err.Error(), "nothing more is done until `rebake deploy resume web`") {
				t.Errorf("with room for %d bytes: it does not say how to go on: %v", room, err)
			}
			res, err = d.Resume(t.Context(), true)
		} else { // not even the plan was written
			res, err = d.Deploy(t.Context(), quick("2"))
		}
		if err != nil || res.State != fleet.Done {
			t.Errorf("with room for %d bytes, then for more: %s: %v", room, res.State, err)
		}
	}
	if stopped < 8 || len(states) < 4 {
		t.Errorf("only %d points, in states %v", stopped, states)
	}
	fmt.Printf("stopped at %d points, in %d states, and went on at each\n", stopped, len(states))
}

func limit(n uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		return err
	}
	l.Cur = min(n, l.Max)
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l)
}
