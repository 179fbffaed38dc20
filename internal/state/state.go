// Package state names every place under rebake's own directory. docs/state-dir.md
// describes each; nothing else in the tree joins these paths.
package state

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Dir is $REBAKE_HOME.
type Dir string

// Open returns the state directory: $REBAKE_HOME, or $XDG_DATA_HOME/rebake, or
// ~/.local/share/rebake; made with mode 0700.
func Open() (Dir, error) {
	d := os.Getenv("REBAKE_HOME")
	if d == "" {
		base := os.Getenv("XDG_DATA_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find a home for the state directory: %w (set REBAKE_HOME)", err)
			}
			base = filepath.Join(home, ".local", "share")
		}
		d = filepath.Join(base, "rebake")
	}
	d, err := filepath.Abs(d)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(d, 0o700); err != nil {
		return "", fmt.Errorf("make the state directory: %w", err)
	}
	return Dir(d), nil
}

// Store is the OCI layout with every image.
func (d Dir) Store() string { return filepath.Join(string(d), "store") }

// Bases holds base disks by key.
func (d Dir) Bases() string { return filepath.Join(string(d), "cache", "bases") }

// Downloads holds finished and partial downloads by checksum.
func (d Dir) Downloads() string { return filepath.Join(string(d), "cache", "downloads") }

// Disks holds images materialised as sparse raw files, by content digest.
func (d Dir) Disks() string { return filepath.Join(string(d), "cache", "disks") }

// Checkpoints are saved states of build machines, by key.
func (d Dir) Checkpoints() string { return filepath.Join(string(d), "cache", "checkpoints") }

// Trails say what the last build of each name passed.
func (d Dir) Trails() string { return filepath.Join(string(d), "cache", "trails") }

// Builds holds one directory per build or test machine.
func (d Dir) Builds() string { return filepath.Join(string(d), "builds") }

// Build is the directory of one build.
func (d Dir) Build(id string) string { return filepath.Join(d.Builds(), id) }

// Logs holds one log file per build, kept after the build is gone.
func (d Dir) Logs() string { return filepath.Join(string(d), "logs") }

// Fleets holds one directory per fleet.
func (d Dir) Fleets() string { return filepath.Join(string(d), "fleets") }

// Fleet is the directory of one fleet.
func (d Dir) Fleet(name string) string { return filepath.Join(d.Fleets(), name) }

// Calls is the journal of what this machine's work on a fleet changed in a cloud.
func (d Dir) Calls(fleet string) string { return filepath.Join(d.Fleet(fleet), "calls.jsonl") }

// EndedCalls is where that goes when the fleet is destroyed.
func (d Dir) EndedCalls(fleet string, at time.Time) string {
	return filepath.Join(d.Logs(), "fleet-"+fleet+"-"+at.UTC().Format("20060102T150405.000Z")+"-calls.jsonl")
}

// SharedList is the file that Shared reads.
func (d Dir) SharedList() string { return filepath.Join(string(d), "shared-states") }

// Shared are the addresses of all shared states that were ever used from here: as
// long as fleets there may need images, none of those is removed.
func (d Dir) Shared() ([]string, error) {
	b, err := os.ReadFile(d.SharedList())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the shared states: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// AddShared adds an address to Shared.
func (d Dir) AddShared(address string) error {
	all, err := d.Shared()
	if err != nil || slices.Contains(all, address) {
		return err
	}
	f, err := os.OpenFile(d.SharedList(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("remember the shared state %s: %w", address, err)
	}
	_, err = f.WriteString("\n" + address + "\n") // also after a line that was cut off
	return errors.Join(err, f.Sync(), f.Close())
}

// Up is the lock of whoever brings a fleet up only if something changed.
func (d Dir) Up(fleet string) string { return filepath.Join(string(d), "locks", "up-"+fleet+".lock") }

// ImagesLock is held shared by who begins to use an image, and alone by who removes images.
func (d Dir) ImagesLock() string { return filepath.Join(string(d), "images.lock") }

// Uploads holds what is known of uploads to a cloud that were cut off.
func (d Dir) Uploads() string { return filepath.Join(string(d), "cache", "uploads") }

// Keys holds signing keys: NAME.key and NAME.pub.
func (d Dir) Keys() string { return filepath.Join(string(d), "keys") }

// Run is a short directory for sockets (a socket path has at most 108 bytes),
// private to the user: /tmp/rebake-UID/NAME.
func Run(name string) string {
	return filepath.Join(RunRoot(), name)
}

// RunRoot is the parent of every Run directory.
func RunRoot() string {
	return filepath.Join("/tmp", "rebake-"+strconv.Itoa(os.Getuid()))
}

// RunFor is the run directory of what lives in dir: short, and another one for
// every other dir, so that two state directories never meet.
func RunFor(kind, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return Run(kind + "-" + hex.EncodeToString(sum[:8]))
}
