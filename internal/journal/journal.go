// Package journal is an append-only file of chained, checksummed JSON lines,
// fsynced before Append returns. A torn last line is legal; anything else that
// does not verify is ErrCorrupt and nothing is changed.
package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrTaken is a journal that somebody else wrote to, or put another in the place
// of, while it was open here: this process is not the one that acts any more.
var ErrTaken = errors.New("somebody else writes the journal")

// ErrCorrupt is a journal that was changed by something other than Append.
var ErrCorrupt = errors.New("journal is corrupt")

// maxSize bounds what is read into memory; a deployment writes some 20 KiB.
const maxSize = 256 << 20

// Record is one line.
type Record struct {
	Seq  int             `json:"seq"` // from 1
	Time time.Time       `json:"time"`
	Kind string          `json:"kind"`
	Data json.RawMessage `json:"data,omitempty"`
	Prev string          `json:"prev"` // Sum of the record before, "" for the first
	Sum  string          `json:"sum"`  // hex sha256 of the record without Sum
}

// sum hashes the record as it is written, Sum empty.
func (r Record) sum() (string, error) {
	r.Sum = ""
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

// Next is the record that follows last, the zero Record for the first, and its
// line with the newline.
func Next(last Record, at time.Time, kind string, data any) (Record, []byte, error) {
	r := Record{Seq: last.Seq + 1, Time: at.UTC(), Kind: kind, Prev: last.Sum}
	fail := func(err error) (Record, []byte, error) {
		return Record{}, nil, fmt.Errorf("append %s to the journal: %w", kind, err)
	}
	if data != nil {
		raw, err := json.Marshal(data)
		if err != nil {
			return fail(err)
		}
		r.Data = raw
	}
	var err error
	if r.Sum, err = r.sum(); err != nil {
		return fail(err)
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	return r, append(line, '\n'), nil
}

// Parse verifies whole lines that follow last, the zero Record for the first.
func Parse(last Record, lines []byte) ([]Record, error) {
	recs, good, err := parse(last, lines)
	if err == nil && good < int64(len(lines)) {
		err = fmt.Errorf("%w: record %d has no end", ErrCorrupt, last.Seq+len(recs)+1)
	}
	return recs, err
}

// file is what a journal needs of *os.File.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
	Stat() (os.FileInfo, error)
}

// Journal is open for appending. It is safe for many goroutines; that one
// process at a time has it open is the caller's lock to see to.
type Journal struct {
	mu   sync.Mutex
	path string
	f    file
	size int64  // bytes that are known good
	last Record // zero for none
	bad  bool   // bytes after size may be there
	now  func() time.Time
}

// Open reads and verifies the journal at path, which it makes if there is none,
// cuts off a torn last line, and returns what it holds.
func Open(path string) (*Journal, []Record, error) {
	_, err := os.Lstat(path)
	fresh := errors.Is(err, os.ErrNotExist)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the journal: %w", err)
	}
	fail := func(err error) (*Journal, []Record, error) {
		return nil, nil, errors.Join(err, f.Close())
	}
	if fresh {
		if err := atomicfile.Sync(filepath.Dir(path)); err != nil {
			return fail(fmt.Errorf("make the journal: %w", err))
		}
	}
	recs, good, torn, err := load(path)
	if err != nil {
		return fail(err)
	}
	if torn {
		if err := f.Truncate(good); err != nil {
			return fail(fmt.Errorf("cut off the torn end of %s: %w", path, err))
		}
		if err := f.Sync(); err != nil {
			return fail(fmt.Errorf("cut off the torn end of %s: %w", path, err))
		}
	}
	j := &Journal{path: path, f: f, size: good, now: time.Now}
	if n := len(recs); n > 0 {
		j.last = recs[n-1]
	}
	return j, recs, nil
}

