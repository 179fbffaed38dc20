package fleet

import (
	"context"
	"time"

	"github.com/rebake/rebake/internal/journal"
)

// Player brings a history up to date.
type Player = player

// Play takes a record in, as it is written: without the way through JSON.
func (p *player) Play(at time.Time, data any) bool {
	switch d := data.(type) {
	case Plan:
		data = &d
	case told:
		data = &d
	case entry:
		data = &d
	case lease:
		data = &d
	}
	return p.apply(at, data)
}

// Replay rebuilds the history from journal records.
var Replay = replay

// InMemory gives the deployer another journal, no fleet.json, and a lock that is always free.
func (d *Deployer) InMemory(recall func() Player, write func(kind string, data any) (journal.Record, error)) {
	d.Books = quick{&memory{by: d}, recall, write}
}

// quick are books whose records need no bytes.
type quick struct {
	*memory
	past  func() player
	write func(kind string, data any) (journal.Record, error)
}

func (q quick) Take(context.Context) (Desk, error) { return q, nil }

func (q quick) recall() player { return q.past() }

func (q quick) Append(_ context.Context, kind string, data any) (journal.Record, error) {
	return q.write(kind, data)
}
