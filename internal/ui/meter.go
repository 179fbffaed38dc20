package ui

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// meter turns reports of progress into a bar with rate and time left.
type meter struct {
	done, total int64
	last        time.Time
	rate        float64 // bytes a second, smoothed over about 3 s
}

func (m *meter) add(now time.Time, done, total int64) {
	if m.last.IsZero() || done < m.done || total != m.total {
		*m = meter{done: done, total: total, last: now}
		return
	}
	dt := now.Sub(m.last).Seconds()
	if dt < 0.05 && done != total {
		return // too short a time to tell a rate; the bytes count at the next report
	}
	if dt > 0 {
		rate := float64(done-m.done) / dt
		if m.rate == 0 {
			m.rate = rate
		} else {
			share := min(1, dt/3)
			m.rate += share * (rate - m.rate)
		}
	}
	m.done, m.last = done, now
}

// fresh says whether the bar tells what the task is at: started, not full, and
// told of in the last while.
func (m *meter) fresh(now time.Time) bool {
	return !m.last.IsZero() && (m.total == 0 || m.done < m.total) && now.Sub(m.last) < 5*time.Second
}

const barWidth = 20

func (m *meter) String() string {
	s := amount(m.done, m.total)
	if m.total > 0 {
		full := barWidth * percent(m.done, m.total) / 100
		s = "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "] " + s
	}
	if m.rate >= 1 {
		s += fmt.Sprintf("  %s/s", Size(int64(m.rate)))
		if m.total > m.done {
			if left := float64(m.total-m.done) / m.rate; left < 100*3600 {
				s += "  " + Duration(time.Duration(left+0.5)*time.Second) + " left"
			}
		}
	}
	return s
}

// paint colours text, or leaves it as it is.
type paint bool

func (p paint) sgr(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p paint) red(s string) string    { return p.sgr("31", s) }
func (p paint) green(s string) string  { return p.sgr("32", s) }
func (p paint) yellow(s string) string { return p.sgr("33", s) }
func (p paint) cyan(s string) string   { return p.sgr("36", s) }
func (p paint) dim(s string) string    { return p.sgr("2", s) }
