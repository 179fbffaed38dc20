package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// monitor is a QMP connection. (go-qemu's client has no deadlines: a QEMU that
// hangs would hang its caller, so this one is ours.)
type monitor struct {
	conn   net.Conn
	mu     sync.Mutex // one command at a time
	reply  chan qmpMessage
	closed chan struct{}
	event  func(*monitor, qmpMessage)
}

type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

const maxQMPLine = 1 << 20

// errRefused is of a command that QEMU has not carried out. After another error
// it may have.
var errRefused = errors.New("QEMU refused")

var errSilent = errors.New("QEMU did not answer for 30s")

// dialQMP connects and negotiates. event is called from the reader, in order; may be nil.
func dialQMP(ctx context.Context, path string, event func(*monitor, qmpMessage)) (*monitor, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, reply: make(chan qmpMessage, 1), closed: make(chan struct{}), event: event}
	greeted := make(chan struct{})
	go m.read(greeted)
	select {
	case <-greeted:
	case <-m.closed:
		return nil, fmt.Errorf("QEMU closed its control socket: %w", io.ErrUnexpectedEOF)
	case <-ctx.Done():
		m.close()
		return nil, context.Cause(ctx)
	}
	if err := m.run(ctx, "qmp_capabilities", nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) read(greeted chan<- struct{}) {
	defer close(m.closed)
	defer m.conn.Close()
	sc := bufio.NewScanner(m.conn)
	sc.Buffer(nil, maxQMPLine)
	for sc.Scan() {
		var msg qmpMessage
		if err := json.Unmarshal(sc.Bytes(), &msg); err != nil {
			return
		}
		switch {
		case msg.QMP != nil && greeted != nil:
			close(greeted)
			greeted = nil
		case msg.Event != "":
			if m.event != nil {
				m.event(m, msg)
			}
		case msg.Return != nil || msg.Error != nil:
			select {
			case m.reply <- msg:
			default: // the answer of a command whose caller gave up
			}
		}
	}
}

// run executes one command and waits for its answer.
func (m *monitor) run(ctx context.Context, name string, args any) error {
	return m.ask(ctx, name, args, nil)
}

// ask is run for a command whose answer matters: into is filled from it.
func (m *monitor) ask(ctx context.Context, name string, args, into any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	req := map[string]any{"execute": name}
	if args != nil {
		req["arguments"] = args
	}
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	select {
	case <-m.reply: // stale
	default:
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 30*time.Second, errSilent)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	err = m.conn.SetWriteDeadline(deadline)
	if err == nil {
		_, err = m.conn.Write(append(line, '\n'))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done() // any moment: what a caller is told is the cause
		err = context.Cause(ctx)
	}
	if errors.Is(err, net.ErrClosed) { // by the reader, when QEMU hung up
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("send %s to QEMU: %w", name, err)
	}
	select {
	case msg := <-m.reply:
		if msg.Error != nil {
			return fmt.Errorf("%w %s: %s", errRefused, name, msg.Error.Desc)
		}
		if into != nil {
			if err := json.Unmarshal(msg.Return, into); err != nil {
				return fmt.Errorf("QEMU's answer to %s: %w", name, err)
			}
		}
		return nil
	case <-m.closed:
		return fmt.Errorf("QEMU went away during %s: %w", name, io.ErrUnexpectedEOF)
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU's answer to %s: %w", name, context.Cause(ctx))
	}
}

func (m *monitor) close() { m.conn.Close() }
