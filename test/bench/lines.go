package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// tail is the last lines of what a command printed.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines = append(t.lines, line); len(t.lines) > 15 {
		t.lines = t.lines[1:]
	}
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// rebakeLines reads what `rebake --output json build` prints.
type rebakeLines struct {
	phases []phase
	ended  time.Time // of the last task that no other holds, which is
	last   string
	result []struct {
		Changed bool
		Image   struct {
			Name, Version string
			StoredNew     int64 `json:"stored_new"`
		}
	}
	bad error
}

func (r *rebakeLines) line(_ time.Time, text string) {
	var e struct {
		Kind, Name string
		Time       time.Time
		Parent     int
		Seconds    float64
		Result     json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		r.bad = fmt.Errorf("rebake printed %q: %w", text, err)
		return
	}
	switch e.Kind {
	case "start":
		// After it has connected, and before the next task, rebake gives the guest the time and fresh entropy.
		if e.Parent == 0 && r.last == connectPhase {
			r.phases = append(r.phases, phase{wakePhase, e.Time.Sub(r.ended).Seconds()})
		}
	case "end":
		e.Name = ago.ReplaceAllString(e.Name, "")
		r.phases = append(r.phases, phase{e.Name, e.Seconds})
		if e.Parent == 0 {
			r.ended, r.last = e.Time, e.Name
		}
	case "result":
		if err := json.Unmarshal(e.Result, &r.result); err != nil {
			r.bad = fmt.Errorf("rebake's result %s: %w", e.Result, err)
		}
	}
}

// packerLines reads what `packer build -color=false` prints: each line that it
// marks by an arrow begins a phase, which the next one ends.
type packerLines struct {
	began  time.Time
	phases []phase
	name   string
	seen   map[string]int
}

// ago differs from run to run.
var ago = regexp.MustCompile(`, saved \S+ ago$`)

// arrow is a line that begins a phase.
var arrow = regexp.MustCompile(`^(?:==> qemu: (.*)|(Build 'qemu' finished).*|(==> Builds finished).*)$`)

// packerPhases names them; what is not in it is not worth a line of its own.
var packerPhases = []struct{ prefix, name string }{
	{"Retrieving ", "copy of the base"},
	{"Starting HTTP", "start"}, {"Starting VM", "start"},
	{"Waiting ", "boot_wait"},
	{"Waiting for SSH", "wait for SSH"}, {"Using ssh", "wait for SSH"},
	{"Connected to SSH", "connected"},
	{"Provisioning with shell", "shell"}, {"Uploading ", "upload"},
	{"Gracefully halting", "shut down"}, {"Converting ", "convert"},
	{"Build 'qemu' finished", "end"}, {"==> Builds", "end"},
}

func packerPhase(text string) string {
	name := ""
	for _, p := range packerPhases { // the last one that fits is the longest
		if strings.HasPrefix(text, p.prefix) {
			name = p.name
		}
	}
	return name
}

func (p *packerLines) line(at time.Time, text string) {
	m := arrow.FindStringSubmatch(text)
	if m == nil {
		return
	}
	name := packerPhase(m[1] + m[2] + m[3])
	if name == "" {
		return
	}
	if name != "end" {
		name = p.numbered(name)
	}
	if p.name != "" && p.name != "end" {
		p.phases = append(p.phases, phase{p.name, at.Sub(p.began).Seconds()})
	}
	p.name, p.began = name, at
}

// numbered tells the second upload from the first.
func (p *packerLines) numbered(name string) string {
	if name != "shell" && name != "upload" {
		return name
	}
	p.seen[name]++
	return fmt.Sprintf("%s %d", name, p.seen[name])
}
