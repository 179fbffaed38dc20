package export

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/rebake/rebake/artifact"
)

// BoxProvider is what a box says it is for. Vagrant's plugin for QEMU has no
// format of its own: it takes boxes of this one, so that one box serves both.
const BoxProvider = "libvirt"

// InsecureKey is the public half of a key that every Vagrant has, from its own
// repository. Vagrant replaces it by a key of the machine's own when it first logs
// in. Vagrant 2.4 has a second such key, which older ones would not replace: it
// would let everybody in for good.
const InsecureKey = "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key"

// BoxOptions say how the machines of a box are logged in to.
type BoxOptions struct {
	User string   // "" is the image's; one that the image lacks is made at the first boot
	Keys []string // OpenSSH lines; none is InsecureKey
}

var (
	boxUser = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	boxKey  = regexp.MustCompile(`^(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+=*( [A-Za-z0-9@._+ -]*)?$`)
)

// complete fills in what follows from the image, and refuses what cannot be said
// in a Vagrantfile.
func (o BoxOptions) complete(img artifact.Image) (BoxOptions, error) {
	if o.User == "" {
		o.User = img.User
	}
	if o.User == "" {
		o.User = "root"
	}
	if !boxUser.MatchString(o.User) {
		return o, fmt.Errorf("%q is no account", o.User)
	}
	if img.Seed != "nocloud" && img.Seed != "credentials" {
		return o, fmt.Errorf("the image is seeded by %q: nobody could be let in", img.Seed)
	}
	for _, k := range o.Keys {
		if !boxKey.MatchString(k) {
			return o, fmt.Errorf("%.60q is no public key", k)
		}
	}
	return o, nil
}

// Box is a box file that was written.
type Box struct {
	Size   int64
	Digest artifact.Digest
}

// Vagrant writes the image as a box for Vagrant's libvirt and QEMU providers at
// path, all or nothing; what was there is replaced. The disk in it is the image's,
// without any key: who may log in is told by the box, as the image's seed has it.
// The same image and options give the same bytes with one version of qemu-img.
// For a while there must be room for the raw disk and the qcow2 beside path.
func Vagrant(ctx context.Context, s artifact.Store, img artifact.Image, o BoxOptions, path string, progress func(done, total int64)) (box Box, err error) {
	files, err := boxFiles(img, o)
	if err != nil {
		return box, err
	}
	err = converted(ctx, s, img, "qcow2", path, progress, func(dir, disk string) (string, error) {
		out := filepath.Join(dir, "out.box")
		box, err = writeBox(ctx, files, dir, disk, out)
		return out, err
	})
	return box, err
}

// BoxRecipe is the digest of all in a box but its disk: with the image it says
// which box it is.
func BoxRecipe(img artifact.Image, o BoxOptions) (artifact.Digest, error) {
	files, err := boxFiles(img, o)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%s %d\n%s", f.name, len(f.data), f.data)
	}
	return artifact.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), nil
}

type boxFile struct {
	name string
	data []byte
}

// The disks of a box.
const (
	boxDisk  = "box.img"
	seedDisk = "seed.img" // the NoCloud seed, of an image that is told by it
)

// boxFiles are the small files of a box, in its order. seedDisk is raw here.
func boxFiles(img artifact.Image, o BoxOptions) ([]boxFile, error) {
	o, err := o.complete(img)
	if err != nil {
		return nil, err
	}
	meta, err := boxMetadata(img, o)
	if err != nil {
		return nil, err
	}
	files := []boxFile{{"metadata.json", meta}, {"Vagrantfile", []byte(vagrantfile(img, o))}}
	if img.Seed == "nocloud" {
		seed, err := cidata(noCloud(img, o))
		if err != nil {
			return nil, fmt.Errorf("make the box's seed: %w", err)
		}
		files = append(files, boxFile{seedDisk, seed})
	}
	return files, nil
}

// boxMetadata is of the first form, which every version of the providers reads;
// a box with a seed disk needs the second as well.
func boxMetadata(img artifact.Image, o BoxOptions) ([]byte, error) {
	type disk struct {
		Path   string `json:"path"`
		Format string `json:"format"`
	}
	type rebake struct {
		Image    string          `json:"image"`
		Digest   artifact.Digest `json:"digest"`
		Firmware string          `json:"firmware"`
		Seed     string          `json:"seed"`
		User     string          `json:"user"`
		SeedDisk string          `json:"seed_disk,omitempty"`
	}
	m := struct {
		Provider     string `json:"provider"`
		Format       string `json:"format"`
		VirtualSize  int64  `json:"virtual_size"` // GiB
		Architecture string `json:"architecture"`
		Disks        []disk `json:"disks,omitempty"`
		Rebake       rebake `json:"rebake"`
	}{BoxProvider, "qcow2", max(1, (img.DiskSize+1<<30-1)>>30), img.Arch, nil,
		rebake{img.Name + ":" + img.Version, img.Digest, img.Firmware, img.Seed, img.User, ""}}
	if img.Seed == "nocloud" {
		m.Disks, m.Rebake.SeedDisk = []disk{{boxDisk, "qcow2"}, {seedDisk, "qcow2"}}, seedDisk
	}
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// writeBox packs the box: small files first, so that a reader knows early what it has.
func writeBox(ctx context.Context, files []boxFile, dir, disk, out string) (box Box, err error) {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return box, err
	}
	defer f.Close()
	sum := &summed{h: sha256.New()}
	zip := newGzip(io.MultiWriter(f, sum))
	defer zip.abort()
	w := tar.NewWriter(zip)
	for _, b := range files {
		h := &tar.Header{Name: b.name, Mode: 0o644, Size: int64(len(b.data)), ModTime: time.Unix(0, 0)}
		if b.name == seedDisk { // providers take qcow2 alone
			raw, qcow2 := filepath.Join(dir, "seed.raw"), filepath.Join(dir, "seed.qcow2")
			if err := os.WriteFile(raw, b.data, 0o600); err != nil {
				return box, err
			}
			if err := convertDisk(ctx, "qcow2", raw, qcow2); err != nil {
				return box, err
			}
			if err := addFile(ctx, w, h, qcow2); err != nil {
				return box, err
			}
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return box, err
		}
		if _, err := w.Write(b.data); err != nil {
			return box, err
		}
	}
	if err := addFile(ctx, w, &tar.Header{Name: boxDisk, Mode: 0o644, ModTime: time.Unix(0, 0)}, disk); err != nil {
		return box, err
	}
	if err := errors.Join(w.Close(), zip.Close(), f.Close()); err != nil {
		return box, err
	}
	return Box{sum.n, artifact.Digest("sha256:" + hex.EncodeToString(sum.h.Sum(nil)))}, nil
}

type summed struct {
	h hash.Hash
	n int64
}

func (s *summed) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.h.Write(p)
}
