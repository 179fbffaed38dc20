// Package seal takes out of a guest what must not travel in its image: keys,
// identities, leases, logs, caches. The list is Items. All of it runs in one
// command, because under emulation every command costs; a fresh boot of the image
// is looked at again with Verify.
package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/provisioner"
)

// Result is what came of one item.
type Result struct {
	ID      string
	OK      bool
	Nothing bool   // there was nothing to do
	Detail  string // why not OK
}

func (r Result) String() string {
	switch {
	case r.Nothing:
		return r.ID + ": nothing to do"
	case r.OK:
		return r.ID + ": sealed"
	}
	return r.ID + ": not sealed: " + r.Detail
}

// CheckSkip tells whether seal.skip names items that exist and may be skipped.
func CheckSkip(skip []string) error {
	var ids []string
	for _, it := range Items() {
		ids = append(ids, it.ID)
	}
	for _, s := range skip {
		if s == buildKeyID {
			return errors.New("seal.skip: build-key cannot be skipped: whoever has the build's key could enter every instance")
		}
		if !slices.Contains(ids, s) {
			return fmt.Errorf("seal.skip: no item %q; there are %s", s, strings.Join(ids, ", "))
		}
	}
	return nil
}

// Apply seals the guest, all but the items in skip, and checks each of them.
// buildKey is the line of authorized_keys to be removed. The session that runs
// it lives on. An item that could not be sealed is an error; the results are
// complete all the same.
func Apply(ctx context.Context, g provisioner.Guest, skip []string, buildKey string) ([]Result, error) {
	if err := CheckSkip(skip); err != nil {
		return nil, err
	}
	return apply(ctx, g, skip, buildKey, "")
}

func apply(ctx context.Context, g provisioner.Guest, skip []string, buildKey, root string) ([]Result, error) {
	blob, err := keyBlob(buildKey)
	if err != nil {
		return nil, err
	}
	results, err := run(ctx, g, root, blob, skip, func(it Item) string {
		return call(it.ID, it.Applies, it.Fix, it.Check)
	}, "sync\n")
	if err != nil {
		return results, err
	}
	return results, failed(results)
}

// Verify looks at a fresh boot of a sealed image: the items of which something
// can be seen there. Failures are in the results; an error means that it could
// not look.
func Verify(ctx context.Context, g provisioner.Guest, skip []string) ([]Result, error) {
	if err := CheckSkip(skip); err != nil {
		return nil, err
	}
	return verify(ctx, g, skip, "")
}

func verify(ctx context.Context, g provisioner.Guest, skip []string, root string) ([]Result, error) {
	return run(ctx, g, root, "", skip, func(it Item) string {
		if it.Boot == "" {
			return ""
		}
		return call(it.ID, "", "", it.Boot)
	}, "")
}

func failed(results []Result) error {
	var bad []string
	for _, r := range results {
		if !r.OK {
			bad = append(bad, r.ID+": "+r.Detail)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%s (an item in seal.skip is left as it is)", strings.Join(bad, "; "))
}

// keyBlob is the key itself in a line of authorized_keys.
func keyBlob(line string) (string, error) {
	for _, f := range strings.Fields(line) {
		if strings.HasPrefix(f, "AAAA") && len(f) >= 64 {
			return f, nil
		}
	}
	return "", errors.New("the build key is not a line of authorized_keys")
}

// mark begins each line of the script's that is meant for us.
const mark = "@rebake-seal"

// call is the part of the script that works on one item. What a part prints
// goes to the reason, on one line.
func call(id, applies, fix, check string) string {
	if applies == "" {
		applies = "true"
	}
	if fix == "" {
		fix = "true"
	}
	return fmt.Sprintf(`if ( %[2]s
) </dev/null >/dev/null 2>&1; then
o=$( ( %[3]s
) </dev/null 2>&1 )
if c=$( ( %[4]s
) </dev/null 2>&1 ); then echo "%[5]s %[1]s ok"; else echo "%[5]s %[1]s failed" $(printf '%%s\n' "$c" "$o" | tail -n 5 | tr '\n' ' '); fi
else echo "%[5]s %[1]s nothing"; fi
`, id, applies, fix, check, mark)
}

// script is everything in one piece.
func script(root, blob string, skip []string, part func(Item) string, end string) (string, []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "R=%s; BLOB=%s; TAIL=%s\nPATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin; export PATH\n%s\n",
		provisioner.Quote(root), provisioner.Quote(blob), provisioner.Quote(blob[max(0, len(blob)-24):]), functions)
	var ids []string
	for _, it := range Items() {
		p := part(it)
		if p == "" || slices.Contains(skip, it.ID) {
			continue
		}
		ids = append(ids, it.ID)
		b.WriteString(p)
	}
	b.WriteString(end + "exit 0\n")
	return b.String(), ids
}

func run(ctx context.Context, g provisioner.Guest, root, blob string, skip []string, part func(Item) string, end string) ([]Result, error) {
	code, ids := script(root, blob, skip, part, end)
	var out bytes.Buffer
	err := g.Run(ctx, provisioner.Cmd{Line: "exec /bin/sh -c " + provisioner.Quote(code), Stdout: &out, Sudo: true})
	if err != nil {
		var exit *provisioner.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("run the sealing script: %w: %s", err, exit.Output)
		}
		return nil, fmt.Errorf("run the sealing script: %w", err)
	}
	return parse(out.String(), ids)
}

// parse reads the script's lines. Each item must have said something, once.
func parse(out string, ids []string) ([]Result, error) {
	said := map[string]Result{}
	for _, line := range strings.Split(out, "\n") {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) < 3 || f[0] != mark || !slices.Contains(ids, f[1]) {
			continue
		}
		r := Result{ID: f[1], OK: f[2] != "failed", Nothing: f[2] == "nothing"}
		if !r.OK {
			r.Detail = "no reason given"
			if len(f) == 4 {
				r.Detail = strings.TrimSpace(f[3])
			}
		}
		said[r.ID] = r
	}
	var results []Result
	for _, id := range ids {
		r, ok := said[id]
		if !ok {
			r = Result{ID: id, Detail: "the sealing script ended before it"}
		}
		results = append(results, r)
	}
	return results, nil
}

// poweroff asks whatever is PID 1. A script that is PID 1 obeys nobody: the
// kernel is asked then, with nothing left to write.
const poweroff = `sync
if [ -d /run/systemd/system ]; then exec systemctl poweroff --no-block; fi
case $(tr '\0' ' ' </proc/1/cmdline) in
*sh\ *) (sleep 1; mount -o remount,ro /; sync; poweroff -f || busybox poweroff -f) </dev/null >/dev/null 2>&1 & ;;
*) (sleep 1; poweroff || busybox poweroff || /sbin/poweroff) </dev/null >/dev/null 2>&1 & ;;
esac`

// Shutdown asks the guest to power off and returns once it was asked: Capture
// waits for the end. The connection may be cut off while it answers.
func Shutdown(ctx context.Context, g provisioner.Guest) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the guest did not take the order to power off within 1m"))
	defer cancel()
	err := g.Run(ctx, provisioner.Cmd{Line: "exec /bin/sh -c " + provisioner.Quote(poweroff), Sudo: true})
	if errors.Is(err, provisioner.ErrDisconnected) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask the guest to power off: %w", err)
	}
	return nil
}
