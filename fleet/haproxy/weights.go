package haproxy

import (
	"context"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"strconv"
	"strings"

	"github.com/rebake/rebake/fleet"
)

// noTraffic is the map's value when neither slot is in service.
const noTraffic = -1

// SetWeights implements fleet.Router: the file first, so that a restart finds
// the new value, then the one write, then what HAProxy says it has.
func (r *Router) SetWeights(ctx context.Context, w map[fleet.Slot]int) error {
	for s := range w {
		if err := checkSlot(s); err != nil {
			return err
		}
	}
	blue, green := w[fleet.Blue], w[fleet.Green]
	switch {
	case blue == 0 && green == 0:
		green = noTraffic
	case blue < 0 || green < 0 || blue+green != 1000:
		return fmt.Errorf("weights blue %d, green %d: they must add up to 1000", blue, green)
	}
	return r.locked(ctx, func() error {
		if _, err := r.liveGreen(ctx); err != nil { // not running: change nothing
			return err
		}
		if err := atomicfile.Write(r.file(mapName), mapText(green), 0o600); err != nil {
			return fmt.Errorf("write the traffic split: %w", err)
		}
		return r.setGreen(ctx, green)
	})
}

func (r *Router) setGreen(ctx context.Context, green int) error {
	if err := r.command(ctx, fmt.Sprintf("set map %s green %d", mapName, green)); err != nil {
		return err
	}
	got, err := r.liveGreen(ctx)
	if err != nil {
		return err
	}
	if got != green {
		return fmt.Errorf("the router was told to give green %d permille and has %d: does somebody else change it?", green, got)
	}
	return nil
}

// syncMap gives HAProxy the file's value, where a kill came between the two.
func (r *Router) syncMap(ctx context.Context) error {
	data, err := os.ReadFile(r.file(mapName))
	if err != nil {
		return err
	}
	want, err := parseMap(string(data))
	if err != nil {
		return fmt.Errorf("%s: %w", r.file(mapName), err)
	}
	got, err := r.liveGreen(ctx)
	if err != nil || got == want {
		return err
	}
	return r.setGreen(ctx, want)
}

func (r *Router) liveGreen(ctx context.Context) (int, error) {
	text, err := r.ask(ctx, "show map "+mapName)
	if err != nil {
		return 0, err
	}
	// each line: an address, the key, the value
	var keep []string
	for _, line := range strings.Split(text, "\n") {
		if _, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			keep = append(keep, rest)
		}
	}
	return parseMap(strings.Join(keep, "\n"))
}

func mapText(green int) []byte { return []byte("green " + strconv.Itoa(green) + "\n") }

// parseMap reads the one entry of the map.
func parseMap(text string) (int, error) {
	v, ok := strings.CutPrefix(strings.TrimSpace(text), "green ")
	if !ok {
		return 0, fmt.Errorf("the traffic map should hold the one entry green, not %.80q", text)
	}
	n, err := strconv.Atoi(strings.TrimSpace(v))
	if err != nil || n < noTraffic || n > 1000 {
		return 0, fmt.Errorf("the traffic map says green %.40q: want 0 to 1000, or %d for none", v, noTraffic)
	}
	return n, nil
}

func weights(green int) map[fleet.Slot]int {
	if green < 0 {
		return map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}
	}
	return map[fleet.Slot]int{fleet.Blue: 1000 - green, fleet.Green: green}
}
