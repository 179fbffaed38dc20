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
		rows = append(rows, []string{string(ph.State), span(ph.Instances), span(ph.Serving), fmt.Sprintf("%g %%", float64(ph.Permille)/10),
			orWord(ph.Hold, ""), orWord(ph.Deadline, "no limit"), joined(ph.Title, ph.Note)})
	}
	notes := ""
	for _, n := range f.Notes {
		notes += "\nnote: " + n
	}
	return ui.Table(rows) + f.Strategy + ": " + times(f) + "; " + needs(f) + notes +
		fmt.Sprintf("\nplan %s: `rebake deploy %s --approve %s`, with the same options, runs exactly this\n", id, tpl, id)
}

func times(f fleet.Forecast) string {
	s := "worst case " + ui.Duration(f.WorstCase) + " forward"
	if f.Unlimited {
		s += " and as long as a person lets it pause"
	}
	s += ", " + ui.Duration(f.WorstBack) + " back"
	if f.OnFailure == "pause" {
		s += " once a person says so"
	}
	return s
}

// needs leaves out what is not known: the memory of a pool that does not tell it.
func needs(f fleet.Forecast) string {
	parts := []string{fmt.Sprintf("at most %d machines", f.MachinesPeak)}
	if f.MemoryPeak > 0 {
		parts = append(parts, ui.Size(f.MemoryPeak)+" more than now")
	}
	if f.MachinesNow > 0 {
		parts = append(parts, fmt.Sprintf("never fewer than %d able to serve", f.Least))
	}
	return strings.Join(parts, ", ")
}

func span(s fleet.Span) string {
	if s.Min == s.Max {
		return fmt.Sprint(s.Min)
	}
	return fmt.Sprintf("%d-%d", s.Min, s.Max)
}

func orWord(d time.Duration, word string) string {
	if d == 0 {
		return word
	}
	return ui.Duration(d)
}

func joined(title, note string) string {
	if note == "" {
		return title
	}
	return title + " (" + note + ")"
}
