package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/memory"
	"github.com/rebake/rebake/internal/state"
)

// groupRecord is a file in groups/.
type groupRecord struct {
	ID   fleet.GroupID `json:"id"`
	Spec fleet.Spec    `json:"spec"`
}

func groupFile(dir string, id fleet.GroupID) string {
	return filepath.Join(dir, "groups", string(id.Slot)+"-"+id.Deployment+".json")
}

// record writes the group before anything of it exists.
func (p *Pool) record(id fleet.GroupID, spec fleet.Spec) error {
	path := groupFile(p.deps.State.Fleet(id.Fleet), id)
	if old, err := readGroup(path); err == nil {
		if old.Spec.Image.Content != spec.Image.Content {
			return fmt.Errorf("group %s of deployment %s runs another image (%s:%s): a group never changes its image", id.Slot, id.Deployment, old.Spec.Image.Name, old.Spec.Image.Version)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	data, err := json.MarshalIndent(groupRecord{id, spec}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write down the group: %w", err)
	}
	return nil
}

func (p *Pool) forget(id fleet.GroupID) error {
	dir := p.deps.State.Fleet(id.Fleet)
	if err := os.Remove(groupFile(dir, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	recs, err := readGroups(dir)
	if err != nil || len(recs) > 0 {
		return err
	}
	// the last group: leave nothing, but the lock that this process holds
	for _, f := range []string{"groups", "instances", keyName} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func readGroup(path string) (groupRecord, error) {
	var rec groupRecord
	data, err := os.ReadFile(path)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read %s: %w", path, err)
	}
	return rec, nil
}

func readGroups(dir string) ([]groupRecord, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), "groups", "*.json"))
	if err != nil {
		return nil, err
	}
	var out []groupRecord
	for _, path := range paths {
		rec, err := readGroup(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, rec)
	}
	return out, nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// instancePrefix is common to all instances of a group and to none other.
func instancePrefix(id fleet.GroupID) string {
	d := strings.ToLower(id.Deployment)
	if len(d) > 6 {
		d = d[len(d)-6:]
	}
	return fmt.Sprintf("%s-%s-%s-", id.Fleet, id.Slot, d)
}

func instanceID(id fleet.GroupID, n int) string { return instancePrefix(id) + strconv.Itoa(n) }

// instanceNumber is 0 for what is no instance of the group.
func instanceNumber(id fleet.GroupID, inst string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(inst, instancePrefix(id)))
	if err != nil || n < 1 || instanceID(id, n) != inst {
		return 0
	}
	return n
}

// hostname is what DNS allows of an instance id.
func hostname(inst string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '.' {
			return '-'
		}
		return r
	}, strings.ToLower(inst))
}

func (p *Pool) dir(fleetName, inst string) string {
	return filepath.Join(p.deps.State.Fleet(fleetName), "instances", inst)
}

// runDir is short, and differs between state directories.
func runDir(dir string) string { return state.RunFor("i", dir) }

// instances are the ids for which there is a directory, by number.
func (p *Pool) instances(id fleet.GroupID) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.deps.State.Fleet(id.Fleet), "instances"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var nums []int
	for _, e := range entries {
		if n := instanceNumber(id, e.Name()); n > 0 {
			nums = append(nums, n)
		}
	}
	sort.Ints(nums)
	out := make([]string, len(nums))
	for i, n := range nums {
		out[i] = instanceID(id, n)
	}
	return out, nil
}

// room refuses what this machine's memory cannot hold; where it cannot be
// known (not Linux), QEMU itself will say so.
func room(need int64) error {
	ram, swap, ok, err := memory.Free()
	if err != nil || !ok {
		return err
	}
	if free := ram + swap; need > free {
		return fmt.Errorf("%w: the new instances need %d MiB of memory, this machine has %d MiB free: use a smaller fleet.size or fleet.pool.qemu.memory", fleet.ErrNoCapacity, need>>20, free>>20)
	}
	return nil
}
