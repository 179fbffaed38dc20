package main

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// usage is what a tool and its children took, QEMU's own process counted apart.
type usage struct {
	CPU    float64 `json:"cpu_seconds"`
	QEMU   float64 `json:"qemu_cpu_seconds"`
	Memory int64   `json:"memory_bytes"` // largest sum of PSS seen: a page that processes share counts once
}

const (
	sampleEvery = 200 * time.Millisecond
	clockTick   = 100 // USER_HZ of every Linux architecture that QEMU runs on
)

// proc is one line of /proc/PID/stat.
type proc struct {
	pid, parent int
	comm        string
	ticks       uint64 // user and system
	started     uint64 // tells a process from a later one of the same id
}

// parseStat reads it. The name is in brackets and may hold both blanks and brackets.
func parseStat(line string) (proc, bool) {
	var p proc
	var user, system uint64
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || shut < open {
		return p, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	rest := strings.Fields(line[shut+1:])
	if err != nil || len(rest) < 20 {
		return p, false
	}
	parent, err := strconv.Atoi(rest[1])
	if err != nil {
		return p, false
	}
	p = proc{pid: pid, parent: parent, comm: line[open+1 : shut]}
	for i, dst := range map[int]*uint64{11: &user, 12: &system, 19: &p.started} {
		if *dst, err = strconv.ParseUint(rest[i], 10, 64); err != nil {
			return proc{}, false
		}
	}
	p.ticks = user + system
	return p, true
}

func isQEMU(comm string) bool { return strings.HasPrefix(comm, "qemu-system") }

// tree follows a process and its descendants. A process that was once found to
// be somebody else's is not read again: looking must cost next to nothing.
type tree struct {
	family map[int]proc
	others map[int]bool
	pids   func() []int
	stat   func(pid int) (proc, bool)
}

func newTree(root int) *tree {
	return &tree{family: map[int]proc{root: {pid: root}}, others: map[int]bool{}, pids: pids, stat: stat}
}

func pids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out) // a parent before its children, nearly always
	return out
}

func stat(pid int) (proc, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return proc{}, false
	}
	return parseStat(string(raw))
}

// look returns the family as it is now. What a QEMU process started is not in it.
func (t *tree) look() []proc {
	now := t.pids()
	alive := make(map[int]bool, len(now))
	var out []proc
	for _, pid := range now {
		alive[pid] = true
		if t.others[pid] {
			continue
		}
		p, ok := t.stat(pid)
		if !ok {
			continue // it ended meanwhile
		}
		_, known := t.family[pid]
		parent, child := t.family[p.parent]
		if !known && (!child || isQEMU(parent.comm)) {
			t.others[pid] = true
			continue
		}
		t.family[pid] = p
		out = append(out, p)
	}
	for pid := range t.others {
		if !alive[pid] {
			delete(t.others, pid)
		}
	}
	for pid := range t.family {
		if !alive[pid] {
			delete(t.family, pid)
		}
	}
	return out
}

// pss is the memory of a process, pages that it shares counted in parts.
func pss(pid int) int64 {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(raw) {
		if f := strings.Fields(string(line)); len(f) >= 2 && f[0] == "Pss:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// sampler looks at a process tree until it is stopped.
type sampler struct {
	stop chan struct{}
	done sync.WaitGroup
	use  usage
}

// sample starts looking at root. What a process used in the last fifth of a
// second of its life is missed; that is so for both tools.
func sample(root int) *sampler {
	s := &sampler{stop: make(chan struct{})}
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		type id struct {
			pid     int
			started uint64
		}
		seen := map[id]proc{} // the latest of each
		family := newTree(root)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			var mem int64
			for _, p := range family.look() {
				seen[id{p.pid, p.started}] = p
				if !isQEMU(p.comm) {
					mem += pss(p.pid)
				}
			}
			s.use.Memory = max(s.use.Memory, mem)
			select {
			case <-tick.C:
				continue
			case <-s.stop:
			}
			for _, p := range seen {
				if isQEMU(p.comm) {
					s.use.QEMU += float64(p.ticks) / clockTick
				} else {
					s.use.CPU += float64(p.ticks) / clockTick
				}
			}
			return
		}
	}()
	return s
}

// end returns what was used. Call it before the root is waited for, or just after.
func (s *sampler) end() usage {
	close(s.stop)
	s.done.Wait()
	return s.use
}
