package artifact_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/rebake/rebake/artifact"
)

func TestFileDisk(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 1<<20)
	for name, c := range map[string]struct {
		size  int64
		parts []int64 // offsets of 1 MiB of data
	}{
		"empty":         {0, nil},
		"a hole only":   {8 << 20, nil},
		"data only":     {1 << 20, []int64{0}},
		"data, hole":    {8 << 20, []int64{0}},
		"hole, data":    {8 << 20, []int64{7 << 20}},
		"several of it": {64 << 30, []int64{1 << 20, 5 << 20, 40 << 30}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range c.parts {
				if _, err := f.WriteAt(data, at); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			d, err := artifact.FileDisk(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			extents, err := d.Extents(t.Context())
			if err != nil || d.Size() != c.size || d.Parent() != "" {
				t.Fatalf("size %d, parent %q, %v", d.Size(), d.Parent(), err)
			}
			var end, read int64
			buf := make([]byte, 1)
			for _, e := range extents {
				if e.Offset != end || e.Length <= 0 || e.Inherited {
					t.Fatalf("extents do not cover the disk: %+v", extents)
				}
				end += e.Length
				if e.Zero {
					for _, at := range []int64{e.Offset, e.Offset + e.Length/2, end - 1} {
						if _, err := d.ReadAt(buf, at); err != nil || buf[0] != 0 {
							t.Errorf("byte %d of a hole is %d, %v", at, buf[0], err)
						}
					}
				} else {
					read += e.Length
				}
			}
			if end != c.size {
				t.Errorf("extents end at %d, the disk at %d", end, c.size)
			}
			if want := int64(len(c.parts)) << 20; runtime.GOOS == "linux" && read != want {
				t.Errorf("%d bytes are to be read, want %d", read, want)
			}
		})
	}
}

func TestFileDiskRefuses(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none"), os.DevNull} {
		if _, err := artifact.FileDisk(path); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
}
