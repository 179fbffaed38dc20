package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/ui"
)

// renderForecast is what `deploy --plan` prints: the states, a sum, and how to approve it.
func renderForecast(f fleet.Forecast, id, tpl string) string {
	rows := [][]string{{"STATE", "INSTANCES", "SERVING", "NEW IMAGE", "HOLD", "AT MOST", "WHAT"}}
	for _, ph := range f.Phases {
		rows = append(rows, []string{string(ph.State), span(ph.Instances), span(ph.Serving), fmt.Sprintf("%.1f %%", float64(ph.Permille)/10),
			orDash(ph.Hold), orDash(ph.Deadline), joined(ph.Title, ph.Note)})
	}
	var b strings.Builder
	b.WriteString(ui.Table(rows))
	worst := ui.Duration(f.WorstCase)
	if f.Unlimited {
		worst += " and as long as a person lets it pause"
	}
	back := ui.Duration(f.WorstBack)
	if f.OnFailure == "pause" {
		back += " from a person's word on"
	}
	fmt.Fprintf(&b, "at worst %s forward, %s back; at most %d machines (%d now), %d MiB more than now; never fewer than %d able to serve\n",
		worst, back, f.MachinesPeak, f.MachinesNow, f.MemoryPeak>>20, f.Least)
	fmt.Fprintf(&b, "plan %s: `rebake deploy %s --approve %s` carries out exactly this\n", id, tpl, id)
	return b.String()
}

func span(s fleet.Span) string {
	if s.Min == s.Max {
		return fmt.Sprint(s.Min)
	}
	return fmt.Sprintf("%d–%d", s.Min, s.Max)
}

func orDash(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return ui.Duration(d)
}

func joined(title, note string) string {
	if note == "" {
		return title
	}
	return title + " (" + note + ")"
}
