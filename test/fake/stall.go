package fake

import (
	"net"
	"strconv"
	"sync"
	"time"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// stall is a connection with latency, and one that can be frozen for good.
type stall struct {
	net.Conn
	delay  time.Duration
	once   sync.Once
	frozen chan struct{}
	queue  chan late
}

type late struct {
	at time.Time
	b  []byte
}

func newStall(c net.Conn, delay time.Duration) *stall {
	s := &stall{Conn: c, delay: delay, frozen: make(chan struct{})}
	if delay > 0 {
		s.queue = make(chan late, 1<<14)
		go s.deliver()
	}
	return s
}

func (s *stall) freeze() { s.once.Do(func() { close(s.frozen) }) }

// deliver writes what was queued once its time has come: a delay, not a
// smaller bandwidth. All of the round trip is on this one side.
func (s *stall) deliver() {
	for l := range s.queue {
		time.Sleep(time.Until(l.at))
		if _, err := s.Conn.Write(l.b); err != nil {
			return
		}
	}
}

func (s *stall) Write(b []byte) (int, error) {
	select {
	case <-s.frozen:
		return len(b), nil // into nothing
	default:
	}
	if s.delay == 0 {
		return s.Conn.Write(b)
	}
	select {
	case s.queue <- late{time.Now().Add(s.delay), append([]byte(nil), b...)}:
		return len(b), nil
	case <-time.After(10 * time.Second):
		return 0, net.ErrClosed
	}
}

func (s *stall) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	select {
	case <-s.frozen:
		if err == nil { // swallow, and answer nothing
			return s.Read(b)
		}
	default:
	}
	return n, err
}
