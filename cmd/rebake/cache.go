package main

import (
	"fmt"
	"time"

	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// sizeFlag reads 20G and the like, from the command line or the environment.
func sizeFlag(c *cli.Context, name string) (int64, error) {
	if c.String(name) == "0" { // needs no unit
		return 0, nil
	}
	var n template.Size
	if err := n.UnmarshalText([]byte(c.String(name))); err != nil {
		return 0, usagef("for example 20G, or 0", "--%s: %v", name, err)
	}
	return int64(n), nil
}

func cacheCommand() *cli.Command {
	return &cli.Command{
		Name: "cache", Usage: "what is kept to save time: ls, prune",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list bases, disks and checkpoints",
				Description: help("The bases that builds start from, the disks of images that fleets and builds use, and the\ncheckpoints of builds, the last used first.", "rebake cache ls"),
				Action:      with(cacheLs)},
			{Name: "prune", Usage: "remove what was not used for the longest time",
				Description: help("Removes until at most --max-size is left; what a build or a fleet uses stays. After each build\nthis is done with --cache-max-size.", "rebake cache prune --max-size 5G"),
				Flags:       []cli.Flag{&cli.StringFlag{Name: "max-size", Value: "0", Usage: "keep at most this `SIZE`; 0 keeps nothing that is not in use"}},
				Action:      with(cachePrune)},
		},
	}
}

func cacheLs(s *session) error {
	entries, err := pipeline.Cached(s.ctx, s.Env)
	if err != nil {
		return err
	}
	cache.Sort(entries)
	if len(entries) == 0 {
		return s.result([]cache.Entry{}, "the cache is empty")
	}
	rows := [][]string{{"KIND", "WHAT", "SIZE", "LAST USED", "IN USE BY"}}
	for _, e := range entries {
		rows = append(rows, []string{e.Kind, e.What, ui.Size(e.Size), e.Used.Local().Format("2006-01-02 15:04"), e.InUse})
	}
	return s.result(entries, ui.Table(rows)+fmt.Sprintf("%s in all\n", ui.Size(cache.Size(entries))))
}

func cachePrune(s *session) error {
	limit, err := sizeFlag(s.c, "max-size")
	if err != nil {
		return err
	}
	began := time.Now()
	gone, err := pipeline.PruneCache(s.ctx, s.Env, limit)
	if err != nil {
		return err
	}
	return s.result(map[string]any{"removed": gone, "freed": cache.Size(gone), "seconds": time.Since(began).Seconds()},
		fmt.Sprintf("removed %d, %s freed", len(gone), ui.Size(cache.Size(gone))))
}
