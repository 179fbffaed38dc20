package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"
)

// Operator is who holds a fleet: a process of somebody. On one machine that is for
// people to read: the lock itself is a flock, which the kernel takes back from a
// killed process.
type Operator struct {
	User  string    `json:"user"`
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// Me is this process, from now on.
func Me() Operator {
	o := Operator{User: strconv.Itoa(os.Getuid()), Host: "localhost", PID: os.Getpid(), Since: time.Now().UTC()}
	if u, err := user.Current(); err == nil {
		o.User = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		o.Host = h
	}
	return o
}

// lock takes the fleet in dir, or says who has it.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the fleet's directory: %w", err)
	}
	l := flock.New(filepath.Join(dir, lockName), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the fleet: %w", err), l.Close())
	}
	if !ok {
		err := fmt.Errorf("%w: %s", ErrLocked, whose(dir))
		return nil, errors.Join(err, l.Close())
	}
	b, err := json.Marshal(Me())
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, ownerName), b, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sign the fleet's lock: %w", err), l.Close())
	}
	return func() error {
		err := os.Remove(filepath.Join(dir, ownerName))
		if errors.Is(err, fs.ErrNotExist) { // Destroy removed it all
			err = nil
		}
		return errors.Join(err, l.Close())
	}, nil
}

func whose(dir string) string {
	var o Operator
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	if err != nil || json.Unmarshal(b, &o) != nil || o.PID == 0 {
		return "its name is not known (try again in a moment)"
	}
	return o.String()
}

// String is what another operator is told.
func (o Operator) String() string {
	return fmt.Sprintf("%s on %s, process %d, since %s; wait for it to end", o.User, o.Host, o.PID, o.Since.Local().Format("15:04:05"))
}
