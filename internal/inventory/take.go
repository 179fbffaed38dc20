package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rebake/rebake/provisioner"
)

// Extent is how much is looked at.
type Extent string

// From nothing to all.
const (
	Off      Extent = "off"
	Packages Extent = "packages" // all but files
	Files    Extent = "files"
)

// ParseExtent reads a word of a template; "" is Files.
func ParseExtent(s string) (Extent, error) {
	switch e := Extent(s); e {
	case "":
		return Files, nil
	case Off, Packages, Files:
		return e, nil
	}
	return "", fmt.Errorf("inventory: %q is not one of off, packages, files", s)
}

// maxOutput bounds what a guest may say; hashBudget the bytes of files that are
// read, the smallest first: what is larger is told apart by size and mode.
const (
	maxOutput  = 128 << 20
	hashBudget = 64 << 20
)

// Take looks into a guest, as root, in at most two commands. It changes nothing
// there. It is an error if the guest did not answer to the end.
func Take(ctx context.Context, g provisioner.Guest, e Extent) (*Inventory, error) {
	return take(ctx, g, e, "")
}

func take(ctx context.Context, g provisioner.Guest, e Extent, root string) (*Inventory, error) {
	files := "0"
	if e == Files {
		files = "1"
	}
	out := &bounded{max: maxOutput}
	err := g.Run(ctx, provisioner.Cmd{Sudo: true, Stdout: out,
		Line: "exec /bin/sh -c " + provisioner.Quote("R="+provisioner.Quote(root)+"; FILES="+files+"\n"+script)})
	if err != nil {
		return nil, failed(err)
	}
	inv, read, err := parse(out.b, root)
	if err != nil || len(read) == 0 {
		return inv, err
	}
	return inv, digest(ctx, g, inv, read, root)
}

func failed(err error) error {
	var exit *provisioner.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("take the inventory: %w: %s", err, strings.ToValidUTF8(exit.Output, "?"))
	}
	return fmt.Errorf("take the inventory: %w", err)
}

// digest has the guest read the files with these numbers.
func digest(ctx context.Context, g provisioner.Guest, inv *Inventory, read []int, root string) error {
	slices.SortStableFunc(read, func(a, b int) int { return int(min(max(inv.Files[a].Size-inv.Files[b].Size, -1), 1)) })
	var names bytes.Buffer
	at := map[string]int{}
	left := int64(hashBudget)
	for _, i := range read {
		f := &inv.Files[i]
		if left -= f.Size; left < 0 {
			break
		}
		if strings.ContainsAny(f.Path, "\n\\\r") { // sha256sum would write it in another way
			continue
		}
		at[root+f.Path] = i
		names.WriteString(root + f.Path + "\x00")
	}
	if len(at) == 0 {
		return nil
	}
	out := &bounded{max: maxOutput}
	// R is there for tests, whose guest refuses a script without it.
	line := "exec /bin/sh -c " + provisioner.Quote("R="+provisioner.Quote(root)+"\n"+hashes)
	if err := g.Run(ctx, provisioner.Cmd{Line: line, Stdin: &names, Stdout: out, Sudo: true}); err != nil {
		return failed(err)
	}
	for _, l := range strings.Split(string(out.b), "\n") {
		sum, name, ok := strings.Cut(l, "  ")
		if i, known := at[name]; ok && known && isHex(sum, 64) {
			inv.Files[i].Digest, inv.Files[i].From = "sha256:"+sum, ""
		}
	}
	return nil
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// bounded keeps up to max bytes; who says more is refused.
type bounded struct {
	b   []byte
	max int
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > w.max {
		return 0, fmt.Errorf("the guest says more than %d MiB: take the packages alone", w.max>>20)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
