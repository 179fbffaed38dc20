package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
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
		if err := d.fetch(ctx, file); err != nil {
			return err
		}
		defer func() { _ = os.Remove(file) }() // the raw disk is what is kept
	}
	event.Waiting(ctx, "the checksum of %s", filepath.Base(d.url.Path))
	if err := d.check(ctx, file); err != nil {
		return err
	}
	isQcow2, err := safeQcow2(file)
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

func (d *download) check(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h := sha256.New()
	progress := event.Progressing(ctx)
	var n int64
	buf := make([]byte, 1<<20)
	for {
		k, err := f.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		progress(n, st.Size())
		if errors.Is(err, io.EOF) {
			break
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.sum.Hex() {
		err := fmt.Errorf("%s has checksum sha256:%s, the template says %s: it was changed, or the template is of another version", d.url.Redacted(), got, d.sum)
		if d.url.Scheme != "file" {
			err = errors.Join(err, os.Remove(file))
		}
		return err
	}
	return nil
}

const fetchTries = 5

// fetch downloads into file, going on where an earlier try or run stopped.
func (d *download) fetch(ctx context.Context, file string) error {
	var err error
	for try := range fetchTries {
		if try > 0 {
			event.Warnf(ctx, "download: %v; trying again", err)
			select {
			case <-time.After(time.Duration(1<<try) * 250 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		var final bool
		if final, err = d.fetchOnce(ctx, file); err == nil || final || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("download %s: %w (run it again: what is there is kept)", d.url.Redacted(), err)
	}
	return nil
}

// fetchOnce makes one request for what is missing. final errors are not worth another.
func (d *download) fetchOnce(ctx context.Context, file string) (final bool, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return true, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return true, err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 15 * time.Second}}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK:
		have = 0
		if err := errors.Join(f.Truncate(0), seekStart(f)); err != nil {
			return true, err
		}
	case res.StatusCode == http.StatusPartialContent:
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return true, nil // it is whole; the checksum tells
	default:
		return res.StatusCode < 500 && res.StatusCode != http.StatusTooManyRequests, fmt.Errorf("the server says %s", res.Status)
	}
	total := have + max(res.ContentLength, 0)
	progress := event.Progressing(ctx)
	buf := make([]byte, 256<<10)
	for {
		n, rerr := res.Body.Read(buf)
		if _, err := f.Write(buf[:n]); err != nil {
			return true, err
		}
		have += int64(n)
		progress(have, total)
		if errors.Is(rerr, io.EOF) {
			return false, f.Sync()
		}
		if rerr != nil {
			return false, rerr
		}
	}
}

func seekStart(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// maxL1 bounds what QEMU would hold in memory: 32 MiB, its own limit.
const maxL1 = 32 << 20 / 8

// safeQcow2 tells whether the file is a qcow2, and refuses one that names other
// files: a backing file or a data file would make QEMU read this computer's.
func safeQcow2(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var h [80]byte
	n, err := io.ReadFull(f, h[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("read the disk's header: %w", err)
	}
	if n < 4 || string(h[:4]) != "QFI\xfb" {
		return false, nil
	}
	be := binary.BigEndian
	switch version := be.Uint32(h[4:]); {
	case version != 2 && version != 3:
		return false, fmt.Errorf("a qcow2 of unknown version %d", version)
	case be.Uint64(h[8:]) != 0:
		return false, errors.New("the qcow2 names a backing file, which could be any file of this computer: flatten it first (qemu-img convert)")
	case version == 3 && be.Uint64(h[72:])&4 != 0:
		return false, errors.New("the qcow2 names an external data file, which could be any file of this computer: flatten it first (qemu-img convert)")
	case be.Uint32(h[32:]) != 0:
		return false, errors.New("the qcow2 is encrypted: decrypt it first (qemu-img convert)")
	case be.Uint32(h[60:]) != 0:
		return false, errors.New("the qcow2 holds snapshots, which an image has no use for: flatten it first (qemu-img convert)")
	case be.Uint32(h[36:]) > maxL1:
		return false, fmt.Errorf("the qcow2 claims a first table of %d entries; at most %d are read", be.Uint32(h[36:]), maxL1)
	case be.Uint64(h[24:]) > 16<<40:
		return false, errors.New("the qcow2 claims to be larger than 16 TiB")
	}
	return true, nil
}
