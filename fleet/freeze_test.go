package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // the test does not depend on the machine's; the program does

	"github.com/rebake/rebake/fleet"
)

// at reads a time as 2006-01-02 15:04 in a zone, or with an offset, which says
// which one of two it is.
func at(t *testing.T, zone, s string) time.Time {
	t.Helper()
	if strings.ContainsAny(s[10:], "+-") {
		v, err := time.Parse("2006-01-02 15:04 -0700", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	v, err := time.ParseInLocation("2006-01-02 15:04", s, loc)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// 2026-11-27 is a Friday. Berlin goes forward on 2026-03-29 at 02:00 +0100, and
// back on 2026-10-25 at 03:00 +0200.
func TestFrozen(t *testing.T) {
	const berlin, york = "Europe/Berlin", "America/New_York"
	weekend := fleet.Window{Days: []string{"fri"}, From: "16:00", To: "00:00", Zone: berlin, Reason: "nobody is there"}
	days := fleet.Window{Days: []string{"sat", "sun"}, From: "00:00", To: "00:00", Zone: berlin}
	night := fleet.Window{From: "22:00", To: "06:00", Zone: berlin}
	skipped := fleet.Window{Days: []string{"sun"}, From: "02:30", To: "05:00", Zone: berlin}
	skippedEnd := fleet.Window{Days: []string{"sun"}, From: "01:00", To: "02:30", Zone: berlin}
	noon := fleet.Window{From: "12:00", To: "13:00"}
	for _, tt := range []struct {
		name   string
		ws     []fleet.Window
		now    string // in zone
		zone   string
		until  string // "": not frozen; "never": no end
		window int
	}{
		{"no windows", nil, "2026-11-27 12:00", "UTC", "", 0},
		{"before", []fleet.Window{noon}, "2026-11-27 11:59", "UTC", "", 0},
		{"begins", []fleet.Window{noon}, "2026-11-27 12:00", "UTC", "2026-11-27 13:00", 0},
		{"its end is free", []fleet.Window{noon}, "2026-11-27 13:00", "UTC", "", 0},
		{"zone", []fleet.Window{noon}, "2026-11-27 13:30", berlin, "2026-11-27 14:00", 0},
		{"another day", []fleet.Window{weekend}, "2026-11-26 17:00", berlin, "", 0},
		{"touching windows are one", []fleet.Window{night, weekend, days}, "2026-11-27 17:00", berlin, "2026-11-30 06:00", 1},
		{"the whole day", []fleet.Window{days}, "2026-11-28 00:00", berlin, "2026-11-30 00:00", 0},
		{"the whole day is over", []fleet.Window{days}, "2026-11-30 00:00", berlin, "", 0},
		{"over midnight, before it", []fleet.Window{night}, "2026-11-27 23:00", berlin, "2026-11-28 06:00", 0},
		{"over midnight, after it", []fleet.Window{night}, "2026-11-28 05:59", berlin, "2026-11-28 06:00", 0},
		{"over midnight, of the day that it began", []fleet.Window{{Days: []string{"fri"}, From: "22:00", To: "06:00", Zone: berlin}}, "2026-11-28 03:00", berlin, "2026-11-28 06:00", 0},
		{"over midnight, not of the day that it ends", []fleet.Window{{Days: []string{"sat"}, From: "22:00", To: "06:00", Zone: berlin}}, "2026-11-28 03:00", berlin, "", 0},
		{"over the new year", []fleet.Window{night}, "2026-12-31 22:00", berlin, "2027-01-01 06:00", 0},
		{"the longer of two", []fleet.Window{noon, {From: "12:30", To: "14:00"}}, "2026-11-27 12:45", "UTC", "2026-11-27 14:00", 0},
		{"the longer of two comes first", []fleet.Window{{From: "12:30", To: "14:00"}, noon}, "2026-11-27 12:45", "UTC", "2026-11-27 14:00", 0},
		{"overlapping later", []fleet.Window{noon, {From: "12:30", To: "14:00"}}, "2026-11-27 12:15", "UTC", "2026-11-27 14:00", 0},
		{"a gap of a minute", []fleet.Window{noon, {From: "13:01", To: "14:00"}}, "2026-11-27 12:15", "UTC", "2026-11-27 13:00", 0},
		{"two zones", []fleet.Window{noon, {From: "14:00", To: "15:00", Zone: berlin}}, "2026-11-27 12:15", "UTC", "2026-11-27 14:00", 0}, // 13:00-14:00 UTC
		{"always", []fleet.Window{{From: "00:00", To: "00:00", Reason: "holidays"}}, "2026-11-27 12:15", berlin, "never", 0},
		{"always, of many", []fleet.Window{{From: "00:00", To: "12:00"}, {From: "12:00", To: "00:00"}}, "2026-11-27 12:15", "UTC", "never", 1},
		{"not understood", []fleet.Window{noon, {From: "1pm", To: "14:00"}}, "2026-11-27 20:15", "UTC", "never", 1},

		{"forward: a night is an hour shorter", []fleet.Window{night}, "2026-03-28 23:00", berlin, "2026-03-29 06:00 +0200", 0},
		{"forward: the day has 23 hours", []fleet.Window{days}, "2026-03-28 12:00", berlin, "2026-03-30 00:00 +0200", 0},
		{"forward: begins in the hour left out, before", []fleet.Window{skipped}, "2026-03-29 01:59 +0100", berlin, "", 0},
		{"forward: begins in the hour left out", []fleet.Window{skipped}, "2026-03-29 03:00 +0200", berlin, "2026-03-29 05:00 +0200", 0},
		{"forward: ends in the hour left out", []fleet.Window{skippedEnd}, "2026-03-29 01:59 +0100", berlin, "2026-03-29 03:00 +0200", 0},
		{"forward: over", []fleet.Window{skippedEnd}, "2026-03-29 03:00 +0200", berlin, "", 0},
		{"forward, west of Greenwich", []fleet.Window{{From: "02:30", To: "04:00", Zone: york}}, "2026-03-08 03:00 -0400", york, "2026-03-08 04:00 -0400", 0},
		{"forward, west of Greenwich, before", []fleet.Window{{From: "02:30", To: "04:00", Zone: york}}, "2026-03-08 01:59 -0500", york, "", 0},
		{"forward at midnight", []fleet.Window{{Days: []string{"sun"}, From: "00:00", To: "00:00", Zone: "America/Sao_Paulo"}}, "2018-11-04 01:00 -0200", "UTC", "2018-11-05 00:00 -0200", 0},
		{"forward at midnight, before", []fleet.Window{{Days: []string{"sun"}, From: "00:00", To: "00:00", Zone: "America/Sao_Paulo"}}, "2018-11-03 23:59 -0300", "UTC", "", 0},

		{"back: a night is an hour longer", []fleet.Window{night}, "2026-10-24 23:00", berlin, "2026-10-25 06:00 +0100", 0},
		{"back: the day has 25 hours", []fleet.Window{days}, "2026-10-24 12:00", berlin, "2026-10-26 00:00 +0100", 0},
		{"back: begins the first time", []fleet.Window{skipped}, "2026-10-25 02:30 +0200", berlin, "2026-10-25 05:00 +0100", 0},
		{"back: not before", []fleet.Window{skipped}, "2026-10-25 02:29 +0200", berlin, "", 0},
		{"back: goes on the second time", []fleet.Window{skipped}, "2026-10-25 02:15 +0100", berlin, "2026-10-25 05:00 +0100", 0},
		{"back: ends the second time", []fleet.Window{skippedEnd}, "2026-10-25 02:45 +0200", berlin, "2026-10-25 02:30 +0100", 0},
		{"back, west of Greenwich", []fleet.Window{{From: "00:00", To: "01:30", Zone: york}}, "2026-11-01 01:45 -0400", york, "2026-11-01 01:30 -0500", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, until, frozen := fleet.Frozen(tt.ws, at(t, tt.zone, tt.now))
			if tt.until == "" {
				if frozen {
					t.Fatalf("frozen until %s by %s", until, w)
				}
				return
			}
			if !frozen || w.String() != tt.ws[tt.window].String() {
				t.Fatalf("frozen %v by %s, want %s", frozen, w, tt.ws[tt.window])
			}
			if tt.until == "never" {
				if !until.IsZero() {
					t.Fatalf("ends %s", until)
				}
				return
			}
			if want := at(t, tt.zone, tt.until); !until.Equal(want) {
				t.Fatalf("until %s, want %s", until.UTC(), want.UTC())
			}
		})
	}
}

// At the end that Frozen names nothing is frozen, and at the minute before
// something is: over a year, in zones that change their clocks.
func TestAFreezeEndsWhenItSays(t *testing.T) {
	for _, zone := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"} {
		ws := []fleet.Window{
			{Days: []string{"fri"}, From: "16:00", To: "00:00", Zone: zone}, {Days: []string{"sat", "sun"}, From: "00:00", To: "00:00", Zone: zone},
			{From: "22:30", To: "02:30", Zone: zone},
		}
		frozen := 0
		start := time.Date(2026, 1, 1, 0, 17, 0, 0, time.UTC)
		for now := start; now.Before(start.AddDate(1, 0, 0)); now = now.Add(5 * time.Hour) {
			_, until, is := fleet.Frozen(ws, now)
			if !is {
				continue
			}
			frozen++
			if !until.After(now) {
				t.Fatalf("%s: frozen at %s until %s", zone, now, until)
			}
			if _, _, still := fleet.Frozen(ws, until); still {
				t.Fatalf("%s: frozen at %s until %s, and then still", zone, now, until)
			}
			if _, _, still := fleet.Frozen(ws, until.Add(-time.Minute)); !still {
				t.Fatalf("%s: frozen at %s until %s, and not a minute before", zone, now, until)
			}
		}
		if frozen < 600 || frozen > 1000 { // 56 hours of a weekend, 4 of each other night, each fifth of them
			t.Errorf("%s: frozen in %d hours of a year", zone, frozen)
		}
	}
}

func TestWindowCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		w    fleet.Window
		want string
	}{
		"good":       {fleet.Window{Days: []string{"mon", "sun"}, From: "09:00", To: "17:30", Zone: "Europe/Berlin"}, ""},
		"whole day":  {fleet.Window{From: "00:00", To: "00:00"}, ""},
		"midnight":   {fleet.Window{From: "22:00", To: "06:00", Zone: "UTC"}, ""},
		"same times": {fleet.Window{From: "09:00", To: "09:00"}, "a whole day is from 00:00 to 00:00"},
		"day":        {fleet.Window{Days: []string{"mon", "Tuesday"}, From: "09:00", To: "10:00"}, `days: "Tuesday" is no day: use mon`},
		"from":       {fleet.Window{From: "9:00", To: "10:00"}, `from: "9:00" is no time of day`},
		"to":         {fleet.Window{From: "09:00", To: "24:00"}, "midnight as 00:00"},
		"no times":   {fleet.Window{Days: []string{"mon"}}, `from: ""`},
		"zone":       {fleet.Window{From: "09:00", To: "10:00", Zone: "Europe/Bonn"}, `zone: "Europe/Bonn" is not in the time zone database`},
		"zone path":  {fleet.Window{From: "09:00", To: "10:00", Zone: "../../etc/localtime"}, "zone: "},
	} {
		err := tt.w.Check()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestWindowString(t *testing.T) {
	for want, w := range map[string]fleet.Window{
		"every day 22:00-06:00 UTC":                                 {From: "22:00", To: "06:00"},
		"fri, sat 16:00-00:00 Europe/Berlin: nobody is at the desk": {Days: []string{"fri", "sat"}, From: "16:00", To: "00:00", Zone: "Europe/Berlin", Reason: "nobody is at the desk"},
	} {
		if got := w.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A freeze holds back what would begin, and nothing else: a nightly that has
// nothing to do is no error in it, and the way back is open.
func TestAFreezeHoldsBackWhatWouldBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		deploy := func(image, why string) (fleet.Result, error) {
			req := request(image)
			req.InFreeze = why
			return w.d.Deploy(t.Context(), req)
		}
		if res, err := deploy("1", "not needed"); err != nil || res.InFreeze != "" {
			t.Fatal(res.InFreeze, err)
		}
		w.d.Config.Freeze = []fleet.Window{{From: "00:00", To: "00:00", Reason: "the holidays"}}
		if res, err := deploy("1", ""); err != nil || !res.Unchanged {
			t.Errorf("nothing to do: %v", err)
		}
		n := len(w.recs)
		if _, err := deploy("2", ""); !errors.Is(err, fleet.ErrFrozen) || !strings.Contains(err.Error(), "the holidays") {
			t.Errorf("another image: %v", err)
		}
		if len(w.recs) != n {
			t.Error("what was refused is in the journal")
		}
		w.sound("1")
		w.crashAt = n + 8
		if _, _, killed := w.run(func() (fleet.Result, error) { return deploy("2", "a hole in TLS") }); !killed {
			t.Fatal("it was not killed")
		}
		if res, err := deploy("2", ""); err != nil || res.InFreeze != "a hole in TLS" { // begun is begun
			t.Fatal(res.InFreeze, err)
		}
		w.sound("2")
		if _, err := w.d.Rollback(t.Context(), "it was not the hole"); err != nil {
			t.Errorf("the way back: %v", err)
		}
		w.sound("1")
	})
}
