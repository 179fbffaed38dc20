package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/rebake/rebake/internal/journal"
)

// Forget makes the deployer keep its books in memory, so that of a rehearsal
// nothing is left, however it ends. Dir is not used.
func (d *Deployer) Forget() { d.Books = &memory{by: d} }

// memory are books that are gone with their process. One goroutine has them.
type memory struct {
	by   *Deployer // its clock
	cfg  *Config
	recs []journal.Record
	held bool
}

func (m *memory) Config(context.Context) (Config, error) {
	if m.cfg == nil {
		return Config{}, fmt.Errorf("%w: %s", ErrNoFleet, m.by.Config.Name)
	}
	return *m.cfg, nil
}

func (m *memory) Records(context.Context) ([]journal.Record, error) { return slices.Clone(m.recs), nil }

func (m *memory) Take(context.Context) (Desk, error) {
	if m.held {
		return nil, fmt.Errorf("%w: this process", ErrLocked)
	}
	m.held = true
	return m, nil
}

func (m *memory) Open(ctx context.Context) ([]journal.Record, error) { return m.Records(ctx) }

func (m *memory) Append(_ context.Context, kind string, data any) (journal.Record, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return journal.Record{}, err
	}
	rec := journal.Record{Seq: len(m.recs) + 1, Time: m.by.now().UTC(), Kind: kind, Data: raw}
	m.recs = append(m.recs, rec)
	return rec, nil
}

func (m *memory) Save(_ context.Context, c Config) error { m.cfg = &c; return nil }

func (m *memory) Remove(context.Context) error { m.cfg, m.recs = nil, nil; return nil }

func (m *memory) Release(context.Context) error { m.held = false; return nil }
