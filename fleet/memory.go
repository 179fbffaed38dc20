package fleet

import (
	"encoding/json"
	"slices"

	"github.com/rebake/rebake/internal/journal"
)

// Forget makes the deployer keep its journal in memory, with neither lock nor
// file, so that of a rehearsal nothing is left, however it ends. Dir is not used.
func (d *Deployer) Forget() {
	m := &memory{by: d}
	d.open = func() (log, player, error) {
		return m, player{History: slices.Clone(m.past.History), Epoch: m.past.Epoch}, nil
	}
	d.take = func(string) (func() error, error) { return func() error { return nil }, nil }
	d.save = func(string) error { return nil }
}

// memory is a journal that is gone with its process.
type memory struct {
	by   *Deployer // its clock
	past player
	seq  int
}

func (m *memory) Append(kind string, data any) (journal.Record, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return journal.Record{}, err
	}
	m.seq++
	rec := journal.Record{Seq: m.seq, Time: m.by.now().UTC(), Kind: kind, Data: raw}
	return rec, m.past.play(rec)
}

func (m *memory) Close() error { return nil }
