package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// size is one way to keep the image of the real template.
type size struct {
	What    string  `json:"what"`
	Bytes   int64   `json:"bytes"`   // allocated
	Seconds float64 `json:"seconds"` // that making it took beside the build
}

// sizes are of the first round's images.
type sizes struct {
	list []size
}

func (s *sizes) add(what string, bytes int64, seconds float64) {
	s.list = append(s.list, size{what, bytes, seconds})
}

// ofPacker measures Packer's output, and what its compaction, which is
// `qemu-img convert`, would make of it.
func (s *sizes) ofPacker(ctx context.Context, b *bench) error {
	disk := filepath.Join(b.packerOutput(), "disk.qcow2")
	n, err := allocated(disk)
	if err != nil {
		return err
	}
	s.add("packer: skip_compaction, as measured", n, 0)
	for _, k := range []struct {
		what string
		args []string
	}{
		{"packer: with its compaction (`qemu-img convert`)", nil},
		{"packer: with disk_compression (`qemu-img convert -c`)", []string{"-c"}},
	} {
		out := disk + ".converted"
		began := time.Now()
		args := append(append([]string{"convert", "-O", "qcow2"}, k.args...), disk, out)
		if msg, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("qemu-img convert: %w: %s", err, msg)
		}
		took := time.Since(began).Seconds()
		if n, err = allocated(out); err != nil {
			return err
		}
		s.add(k.what, n, took)
	}
	return os.RemoveAll(b.packerOutput())
}

// ofRebake measures the image that the first build left in home.
func (s *sizes) ofRebake(ctx context.Context, b *bench, home string) error {
	out, err := b.ask(ctx, home, "images", "ls")
	if err != nil {
		return err
	}
	var ls struct {
		Result []struct {
			Name      string
			StoredNew int64 `json:"stored_new"`
		}
	}
	if err := json.Unmarshal(out, &ls); err != nil {
		return err
	}
	if len(ls.Result) != 1 {
		return fmt.Errorf("there are %d images in a home of one build", len(ls.Result))
	}
	s.add("rebake: the image in the store, beside its base", ls.Result[0].StoredNew, 0)
	n, err := folder(filepath.Join(home, "store"))
	if err != nil {
		return err
	}
	s.add("rebake: the whole store, base and image", n, 0)
	if n, err = folder(filepath.Join(home, "cache", "checkpoints")); err != nil {
		return err
	}
	s.add("rebake: checkpoints of the build (a cache)", n, 0)
	began := time.Now()
	file := filepath.Join(home, "export.qcow2")
	if _, err := b.ask(ctx, home, "images", "export", ls.Result[0].Name+":latest", file); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	if n, err = allocated(file); err != nil {
		return err
	}
	s.add("rebake: `rebake images export`, one qcow2 file", n, took)
	return os.Remove(file)
}

func allocated(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// folder is what a folder takes; 0 if there is none.
func folder(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == path && os.IsNotExist(err) {
				return nil
			}
			return err
		}
		k, err := allocated(p)
		n += k
		return err
	})
	return n, err
}
