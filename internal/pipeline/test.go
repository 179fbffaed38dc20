package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/seal"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/sync/errgroup"
)

// test boots the sealed image twice, as a fleet would, each time with other
// keys and another identity. The first boot runs every check; the two together
// show that nothing of the build, or of one another, is shared.
func (k *bake) test(ctx context.Context, id string, disk artifact.Disk) ([]artifact.TestResult, error) {
	var results [2][]artifact.TestResult
	var ids [2]identity
	g, gctx := errgroup.WithContext(ctx)
	for i := range 2 {
		g.Go(func() error {
			return event.Run(gctx, fmt.Sprintf("test boot %d", i+1), func(ctx context.Context) error {
				var err error
				results[i], ids[i], err = k.testBoot(ctx, fmt.Sprintf("%s-t%d", id, i+1), disk, i == 0)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := append(results[0], results[1]...)
	for _, one := range differ(ids[0], ids[1]) {
		k.tellTest(ctx, one)
		all = append(all, one)
	}
	if f := failures(all); len(f) > 0 {
		return all, fmt.Errorf("%w; nothing was stored:\n  %s", ErrTestFailed, strings.Join(f, "\n  "))
	}
	return all, nil
}

func (k *bake) testBoot(ctx context.Context, id string, disk artifact.Disk, full bool) (res []artifact.TestResult, who identity, err error) {
	mach, err := k.builder.BootTest(ctx, id, disk, k.ports())
	if err != nil {
		return nil, who, err
	}
	defer func() {
		if err != nil {
			k.keepConsole(ctx, mach, id)
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.destroyTimeout(30*time.Second))
		defer cancel()
		if derr := k.builder.Destroy(clean, id); derr != nil {
			event.Warnf(ctx, "test machine %s: %v", id, derr)
		}
	}()
	guest, err := connect(ctx, mach, k.sshTimeout())
	if err != nil {
		return nil, who, k.keep(ctx, id, mach, nil, fmt.Errorf("the sealed image does not boot to SSH: %w", err))
	}
	defer guest.Close()
	if who, err = identify(ctx, guest); err != nil {
		return nil, who, err
	}
	if !full {
		return nil, who, nil
	}
	sealed, err := seal.Verify(ctx, guest, k.tpl.Seal.Skip)
	if err != nil {
		return nil, who, err
	}
	for _, r := range sealed {
		one := artifact.TestResult{Name: "seal: " + r.ID, Passed: r.OK, Message: r.Detail}
		k.tellTest(ctx, one)
		res = append(res, one)
	}
	target := check.Target{Guest: guest, Dial: dialer(mach, guest)}
	for _, c := range append(builtIn(), k.checks...) {
		one := check.Do(ctx, c.name, c.Check, target)
		k.tellTest(ctx, one)
		if one.Passed {
			event.Infof(ctx, "passed: %s", one.Name)
		} else {
			event.Warnf(ctx, "failed: %s: %s", one.Name, one.Message)
		}
		res = append(res, one)
	}
	if err := ctx.Err(); err != nil {
		return res, who, context.Cause(ctx)
	}
	if f := failures(res); len(f) > 0 {
		return res, who, k.keep(ctx, id, mach, guest, fmt.Errorf("%w; nothing was stored:\n  %s", ErrTestFailed, strings.Join(f, "\n  ")))
	}
	return res, who, nil
}

// failures are the failed checks with what they found.
func failures(res []artifact.TestResult) (failed []string) {
	for _, r := range res {
		if !r.Passed {
			failed = append(failed, fmt.Sprintf("%s: %s", r.Name, r.Message))
		}
	}
	return failed
}

// ports are those that checks connect to.
func (k *bake) ports() []int {
	var ports []int
	for _, c := range k.checks {
		if p, ok := c.Check.(interface{ Port() int }); ok && p.Port() != 0 && !slices.Contains(ports, p.Port()) {
			ports = append(ports, p.Port())
		}
	}
	return ports
}

func builtIn() []namedCheck {
	var l []namedCheck
	for _, c := range check.BuiltIn() {
		l = append(l, namedCheck{c.Name(), c})
	}
	return l
}

// dialer reaches a guest's port through its forwards, else through SSH.
func dialer(m builder.Machine, g *ssh.Client) builder.Dialer {
	return func(ctx context.Context, port int) (net.Conn, error) {
		ep, err := m.Endpoint(ctx)
		if err != nil {
			return nil, err
		}
		if addr, ok := ep.Ports[port]; ok {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
		return g.DialPort(ctx, port)
	}
}

// identity is what no two boots of an image may share.
type identity struct {
	machineID string
	hostKeys  []string
}

const identifyScript = `cat /etc/machine-id 2>/dev/null || echo none; echo --; ` +
	`cat /etc/ssh/ssh_host_*_key.pub /etc/dropbear/*_host_key.pub 2>/dev/null | while read -r t k c; do echo "$t $k"; done`

func identify(ctx context.Context, g provisioner.Guest) (identity, error) {
	var out bytes.Buffer
	if err := g.Run(ctx, provisioner.Cmd{Line: identifyScript, Stdout: &out}); err != nil {
		return identity{}, fmt.Errorf("ask for the machine's identity: %w", err)
	}
	id, keys, _ := strings.Cut(out.String(), "--\n")
	who := identity{machineID: strings.TrimSpace(id)}
	for _, l := range strings.Split(keys, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			who.hostKeys = append(who.hostKeys, l)
		}
	}
	return who, nil
}

func differ(a, b identity) []artifact.TestResult {
	mid := artifact.TestResult{Name: "machine-id differs between two boots", Passed: true}
	if a.machineID == b.machineID && a.machineID != "none" {
		mid.Passed, mid.Message = false, "both are "+a.machineID
	}
	keys := artifact.TestResult{Name: "SSH host keys differ between two boots", Passed: true}
	for _, ka := range a.hostKeys {
		if contains(b.hostKeys, ka) {
			keys.Passed, keys.Message = false, "shared: "+ka
		}
	}
	return []artifact.TestResult{mid, keys}
}
