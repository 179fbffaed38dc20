package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// saved is a benchmark as far as it got: runs.json. Only whole pairs are in it.
type saved struct {
	Rebake        string   `json:"rebake"` // what must be the same to go on
	Base          string   `json:"base"`
	Machine       []fact   `json:"machine"`
	BootWait      string   `json:"boot_wait"`
	BackingFile   bool     `json:"backing_file"`
	NoBackingFile string   `json:"no_backing_file,omitempty"`
	Sittings      int      `json:"sittings"` // that it took so far
	Done          []string `json:"done"`
	Sizes         []size   `json:"sizes"`
	Runs          []run    `json:"runs"`
}

func (p *page) savedPath() string { return filepath.Join(p.work, "runs.json") }

// save writes down what was done, and the page.
func (p *page) save(done string) error {
	p.done = append(p.done, done)
	err := writeJSON(p.savedPath(), saved{p.machineOf("rebake"), p.checksum, p.machine, p.bootWait, p.backingFile, p.noBackingFile, p.sittings, p.done, p.sizes.list, p.runs})
	if err != nil {
		return err
	}
	return p.write()
}

// resume takes up an interrupted benchmark of the same rebake and base.
func (p *page) resume() error {
	raw, err := os.ReadFile(p.savedPath())
	if err != nil {
		return fmt.Errorf("-continue: %w", err)
	}
	var s saved
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("-continue: %s: %w", p.savedPath(), err)
	}
	if s.Rebake != p.machineOf("rebake") || s.Base != p.checksum {
		return fmt.Errorf("-continue: what was measured is %s, and this is %s: begin anew", s.Rebake, p.machineOf("rebake"))
	}
	p.machine, p.bootWait, p.backingFile, p.noBackingFile = s.Machine, s.BootWait, s.BackingFile, s.NoBackingFile
	p.done, p.sizes.list, p.runs, p.sittings = s.Done, s.Sizes, s.Runs, s.Sittings+1
	return nil
}

func (p *page) machineOf(what string) string {
	for _, f := range p.machine {
		if f.What == what {
			return f.Value
		}
	}
	return ""
}

func (p *page) did(what string) bool { return slices.Contains(p.done, what) }
