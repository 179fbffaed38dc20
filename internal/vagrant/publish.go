// Package vagrant keeps a directory of Vagrant boxes with a catalog of their
// versions, from which `vagrant box add` takes one by name, constraint and
// checksum. A version that is there never becomes another.
package vagrant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/event"
)

// Options say how boxes are made and where clients will find them.
type Options struct {
	Box     export.BoxOptions
	URLBase string // of the directory, as clients see it; "" is its file: URL, and keeps the URLs of what is there
}

// Published is one image's box in the catalog.
type Published struct {
	Name     string          `json:"name"`
	Version  string          `json:"version"` // as Vagrant reads it
	Image    artifact.Digest `json:"image"`
	Catalog  string          `json:"catalog"` // path
	File     string          `json:"file"`    // path
	URL      string          `json:"url"`
	Checksum string          `json:"checksum"` // sha256, hex
	There    bool            `json:"there"`    // it was published before
}

// Names in the directory that are not boxes.
const (
	lockName = ".rebake-publish.lock"
	workName = ".rebake-publish" // what is in the making
)

// Publish puts a box of each image into dir and its catalog, dir/NAME.json. One
// after the other, each all or nothing: after a kill the catalog names whole
// boxes. Another publisher in dir is waited for. artifact.ErrExists if a version
// is there with other content.
func Publish(ctx context.Context, s artifact.Store, images []artifact.Image, dir string, o Options) (out []Published, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := CheckURLBase(o.URLBase); err != nil {
		return nil, err
	}
	for _, img := range images { // before anything is written
		if _, err := Version(img.Version); err != nil {
			return nil, fmt.Errorf("%s: %w", img.Name, err)
		}
		if _, err := export.BoxRecipe(img, o.Box); err != nil {
			return nil, fmt.Errorf("%s:%s: %w", img.Name, img.Version, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, img := range images {
		p, err := event.Do(ctx, "publish "+img.Name+":"+img.Version, func(ctx context.Context) (Published, error) {
			return publish(ctx, s, img, dir, o)
		})
		if err != nil {
			return out, fmt.Errorf("%s:%s: %w", img.Name, img.Version, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// CheckURLBase says what is wrong with a URL base, or nil.
func CheckURLBase(base string) error {
	u, err := url.Parse(base)
	switch {
	case base == "":
		return nil
	case err != nil:
		return err
	case u.Scheme != "file" && (u.Scheme != "http" && u.Scheme != "https" || u.Host == ""), u.RawQuery != "", u.Fragment != "":
		return fmt.Errorf("%q is no place for boxes: an http, https or file URL without a query", base)
	}
	return nil
}

// lock makes this process the only one at work in dir, and removes what a killed
// one left there.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	l := flock.New(filepath.Join(dir, lockName), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err == nil && !ok {
		event.Waiting(ctx, "another rebake that publishes in %s", dir)
		_, err = l.TryLockContext(ctx, 50*time.Millisecond)
	}
	work := filepath.Join(dir, workName)
	for try := 0; err == nil; try++ { // a killed publisher's qemu-img may still write there
		if err := os.RemoveAll(work); err == nil || try == 5 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err == nil {
		err = os.Mkdir(work, 0o700)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), l.Close())
	}
	return func() error { return errors.Join(os.RemoveAll(work), l.Close()) }, nil
}

func publish(ctx context.Context, s artifact.Store, img artifact.Image, dir string, o Options) (p Published, err error) {
	version, err := Version(img.Version)
	if err != nil {
		return p, err
	}
	recipe, err := export.BoxRecipe(img, o.Box)
	if err != nil {
		return p, err
	}
	file := path.Join(img.Name, version, fmt.Sprintf("%s-%s-%s-%s.box", path.Base(img.Name), version, export.BoxProvider, img.Arch))
	p = Published{Name: img.Name, Version: version, Image: img.Digest, Catalog: filepath.Join(dir, filepath.FromSlash(img.Name)+".json"),
		File: filepath.Join(dir, filepath.FromSlash(file)), URL: o.url(dir, file)}
	c, err := readCatalog(p.Catalog, img.Name)
	if err != nil {
		return p, err
	}
	e, err := c.entry(version, img.Arch)
	if err != nil {
		return p, err
	}
	if e != nil {
		if there, err := same(e, img, recipe, o.URLBase == "", &p); err != nil || there {
			return p, errors.Join(err, c.moved(version, e, &p))
		}
	}
	work := filepath.Join(dir, workName, "out.box")
	box, err := export.Vagrant(ctx, s, img, o.Box, work, event.Progressing(ctx))
	if err != nil {
		return p, err
	}
	if p.Checksum = box.Digest.Hex(); e != nil && p.Checksum != e.text("checksum") {
		return p, fmt.Errorf("version %s: %w in the catalog with checksum %.64s; the same image came to %s with this qemu-img", version, artifact.ErrExists, e.text("checksum"), p.Checksum)
	}
	// The box first: what the catalog names is there.
	if err := place(work, p.File, dir); err != nil {
		return p, err
	}
	e = object{}
	for k, v := range map[string]any{"name": export.BoxProvider, "architecture": img.Arch, "url": p.URL, "checksum_type": "sha256", "checksum": p.Checksum,
		"rebake": made{img.Digest, recipe, file, box.Size}} {
		e.set(k, v)
	}
	if err := c.put(version, e); err != nil {
		return p, err
	}
	return p, c.write()
}

// same tells whether the catalog's box is the one that was asked for, and its
// file there; an error if it can never be.
func same(e object, img artifact.Image, recipe artifact.Digest, keepURL bool, p *Published) (bool, error) {
	var m made
	if e["rebake"] == nil || json.Unmarshal(e["rebake"], &m) != nil {
		return false, fmt.Errorf("version %s: %w in the catalog, and rebake did not put it there", p.Version, artifact.ErrExists)
	}
	switch {
	case m.Image != img.Digest:
		return false, fmt.Errorf("version %s: %w in the catalog with image %.71s", p.Version, artifact.ErrExists, m.Image)
	case m.Recipe != recipe:
		return false, fmt.Errorf("version %s: %w in the catalog with another account or key", p.Version, artifact.ErrExists)
	}
	if p.Checksum = e.text("checksum"); keepURL {
		p.URL = e.text("url")
	}
	st, err := os.Stat(p.File)
	p.There = err == nil && st.Size() == m.Size
	return p.There, nil
}

// moved gives a box that is there the URL that was asked for.
func (c *catalog) moved(version string, e object, p *Published) error {
	if !p.There || p.URL == e.text("url") {
		return nil
	}
	e.set("url", p.URL)
	if err := c.put(version, e); err != nil {
		return err
	}
	return c.write()
}

// url is where clients find a file of dir.
func (o Options) url(dir, file string) string {
	base := o.URLBase
	if base == "" {
		base = (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String()
	}
	return strings.TrimRight(base, "/") + "/" + (&url.URL{Path: file}).EscapedPath()
}

// place gives a file its name below dir for good, with the directories on the way.
func place(from, to, dir string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Rename(from, to); err != nil {
		return err
	}
	for d := filepath.Dir(to); d != dir; d = filepath.Dir(d) {
		if err := atomicfile.Sync(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}
