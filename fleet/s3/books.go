package s3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/journal"
	"golang.org/x/sync/errgroup"
)

const (
	packed   = 128 // records in a pack
	parallel = 32  // objects that are read at once
)

// books are the state of one fleet.
type books struct {
	h    *Home
	name string
}

// config is fleets/NAME.json. The nonce makes two that say the same differ.
type config struct {
	Nonce string       `json:"nonce"`
	Fleet fleet.Config `json:"fleet"`
}

func (b *books) configKey() string { return "fleets/" + b.name + ".json" }

func (b *books) leaseKey() string { return "leases/" + b.name + ".json" }

func (b *books) dir(life int) string { return fmt.Sprintf("fleets/%s/%d/", b.name, life) }

func (b *books) recordKey(life, seq int) string {
	return fmt.Sprintf("%sjournal/%08d.json", b.dir(life), seq)
}

// packKey is of the pack whose last record is seq.
func (b *books) packKey(life, seq int) string {
	return fmt.Sprintf("%spacks/%08d.jsonl", b.dir(life), seq)
}

// Config reads fleets/NAME.json.
func (b *books) Config(ctx context.Context) (fleet.Config, error) {
	o, err := b.h.get(ctx, b.configKey())
	if err != nil {
		return fleet.Config{}, err
	}
	if o == nil {
		return fleet.Config{}, fmt.Errorf("%w: %s in %s", fleet.ErrNoFleet, b.name, b.h.where(""))
	}
	var c config
	if err := json.Unmarshal(o.body, &c); err != nil {
		return fleet.Config{}, fmt.Errorf("read the fleet's record %s: %w", b.h.where(b.configKey()), err)
	}
	return c.Fleet, nil
}

// life is which fleet of the name is meant; 0: none was made since the last was
// destroyed. Without a lease, which somebody removed, it is the highest there.
func (b *books) life(ctx context.Context) (int, error) {
	l, err := b.lease(ctx)
	if err != nil {
		return 0, err
	}
	if l != nil {
		return l.live(), nil
	}
	return b.highest(ctx)
}

func (b *books) highest(ctx context.Context) (life int, err error) {
	_, dirs, err := b.h.list(ctx, "fleets/"+b.name+"/", "", "/")
	for _, d := range dirs {
		if n, err := strconv.Atoi(path.Base(d)); err == nil {
			life = max(life, n)
		}
	}
	return life, err
}

// Records reads the journal. That of a fleet that is destroyed meanwhile is read
// again: there is none then.
func (b *books) Records(ctx context.Context) ([]journal.Record, error) {
	for try := 0; ; try++ {
		life, err := b.life(ctx)
		if err != nil || life == 0 {
			return nil, err
		}
		recs, _, err := b.read(ctx, life)
		if !errors.Is(err, journal.ErrCorrupt) || try > 0 {
			return recs, err
		}
	}
}

// read is the journal, and the lines of those records that are in no pack.
func (b *books) read(ctx context.Context, life int) (recs []journal.Record, loose [][]byte, err error) {
	packs, _, err := b.h.list(ctx, b.dir(life)+"packs/", "", "")
	if err != nil {
		return nil, nil, err
	}
	bodies, err := b.all(ctx, packs)
	if err != nil {
		return nil, nil, err
	}
	var last journal.Record
	for i, body := range bodies {
		more, err := journal.Parse(last, body)
		if err == nil && (len(more) != packed || packs[i] != b.packKey(life, more[packed-1].Seq)) {
			err = fmt.Errorf("%w: it holds %d records", journal.ErrCorrupt, len(more))
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w (what is in it is in journal/ too: it may be removed)", b.h.where(packs[i]), err)
		}
		recs, last = append(recs, more...), more[packed-1]
	}
	keys, _, err := b.h.list(ctx, b.dir(life)+"journal/", b.recordKey(life, last.Seq), "")
	if err != nil {
		return nil, nil, err
	}
	if n := len(keys); n > 0 { // one that was made during the list may be missing in it
		var end int
		if _, err := fmt.Sscanf(path.Base(keys[n-1]), "%08d.json", &end); err != nil {
			return nil, nil, fmt.Errorf("%w: %s is no record", journal.ErrCorrupt, b.h.where(keys[n-1]))
		}
		if end-last.Seq > 2*n+100 {
			return nil, nil, fmt.Errorf("%w: of records %d to %d in %s only %d are there", journal.ErrCorrupt, last.Seq+1, end, b.h.where(b.dir(life)), n)
		}
		keys = keys[:0]
		for seq := last.Seq + 1; seq <= end; seq++ {
			keys = append(keys, b.recordKey(life, seq))
		}
	}
	if loose, err = b.all(ctx, keys); err != nil {
		return nil, nil, err
	}
	for i, line := range loose {
		more, err := journal.Parse(last, line)
		if err == nil && len(more) != 1 {
			err = fmt.Errorf("%w: it holds %d records", journal.ErrCorrupt, len(more))
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", b.h.where(keys[i]), err)
		}
		recs, last = append(recs, more[0]), more[0]
	}
	return recs, loose, nil
}

// all reads objects that must be there.
func (b *books) all(ctx context.Context, keys []string) ([][]byte, error) {
	bodies := make([][]byte, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, k := range keys {
		g.Go(func() error {
			o, err := b.h.get(ctx, k)
			if err == nil && o == nil {
				err = fmt.Errorf("%w: %s is gone", journal.ErrCorrupt, b.h.where(k))
			}
			if err == nil {
				bodies[i] = o.body
			}
			return err
		})
	}
	return bodies, g.Wait()
}

// pack writes packs of the loose records, so that the next reader has fewer
// objects to read. What is in one is what the records say, whoever writes it.
func (b *books) pack(ctx context.Context, life, last int, loose [][]byte) error {
	for first := last - len(loose); len(loose) >= packed; first, loose = first+packed, loose[packed:] {
		body := bytes.Join(loose[:packed], nil)
		_, err := b.h.put(ctx, b.packKey(life, first+packed), "", newNonce(), body)
		if err != nil && !errors.Is(err, errTaken) {
			return err
		}
	}
	return nil
}

// sweep removes what is left of a fleet's lives up to that one. A later one is
// another's.
func (b *books) sweep(ctx context.Context, life int) error {
	_, dirs, err := b.h.list(ctx, "fleets/"+b.name+"/", "", "/")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		n, err := strconv.Atoi(path.Base(strings.TrimSuffix(d, "/")))
		if err != nil || n > life {
			continue
		}
		keys, _, err := b.h.list(ctx, d, "", "")
		if err != nil {
			return err
		}
		if err := b.h.remove(ctx, keys); err != nil {
			return err
		}
	}
	return nil
}
