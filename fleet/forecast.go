package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Forecast is what a deployment will do if all goes well, and how long and how
// much it may take at most: what a person approves before it begins. Times hold
// while the pool and the router answer.
type Forecast struct {
	Strategy     string        `json:"strategy"`
	Phases       []Phase       `json:"phases"`
	MachinesNow  int           `json:"machines_now"`
	MachinesPeak int           `json:"machines_peak"`
	MemoryPeak   int64         `json:"memory_peak"`     // bytes more than now
	Least        int           `json:"least"`           // fewest that can serve at any time
	WorstCase    time.Duration `json:"worst_case"`      // until the command returns that does not wait for the old slot's rest
	WorstBack    time.Duration `json:"worst_back"`      // from a failure at the worst point until the old image serves alone
	Unlimited    bool          `json:"unlimited"`       // a pause without an end, which WorstCase does not count
	Notes        []string      `json:"notes,omitempty"` // of pool and router, for a person; not of what is approved
	OnFailure    string        `json:"on_failure"`      // "pause": a person begins the way back, which WorstBack does not count
}

// Phase is one state of a Forecast. Of two figures the second is the greater:
// within the phase it goes from one to the other.
type Phase struct {
	State     State         `json:"state"`
	Title     string        `json:"title"`
	Instances Span          `json:"instances"`      // machines, those of a baseline too
	Serving   Span          `json:"serving"`        // able to take traffic, in a slot that has some
	Permille  int           `json:"permille"`       // of the traffic, to the new slot at the end of it
	Hold      time.Duration `json:"hold,omitempty"` // it lasts at least that
	Deadline  time.Duration `json:"deadline"`       // and at most that; 0: for ever
	Note      string        `json:"note,omitempty"`
}

// Span is a number of instances, from the least to the most.
type Span struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// ForecastOf is the forecast for a fleet that keeps its size: old says that
// something serves now. The policy is as Complete returns it.
func ForecastOf(p Policy, size int, old bool, memoryPerInstance int64) Forecast {
	if !old {
		return ForecastFrom(p, size, 0, memoryPerInstance)
	}
	return ForecastFrom(p, size, size, memoryPerInstance)
}

// ForecastFrom is the forecast for a fleet of oldSize instances, 0 if it is its
// first deployment. It walks as Next does; a rolling one is asked of Next's own turn.
func ForecastFrom(p Policy, size, oldSize int, memoryPerInstance int64) Forecast {
	w := walk{p: p, is: scene{old: oldSize}, Forecast: Forecast{Strategy: p.Strategy, MachinesNow: oldSize, OnFailure: p.OnFailure}}
	w.r.Policy, w.r.WantOld = p, oldSize
	w.r.New = Release{Spec: Spec{Size: size}, Group: GroupID{Slot: Green}}
	if oldSize > 0 {
		w.r.Old = &Release{Spec: Spec{Size: oldSize}, Group: GroupID{Slot: Blue}}
	}
	switch {
	case w.r.refreshes():
		w.inPlace()
		w.MachinesNow, oldSize = w.Phases[0].Instances.Min, w.Phases[0].Serving.Min
	case w.r.rolling():
		w.phase(Planned, p.Drain, w.is, "clear the free slot")
		w.roll()
	default:
		w.phase(Planned, p.Drain, w.is, "clear the free slot")
		w.blueGreen()
	}
	w.Least = oldSize
	for _, ph := range w.Phases {
		w.MachinesPeak = max(w.MachinesPeak, ph.Instances.Max)
		w.Least = min(w.Least, ph.Serving.Min)
	}
	w.MemoryPeak = int64(w.MachinesPeak-w.MachinesNow) * memoryPerInstance
	return w.Forecast
}

