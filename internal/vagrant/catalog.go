package vagrant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/internal/atomicfile"
)

const maxCatalog = 16 << 20

// gemVersion is what Vagrant takes for a version: RubyGems' own pattern.
var gemVersion = regexp.MustCompile(`^[0-9]+(\.[0-9A-Za-z]+)*(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)

// Version is an image's version as Vagrant reads it: without a v before it and
// without build metadata, which it does not know. 1.4.0-rc.1 stays: to Vagrant
// too it comes before 1.4.0.
func Version(v string) (string, error) {
	short, _, _ := strings.Cut(v, "+")
	if s, ok := strings.CutPrefix(short, "v"); ok {
		short = s
	}
	if !gemVersion.MatchString(short) {
		return "", fmt.Errorf("%q is no version to Vagrant: it takes digits first, then letters and digits between dots, then -pre.release", v)
	}
	return short, nil
}

// object is a JSON object of which not all is known: what others wrote stays.
type object map[string]json.RawMessage

func (o object) text(key string) (s string) {
	_ = json.Unmarshal(o[key], &s) // of another type: as if it were missing
	return s
}

func (o object) set(key string, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // text, numbers, and what was read from JSON
	}
	o[key] = raw
}

func (o object) objects(key string) (list []object, err error) {
	if o[key] == nil {
		return nil, nil
	}
	err = json.Unmarshal(o[key], &list)
	return list, err
}

// made is what an entry says of the box that rebake made.
type made struct {
	Image  artifact.Digest `json:"image"`
	Recipe artifact.Digest `json:"recipe"`
	File   string          `json:"file"` // relative to the catalog's directory
	Size   int64           `json:"size"`
}

// catalog is the JSON that Vagrant reads: a name, and versions with providers.
type catalog struct {
	path     string
	top      object
	versions []object
}

// readCatalog reads the catalog of an image's name, or begins one.
func readCatalog(path, name string) (*catalog, error) {
	c := &catalog{path: path, top: object{}}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.top.set("name", name)
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxCatalog+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxCatalog:
		return nil, fmt.Errorf("%s is larger than any catalog", path)
	}
	err = json.Unmarshal(raw, &c.top)
	if err == nil {
		c.versions, err = c.top.objects("versions")
	}
	if err != nil || c.top == nil {
		return nil, fmt.Errorf("%s is no catalog of Vagrant boxes, and was left as it is: %w", path, err)
	}
	if have := c.top.text("name"); have != name {
		return nil, fmt.Errorf("%s is the catalog of %.100q, not of %s", path, have, name)
	}
	return c, nil
}

// entry finds the box of a version for an architecture, or nil. One without an
// architecture is for any.
func (c *catalog) entry(version, arch string) (object, error) {
	for _, v := range c.versions {
		if v.text("version") != version {
			continue
		}
		providers, err := v.objects("providers")
		if err != nil {
			return nil, fmt.Errorf("%s: version %s: %w", c.path, version, err)
		}
		for _, p := range providers {
			if a := p.text("architecture"); p.text("name") == export.BoxProvider && (a == arch || a == "") {
				return p, nil
			}
		}
	}
	return nil, nil
}

// put adds an entry, or replaces that of its architecture.
func (c *catalog) put(version string, e object) error {
	i := slices.IndexFunc(c.versions, func(v object) bool { return v.text("version") == version })
	if i < 0 {
		v := object{}
		v.set("version", version)
		i, c.versions = len(c.versions), append(c.versions, v)
	}
	v := c.versions[i]
	providers, err := v.objects("providers")
	if err != nil {
		return fmt.Errorf("%s: version %s: %w", c.path, version, err)
	}
	providers = slices.DeleteFunc(providers, func(p object) bool {
		return p.text("name") == export.BoxProvider && p.text("architecture") == e.text("architecture")
	})
	v.set("providers", inOrder(append(providers, e)))
	slices.SortStableFunc(c.versions, func(a, b object) int { return artifact.CompareVersions(a.text("version"), b.text("version")) })
	return nil
}

// inOrder makes amd64, else the first, the default of the boxes that rebake
// made, and puts it last: a Vagrant older than 2.4 knows no architectures and
// takes the last box of a provider.
func inOrder(providers []object) []object {
	ours := func(p object) bool { return p["rebake"] != nil }
	first := slices.IndexFunc(providers, func(p object) bool { return ours(p) && p.text("architecture") == "amd64" })
	if first < 0 {
		first = slices.IndexFunc(providers, ours)
	}
	last := providers[first]
	for _, p := range providers {
		if ours(p) {
			p.set("default_architecture", false)
		}
	}
	last.set("default_architecture", true)
	return append(slices.Delete(slices.Clone(providers), first, first+1), last)
}

// write replaces the catalog, all or nothing.
func (c *catalog) write() error {
	c.top.set("versions", c.versions)
	raw, err := json.MarshalIndent(c.top, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(c.path, append(raw, '\n'), 0o644)
}
