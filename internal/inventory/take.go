package inventory

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh"
)

// Extent is how much is looked at.
type Extent string

// From nothing to all.
const (
	Off      Extent = "off"
	Packages Extent = "packages" // all but files
	Files    Extent = "files"    // and files: read where their package does not vouch for them
	Contents Extent = "contents" // and every file is read
)

// ParseExtent reads a word of a template; "" is Files.
func ParseExtent(s string) (Extent, error) {
	switch e := Extent(s); e {
	case "":
		return Files, nil
	case Off, Packages, Files, Contents:
		return e, nil
	}
	return "", fmt.Errorf("inventory: %q is not one of off, packages, files, contents", s)
}

// maxOutput bounds what a guest may say; hashBudget the bytes of files that are
// read, the smallest first: what is larger is told apart by size and mode.
const (
	maxOutput  = 128 << 20
	hashBudget = 16 << 20
)

// errFiles is of a guest whose files are too many, or cannot be read of.
var errFiles = errors.New("its files cannot be listed")

// Take looks into a guest, as root, in at most two commands, and changes nothing
// there; from then on its disks do not keep when a file was read. What a guest
// cannot tell is in Unknown, with the reason; files that are too many too. It is an
// error if the guest did not answer to the end.
func Take(ctx context.Context, g provisioner.Guest, e Extent) (*Inventory, error) {
	inv, err := take(ctx, g, e, "")
	if errors.Is(err, errFiles) && e != Packages {
		why := strings.TrimPrefix(err.Error(), "take the inventory: ")
		if inv, err = take(ctx, g, Packages, ""); err == nil {
			inv.Unknown["files"] = why
		}
	}
	return inv, err
}

func take(ctx context.Context, g provisioner.Guest, e Extent, root string) (*Inventory, error) {
	p := newParser(root)
	p.every = e == Contents
	what := Files
	if e == Packages {
		what = Packages
	}
	key, err := hostKey()
	if err != nil {
		return nil, err
	}
	if err := ask(ctx, g, root, string(what), "KEY="+provisioner.Quote(key)+"\n"+script, nil, &stream{to: p.take, left: maxOutput, sep: 0}); err != nil {
		return nil, err
	}
	inv, read, err := p.end()
	if err != nil {
		return nil, err
	}
	if e == Packages {
		inv.Unknown["files"] = "not asked for"
	} else if len(inv.Files) == 0 && inv.Unknown["files"] == "" {
		return nil, errors.New("take the inventory: the guest lists no files")
	}
	if len(read) == 0 || inv.Unknown["digests"] != "" {
		return inv, nil
	}
	budget := int64(hashBudget)
	if e == Contents {
		budget = math.MaxInt64
	}
	return inv, digest(ctx, g, inv, read, root, budget)
}

// hostKey is a key for this once, with which sshd says its settings.
func hostKey() (string, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(pem.EncodeToMemory(block))), nil
}

// ask runs one of the scripts.
func ask(ctx context.Context, g provisioner.Guest, root, what, script string, in io.Reader, out *stream) error {
	err := g.Run(ctx, provisioner.Cmd{Sudo: true, Stdin: in, Stdout: out,
		Line: "exec /bin/sh -c " + provisioner.Quote("R="+provisioner.Quote(root)+"; INVENTORY="+what+"\n"+script)})
	if out.err != nil {
		return fmt.Errorf("take the inventory: %w", out.err)
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

func failed(err error) error {
	var exit *provisioner.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("take the inventory: %w: %s", err, strings.ToValidUTF8(exit.Output, "?"))
	}
	return fmt.Errorf("take the inventory: %w", err)
}

// digest has the guest read the files with these numbers, up to so many bytes:
// first those of no package, which nobody else knows, and the smallest of them.
func digest(ctx context.Context, g provisioner.Guest, inv *Inventory, read []int, root string, left int64) error {
	slices.SortStableFunc(read, func(a, b int) int {
		fa, fb := inv.Files[a], inv.Files[b]
		return cmp.Or(cmp.Compare(rank(fa), rank(fb)), cmp.Compare(fa.Size, fb.Size))
	})
	var names bytes.Buffer
	at := map[string]int{}
	for _, i := range read {
		f := &inv.Files[i]
		if f.Size > left { // a smaller one of a package may do
			continue
		}
		left -= f.Size
		if strings.ContainsAny(f.Path, "\n\\\r") { // sha256sum would write it in another way
			continue
		}
		at[root+f.Path] = i
		names.WriteString(root + f.Path + "\x00")
	}
	if len(at) == 0 {
		return nil
	}
	return ask(ctx, g, root, "digests", hashes, &names, &stream{left: maxOutput, sep: '\n', to: func(l string) error {
		sum, name, ok := strings.Cut(l, "  ")
		if i, known := at[name]; ok && known && isHex(sum, 64) {
			inv.Files[i].Digest, inv.Files[i].From = "sha256:"+sum, ""
		}
		return nil
	}})
}

func rank(f File) int {
	if f.Package == "" || strings.HasPrefix(f.Path, "/etc/") {
		return 0
	}
	return 1
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// stream hands on what a guest says, record by record, and keeps one record at most.
type stream struct {
	to   func(string) error
	sep  byte
	left int // bytes that the guest may still say
	part []byte
	err  error
}

// maxRecord bounds a record: all the lists of files of dpkg are one.
const maxRecord = 32 << 20

func (s *stream) Write(b []byte) (int, error) {
	n := len(b)
	if s.left -= n; s.left < 0 && s.err == nil {
		s.err = fmt.Errorf("%w: %d MiB", errFiles, maxOutput>>20)
	}
	for s.err == nil && len(b) > 0 {
		i := bytes.IndexByte(b, s.sep)
		if i < 0 {
			s.part, b = append(s.part, b...), nil
		} else {
			s.err = s.to(string(s.part) + string(b[:i]))
			s.part, b = s.part[:0], b[i+1:]
		}
		if len(s.part) > maxRecord && s.err == nil {
			s.err = errors.New("a name without an end")
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	return n, nil
}
