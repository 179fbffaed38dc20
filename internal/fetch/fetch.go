// Package fetch downloads files that are known by their checksums.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
)

const tries = 5

// File downloads from an http or https URL into file, going on where an earlier
// try or run stopped. Who may download to one file at once holds a lock.
func File(ctx context.Context, from *url.URL, file string) error {
	var err error
	for try := range tries {
		if try > 0 {
			event.Warnf(ctx, "download: %v; trying again", err)
			select {
			case <-time.After(time.Duration(1<<try) * 250 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		var final bool
		if final, err = once(ctx, from, file); err == nil || final || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("download %s: %w (run it again: what is there is kept)", from.Redacted(), err)
	}
	return nil
}

// once makes one request for what is missing. final errors are not worth another.
func once(ctx context.Context, from *url.URL, file string) (final bool, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return true, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
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

// Sum is the checksum of a file, read to its end.
func Sum(ctx context.Context, file string) (artifact.Digest, error) {
	event.Waiting(ctx, "the checksum of %s", filepath.Base(file))
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
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
			return artifact.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return "", err
		}
	}
}
