// Package inventory says what an image holds: packages, files, users, enabled
// units, listening ports, the settings of sshd. Take asks a guest, Encode and Decode
// keep the answer beside the image, Compare tells two images apart without a
// disk, SPDX and CycloneDX make a bill of materials of it.
//
// What a guest says and what a store returns is not trusted: its size is bounded,
// names may hold anything but NUL. docs/adr/0005-inventory.md says what is looked at, and why.
package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Kind and Media are how an inventory is attached to an image.
const (
	Kind  = "application/vnd.rebake.inventory.v1+json"
	Media = "application/vnd.rebake.inventory.v1+json+zstd"
)

// Bounds of what is read: bytes of JSON, and entries of any one list.
const (
	maxJSON    = 64 << 20
	maxEntries = 500_000
)

// Inventory is what one image holds. Lists are sorted.
type Inventory struct {
	Format   int                 `json:"format"` // 1
	OS       map[string]string   `json:"os"`     // of os-release: ID, VERSION_ID, …
	Machine  string              `json:"machine"`
	Kernel   string              `json:"kernel"`  // that ran when it was taken
	Kernels  []string            `json:"kernels"` // those that have modules
	Cmdline  string              `json:"cmdline"`
	Packages []Package           `json:"packages"`
	Files    []File              `json:"files"` // none where only packages were asked for
	Units    []string            `json:"units"` // enabled: target.wants/name
	Users    []User              `json:"users"`
	Groups   []Group             `json:"groups"`
	Ports    []string            `json:"ports"`             // listening: tcp 0.0.0.0:22
	SSHD     map[string][]string `json:"sshd"`              // sshd -T: nil where there is none
	Cron     []string            `json:"cron"`              // files of cron, and enabled timers
	Unknown  map[string]string   `json:"unknown,omitempty"` // what could not be told, and why: files, digests, owners, packages, ports, sshd, units, cron
}

// Package is one installed package.
type Package struct {
	Manager string `json:"manager"` // dpkg, rpm or apk
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	Source  string `json:"source,omitempty"` // source package
}

// File is one name in the file system.
type File struct {
	Path    string `json:"path"`
	Type    string `json:"type"` // f, d, l, b, c, p, s: as find says it
	Mode    uint32 `json:"mode"` // the lower 12 bits
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Size    int64  `json:"size,omitempty"` // bytes; of regular files
	Link    string `json:"link,omitempty"`
	Digest  string `json:"digest,omitempty"` // sha256:… or md5:…; none: nobody looked
	From    string `json:"from,omitempty"`   // "dpkg": the digest is its database's, the file was not read
	Package string `json:"package,omitempty"`
}

// User is an account. No hash of a password is ever read.
type User struct {
	Name  string `json:"name"`
	UID   string `json:"uid"`
	GID   string `json:"gid"`
	Home  string `json:"home"`
	Shell string `json:"shell"`
}

// Group is a group with its members.
type Group struct {
	Name    string `json:"name"`
	GID     string `json:"gid"`
	Members string `json:"members,omitempty"` // separated by commas
}

// String says how much there is.
func (inv *Inventory) String() string {
	s := fmt.Sprintf("%d packages", len(inv.Packages))
	if len(inv.Files) > 0 {
		s += fmt.Sprintf(", %d files", len(inv.Files))
	}
	return s + fmt.Sprintf(", %d users, %d units, %d ports", len(inv.Users), len(inv.Units), len(inv.Ports))
}

// Encode is the inventory as it is attached; the same one gives the same bytes.
func Encode(inv *Inventory) ([]byte, error) {
	b, err := json.Marshal(inv)
	if err != nil {
		return nil, err
	}
	if len(b) > maxJSON {
		return nil, fmt.Errorf("the inventory has %d MiB, more than %d: take seal.inventory: packages", len(b)>>20, maxJSON>>20)
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(b, nil), w.Close()
}

// Decode reads what Encode made, or refuses it with bounded memory.
func Decode(b []byte) (*Inventory, error) {
	r, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxJSON), zstd.WithDecoderMaxWindow(16<<20))
	if err != nil {
		return nil, fmt.Errorf("read the inventory: %w", err)
	}
	defer r.Close()
	plain, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("read the inventory: %w", err)
	}
	if len(plain) > maxJSON {
		return nil, fmt.Errorf("read the inventory: it unpacks to more than %d MiB", maxJSON>>20)
	}
	// Small objects decode to much more than their bytes: they are counted first.
	if n := bytes.Count(plain, []byte(",")); n > 16*maxEntries {
		return nil, errors.New("read the inventory: it has too many entries")
	}
	inv := &Inventory{}
	d := json.NewDecoder(bytes.NewReader(plain))
	if err := d.Decode(inv); err != nil {
		return nil, fmt.Errorf("read the inventory: %w", err)
	}
	if d.More() {
		return nil, errors.New("read the inventory: something follows it")
	}
	return inv, inv.check()
}

// check refuses what Take would not have made.
func (inv *Inventory) check() error {
	if inv.Format != 1 {
		return fmt.Errorf("read the inventory: format %d is not known: a newer rebake wrote it", inv.Format)
	}
	if max(len(inv.Files), len(inv.Packages), len(inv.Units), len(inv.Users), len(inv.Groups), len(inv.Ports)) > maxEntries {
		return errors.New("read the inventory: it has too many entries")
	}
	for _, p := range inv.Packages {
		if p.Name == "" || p.Version == "" || p.Manager != "dpkg" && p.Manager != "rpm" && p.Manager != "apk" {
			return fmt.Errorf("read the inventory: %q is no package", p.Manager+" "+p.Name)
		}
	}
	for _, f := range inv.Files {
		if !strings.HasPrefix(f.Path, "/") || len(f.Type) != 1 || f.Mode > 0o7777 || f.Size < 0 {
			return fmt.Errorf("read the inventory: %q is no file", f.Path)
		}
	}
	return nil
}