// Read returns the verified records of a journal that another process may be
// writing: a torn last line is left alone. No file is no records.
func Read(path string) ([]Record, error) {
	recs, _, _, err := load(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return recs, err
}

// Append writes one record and returns once it is on the disk. After an error
// nothing was added, and the journal can be used again.
func (j *Journal) Append(kind string, data any) (Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return Record{}, fmt.Errorf("append to the journal: %w", os.ErrClosed)
	}
	r, line, err := Next(j.last, j.now(), kind, data)
	if err != nil {
		return Record{}, err
	}
	if j.size+int64(len(line)) > maxSize {
		return Record{}, fmt.Errorf("append %s to the journal: %s is full (%d bytes)", kind, j.path, j.size)
	}
	if err := j.ours(); err != nil {
		return Record{}, fmt.Errorf("append %s to the journal: %w", kind, err)
	}
	if j.bad {
		if err := j.cut(); err != nil {
			return Record{}, fmt.Errorf("mend the journal: %w", err)
		}
	}
	if _, err := j.f.Write(line); err != nil {
		return Record{}, errors.Join(fmt.Errorf("append %s to the journal: %w", kind, err), j.cut())
	}
	if err := j.f.Sync(); err != nil {
		return Record{}, errors.Join(fmt.Errorf("append %s to the journal: %w", kind, err), j.cut())
	}
	j.size += int64(len(line))
	j.last = r
	return r, nil
}

// ours looks whether the file is still the one at path, and as long as we left
// it. The lock is who keeps others away; this is for when it failed: a lock file
// that was removed, a directory that was moved, a file system without locks.
func (j *Journal) ours() error {
	here, err := j.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s is gone", ErrTaken, j.path)
	}
	if err != nil {
		return err
	}
	if !os.SameFile(here, there) || here.Size() != j.size && !j.bad {
		return fmt.Errorf("%w: %s is not as this process left it", ErrTaken, j.path)
	}
	return nil
}

// cut goes back to the last good record.
func (j *Journal) cut() error {
	j.bad = true
	if err := j.f.Truncate(j.size); err != nil {
		return err
	}
	if err := j.f.Sync(); err != nil {
		return err
	}
	j.bad = false
	return nil
}

// Close closes the file. A second Close does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// load reads at most maxSize bytes of path.
func load(path string) (recs []Record, good int64, torn bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, false, fmt.Errorf("read the journal: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, 0, false, fmt.Errorf("read the journal: %w", err)
	}
	if len(b) > maxSize {
		return nil, 0, false, fmt.Errorf("%w: %s is larger than %d bytes", ErrCorrupt, path, maxSize)
	}
	recs, good, err = parse(Record{}, b)
	if err != nil {
		return nil, 0, false, fmt.Errorf("%s: %w", path, err)
	}
	return recs, good, good < int64(len(b)), nil
}

// parse verifies b; good is the length of its whole lines. Only bytes after
// the last newline can be torn: a record and its newline are one write.
func parse(prev Record, b []byte) (recs []Record, good int64, err error) {
	for {
		i := bytes.IndexByte(b[good:], '\n')
		if i < 0 {
			return recs, good, nil
		}
		line := b[good : good+int64(i)]
		r, err := verify(line, prev)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: line %d: %w", ErrCorrupt, prev.Seq+1, err)
		}
		recs, prev = append(recs, r), r
		good += int64(i) + 1
	}
}

func verify(line []byte, prev Record) (Record, error) {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if r.Seq != prev.Seq+1 || r.Prev != prev.Sum {
		return r, fmt.Errorf("record %d does not follow record %d", r.Seq, prev.Seq)
	}
	sum, err := r.sum()
	if err != nil {
		return r, err
	}
	if sum != r.Sum {
		return r, errors.New("its checksum is wrong")
	}
	same, err := json.Marshal(r)
	if err != nil {
		return r, err
	}
	if !bytes.Equal(same, line) { // unknown keys, other spelling: not our bytes
		return r, errors.New("it was not written by rebake")
	}
	return r, nil
}
