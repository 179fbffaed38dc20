// Package artifact says what an image is and where images live: the reference
// that names one, the metadata that travels with it, the virtual disk that a
// builder hands over, and the Store seam. Backends: artifact/oci.
package artifact

import (
	"context"
	"errors"
	"io"
	"time"
)

// Sentinels of the seam; every Store wraps these, the conformance suite checks.
var (
	ErrNotFound = errors.New("image not found")
	ErrExists   = errors.New("image version exists already")
	ErrCorrupt  = errors.New("stored bytes do not match their digest")
	ErrInUse    = errors.New("image is in use")
)

// Digest is "sha256:" and 64 lower-case hex digits.
type Digest string

// Image is a named, versioned, immutable result of a bake.
type Image struct {
	Name      string            `json:"name"`
	Version   string            `json:"version"`
	Digest    Digest            `json:"digest"`  // of the manifest; set by Store.Register
	Content   Digest            `json:"content"` // of the chunk map; set by Store.Write
	Created   time.Time         `json:"created"`
	Arch      string            `json:"arch"`       // GOARCH spelling: amd64, arm64
	Firmware  string            `json:"firmware"`   // bios or uefi
	Seed      string            `json:"seed"`       // how instances are told who they are: nocloud or credentials
	User      string            `json:"user"`       // the account that a seeded key logs in to
	DiskSize  int64             `json:"disk_size"`  // bytes of the virtual disk
	StoredNew int64             `json:"stored_new"` // compressed bytes that this image added to the store
	Lineage   Lineage           `json:"lineage"`
	Labels    map[string]string `json:"labels,omitempty"`
	Tests     []TestResult      `json:"tests,omitempty"`
	Tags      []string          `json:"tags,omitempty"` // filled when read; not part of the manifest
}

// Lineage tells what an image was made from.
type Lineage struct {
	Template       string `json:"template,omitempty"`        // template name
	TemplateDigest Digest `json:"template_digest,omitempty"` // of its bytes
	InputsDigest   Digest `json:"inputs_digest,omitempty"`   // of all that decides the result: equal means nothing to rebuild
	Parent         string `json:"parent,omitempty"`          // reference or base key the build began from
	ParentDigest   Digest `json:"parent_digest,omitempty"`
	From           string `json:"from,omitempty"` // the parent as the template names it: base:stable
	GitCommit      string `json:"git_commit,omitempty"`
	GitDirty       bool   `json:"git_dirty,omitempty"`
	BuildID        string `json:"build_id,omitempty"`
	Builder        string `json:"builder,omitempty"`
	Rebake         string `json:"rebake,omitempty"` // version of the tool

	// Holds is the digest of its inventory's bytes, which are attached: of what is
	// attached with another digest, somebody else says that it is this image's.
	Holds Digest `json:"holds,omitempty"`

	Ran       []time.Time `json:"ran,omitempty"`       // when each step ran: one that was cached, before the build
	Ancestors []Ancestor  `json:"ancestors,omitempty"` // what the parent was made from, nearest first: known even when the parent is gone
}

// Ancestor is an image, or a base, that another was made from.
type Ancestor struct {
	Ref    string `json:"ref"` // as Lineage.Parent
	Digest Digest `json:"digest"`
}

// TestResult is one check of the template's test block on the sealed image.
type TestResult struct {
	Name    string  `json:"name"`
	Passed  bool    `json:"passed"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message,omitempty"`
}

// Extent is a run of bytes of a virtual disk.
type Extent struct {
	Offset, Length int64
	Zero           bool // reads as zeros
	Inherited      bool // unchanged from Disk.Parent: need not be read
}

// Disk is a shut down machine's virtual disk, as a guest sees it.
type Disk interface {
	io.ReaderAt // from many goroutines at once
	Size() int64
	// Extents covers [0,Size) in order, without gaps. Only when Parent is not
	// empty may extents be Inherited.
	Extents(ctx context.Context) ([]Extent, error)
	// Parent is the content digest (chunk map) of the disk below this one that
	// is already in the store, or "".
	Parent() Digest
	Close() error
}

