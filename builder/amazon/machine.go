package amazon

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// machine implements builder.Machine.
type machine struct {
	b           *Builder
	id          string
	r           *region
	j           *awscalls.Journal
	source      *source
	instance    string
	spot        bool
	user        string
	login, host ssh.Key
	addr        string         // host:port of its sshd
	ports       map[int]string // of a machine for tests
	direct      string         // its address, if it is reached without a tunnel
	closers     []io.Closer
	warn        func(format string, a ...any) // for what is found out later
	sayOnce     sync.Once

	mu      sync.Mutex
	asked   bool // for its end, by us
	state   types.InstanceStateName
	reason  types.StateReason
	missing time.Time // since when it is not seen any more
	console string
	down    chan struct{} // closed once it runs no more
}

// run waits until the instance runs, and opens the way to it.
func (m *machine) run(ctx context.Context, ports []int) error {
	event.Waiting(ctx, "%s to run", m.instance)
	i, err := m.running(ctx)
	if err != nil {
		return err
	}
	if m.addr, err = m.open(ctx, i); err != nil {
		return err
	}
	if s := m.b.cfg.SSH; !s.SSM && s.Bastion == nil && s.Host == "" {
		m.direct, _ = m.address(i)
	}
	m.warn = func(format string, a ...any) { event.Warnf(ctx, format, a...) }
	m.ports = map[int]string{22: m.addr}
	for _, p := range ports {
		if p == 22 {
			continue
		}
		f, err := forward(func(ctx context.Context) (net.Conn, error) { return m.dialPort(ctx, p) })
		if err != nil {
			return err
		}
		m.ports[p] = f.addr()
		m.closers = append(m.closers, f)
	}
	m.b.look(m)
	return nil
}

// running waits for the state and an address.
func (m *machine) running(ctx context.Context) (types.Instance, error) {
	for began := time.Now(); ; {
		all, err := m.r.instancesOf(ctx, filter("instance-id", m.instance))
		if err != nil {
			return types.Instance{}, err
		}
		for _, i := range all {
			m.see(i)
			switch i.State.Name {
			case types.InstanceStateNameRunning:
				if _, ok := m.address(i); ok {
					return i, nil
				}
				if time.Since(began) > 10*time.Minute {
					return i, fmt.Errorf("%s has no %s address: give a subnet that has them, or another network.address", m.instance, m.b.cfg.Network.Address)
				}
			case types.InstanceStateNamePending:
			default:
				return i, fmt.Errorf("%s did not start: it is %s%s", m.instance, i.State.Name, m.because())
			}
		}
		if err := pause(ctx, m.b.deps.wait(began)); err != nil {
			return types.Instance{}, err
		}
	}
}

// address is the one that SSH goes to.
func (m *machine) address(i types.Instance) (string, bool) {
	switch s := m.b.cfg.SSH; {
	case s.SSM:
		return m.instance, true
	case s.Host != "":
		return s.Host, true
	}
	a := map[string]*string{"public": i.PublicIpAddress, "private": i.PrivateIpAddress, "ipv6": i.Ipv6Address}[m.b.cfg.Network.Address]
	return aws.ToString(a), aws.ToString(a) != ""
}

// open makes the way to the machine's sshd and returns its near end.
func (m *machine) open(ctx context.Context, i types.Instance) (string, error) {
	host, _ := m.address(i)
	there := net.JoinHostPort(host, strconv.Itoa(m.b.cfg.SSH.Port))
	switch s := m.b.cfg.SSH; {
	case s.SSM:
		t, err := sessionManager(ctx, m.r.name, m.instance, s.Port)
		if err != nil {
			return "", err
		}
		m.closers = append(m.closers, t)
		return t.addr(), nil
	case s.Bastion != nil:
		t, err := throughBastion(s.Bastion, m.b.deps.Dir, m.b.SSHTimeout(), there)
		if err != nil {
			return "", err
		}
		m.closers = append(m.closers, t)
		return t.addr(), nil
	}
	return there, nil
}

// close ends what this process has of the machine.
func (m *machine) close() error {
	var errs []error
	for _, c := range m.closers {
		errs = append(errs, c.Close())
	}
	m.closers = nil
	return errors.Join(errs...)
}

// Done implements builder.Machine.
func (m *machine) Done() <-chan struct{} { return m.down }

// Console implements builder.Machine. It is what EC2 has: some minutes old on
// types that are not of the Nitro kind.
func (m *machine) Console(n int) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := m.r.ec2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &m.instance, Latest: aws.Bool(true)})
	if err != nil { // a type that has no latest
		out, err = m.r.ec2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &m.instance})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		if raw, err := base64.StdEncoding.DecodeString(aws.ToString(out.Output)); err == nil && len(raw) > 0 {
			m.console = string(raw)
		}
	}
	return m.console[max(0, len(m.console)-n):]
}

// Endpoint implements builder.Machine.
func (m *machine) Endpoint(ctx context.Context) (builder.Endpoint, error) {
	if ctx.Err() != nil {
		return builder.Endpoint{}, context.Cause(ctx)
	}
	select {
	case <-m.down:
		return builder.Endpoint{}, fmt.Errorf("%s is %s%s; its console ends with:\n%s", m.instance, m.now(), m.because(), m.Console(2000))
	default:
	}
	return builder.Endpoint{Addr: m.addr, User: m.user, Signer: m.login.Signer, Key: m.login.PEM,
		HostKeys: []gossh.PublicKey{m.host.Signer.PublicKey()}, Ports: maps.Clone(m.ports)}, nil
}

