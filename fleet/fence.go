package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/rebake/rebake/internal/atomicfile"
)

// Fence is what a Pool or a Router on this machine needs to be a Fencer: the
// highest epoch that it was told, in a file. Both methods are called under the
// lock of what they fence. The zero value lets everything pass, until Raise.
type Fence struct{ mine atomic.Int64 }

// Raise takes the epoch of the session that acts from here on. ErrStale if a
// higher one was there before.
func (f *Fence) Raise(path string, epoch int64) error {
	last, err := readEpoch(path)
	if err != nil {
		return err
	}
	if last > epoch {
		return fmt.Errorf("%w: as epoch %d, and this is %d", ErrStale, last, epoch)
	}
	if last < epoch {
		if err := atomicfile.Write(path, []byte(strconv.FormatInt(epoch, 10)+"\n"), 0o600); err != nil {
			return err
		}
	}
	f.mine.Store(epoch)
	return nil
}

// Check is ErrStale once somebody else raised the file's epoch.
func (f *Fence) Check(path string) error {
	mine := f.mine.Load()
	if mine == 0 {
		return nil
	}
	last, err := readEpoch(path)
	if err == nil && last > mine {
		err = fmt.Errorf("%w: as epoch %d, and this is %d", ErrStale, last, mine)
	}
	return err
}

func readEpoch(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s holds no epoch: %.40q", path, b)
	}
	return n, nil
}
