package oci

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/artifact"
)

// benchDisk is $REBAKE_BENCH_DISK, a raw disk, or one like a system's: words
// that compress, noise that does not, and a third that is empty.
func benchDisk(b *testing.B) string {
	if path := os.Getenv("REBAKE_BENCH_DISK"); path != "" {
		return path
	}
	path := filepath.Join(b.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = noise(byte(i), 3+r.IntN(30))
	}
	for at := int64(0); at < 384<<20; at += 1 << 20 {
		block := make([]byte, 0, 1<<20+64)
		switch r.IntN(6) {
		case 0, 1:
			continue
		case 2:
			block = append(block, noise(byte(at>>20), 1<<20)...)
		default:
			for len(block) < 1<<20 {
				block = append(block, words[r.IntN(len(words))]...)
			}
		}
		if _, err := f.WriteAt(block[:1<<20], at); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

func openBench(b *testing.B, path string) artifact.Disk {
	d, err := artifact.FileDisk(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	extents, err := d.Extents(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var data int64
	for _, e := range extents {
		if !e.Zero {
			data += e.Length
		}
	}
	b.SetBytes(data) // holes cost nothing and count for nothing
	return d
}

func BenchmarkWrite(b *testing.B) {
	d := openBench(b, benchDisk(b))
	for b.Loop() {
		b.StopTimer()
		s := openTemp(b)
		b.StartTimer()
		_, added, err := s.Write(b.Context(), d, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(float64(added)/1e6, "MB-stored")
		if err := os.RemoveAll(s.dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkWriteAgain writes a disk that the store has.
func BenchmarkWriteAgain(b *testing.B) {
	d := openBench(b, benchDisk(b))
	s := openTemp(b)
	bake(b, s, "1", d)
	for b.Loop() {
		if _, added, err := s.Write(b.Context(), d, nil); err != nil || added != 0 {
			b.Fatal(added, err)
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	d := openBench(b, benchDisk(b))
	s := openTemp(b)
	img := bake(b, s, "1", d)
	path := filepath.Join(b.TempDir(), "disk")
	for b.Loop() {
		if err := s.Fetch(b.Context(), img.Content, path, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
