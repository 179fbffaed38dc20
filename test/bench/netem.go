package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	nsPrefix  = "rebake-bench-"
	roundTrip = "80 ms"
	oneWay    = 40 * time.Millisecond // the loopback is passed twice
)

// errNotAllowed is why a slow network cannot be measured.
var errNotAllowed = errors.New("it takes root, ip and tc to make a network namespace whose loopback is slow")

// slowNet is a network namespace whose loopback has a round trip of 80 ms.
type slowNet struct {
	name string
	how  string // what delays
	tun  *os.File
}

// slowNetwork makes one, and sees that it is as slow as it says: by tc netem, or where the kernel has no netem, by a
// tunnel to this process, which holds each packet back.
func slowNetwork(ctx context.Context) (_ *slowNet, err error) {
	if os.Getuid() != 0 {
		return nil, errNotAllowed
	}
	for _, prog := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(prog); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotAllowed, err)
		}
	}
	sweepNetworks(ctx)
	n := &slowNet{name: nsPrefix + strconv.Itoa(os.Getpid()), how: "tc netem"}
	if err := runAll(ctx, []string{"ip", "netns", "add", n.name}, []string{"ip", "-n", n.name, "link", "set", "lo", "up"}); err != nil {
		if strings.Contains(err.Error(), "Operation not permitted") { // root of a container
			err = fmt.Errorf("%w: %w", errNotAllowed, err)
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.remove(ctx))
		}
	}()
	err = runAll(ctx, []string{"ip", "netns", "exec", n.name, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", fmt.Sprint(oneWay), "limit", "100000"})
	if err != nil && strings.Contains(err.Error(), "qdisc kind is unknown") {
		n.how = "a tunnel of this program, because this kernel has no netem"
		err = n.tunnel(ctx)
	}
	if err != nil {
		return n, err
	}
	trip, err := inNamespace(n.path(), dialLoopback)
	if err == nil && (trip < 2*oneWay || trip > 4*oneWay) {
		err = fmt.Errorf("the slow network has a round trip of %s, not %s", trip, roundTrip)
	}
	return n, err
}

func (n *slowNet) path() string { return "/run/netns/" + n.name }

// dialLoopback is how long a TCP connection takes to be there: one round trip.
func dialLoopback() (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	began := time.Now()
	c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
	if err != nil {
		return 0, err
	}
	return time.Since(began), c.Close()
}

// tunnel leads the loopback's packets through this process.
func (n *slowNet) tunnel(ctx context.Context) error {
	const dev = "slow0"
	var err error
	if n.tun, err = inNamespace(n.path(), func() (*os.File, error) { return openTun(dev) }); err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	in := func(args ...string) []string { return append([]string{"ip", "-n", n.name}, args...) }
	sysctl := func(key, value string) []string {
		return []string{"ip", "netns", "exec", n.name, "sysctl", "-qw", "net.ipv4.conf." + key + "=" + value}
	}
	if err := runAll(ctx,
		in("link", "set", dev, "mtu", "65000", "txqueuelen", "100000", "up"),
		sysctl(dev+".route_localnet", "1"), sysctl(dev+".accept_local", "1"), sysctl(dev+".rp_filter", "0"), sysctl("all.rp_filter", "0"),
		in("route", "add", "127.0.0.0/8", "dev", dev, "src", "127.0.0.1", "table", "100"),
		// What comes out of the tunnel has arrived; what is sent goes into it.
		in("rule", "add", "pref", "1", "iif", dev, "lookup", "local"),
		in("rule", "add", "pref", "2", "to", "127.0.0.0/8", "lookup", "100"),
		in("rule", "add", "pref", "3", "lookup", "local"),
		in("rule", "del", "pref", "0"),
	); err != nil {
		return err
	}
	go delay(n.tun, oneWay)
	return nil
}

// delay sends back what it reads, later. It ends when f is closed.
func delay(f *os.File, by time.Duration) {
	type packet struct {
		due  time.Time
		data []byte
	}
	queue := make(chan packet, 1<<16)
	go func() {
		for p := range queue {
			time.Sleep(time.Until(p.due))
			_, _ = f.Write(p.data) // a lost packet is sent again
		}
	}()
	defer close(queue)
	buf := make([]byte, 1<<16)
	for {
		k, err := f.Read(buf)
		if err != nil {
			return
		}
		queue <- packet{time.Now().Add(by), append([]byte(nil), buf[:k]...)}
	}
}

func (n *slowNet) remove(ctx context.Context) error {
	var err error
	if n.tun != nil {
		err = n.tun.Close()
	}
	return errors.Join(err, runAll(context.WithoutCancel(ctx), []string{"ip", "netns", "delete", n.name}))
}

// sweepNetworks removes those of killed runs.
func sweepNetworks(ctx context.Context) {
	out, _ := exec.CommandContext(ctx, "ip", "netns", "list").Output()
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(strings.TrimPrefix(f, nsPrefix))
		if strings.HasPrefix(f, nsPrefix) && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = runAll(ctx, []string{"ip", "netns", "delete", f})
		}
	}
}

func runAll(ctx context.Context, commands ...[]string) error {
	for _, args := range commands {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