// Store keeps images. Implementations are safe for many goroutines and for
// many processes at once. What was cut off in the middle is never visible.
type Store interface {
	// Write stores the disk's chunks and returns the digest of its chunk map.
	// Nothing is visible until Register. added is compressed bytes that were new.
	// progress may be nil; done and total are bytes of the virtual disk, done
	// never falls and ends at total, and no two calls are at once.
	Write(ctx context.Context, d Disk, progress func(done, total int64)) (content Digest, added int64, err error)
	// Register makes an image visible as name:version and returns it with
	// Digest set (and DiskSize, if that was 0). The same image again is no
	// error; ErrExists if that version is there with other content or metadata,
	// or is a tag. It fails if any chunk of the content is gone.
	Register(ctx context.Context, img Image) (Image, error)
	// Resolve finds an image by name:version, name:tag, or name@digest
	// (a unique digest prefix of ≥ 12 hex digits will do). ErrNotFound.
	Resolve(ctx context.Context, ref Ref) (Image, error)
	// Tag points name:tag at an image of that name; it moves an existing tag.
	Tag(ctx context.Context, name, tag string, d Digest) error
	// Fetch materialises a disk as a sparse raw file at path: written beside
	// it, fsynced, renamed. Every chunk is verified.
	Fetch(ctx context.Context, content Digest, path string, progress func(done, total int64)) error
}

// Lister is the optional power to enumerate images, newest first; name "" is all.
type Lister interface {
	List(ctx context.Context, name string) ([]Image, error)
}

// Deleter is the optional power to forget images and to give their space back.
type Deleter interface {
	// Remove unregisters an image with all its tags, or only a moving tag.
	Remove(ctx context.Context, ref Ref) error
	// Prune deletes blobs that no image needs and that are older than grace;
	// keep lists content digests that must stay (caches, running fleets). It
	// deletes nothing when it cannot tell what is needed.
	Prune(ctx context.Context, grace time.Duration, keep []Digest) (freed int64, err error)
}

// Attachment is a document about an image: an inventory, an SBOM, a statement, a
// signature, a promotion. It is a manifest of its own whose subject is the image.
type Attachment struct {
	Digest  Digest            // of its manifest; set by Attach
	Kind    string            // the manifest's artifactType
	Media   string            // media type of its one layer, the bytes
	Size    int64             // of the bytes; set by Attach
	Created time.Time         // to the second, UTC; part of the manifest
	Notes   map[string]string // annotations of the manifest
}

// MaxAttachment bounds the bytes of an attachment that is read.
const MaxAttachment = 64 << 20

// Attacher is the optional power to keep attachments. They go with their image:
// Remove removes them, Prune keeps them as long as it.
type Attacher interface {
	// Describe returns the image as Register will: Digest and DiskSize set. It
	// makes nothing visible, so that what is said of an image can be there
	// before the image is: an image that is seen has its attachments.
	Describe(ctx context.Context, img Image) (Image, error)
	// Attach adds a document to the image with manifest digest to, which need not
	// be registered yet: that it was described will do, else it is ErrNotFound. The
	// same document again is no error. CheckAttachment says what is refused.
	Attach(ctx context.Context, to Digest, a Attachment, body []byte) (Attachment, error)
	// Attached lists an image's attachments, oldest first, those of one second as
	// they were attached; kind "" is all. An image without any, or that is not
	// there, has none: no error.
	Attached(ctx context.Context, to Digest, kind string) ([]Attachment, error)
	// ReadAttachment returns the bytes, checked; at most MaxAttachment of them.
	ReadAttachment(ctx context.Context, a Attachment) ([]byte, error)
}

// AttachedLister is the optional power to list the attachments of all images at once.
type AttachedLister interface {
	// AttachedAll lists those of a kind by their image, each list as Attached does.
	AttachedAll(ctx context.Context, kind string) (map[Digest][]Attachment, error)
}

// Opener is the optional power to read a disk without a file of it.
type Opener interface {
	// OpenDisk returns the disk with this chunk map; each chunk is checked when it
	// is read (ErrCorrupt). With a parent, another disk of the store, what reads the
	// same in both is Inherited; beyond its end the parent counts as zeros.
	OpenDisk(ctx context.Context, content, parent Digest) (Disk, error)
}

// Verifier re-hashes everything that an image needs.
type Verifier interface {
	Verify(ctx context.Context, img Image, progress func(done, total int64)) error
}
