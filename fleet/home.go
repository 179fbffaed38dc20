package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/rebake/rebake/internal/journal"
)

// Home is where fleets are kept: what their operators have to agree on, wherever
// each of them is. Local is a directory of one machine, fleet/s3 a bucket.
type Home interface {
	// Names lists the fleets that have a Config, readable or not, sorted.
	Names(ctx context.Context) ([]string, error)
	// Orphans says where journals without a Config are: what is left of fleets
	// whose record was lost, or whose end was cut off.
	Orphans(ctx context.Context) ([]string, error)
	// Books are the state of one fleet, which need not exist. No call is made.
	Books(name string) Books
}

// Books are the state of one fleet: its Config and its journal. Reading needs no
// lock and is right at some moment of the call, also while somebody writes.
type Books interface {
	// Config is ErrNoFleet for a fleet that was never deployed, or was destroyed.
	Config(ctx context.Context) (Config, error)
	// Records are the journal's, verified: journal.ErrCorrupt for what somebody
	// else changed. No journal is no records.
	Records(ctx context.Context) ([]journal.Record, error)
	// Take makes the caller the fleet's only writer until Release, or until it
	// dies. ErrLocked names who else is.
	Take(ctx context.Context) (Desk, error)
}

// Desk is where the only writer of a fleet's books sits. Each change is refused
// with ErrStale or journal.ErrTaken once somebody else took the books over. It
// is for one goroutine, and what is written is written even if ctx has ended.
type Desk interface {
	// Open reads the journal, and is called before the first Append.
	Open(ctx context.Context) ([]journal.Record, error)
	// Append returns once the record cannot be lost. After an error it may be
	// called again: what the journal holds then is verified as before.
	Append(ctx context.Context, kind string, data any) (journal.Record, error)
	Save(ctx context.Context, c Config) error
	// Remove leaves no books. What is cut off can be done again by the next writer.
	Remove(ctx context.Context) error
	// Release ends it: the next operator need not wait. Nothing else is called after it.
	Release(ctx context.Context) error
}

// Lease is the optional power of a Desk that can be lost while it is in use. Lost
// is closed before anybody else may sit there: nothing may be done from then on.
type Lease interface {
	Lost() <-chan struct{}
}

// Local is the Home of one machine: a directory with one for each fleet. The lock
// is the kernel's, which takes it back from a killed process.
type Local string

// Names lists the directories with a fleet.json.
func (l Local) Names(context.Context) ([]string, error) { return Names(string(l)) }

// Orphans lists the directories with a journal and no fleet.json.
func (l Local) Orphans(context.Context) ([]string, error) { return Orphans(string(l)) }

// Books are the fleet's directory.
func (l Local) Books(name string) Books { return folder(filepath.Join(string(l), name)) }

// folder is the directory of a fleet.
type folder string

func (f folder) Config(context.Context) (Config, error) { return LoadConfig(string(f)) }

func (f folder) Records(context.Context) ([]journal.Record, error) {
	return journal.Read(filepath.Join(string(f), journalName))
}

func (f folder) Take(context.Context) (Desk, error) {
	unlock, err := lock(string(f))
	if err != nil {
		return nil, err
	}
	return &folderDesk{dir: string(f), unlock: unlock}, nil
}

type folderDesk struct {
	dir    string
	unlock func() error
	j      *journal.Journal // nil until Open
}

func (d *folderDesk) Open(context.Context) (recs []journal.Record, err error) {
	d.j, recs, err = journal.Open(filepath.Join(d.dir, journalName))
	return recs, err
}

func (d *folderDesk) Append(_ context.Context, kind string, data any) (journal.Record, error) {
	return d.j.Append(kind, data)
}

func (d *folderDesk) Save(_ context.Context, c Config) error { return c.Save(d.dir) }

func (d *folderDesk) Remove(context.Context) error {
	// A journal without fleet.json would be a fleet that lost its record.
	if err := os.Remove(filepath.Join(d.dir, journalName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(d.dir)
}

func (d *folderDesk) Release(context.Context) error {
	var err error
	if d.j != nil {
		err = d.j.Close()
	}
	return errors.Join(err, d.unlock())
}

// books are the deployer's, in its Dir where no others are given.
func (d *Deployer) books() Books {
	if d.Books != nil {
		return d.Books
	}
	return folder(d.Dir)
}

// History is what the journal says, which may be in use.
func (d *Deployer) History(ctx context.Context) (History, error) { return HistoryOf(ctx, d.books()) }

// HistoryOf is what a fleet's journal says, which may be in use.
func HistoryOf(ctx context.Context, b Books) (History, error) {
	recs, err := b.Records(ctx)
	if err != nil {
		return nil, err
	}
	return replay(recs)
}

// sit takes the fleet. The context that it returns ends when the fleet is lost,
// and leave gives it back: whoever lost it is told so.
func (d *Deployer) sit(ctx context.Context) (_ context.Context, desk Desk, leave func(error) error, err error) {
	if desk, err = d.books().Take(ctx); err != nil {
		return ctx, nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	l, leased := desk.(Lease)
	if leased {
		go func() {
			select {
			case <-l.Lost():
				cancel(ErrStale)
			case <-over:
			}
		}()
	}
	return ctx, desk, func(err error) error {
		close(over)
		if context.Cause(ctx) == ErrStale && !errors.Is(err, ErrStale) {
			err = errors.Join(ErrStale, err)
		}
		cancel(nil)
		return errors.Join(err, desk.Release(context.WithoutCancel(ctx)))
	}, nil
}
