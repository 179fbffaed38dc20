package fake

import (
	"errors"
	"io"
	"os"
)

// Seed is what a guest is told from outside, as by a cloud's user data.
type Seed struct {
	HostKey    []byte   // private, as OpenSSH writes it; none: it makes one
	Authorized []string // lines of authorized_keys
	Addr       string   // host:port where its sshd listens
}

// Seeded is a machine that somebody else than the Builder gave its keys.
type Seeded struct{ m *machine }

// Start boots machine id from a disk, as Base packs it or Pack wrote it.
func (b *Builder) Start(id string, disk io.Reader, s Seed) (*Seeded, error) {
	m, err := b.boot(&machine{b: b, id: id, seed: &s}, disk, nil, nil)
	if err != nil {
		return nil, err
	}
	return &Seeded{m}, nil
}

// Done is closed when it runs no more.
func (s *Seeded) Done() <-chan struct{} { return s.m.done }

// Clean says whether it shut down by itself, once it is done.
func (s *Seeded) Clean() bool { return s.m.clean }

// Press shuts it down as its power button does; Kill ends it as a crash does.
func (s *Seeded) Press() { s.m.end(true) }

// Kill ends it as a crash does.
func (s *Seeded) Kill() { s.m.end(false) }

// Console is all that it wrote there.
func (s *Seeded) Console() string { return s.m.Console(1 << 20) }

// Pack writes its disk as a file: what is after the file's end is zeros.
func (s *Seeded) Pack(path string) error { return packDir(s.m.file("root"), path) }

// PackBase writes the disk of the Builder's base.
func (b *Builder) PackBase(path string) error {
	dir, err := os.MkdirTemp("", "base")
	if err != nil {
		return err
	}
	err = b.plantBase(dir)
	if err == nil {
		err = packDir(dir, path)
	}
	return errors.Join(err, os.RemoveAll(dir))
}
