package importer

import (
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// inflater unpacks the clusters of a qcow2, from many goroutines at once.
type inflater struct {
	zstd bool
	pool sync.Pool
}

// inflate fills out; what follows in r is not read.
func (z *inflater) inflate(out []byte, r io.Reader) error {
	if z.zstd {
		d, _ := z.pool.Get().(*zstd.Decoder)
		if d == nil {
			var err error
			if d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20)); err != nil {
				return err
			}
		}
		defer z.pool.Put(d)
		if err := d.Reset(r); err != nil {
			return err
		}
		_, err := io.ReadFull(d, out)
		return err
	}
	d, _ := z.pool.Get().(io.ReadCloser)
	if d == nil {
		d = flate.NewReader(r)
	} else if err := d.(flate.Resetter).Reset(r, nil); err != nil {
		return err
	}
	defer z.pool.Put(d)
	_, err := io.ReadFull(d, out)
	return err
}
