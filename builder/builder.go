// Package builder is the seam to whatever boots a temporary machine and
// captures its disk. Backends: builder/qemu, builder/amazon.
package builder

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/rebake/rebake/artifact"
	"golang.org/x/crypto/ssh"
)

// Builder boots temporary machines. id names a machine before it exists, so
// that Destroy works after a kill -9 of the process that made it.
type Builder interface {
	// Key is what decides the booted machine: base bytes and the hardware that
	// leaks into the guest. It may resolve and read local files, downloads nothing.
	Key(ctx context.Context) (artifact.Inputs, error)
	// Prepare makes the base available (download, bootstrap, materialise) and
	// returns what it is. It is the slow part that a cache saves.
	Prepare(ctx context.Context) (Base, error)
	// Boot starts machine id on an overlay of the base.
	Boot(ctx context.Context, id string) (Machine, error)
	// BootTest starts machine id on a throw-away overlay of a captured disk, as
	// the fleet would: another key, another host key, another instance id.
	BootTest(ctx context.Context, id string, d artifact.Disk, ports []int) (Machine, error)
	// Destroy removes machine id and all it left; nil if there is none.
	Destroy(ctx context.Context, id string) error
}

// Checkpointer is the optional power of a builder to save a machine between two
// steps and to go on from there. All methods are safe for concurrent use.
type Checkpointer interface {
	// Find returns the checkpoint of a key, if there is one that this builder can
	// go on from. It is cheap, and keeps nothing from being evicted.
	Find(ctx context.Context, key artifact.Digest) (Checkpoint, bool, error)
	// BootFrom starts machine id as it was at the checkpoint. What the machine
	// writes from then on is its own. ErrNoCheckpoint if it is gone or damaged.
	BootFrom(ctx context.Context, id string, c Checkpoint) (Machine, error)
	// Save makes a checkpoint of a running machine whose guest has written
	// everything to its disk. note is kept with it. It returns once the machine
	// goes on; finish makes the checkpoint durable, and then it is found, before
	// older ones of its key, which stay good for who goes on from them. nil finish:
	// there is nothing to do. After an error the machine goes on as well.
	Save(ctx context.Context, m Machine, key artifact.Digest, memory bool, note []byte) (finish func(context.Context) error, err error)
}

// Checker is the optional power of a builder whose Key asks a cloud: Check says what
// is wrong with its configuration as far as this machine and the store can tell.
type Checker interface {
	Check(ctx context.Context) error
}

// Publisher is the optional power of a builder to make of a captured disk what its
// cloud boots by itself, before the image can be seen.
type Publisher interface {
	// Publish makes it, and returns what records it, to be attached to the image.
	// img was described: its digest is known. The same again makes nothing twice.
	// What was made is machine id's, and Destroy removes it, as long as the store
	// does not have the image; once it has, Destroy leaves it to the image.
	Publish(ctx context.Context, id string, d artifact.Disk, img artifact.Image) ([]Document, error)
}

// Document is an attachment with its bytes.
type Document struct {
	artifact.Attachment
	Body []byte
}

// Checkpoint is a saved state of a machine.
type Checkpoint struct {
	Key    artifact.Digest `json:"key"`
	Memory bool            `json:"memory"` // false: only its disk, which boots
	Taken  time.Time       `json:"taken"`
	Size   int64           `json:"size"` // bytes that it occupies
	Note   []byte          `json:"-"`
	Base   Base            `json:"base"`
}

// ErrNoCheckpoint is wrapped by BootFrom.
var ErrNoCheckpoint = errors.New("no such checkpoint")

// Base tells what a build starts from.
type Base struct {
	Ref      string          // "debian:bookworm", "base:1.2.0", or the URL
	Digest   artifact.Digest // of its bytes or its content map
	Arch     string
	Firmware string
	Seed     string // nocloud or credentials
	User     string
	DiskSize int64
}

// Machine is a booted temporary VM.
type Machine interface {
	// Endpoint says how to reach the machine; it does not dial SSH. It fails if
	// the machine died, with the end of its console.
	Endpoint(ctx context.Context) (Endpoint, error)
	// Console returns the last n bytes of the serial console, for evidence.
	Console(n int) string
	// Capture waits for a clean shutdown (asking for one by ACPI if the guest is
	// still up) and returns the disk. It never captures a killed machine.
	Capture(ctx context.Context) (artifact.Disk, error)
	// Done is closed when the machine is no longer running.
	Done() <-chan struct{}
}

// Endpoint is the way into a guest. Data only: the pipeline dials.
type Endpoint struct {
	Addr     string // host:port of sshd
	User     string
	Signer   ssh.Signer      // the build's own key
	Key      []byte          // the same as OpenSSH writes it, for a person's ssh
	HostKeys []ssh.PublicKey // pinned; empty is refused
	Ports    map[int]string  // guest port → host:port, for ports asked for at boot
	Pipe     *Pipe           // nil: there is none
}

// Pipe is a way for bytes into the guest beside the network: a virtio port.
type Pipe struct {
	Name string                                      // of the port, in /sys/class/virtio-ports
	Dial func(ctx context.Context) (net.Conn, error) // one user at a time
}

// Dialer opens a connection to a guest's port; *Endpoint's Ports or a tunnel.
type Dialer func(ctx context.Context, port int) (net.Conn, error)
