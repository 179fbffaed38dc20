package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rebake/rebake/internal/atomicfile"
)

// Files of a fleet's directory. Pools and routers keep theirs beside them.
const (
	configName  = "fleet.json"
	journalName = "journal.jsonl"
	lockName    = "lock"
	ownerName   = "lock.owner"
)

// ErrNoFleet is a fleet that was never deployed, or was destroyed.
var ErrNoFleet = errors.New("no such fleet")

// Config is what later commands must know of a fleet without its template:
// fleet.json. Pool and Router are for their backends alone to read.
type Config struct {
	Name       string          `json:"name"`
	Template   string          `json:"template,omitempty"` // where it came from
	Size       int             `json:"size"`
	PoolKind   string          `json:"pool_kind"`
	Pool       json.RawMessage `json:"pool,omitempty"`
	RouterKind string          `json:"router_kind"`
	Router     json.RawMessage `json:"router,omitempty"`
	Health     HealthCheck     `json:"health"`
	Commands   []string        `json:"commands,omitempty"` // the gate
	Policy     Policy          `json:"policy"`
	Hooks      []Hook          `json:"hooks,omitempty"`
	Freeze     []Window        `json:"freeze,omitempty"`
	Require    json.RawMessage `json:"require,omitempty"` // of an image; for the pipeline alone to read
	Store      string          `json:"store,omitempty"`   // address of the store that its images are in; "": the local one
	Tests      json.RawMessage `json:"tests,omitempty"`   // of the test gate; for the pipeline alone to read

	KeepPrevious int `json:"keep_previous,omitempty"` // images before the current one that are kept for a rollback; 0: one
}

// Save writes fleet.json in dir, all or nothing.
func (c Config) Save(dir string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write the fleet's record: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the fleet's record: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, configName), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the fleet's record: %w", err)
	}
	return nil
}

// LoadConfig reads fleet.json from dir. ErrNoFleet if there is none.
func LoadConfig(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(filepath.Join(dir, configName))
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%w: %s", ErrNoFleet, filepath.Base(dir))
	}
	if err != nil {
		return c, fmt.Errorf("read the fleet's record: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read the fleet's record %s: %w", filepath.Join(dir, configName), err)
	}
	return c, nil
}

// Previous is how many images before the current one are kept for a rollback.
func (c Config) Previous() int { return max(1, c.KeepPrevious) }

// Orphans lists the directories under root that have a journal and no fleet.json:
// what is left of a fleet whose record was lost, or whose end was cut off.
func Orphans(root string) ([]string, error) {
	dirs, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the fleets: %w", err)
	}
	var out []string
	for _, d := range dirs {
		j, err := os.Lstat(filepath.Join(root, d.Name(), journalName))
		if err == nil && j.Size() > 0 { // an empty one is of a fleet that is being made
			_, err = os.Lstat(filepath.Join(root, d.Name(), configName))
			if errors.Is(err, fs.ErrNotExist) {
				out = append(out, filepath.Join(root, d.Name()))
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("list the fleets: %w", err)
		}
	}
	return out, nil
}

// Names lists the fleets under root: the directories with a fleet.json, readable
// or not.
func Names(root string) ([]string, error) {
	dirs, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the fleets: %w", err)
	}
	var out []string
	for _, d := range dirs {
		if _, err := os.Lstat(filepath.Join(root, d.Name(), configName)); err == nil {
			out = append(out, d.Name())
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("list the fleets: %w", err)
		}
	}
	return out, nil
}