// ID names the forecast together with what else was approved: it is another one
// as soon as anything differs.
func (f Forecast) ID(parts ...string) string {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // numbers and words: there is nothing that could fail
	}
	h := sha256.New()
	for _, part := range append([]string{string(b)}, parts...) {
		fmt.Fprintf(h, "%d:", len(part)) // so that none runs into the next
		_, _ = io.WriteString(h, part)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// walk goes through a deployment, as far as numbers go.
type walk struct {
	Forecast
	p    Policy
	r    Record // what Next would know of it
	is   scene
	rest bool // the command has returned
}

// scene is what is there at one moment.
type scene struct {
	fresh, old, base int // machines
	in, baseIn       int // those that were let in to take traffic
	permille         int // of the traffic, to the new slot
}

func (s scene) machines() int { return s.fresh + s.old + s.base }

func (s scene) serving() (n int) {
	if s.permille > 0 {
		n = s.in
	}
	if s.permille < 1000 {
		n += s.old + s.baseIn
	}
	return n
}

// phase tells a state that may last that long, at the end of which then is there.
func (w *walk) phase(s State, deadline time.Duration, then scene, title string, a ...any) *Phase {
	span := func(a, b int) Span { return Span{min(a, b), max(a, b)} }
	w.Phases = append(w.Phases, Phase{
		State: s, Title: fmt.Sprintf(title, a...), Permille: then.permille, Deadline: deadline,
		Instances: span(w.is.machines(), then.machines()), Serving: span(w.is.serving(), then.serving()),
	})
	w.is = then
	if !w.rest {
		w.WorstCase += deadline
	}
	return &w.Phases[len(w.Phases)-1]
}

// blueGreen is all of the new slot beside all of the old one, then the steps.
func (w *walk) blueGreen() {
	p, size := w.p, w.r.New.Spec.Size
	_, base := w.r.base()
	w.start(size, base)
	first := 0
	if w.r.Old == nil { // nothing to share the traffic with
		first = len(p.Steps) - 1
	}
	for i := first; i < len(p.Steps); i++ {
		w.r.Step = i
		w.shift()
		w.hold()
		w.pause()
	}
	w.WorstBack = w.goBack(0)
	if w.r.Old == nil {
		return
	}
	w.bake(base)
	then := w.is
	then.old = 0
	w.phase(Retiring, p.Drain, then, "retire the old instances").Note = "from here on going back is a new deployment"
}

// roll is batch by batch, as turn decides.
func (w *walk) roll() {
	for {
		before := w.r
		w.r, _ = w.r.turn(view{}, w.p, time.Time{})
		w.WorstBack = max(w.WorstBack, w.goBack(w.rounds()))
		switch {
		case w.r.State == Baking, w.r.WantNew == before.WantNew && w.r.WantOld == before.WantOld:
			return
		case w.r.State == Shrinking:
			then := w.is
			then.old, then.permille = w.r.WantOld, w.r.share(w.p)[Green]
			w.phase(Shrinking, w.p.Drain, then, "take old instances out, down to %d", w.r.WantOld)
		default:
			w.start(w.r.WantNew, 0)
			w.shift()
			w.hold()
			if w.r.Turns == 1 {
				w.pause()
			}
		}
	}
}

// start brings the new instances up to n, and the baseline with the first ones.
func (w *walk) start(n, base int) {
	then, asked := w.is, w.gates(-1)
	then.fresh, then.base = n, base
	title := fmt.Sprintf("start %d new instances", n)
	if w.r.rolling() {
		title = fmt.Sprintf("start new instances, up to %d", n)
	}
	ph := w.phase(Provisioning, w.p.Launch, then, "%s", title)
	if base > 0 {
		ph.Note = fmt.Sprintf("and %d fresh ones of the old image, to compare with", base)
	}
	then.in, then.baseIn = n, base
	w.phase(Warming, w.p.Within, then, "wait until they are healthy")
	w.phase(Verifying, w.p.Verify, then, "verify them").Note = asked.note()
}

func (w *walk) shift() {
	then := w.is
	then.permille = w.r.share(w.p)[Green]
	w.phase(Shifting, w.p.Restore, then, "shift traffic to %s", part(then.permille))
}

// hold lasts longer than it is meant to where an instance is unhealthy at its
// end, gates do not know yet, or requests to the old slot do not end.
func (w *walk) hold() {
	p, s, gates := w.p, w.p.Steps[w.r.Step], w.gates(w.r.Step)
	most := s.Hold
	if len(gates.judged)+len(gates.asked) > 0 {
		most = p.maxHold(s.Hold) + gates.time
	}
	most += p.Grace
	if last := w.r.Step == len(p.Steps)-1; last && w.r.Old != nil && !w.r.rolling() {
		most = max(most, p.Drain)
	}
	ph := w.phase(Holding, most, w.is, "hold at %s", part(w.is.permille))
	ph.Hold, ph.Note = s.Hold, gates.note()
	if ph.Note != "" && p.OnInconclusive == "pause" {
		ph.Note += "; inconclusive ones stop it for a person"
	}
}

func (w *walk) pause() {
	s := w.p.Steps[w.r.Step]
	if !s.Pause {
		return
	}
	ph := w.phase(Paused, s.PauseFor, w.is, "wait for a person")
	if ph.Note = "`rebake deploy resume` goes on; without it, back"; s.PauseFor == 0 {
		ph.Note, w.Unlimited = "`rebake deploy resume` goes on; without it, no end", true
	}
}

// bake is the old slot's rest. The baseline ends at its beginning.
func (w *walk) bake(base int) {
	p, then, ends := w.p, w.is, time.Duration(0)
	if base > 0 {
		then.base, then.baseIn, ends = 0, 0, p.Drain
	}
	if p.KeepOld == 0 && base == 0 {
		return
	}
	if p.KeepOld > 0 {
		w.rest = true
		w.WorstCase += ends
	}
	ph := w.phase(Baking, max(p.KeepOld, ends), then, "keep the old instances")
	if ph.Hold = p.KeepOld; p.KeepOld > 0 {
		ph.Note = "`rebake rollback` is one traffic write; the command returns here without --wait"
	}
}

// goBack is how long the way back takes if old instances are started again in
// so many rounds. Where failed instances stay for a look, the command returns.
func (w *walk) goBack(rounds int) time.Duration {
	p := w.p
	d := p.Restore + time.Duration(rounds)*(p.Launch+p.Within) + p.Drain
	if p.Quarantine == 0 {
		d += p.Launch
	}
	return d
}

// rounds is how often a rolling deployment starts old instances on its way back
// from here: as many as there is room for, then a new one makes way.
func (w *walk) rounds() (n int) {
	size, fresh, old := w.r.Old.Spec.Size, w.r.WantNew, w.r.WantOld
	for old < size {
		if room := size + w.p.Roll.MaxSurge - fresh - old; room > 0 {
			old, n = old+min(room, size-old), n+1
		} else {
			fresh--
		}
	}
	return n
}

// gatesAt are the gates that matter at a step.
type gatesAt struct {
	judged, asked []string
	time          time.Duration // longest that one round of questions takes
}

func (w *walk) gates(step int) (at gatesAt) {
	for _, g := range w.p.Gates {
		switch {
		case g.isAsked():
			if g.Test && step >= 0 {
				continue
			}
			at.asked = append(at.asked, g.Name)
			if g.Command != nil {
				at.time += g.Command.Timeout
			}
			if g.HTTP != nil { // all instances at once
				at.time += g.HTTP.Timeout
			}
		case step >= 0 && !(g.Canary != nil && (w.r.Old == nil || w.p.Steps[step].Permille == 1000)):
			at.judged = append(at.judged, g.Name)
		}
	}
	return at
}

func (g gatesAt) note() string {
	var parts []string
	if len(g.judged) > 0 {
		parts = append(parts, "judges "+strings.Join(g.judged, ", "))
	}
	if len(g.asked) > 0 {
		parts = append(parts, "asks "+strings.Join(g.asked, ", "))
	}
	return strings.Join(parts, "; ")
}

func part(permille int) string { return fmt.Sprintf("%g %%", float64(permille)/10) }
