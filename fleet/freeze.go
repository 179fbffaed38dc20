package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// weekdays are the names of days in a Window, by time.Weekday.
var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Check says what is wrong with a window. From 00:00 to 00:00 is the whole day;
// other times that are the same are refused, as a slip of the pen.
//
// Zones are those of this machine's time zone database: it is not built in.
func (w Window) Check() error {
	for _, d := range w.Days {
		if !slices.Contains(weekdays, d) {
			return fmt.Errorf("days: %q is no day: use mon, tue, wed, thu, fri, sat, sun", d)
		}
	}
	if _, err := w.times(); err != nil {
		return err
	}
	if w.From == w.To && w.From != "00:00" {
		return fmt.Errorf("from and to are both %s: a whole day is from 00:00 to 00:00", w.From)
	}
	if _, err := time.LoadLocation(w.Zone); err != nil {
		return fmt.Errorf("zone: %q is not in the time zone database of this machine: use a name like Europe/Berlin or UTC (Debian: apt-get install tzdata)", w.Zone)
	}
	return nil
}

// times are From and To.
func (w Window) times() (t [2]time.Time, err error) {
	for i, end := range []struct{ key, text string }{{"from", w.From}, {"to", w.To}} {
		if t[i], err = time.Parse("15:04", end.text); err != nil || len(end.text) != len("15:04") {
			return t, fmt.Errorf("%s: %q is no time of day: write it as 22:30, midnight as 00:00", end.key, end.text)
		}
	}
	return t, nil
}

// frozen refuses a new deployment in a freeze, unless the request says why not.
func (d *Deployer) frozen(ctx context.Context, req *Request) error {
	w, until, frozen := Frozen(d.Config.Freeze, d.now())
	if !frozen {
		req.InFreeze = ""
		return nil
	}
	if req.InFreeze != "" {
		event.Warnf(ctx, "deploying in a freeze (%s): %s", w, req.InFreeze)
		return nil
	}
	end := "until " + until.Local().Format("Mon 2006-01-02 15:04 MST")
	if until.IsZero() {
		end = "with no end known"
	}
	return fmt.Errorf("%w %s by deploy.freeze (%s); wait, or say why not: `--override-freeze REASON`", ErrFrozen, end, w)
}

// round is how far ahead the end of a freeze is looked for: each window comes
// again after a week, so what is longer than two has no end.
const round = 14 * 24 * time.Hour

// Frozen says whether now is in a window, in which (the first of them) and when
// deployments may begin again: at the end of the last of the windows that touch
// or overlap. until is zero if they leave no gap. A window that Check refuses
// counts as frozen without an end, so that a freeze is not lost to a slip.
//
// A window begins on the days that it names and ends on the same or the next
// day, by the clocks of its zone. Where they are put back, a time of day that
// comes twice is the first one for the beginning and the second for the end;
// where they are put forward, one that is left out is the moment of the change.
func Frozen(ws []Window, now time.Time) (w Window, until time.Time, frozen bool) {
	for _, w = range ws {
		if w.Check() != nil {
			return w, time.Time{}, true
		}
	}
	first, until := inside(ws, now)
	if first < 0 {
		return Window{}, time.Time{}, false
	}
	for until.Sub(now) < round {
		next, end := inside(ws, until)
		if next < 0 {
			return ws[first], until, true
		}
		until = end
	}
	return ws[first], time.Time{}, true
}

// inside is the first window that at is in, and its end; -1 if there is none.
func inside(ws []Window, at time.Time) (int, time.Time) {
	for i, w := range ws {
		if end, in := w.inside(at); in {
			return i, end
		}
	}
	return -1, time.Time{}
}

// inside says whether at is in the window, and when that ends.
func (w Window) inside(at time.Time) (until time.Time, in bool) {
	zone, err := time.LoadLocation(w.Zone)
	if err != nil {
		return until, false
	}
	t, err := w.times()
	if err != nil {
		return until, false
	}
	y, m, today := at.In(zone).Date()
	for d := today - 1; d <= today; d++ { // it may have begun yesterday
		day := time.Date(y, m, d, 0, 0, 0, 0, time.UTC) // of the calendar, in no zone yet
		if len(w.Days) > 0 && !slices.Contains(w.Days, weekdays[day.Weekday()]) {
			continue
		}
		ends := day
		if !t[1].After(t[0]) {
			ends = day.AddDate(0, 0, 1)
		}
		begin, end := clock(day, t[0], zone, false), clock(ends, t[1], zone, true)
		if !at.Before(begin) && at.Before(end) {
			return end, true
		}
	}
	return until, false
}

// clock is when the clocks of a zone show a time of day: the first or the last
// time that they do.
func clock(day, of time.Time, zone *time.Location, last bool) time.Time {
	wall := day.Add(time.Duration(of.Hour())*time.Hour + time.Duration(of.Minute())*time.Minute)
	_, before := wall.Add(-24 * time.Hour).In(zone).Zone()
	_, after := wall.Add(24 * time.Hour).In(zone).Zone()
	var shown []time.Time
	for _, offset := range []int{max(before, after), min(before, after)} { // the earlier one first
		t := wall.Add(-time.Duration(offset) * time.Second).In(zone)
		if _, is := t.Zone(); is == offset {
			shown = append(shown, t)
		}
	}
	switch {
	case len(shown) == 0: // left out
		_, change := wall.Add(-time.Duration(max(before, after)) * time.Second).In(zone).ZoneBounds()
		return change
	case last:
		return shown[len(shown)-1]
	}
	return shown[0]
}

// String is the window as its template says it, with its reason.
func (w Window) String() string {
	days, zone := "every day", w.Zone
	if len(w.Days) > 0 {
		days = strings.Join(w.Days, ", ")
	}
	if zone == "" {
		zone = "UTC"
	}
	s := fmt.Sprintf("%s %s-%s %s", days, w.From, w.To, zone)
	if w.Reason != "" {
		s += ": " + w.Reason
	}
	return s
}
