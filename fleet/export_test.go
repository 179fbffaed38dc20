package fleet

import (
	"time"
)

// Log is what a deployment needs of a journal.
type Log = log

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
func (d *Deployer) InMemory(open func() (Log, Player, error)) {
	d.open = open
	d.take = func(string) (func() error, error) { return func() error { return nil }, nil }
	d.save = func(string) error { return nil }
}