func (m *machine) now() types.InstanceStateName {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *machine) because() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := aws.ToString(m.reason.Message); s != "" {
		return " (" + s + ")"
	}
	return ""
}

// see takes in what DescribeInstances says.
func (m *machine) see(i types.Instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.missing, m.state = time.Time{}, i.State.Name
	if i.StateReason != nil {
		m.reason = *i.StateReason
	}
	if m.state == types.InstanceStateNameStopped || m.state == types.InstanceStateNameTerminated {
		m.ended()
	}
}

func (m *machine) ended() {
	select {
	case <-m.down:
	default:
		close(m.down)
	}
}

// unseen takes in that it is not listed: one call may not know it yet.
func (m *machine) unseen(patience time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.missing.IsZero():
		m.missing = time.Now()
	case time.Since(m.missing) > patience:
		m.state, m.reason = types.InstanceStateNameTerminated, types.StateReason{Message: aws.String("EC2 does not know it any more")}
		m.ended()
	}
}

// look begins to ask about a machine: one call for all of this builder.
func (b *Builder) look(m *machine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watch[m.id] = m
	if !b.asking {
		b.asking = true
		go b.ask()
	}
}

// ask asks until no machine is left that runs.
func (b *Builder) ask() {
	for {
		b.mu.Lock()
		byID := map[string]*machine{}
		for id, m := range b.watch {
			select {
			case <-m.down:
				delete(b.watch, id)
			default:
				byID[m.instance] = m
			}
		}
		if b.asking = len(byID) > 0; !b.asking {
			b.mu.Unlock()
			return
		}
		r := b.reg
		b.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		all, err := r.instancesOf(ctx, filter("instance-id", slices.Sorted(maps.Keys(byID))...))
		cancel()
		if err == nil { // else nothing is known now
			for _, i := range all {
				if m := byID[aws.ToString(i.InstanceId)]; m != nil {
					m.see(i)
					delete(byID, m.instance)
				}
			}
			for _, m := range byID {
				m.unseen(b.deps.seen())
			}
		}
		time.Sleep(b.deps.pause())
	}
}

// grace is how long a guest that was told to power off is left to do so by itself.
func (d Deps) grace() time.Duration {
	if d.poll > 0 {
		return 4 * d.poll
	}
	return time.Minute
}

// stoppingWithin is how long EC2 may take with a guest that powered off by itself.
const stoppingWithin = 15 * time.Minute

// Capture implements builder.Machine.
func (m *machine) Capture(ctx context.Context) (_ artifact.Disk, err error) {
	defer func() { err = inWords(ctx, err) }()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ctx = awscalls.Writing(ctx, m.j)
	event.Waiting(ctx, "the guest to shut down")
	if err := m.powerOff(ctx); err != nil {
		return nil, err
	}
	if err := m.clean(); err != nil {
		return nil, err
	}
	return m.b.capture(ctx, m)
}

// powerOff waits for the end; a guest that does not go down by itself is asked to.
func (m *machine) powerOff(ctx context.Context) error {
	end := time.NewTimer(m.b.cfg.Shutdown)
	defer end.Stop()
	alone := time.NewTimer(m.b.deps.grace())
	defer alone.Stop()
	late := false
	for {
		select {
		case <-m.down:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end.C:
			if state := m.now(); !m.asked && !late && state != types.InstanceStateNameRunning {
				late = true // the guest is down: only EC2 is not done
				end.Reset(stoppingWithin)
				continue
			}
			return fmt.Errorf("%s did not shut down within %s (shutdown_timeout): it is %s", m.instance, m.b.cfg.Shutdown, m.now())
		case <-alone.C:
			if m.now() != types.InstanceStateNameRunning {
				continue
			}
			m.mu.Lock()
			m.asked = true
			m.mu.Unlock()
			var err error
			if m.spot {
				_, err = m.r.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{m.instance}})
			} else {
				_, err = m.r.ec2.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: []string{m.instance}})
			}
			if err != nil && !isOne(err, "IncorrectInstanceState", "IncorrectState", "InvalidInstanceID.NotFound") {
				return err
			}
		}
	}
}

// clean says why a machine that ended must not be captured. EC2 ends a guest that
// does not obey by force, after some minutes: shutdown_timeout is over before.
func (m *machine) clean() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := types.InstanceStateNameStopped
	if m.spot {
		want = types.InstanceStateNameTerminated
	}
	reason := aws.ToString(m.reason.Code)
	itself := reason == "Client.InstanceInitiatedShutdown" || m.asked && reason == "Client.UserInitiatedShutdown"
	if m.state == want && itself {
		return nil
	}
	if strings.HasPrefix(reason, "Server.Spot") {
		return fmt.Errorf("EC2 took the spot instance %s back: build again, or without spot", m.instance)
	}
	return fmt.Errorf("%s did not shut down by itself: it is %s (%s)", m.instance, m.state, orElse(aws.ToString(m.reason.Message), reason))
}
