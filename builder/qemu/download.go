package qemu

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/importer"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/fetch"
	"github.com/rebake/rebake/internal/qemu"
)

// download is a base that is somebody's disk file, known by its checksum.
type download struct {
	url  *url.URL
	sum  artifact.Digest
	cfg  Config
	deps Deps
}

func newDownload(cfg Config, deps Deps) (source, error) {
	d := &download{cfg: cfg, deps: deps, sum: artifact.Digest(cfg.From.Checksum)}
	if cfg.From.Checksum == "" {
		return nil, errors.New("from.checksum is required with from.url: sha256: and the 64 hex digits that the publisher gives")
	}
	if err := d.sum.Validate(); err != nil {
		return nil, fmt.Errorf("from.checksum: %w", err)
	}
	var err error
	if d.url, err = url.Parse(cfg.From.URL); err != nil {
		return nil, fmt.Errorf("from.url: %w", err)
	}
	switch d.url.Scheme {
	case "file":
		if d.url.Path == "" || d.url.Host != "" {
			return nil, errors.New("from.url: a file: URL is file:/absolute/path")
		}
		if _, err := os.Stat(d.url.Path); err != nil {
			return nil, fmt.Errorf("from.url: %w", err)
		}
	case "http", "https":
	default:
		return nil, fmt.Errorf("from.url: %q: use file:, http: or https:", cfg.From.URL)
	}
	return d, nil
}

func (d *download) key(_ context.Context, in *artifact.Inputs) error {
	in.Add("from.checksum", string(d.sum))
	in.Add("from.seed", d.cfg.From.Seed)
	return nil
}

func (d *download) prepare(ctx context.Context) (base, error) {
	path := filepath.Join(d.deps.State.Bases(), d.sum.Hex()+".raw")
	err := once(ctx, path, func(tmp string) error { return d.make(ctx, tmp) })
	if err != nil {
		return base{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return base{}, err
	}
	seed := d.cfg.From.Seed
	if seed == "" {
		seed = "credentials"
		if _, err := os.Stat(path + ".qcow2"); err == nil {
			seed = "nocloud" // a distribution's cloud image
		}
	}
	return base{path: path, Base: builder.Base{Ref: d.url.Redacted(), Digest: d.sum, Arch: orElse(d.cfg.Arch, runtime.GOARCH), Firmware: d.cfg.Firmware,
		Seed: seed, User: orElse(d.cfg.SSH.User, "root"), DiskSize: st.Size()}}, nil
}

// make gets the file, checks it, and makes a raw disk of it.
func (d *download) make(ctx context.Context, tmp string) error {
	file := d.url.Path
	if d.url.Scheme != "file" {
		if err := os.MkdirAll(d.deps.State.Downloads(), 0o700); err != nil {
			return err
		}
		file = filepath.Join(d.deps.State.Downloads(), d.sum.Hex()+".part")
		if err := fetch.File(ctx, d.url, file); err != nil {
			return err
		}
		defer func() { _ = os.Remove(file) }() // the raw disk is what is kept
	}
	got, err := fetch.Sum(ctx, file)
	if err != nil {
		return err
	}
	if got != d.sum {
		err := fmt.Errorf("%s has checksum %s, the template says %s: it was changed, or the template is of another version", d.url.Redacted(), got, d.sum)
		if d.url.Scheme != "file" {
			err = errors.Join(err, os.Remove(file))
		}
		return err
	}
	isQcow2, err := isQcow2(file)
	if err != nil {
		return err
	}
	format := "raw"
	if isQcow2 {
		format = "qcow2"
		if err := os.WriteFile(strings.TrimSuffix(tmp, ".tmp")+".qcow2", nil, 0o600); err != nil {
			return err
		}
	}
	return qemu.Img(ctx, "convert", "-f", format, "-O", "raw", file, tmp)
}

// isQcow2 tells whether the file is a qcow2, and refuses one that names other files.
func isQcow2(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return importer.CheckQcow2(f)
}
