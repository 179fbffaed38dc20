package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func fill(t *testing.T, n int) (string, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, recs, err := Open(path)
	if err != nil || len(recs) != 0 {
		t.Fatal(recs, err)
	}
	for i := range n {
		if _, err := j.Append("note", map[string]any{"n": i, "text": "a < b & ünï\n"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b
}

func TestWhatWasAppendedIsReadBack(t *testing.T) {
	path, _ := fill(t, 5)
	j, recs, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if len(recs) != 5 || recs[4].Seq != 5 || recs[4].Prev != recs[3].Sum {
		t.Fatalf("%+v", recs)
	}
	r, err := j.Append("more", nil)
	if err != nil || r.Seq != 6 || r.Prev != recs[4].Sum {
		t.Fatal(r, err)
	}
	if recs, err := Read(path); err != nil || len(recs) != 6 || recs[5].Sum != r.Sum {
		t.Fatal(recs, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
}

func TestNoFileIsNoRecords(t *testing.T) {
	recs, err := Read(filepath.Join(t.TempDir(), "none"))
	if err != nil || recs != nil {
		t.Fatal(recs, err)
	}
}

// Cut at every byte: a prefix is always legal, only Open changes the file.
func TestCutOffAnywhere(t *testing.T) {
	path, whole := fill(t, 3)
	for n := range len(whole) {
		want := bytes.Count(whole[:n], []byte("\n"))
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		recs, err := Read(path)
		if err != nil || len(recs) != want {
			t.Fatalf("cut at %d: read %d records, %v", n, len(recs), err)
		}
		if b, _ := os.ReadFile(path); len(b) != n {
			t.Fatalf("cut at %d: Read changed the file", n)
		}
		j, recs, err := Open(path)
		if err != nil || len(recs) != want {
			t.Fatalf("cut at %d: opened %d records, %v", n, len(recs), err)
		}
		if _, err := j.Append("after", n); err != nil {
			t.Fatal(err)
		}
		_ = j.Close()
		if recs, err := Read(path); err != nil || len(recs) != want+1 {
			t.Fatalf("cut at %d: after an append %d records, %v", n, len(recs), err)
		}
	}
}

// Flip every byte: never accepted as another history.
func TestAnyChangedByteIsCorruptAndLeftAlone(t *testing.T) {
	path, whole := fill(t, 3)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Open(path)
		if i == len(whole)-1 { // the last newline: indistinguishable from a torn line
			continue
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, b) {
			t.Fatalf("byte %d changed: Open wrote to a corrupt journal", i)
		}
	}
}

func TestALineTakenOutOrPutInIsCorrupt(t *testing.T) {
	path, whole := fill(t, 3)
	lines := bytes.SplitAfter(whole, []byte("\n"))[:3]
	for name, b := range map[string][][]byte{
		"first gone":   lines[1:],
		"middle gone":  {lines[0], lines[2]},
		"swapped":      {lines[1], lines[0], lines[2]},
		"twice":        {lines[0], lines[0], lines[1]},
		"empty line":   {lines[0], []byte("\n"), lines[1]},
		"NUL bytes":    {lines[0], make([]byte, 8), []byte("\n")},
		"space behind": {bytes.Replace(lines[0], []byte("}\n"), []byte("} \n"), 1)},
	} {
		if err := os.WriteFile(path, bytes.Join(b, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// full is a disk that takes room more bytes, and fails to truncate or sync if told so.
type full struct {
	*os.File
	room             int
	noSync, noCutOff bool
}

var errFull = errors.New("no space left on device")

func (f *full) Write(p []byte) (int, error) {
	if len(p) <= f.room {
		f.room -= len(p)
		return f.File.Write(p)
	}
	n, _ := f.File.Write(p[:f.room])
	f.room = 0
	return n, errFull
}

func (f *full) Sync() error {
	if f.noSync {
		return errFull
	}
	return f.File.Sync()
}

func (f *full) Truncate(n int64) error {
	if f.noCutOff {
		return errFull
	}
	return f.File.Truncate(n)
}

func TestAFullDiskLeavesTheJournalUsable(t *testing.T) {
	for name, disk := range map[string]full{
		"half a line":               {room: 40},
		"nothing":                   {room: 0},
		"sync fails":                {room: 1 << 20, noSync: true},
		"and cannot be cut off yet": {room: 40, noCutOff: true},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := fill(t, 2)
			j, _, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			real := j.f.(*os.File)
			disk.File = real
			j.f = &disk
			for range 2 {
				if _, err := j.Append("lost", nil); !errors.Is(err, errFull) {
					t.Fatal(err)
				}
			}
			if recs, err := Read(path); err != nil || len(recs) != 2 {
				t.Fatal(len(recs), err)
			}
			j.f = real
			r, err := j.Append("kept", nil)
			if err != nil || r.Seq != 3 {
				t.Fatal(r, err)
			}
			recs, err := Read(path)
			if err != nil || len(recs) != 3 || recs[2].Kind != "kept" {
				t.Fatal(recs, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for i := range 3 {
		path := filepath.Join(f.TempDir(), fmt.Sprint(i))
		j, _, err := Open(path)
		if err != nil {
			f.Fatal(err)
		}
		for k := range i {
			if _, err := j.Append("k", k); err != nil {
				f.Fatal(err)
			}
		}
		_ = j.Close()
		b, _ := os.ReadFile(path)
		f.Add(b)
		f.Add(append(b, `{"seq":`...))
	}
	f.Add([]byte("\n"))
	f.Add([]byte(`{"seq":1,"time":"0001-01-01T00:00:00Z","kind":"","prev":"","sum":""}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, good, err := parse(Record{}, b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if good > int64(len(b)) || bytes.Count(b, []byte("\n")) != len(recs) {
			t.Fatalf("%d records, %d bytes good of %d", len(recs), good, len(b))
		}
		again, n, err := parse(Record{}, b[:good])
		if err != nil || n != good || len(again) != len(recs) {
			t.Fatal(again, n, err)
		}
		for i, r := range recs {
			if r.Seq != i+1 {
				t.Fatal(r)
			}
		}
	})
}

// Whoever lost the lock finds out before he adds a word.
func TestAJournalThatSomebodyElseTookIsLeftAlone(t *testing.T) {
	for name, take := range map[string]func(path string) error{
		"appended to": func(path string) error {
			other, _, err := Open(path)
			if err != nil {
				return err
			}
			_, err = other.Append("lease", 2)
			return errors.Join(err, other.Close())
		},
		"cut":     func(path string) error { return os.Truncate(path, 0) },
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := fill(t, 2)
			j, _, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if _, err := j.Append("mine", 1); err != nil {
				t.Fatal(err)
			}
			if err := take(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			if _, err := j.Append("mine", 2); !errors.Is(err, ErrTaken) {
				t.Errorf("%v", err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("it was written to")
			}
		})
	}
}
