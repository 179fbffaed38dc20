package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
)

const (
	gzipBlock  = 1 << 20  // what one goroutine packs at a time
	gzipWindow = 32 << 10 // how far back deflate can point
	gzipLevel  = 6
)

// gzipWriter packs blocks in parallel into one gzip member, as pigz does: each
// block may point back into the one before it. The same bytes give the same
// result, on any number of processors. It holds two blocks a processor.
type gzipWriter struct {
	to      io.Writer
	block   []byte
	window  []byte // the end of the block before
	queue   chan chan packedBlock
	written chan error
	failed  atomic.Bool
	sum     uint32
	size    uint32
	closed  bool
}

type packedBlock struct {
	bytes []byte
	err   error
}

// newGzip writes a header without a name or a time.
func newGzip(to io.Writer) *gzipWriter {
	z := &gzipWriter{to: to, queue: make(chan chan packedBlock, max(1, runtime.GOMAXPROCS(0))), written: make(chan error, 1)}
	go func() { z.written <- z.write() }()
	return z
}

// write takes the blocks in their order. It goes on taking them after an error,
// so that nobody waits for it.
func (z *gzipWriter) write() error {
	_, err := z.to.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	for c := range z.queue {
		b := <-c
		if err == nil {
			err = b.err
		}
		if err == nil {
			_, err = z.to.Write(b.bytes)
		}
		if err != nil {
			z.failed.Store(true)
		}
	}
	return err
}

// Write packs p; that an earlier block could not be written is told soon, and why by Close.
func (z *gzipWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if z.failed.Load() {
			return n, z.Close()
		}
		if z.block == nil {
			z.block = make([]byte, 0, gzipBlock)
		}
		k := min(len(p)-n, gzipBlock-len(z.block))
		z.block = append(z.block, p[n:n+k]...)
		if n += k; len(z.block) == gzipBlock {
			z.pack(false)
		}
	}
	return n, nil
}

// pack hands the block to a goroutine; the last one ends the stream.
func (z *gzipWriter) pack(last bool) {
	block, window, c := z.block, z.window, make(chan packedBlock, 1)
	z.sum = crc32.Update(z.sum, crc32.IEEETable, block)
	z.size += uint32(len(block)) // modulo 2^32: so it is
	z.block, z.window = nil, block[max(0, len(block)-gzipWindow):]
	z.queue <- c // waits while enough are under way
	go func() {
		out := &bytes.Buffer{}
		// A fresh one each time: what a writer did before must not show in its result.
		w, err := flate.NewWriterDict(out, gzipLevel, window)
		if err == nil {
			_, err = w.Write(block)
		}
		if err == nil && last {
			err = w.Close()
		} else if err == nil {
			err = w.Flush()
		}
		c <- packedBlock{out.Bytes(), err}
	}()
}

// Close ends the stream, and tells of any error on the way.
func (z *gzipWriter) Close() error {
	if z.closed {
		return errors.New("closed before")
	}
	z.closed = true
	if !z.failed.Load() {
		z.pack(true)
	}
	close(z.queue)
	if err := <-z.written; err != nil {
		return err
	}
	tail := binary.LittleEndian.AppendUint32(nil, z.sum)
	_, err := z.to.Write(binary.LittleEndian.AppendUint32(tail, z.size))
	return err
}

// abort ends the goroutines of one that is not closed.
func (z *gzipWriter) abort() {
	if !z.closed {
		z.closed = true
		close(z.queue)
		<-z.written
	}
}
