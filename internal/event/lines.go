package event

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
	"unicode/utf8"
)

// Writer returns a writer that turns each line into an output event; Close
// sends an unfinished last line. A longer line than 16 KiB becomes several
// events, never cut within a secret. Of a line that is rewritten by carriage
// returns, as progress bars are, the last state is sent and at most one a
// second of those before it.
func Writer(ctx context.Context) io.WriteCloser { return &lines{s: from(ctx)} }

const (
	maxLine      = 16 << 10
	rewriteEvery = time.Second
)

type lines struct {
	mu        sync.Mutex
	s         scope
	buf       []byte
	seen      int       // bytes of buf that hold no line end
	rewritten time.Time // when a state of a rewritten line was last sent
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	if l.s.sink == nil {
		return n, nil
	}
	for len(p) > 0 {
		k := min(len(p), maxLine)
		l.buf = append(l.buf, p[:k]...)
		p = p[k:]
		l.drain(maxLine + l.s.red.longest())
	}
	return n, nil
}

// drain sends what is whole. limit is how much waits for a line's end.
func (l *lines) drain(limit int) {
	rest, seen := l.buf, l.seen
	for {
		i := -1
		if to := min(len(rest), limit); seen < to {
			if i = bytes.IndexAny(rest[seen:to], "\r\n"); i >= 0 {
				i += seen
			}
		}
		if i < 0 {
			if len(rest) < limit {
				seen = len(rest)
				break
			}
			n := l.cut(rest)
			l.output(rest[:n])
			rest, seen = rest[n:], 0
			continue
		}
		end := i
		for end < len(rest) && rest[end] == '\r' {
			end++
		}
		if end == len(rest) { // a line feed may follow
			rest, seen = rest[:i+1], i
			break
		}
		if rest[end] == '\n' {
			l.output(rest[:i])
			end++
		} else if now := time.Now(); i > 0 && now.Sub(l.rewritten) >= rewriteEvery {
			l.rewritten = now
			l.output(rest[:i])
		}
		rest, seen = rest[end:], 0
	}
	l.seen = seen
	if len(rest) < len(l.buf) {
		l.buf = append(l.buf[:0], rest...)
	}
}

// cut is where a line that is too long may be cut.
func (l *lines) cut(b []byte) int {
	n := maxLine
	for _, s := range l.s.red.spans(string(b)) {
		if s.start < n && n < s.end {
			if s.start == 0 {
				return s.end
			}
			return s.start
		}
	}
	for back := 0; back < utf8.UTFMax-1 && n < len(b) && !utf8.RuneStart(b[n]); back++ {
		n--
	}
	return n
}

func (l *lines) output(b []byte) { l.s.send(Event{Kind: Output, Text: string(b)}) }

// Close sends the rest; the writer may be used on.
func (l *lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rest := bytes.TrimRight(l.buf, "\r"); len(rest) > 0 {
		l.output(rest)
	}
	l.buf, l.seen = nil, 0
	return nil
}
