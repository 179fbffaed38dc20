// Package awscalls writes every call to AWS that changes something down: a line
// before it is made, which is on the disk by then, and another once its outcome is
// known. It is a middleware of the SDK's clients, so that no call can forget it.
// Names, ids and client tokens are written, never user data nor a tag's value.
package awscalls

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/internal/atomicfile"
)

// Name is what a journal's file is called.
const Name = "calls.jsonl"

// Entry is a line: an intent (Call), or the outcome of one (Of).
type Entry struct {
	Time   time.Time         `json:"time"`
	N      int               `json:"n,omitempty"`
	Call   string            `json:"call,omitempty"` // EC2.RunInstances
	Region string            `json:"region,omitempty"`
	With   map[string]string `json:"with,omitempty"` // token, names and sizes that it was given
	IDs    []string          `json:"ids,omitempty"`  // that it is about
	Of     int               `json:"of,omitempty"`
	Made   []string          `json:"made,omitempty"`
	Code   string            `json:"code,omitempty"`  // that AWS refused with
	Error  string            `json:"error,omitempty"` // nobody knows whether it was done
}

// Journal is a file of calls. Two processes may write to it (a build, and a gc that
// was told that it is dead), so it is no chain: a line is one write.
type Journal struct {
	path string
	most int64 // bytes, beyond which the file becomes the one before; 0: it may grow

	mu     sync.Mutex
	n      int             // of the last intent
	size   int64           // of the file after the last line that was written here
	blocks map[string]bool // snapshots of which a block was written down
}

// Open opens a journal, and makes it and its directory. It has no bound, and one
// that was removed is not made again: no call is made then.
func Open(path string) (*Journal, error) {
	j := &Journal{path: path}
	if err := j.make(); err != nil {
		return nil, err
	}
	return j, j.count()
}

// Most is how large a journal of Bounded becomes before it is begun anew. The one
// before is kept, as calls.1.jsonl.
const Most = 4 << 20

var (
	bounded   = map[string]*Journal{}
	boundedMu sync.Mutex
)

// Bounded is the journal at a path, the same one for all of this process. Nothing is
// made before the first call that changes something.
func Bounded(path string) *Journal {
	boundedMu.Lock()
	defer boundedMu.Unlock()
	if bounded[path] == nil {
		bounded[path] = &Journal{path: path, most: Most}
	}
	return bounded[path]
}

// make makes the file, if it is not there, with its directory.
func (j *Journal) make() error {
	dir := filepath.Dir(j.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(j.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), atomicfile.Sync(dir), atomicfile.Sync(filepath.Dir(dir)))
}

// before is the file that a bounded journal had before.
func before(path string) string { return strings.TrimSuffix(path, ".jsonl") + ".1.jsonl" }

// ready makes the file that a bounded journal's next intent goes to.
func (j *Journal) ready() error {
	if j.most == 0 {
		return nil
	}
	st, err := os.Lstat(j.path)
	if err == nil && st.Size() >= j.most {
		if err := j.count(); err != nil { // the numbers go on
			return err
		}
		err = os.Rename(j.path, before(j.path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.make()
}

// tail is more than what lines may have that were begun and not ended together.
const tail = 256 << 10

// count goes on with the numbers where somebody else wrote.
func (j *Journal) count() error {
	st, err := os.Stat(j.path)
	if err != nil || st.Size() == j.size && j.size > 0 {
		return err
	}
	for _, path := range []string{j.path, before(j.path)} {
		all, err := read(path, tail)
		if err != nil {
			return err
		}
		for _, e := range all {
			j.n = max(j.n, e.N, e.Of)
		}
		if len(all) > 0 {
			return nil
		}
	}
	return nil
}

// Read reads all whole lines, of the file before too. One that is torn is of a call
// that was not made.
func Read(path string) ([]Entry, error) {
	old, err := read(before(path), 0)
	if err != nil {
		return nil, err
	}
	all, err := read(path, 0)
	return append(old, all...), err
}

// read reads a file's lines, with last those in so many bytes at its end.
func read(path string, last int64) ([]Entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && last > 0 && st.Size() > last {
		if _, err := f.Seek(-last, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	var out []Entry
	in := bufio.NewReader(bytes.NewReader(raw))
	for {
		line, err := in.ReadBytes('\n')
		var e Entry
		if json.Unmarshal(line, &e) == nil && (e.Call != "" || e.Of != 0) {
			out = append(out, e)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
	}
}

// append writes a line and returns once it is on the disk.
func (j *Journal) append(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0o600) // not made again: who removed it may have ended what it is of
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 { // what a kill tore has no end
		line = append([]byte("\n"), line...)
	}
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		j.size = st.Size() + int64(len(line)) + 1
	}
	return err
}

// intend writes an intent and gives it a number. Of the blocks that are sent to a
// snapshot the first alone is written: there are thousands, and none makes anything.
// The others have no number, and wait until that one is on the disk.
func (j *Journal) intend(e Entry) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	block := ""
	if e.Call == "EBS.PutSnapshotBlock" && len(e.IDs) > 0 {
		if block = e.IDs[0]; j.blocks[block] {
			return 0, nil
		}
	}
	err := j.ready()
	if err == nil {
		err = j.count()
	}
	if err == nil {
		j.n++
		e.N, e.Time = j.n, time.Now().UTC()
		err = j.append(e)
	}
	if err != nil {
		return 0, fmt.Errorf("%s is not made, because it cannot be written down: %w; give %s room and let it be written to", e.Call, err, filepath.Dir(j.path))
	}
	if block != "" {
		if j.blocks == nil {
			j.blocks = map[string]bool{}
		}
		j.blocks[block] = true
	}
	return e.N, nil
}

// end writes what became of an intent.
func (j *Journal) end(e Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Time = time.Now().UTC()
	return j.append(e)
}

// Regions are those in which something was or may have been made.
func Regions(all []Entry) (out []string) {
	for _, e := range all {
		if e.Region != "" && !slices.Contains(out, e.Region) {
			out = append(out, e.Region)
		}
	}
	return out
}

// Move gives a journal another place, the file before too. One that is not there is
// no error.
func Move(from, to string) error {
	for _, of := range []func(string) string{before, func(path string) string { return path }} {
		if _, err := os.Lstat(of(from)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := os.MkdirAll(filepath.Dir(to), 0o700)
		if err == nil {
			err = atomicfile.Rename(of(from), of(to))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
