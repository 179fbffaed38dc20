package ami

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rebake/rebake/artifact"
)

// progress is which blocks of a pending snapshot are there: a file of the
// snapshot's id in a line, then records of a block's number and checksum. What is
// torn or lost only costs blocks being sent again, so it is not synced.
type progress struct {
	mu       sync.Mutex
	path     string // "": nothing is kept
	all      func() ([]string, error)
	file     *os.File // nil before begin
	snapshot string   // "": none was begun
	done     map[int32][sha256.Size]byte
}

const (
	progressRecord = 4 + sha256.Size
	progressSuffix = ".blocks"
)

// progressFiles are those of all tries to send this disk to this region, on
// whatever parent.
func progressFiles(work, region string, img artifact.Image) ([]string, error) {
	return filepath.Glob(filepath.Join(work, region+"-"+img.Content.Hex()[:16]+"-*"+progressSuffix))
}

// halfSent tells whether an upload of this disk was cut off here.
func halfSent(work, region string, img artifact.Image) bool {
	if work == "" {
		return false
	}
	found, err := progressFiles(work, region, img)
	return err == nil && len(found) > 0
}

// removeOld removes what is kept of snapshots that EBS has dropped long ago.
func removeOld(work string) error {
	found, err := filepath.Glob(filepath.Join(work, "*"+progressSuffix))
	if err != nil {
		return err
	}
	for _, f := range found {
		if st, err := os.Stat(f); err == nil && time.Since(st.ModTime()) > 24*time.Hour {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func openProgress(work, region string, img artifact.Image, intent string) (*progress, error) {
	p := &progress{done: map[int32][sha256.Size]byte{}}
	if work == "" {
		return p, nil
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	if err := removeOld(work); err != nil {
		return nil, err
	}
	p.path = filepath.Join(work, region+"-"+img.Content.Hex()[:16]+"-"+intent+progressSuffix)
	p.all = func() ([]string, error) { return progressFiles(work, region, img) }
	raw, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	id, rest, whole := bytes.Cut(raw, []byte("\n"))
	if !whole || len(id) == 0 {
		return p, os.Remove(p.path) // the tags find the snapshot if there is one
	}
	rest = rest[:len(rest)/progressRecord*progressRecord]
	for r := rest; len(r) > 0; r = r[progressRecord:] {
		p.done[int32(binary.LittleEndian.Uint32(r))] = [sha256.Size]byte(r[4:progressRecord])
	}
	p.snapshot = string(id)
	if p.file, err = os.OpenFile(p.path, os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	size := int64(len(id) + 1 + len(rest))
	if err = p.file.Truncate(size); err == nil {
		_, err = p.file.Seek(size, 0)
	}
	if err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// begin forgets what there was and keeps what is sent to this snapshot.
func (p *progress) begin(snapshot string) error {
	p.done, p.snapshot = map[int32][sha256.Size]byte{}, snapshot
	if p.path == "" {
		return nil
	}
	if p.file != nil {
		if err := p.file.Close(); err != nil {
			return err
		}
	}
	var err error
	if p.file, err = os.OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	_, err = p.file.WriteString(snapshot + "\n")
	return err
}

func (p *progress) has(block int32, sum [sha256.Size]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	have, ok := p.done[block]
	return ok && have == sum
}

func (p *progress) add(block int32, sum [sha256.Size]byte) error {
	if p.file == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.file.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(block)), sum[:]...))
	return err
}

// close keeps the file for the next try, unless there is nothing to go on with:
// then what other tries kept of this disk goes too.
func (p *progress) close(over bool) error {
	if p.file == nil {
		return nil
	}
	err := p.file.Close()
	if !over {
		return err
	}
	found, gerr := p.all()
	err = errors.Join(err, gerr)
	for _, f := range found {
		if rerr := os.Remove(f); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
