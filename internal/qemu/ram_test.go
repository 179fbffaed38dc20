package qemu

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func ramFile(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "mem"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sprinkle writes random pieces, some of them zeros, and returns the whole.
func sprinkle(t testing.TB, f *os.File, size int64, seed uint64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 40 {
		b := make([]byte, 1+r.IntN(200_000))
		if r.IntN(3) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32() & 0x1f)
			}
		}
		if _, err := f.WriteAt(b[:min(int64(len(b)), size)], r.Int64N(size-int64(len(b)))); err != nil {
			t.Fatal(err)
		}
	}
	all := make([]byte, size)
	if _, err := f.ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return all
}

func TestSavedMemoryComesBackTheSame(t *testing.T) {
	for seed := range uint64(5) {
		const size = 24<<20 + 4096
		mem := ramFile(t, size)
		want := sprinkle(t, mem, size, seed)
		path := filepath.Join(t.TempDir(), "ram")
		if err := dumpRAM(t.Context(), mem, size, path); err != nil {
			t.Fatal(err)
		}
		back := ramFile(t, size)
		if err := fillRAM(t.Context(), path, back, size); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := back.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the memory differs", seed)
		}
	}
}

func TestDamagedMemoryIsRefused(t *testing.T) {
	const size = 8 << 20
	mem := ramFile(t, size)
	sprinkle(t, mem, size, 7)
	path := filepath.Join(t.TempDir(), "ram")
	if err := dumpRAM(t.Context(), mem, size, path); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func([]byte) []byte{
		"empty":                   func([]byte) []byte { return nil },
		"without its end":         func(b []byte) []byte { return b[:len(b)-headSize] },
		"cut in a piece":          func(b []byte) []byte { return b[:len(b)/2] },
		"a bit of a piece":        func(b []byte) []byte { b[len(ramMagic)+headSize+100] ^= 1; return b },
		"an offset past the end":  func(b []byte) []byte { b[len(ramMagic)+7] = 0x7f; return b },
		"a length of 2^63":        func(b []byte) []byte { b[len(ramMagic)+15] = 0x80; return b },
		"a huge compressed piece": func(b []byte) []byte { b[len(ramMagic)+23] = 0x10; return b },
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "ram")
			if err := os.WriteFile(bad, f(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := fillRAM(t.Context(), bad, ramFile(t, size), size); !errors.Is(err, errRAM) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzSavedMemory(f *testing.F) {
	f.Add([]byte(ramMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "ram")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = fillRAM(t.Context(), path, ramFile(t, 1<<20), 1<<20) // must not panic or write past the end
	})
}

func BenchmarkSaveMemory(b *testing.B) {
	const size = 256 << 20
	mem := ramFile(b, size)
	r := rand.New(rand.NewPCG(1, 1))
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; at += 1 << 20 {
		for i := 0; i < len(buf); i += 4 {
			buf[i] = byte(r.Uint32())
		}
		if _, err := mem.WriteAt(buf, at); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(size)
	dir := b.TempDir()
	for b.Loop() {
		path := filepath.Join(dir, "ram")
		os.Remove(path)
		if err := dumpRAM(b.Context(), mem, size, path); err != nil {
			b.Fatal(err)
		}
	}
}
