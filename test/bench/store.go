package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/rebake/rebake/test/servers"
)

const (
	storeDisk = 2 << 30 // bytes, none of them a hole
	// storePeer does to the same disk, without a store, what a store cannot do without.
	storePeer   = "zstd+sha256sum"
	storeMemory = 200e6 // bytes, at most
)

// rebakeStore writes a disk of 2 GiB into a store, pushes it to a docker-registry
// on loopback, and pulls it into another store.
func rebakeStore(ctx context.Context, r round) (err error) {
	disk, err := r.storeDisk()
	if err != nil {
		return err
	}
	home := filepath.Join(r.work, "homes", "store")
	other, data := home+"-other", home+"-registry"
	defer func() { err = errors.Join(err, os.RemoveAll(home), os.RemoveAll(other), os.RemoveAll(data)) }()
	if err := errors.Join(os.MkdirAll(home, 0o700), os.MkdirAll(other, 0o700), os.MkdirAll(data, 0o700)); err != nil {
		return err
	}
	addr, stop, err := servers.DockerRegistry(data)
	if err != nil {
		return err
	}
	defer stop()
	place := "oci://" + addr + "/bench"
	for _, c := range []struct {
		name, home string
		args       []string
	}{
		{"write", home, []string{"import", disk, "disk:1"}},
		{"push", home, []string{"push", "disk:1", place}},
		{"push again", home, []string{"push", "disk:1", place}},
		{"pull", other, []string{"pull", place + "/disk:1"}},
	} {
		k := run{Tool: "rebake", Scenario: "store: " + c.name, Round: r.n}
		if err := r.record(ctx, &k, command{args: append([]string{r.rebake}, c.args...), env: []string{"REBAKE_HOME=" + c.home}}); err != nil {
			return err
		}
		r.runs = append(r.runs, k)
	}
	return nil
}

// storeBeside compresses and hashes the same disk.
func storeBeside(ctx context.Context, r round) error {
	disk, err := r.storeDisk()
	if err != nil {
		return err
	}
	out := disk + ".zst"
	k := run{Tool: storePeer, Scenario: "store", Round: r.n}
	if err := r.record(ctx, &k, command{args: []string{"sh", "-c", `zstd -3 -T0 -q -f "$1" -o "$2" && sha256sum "$1"`, "sh", disk, out}}); err != nil {
		return err
	}
	r.runs = append(r.runs, k)
	return os.Remove(out)
}

// storeDisk makes the disk once: four parts of words, which compress as a system's
// files do, and one that does not compress. Its first sector is a boot sector's.
func (b *bench) storeDisk() (string, error) {
	path := filepath.Join(b.work, "store.raw")
	if st, err := os.Stat(path); err == nil && st.Size() == storeDisk {
		return path, nil
	}
	tmp := path + ".tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return "", err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	src := rand.NewChaCha8([32]byte{'s', 't', 'o', 'r', 'e'})
	r := rand.New(src)
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(30))
		_, _ = src.Read(words[i]) // it never fails
	}
	block := make([]byte, 1<<20+64)
	for at := int64(0); at < storeDisk && err == nil; at += 1 << 20 {
		if r.IntN(5) == 0 {
			_, _ = src.Read(block)
		} else {
			for n := 0; n < 1<<20; {
				n += copy(block[n:], words[r.IntN(len(words))])
			}
		}
		if at == 0 {
			block[510], block[511] = 0x55, 0xaa
		}
		_, err = w.Write(block[:1<<20])
	}
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

// store is what the store's operations took.
func (p *page) store() {
	if p.spread(rebakeOf("store: push")).N == 0 {
		return
	}
	beside := measured{tool: storePeer, scenario: "store"}
	p.printf("\n## The store\n\nA disk of 2 GiB without holes, four parts in five of which compress, is written into a store, pushed to a docker-registry on\n" +
		"loopback, and pulled into another store (every chunk decoded and hashed). Beside it, on the same disk: `zstd -3 -T0` and then `sha256sum`.\n")
	var rows []row
	for _, name := range []string{"write", "push", "pull"} {
		rows = append(rows, row{name, rebakeOf("store: " + name), beside, 2})
	}
	rows = append(rows, row{"push, when all of it is there", rebakeOf("store: push again"), beside, 0})
	p.table("store | runs | rebake, s | zstd and sha256sum, s", rows)
	p.printf("\n| | MB of memory | at most | |\n|---|---|---|---|\n")
	for _, name := range []string{"write", "push", "pull"} {
		var mem []float64
		for _, r := range p.runs {
			if _, ok := rebakeOf("store: " + name).of(r); ok {
				mem = append(mem, float64(r.Usage.Memory)/1e6)
			}
		}
		s := spreadOf(mem)
		p.printf("| %s | %s | %s | %s |\n", name, s, fmt.Sprint(storeMemory/1e6), verdict(s.Max, storeMemory/1e6))
	}
}

// buildsNothing tells whether no scenario that was chosen needs a base or Packer.
func buildsNothing(chosen []scenario) bool {
	for _, s := range chosen {
		if s.name != "store" {
			return false
		}
	}
	return true
}
