package inventory

import (
	"fmt"
	"strings"
)

// mostListed bounds each list of a Summary.
const mostListed = 50

// Summary is a diff in short: small enough to be kept with a promotion, and to be
// read by a person.
type Summary struct {
	Text     string                    `json:"text"`               // one line: packages: 3 up, 1 added; new setuid or setgid: 1
	Counts   map[string]map[string]int `json:"counts,omitempty"`   // by kind and what was done: packages: {up: 3}
	Packages []Change                  `json:"packages,omitempty"` // the first 50
	SetID    []string                  `json:"setid,omitempty"`    // the same
	Ports    []Change                  `json:"ports,omitempty"`
	Users    []Change                  `json:"users,omitempty"`
}

// String is the summary's line.
func (s Summary) String() string { return s.Text }

// Summary is the diff in short.
func (d Diff) Summary() Summary {
	s := Summary{
		Counts: map[string]map[string]int{}, SetID: d.SetID[:min(mostListed, len(d.SetID))],
		Packages: first(d.Packages), Ports: first(d.Ports), Users: first(d.Users),
	}
	var parts []string
	for _, g := range d.kinds() {
		n := map[string]int{}
		for _, c := range g.Changes {
			n[c.What]++
		}
		var words []string
		for _, w := range []string{Up, Down, Changed, Added, Removed} {
			if n[w] > 0 {
				words = append(words, fmt.Sprintf("%d %s", n[w], w))
			}
		}
		if len(words) > 0 {
			s.Counts[g.Name] = n
			parts = append(parts, g.Name+": "+strings.Join(words, ", "))
		}
	}
	if n := len(d.SetID); n > 0 {
		s.Counts["setid"] = map[string]int{Added: n}
		parts = append(parts, fmt.Sprintf("new setuid or setgid: %d", n))
	}
	if len(d.Unknown) > 0 {
		parts = append(parts, "unknown: "+strings.Join(d.Unknown, ", "))
	}
	if s.Text = strings.Join(parts, "; "); s.Text == "" {
		s.Text = "nothing changed"
	}
	return s
}

func first(l []Change) []Change { return l[:min(mostListed, len(l))] }

// kind is one of the diff's lists, with the name that people read.
type kind struct {
	Name    string
	Changes []Change
}

func (d Diff) kinds() []kind {
	return []kind{{"packages", d.Packages}, {"kernels", d.Kernel}, {"ports", d.Ports}, {"users", d.Users}, {"groups", d.Groups}, {"units", d.Units},
		{"cron", d.Cron}, {"sshd settings", d.SSHD}, {"config files", d.Config}, {"other files", d.Files}}
}
