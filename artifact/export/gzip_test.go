package export

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"testing"
)

// Whatever is written, in whatever portions and on however many processors, the
// result is the same, and gzip reads it.
func TestGzip(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := make([]byte, 3*gzipBlock/2)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "a byte": {1}, "one block": bytes.Repeat([]byte("rebake!?"), gzipBlock/8), "random": random,
		"blocks and a bit": append(bytes.Repeat([]byte("rebake "), 600_000), random...),
	} {
		var first []byte
		for _, portion := range []int{1000, gzipBlock, 1 << 30} {
			old := runtime.GOMAXPROCS(1 + portion%3)
			var out bytes.Buffer
			z := newGzip(&out)
			for rest := data; len(rest) > 0; {
				n := min(portion, len(rest))
				if k, err := z.Write(rest[:n]); err != nil || k != n {
					t.Fatal(k, err)
				}
				rest = rest[n:]
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			runtime.GOMAXPROCS(old)
			if first == nil {
				first = bytes.Clone(out.Bytes())
			}
			if !bytes.Equal(first, out.Bytes()) {
				t.Errorf("%s: another result in portions of %d", name, portion)
			}
		}
		cmd := exec.Command("gzip", "-dc")
		cmd.Stdin = bytes.NewReader(first)
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: gzip reads %d of %d bytes, %v", name, len(got), len(data), err)
		}
	}
}

type full struct{ left int }

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// A full disk is told soon, at the latest at the end, and stops nobody.
func TestGzipFull(t *testing.T) {
	z := newGzip(&full{100_000})
	n, err := io.Copy(z, io.LimitReader(rand.NewChaCha8([32]byte{}), 1<<30))
	if !errors.Is(err, errFull) || n > 100<<20 {
		t.Errorf("after %d bytes: %v", n, err)
	}
	z = newGzip(&full{10}) // the header fits
	if _, err := z.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); !errors.Is(err, errFull) {
		t.Error(err)
	}
	newGzip(&full{0}).abort()
}
