package ami

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/disks"
)

const diskSize = 16 << 20

// baked puts an image with these bytes into the store.
func baked(t *testing.T, s *oci.Store, version string, data []byte) artifact.Image {
	t.Helper()
	return disks.Bake(t, s, artifact.Image{Name: "web", Version: version, Arch: "amd64", Firmware: "bios",
		Seed: "nocloud", Created: time.Now().UTC().Truncate(time.Second)}, data)
}

// someDisk is mostly zeros.
func someDisk(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, diskSize)
	for range 6 {
		at := r.IntN(diskSize - 700<<10)
		for i := range 1 + r.IntN(700<<10) {
			data[at+i] = byte(r.Uint32())
		}
	}
	return data
}

func openStore(t *testing.T) *oci.Store {
	t.Helper()
	s, err := oci.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, region string) *Cloud {
	t.Helper()
	c, err := Connect(t.Context(), region)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func differ(a, b []byte) (n int) {
	for at := 0; at < len(a); at += BlockSize {
		if !bytes.Equal(a[at:at+BlockSize], b[at:at+BlockSize]) {
			n++
		}
	}
	return n
}

// An AMI that somebody deregistered is not waited for without an end.
func TestAnAMIThatIsGoneIsNotWaitedForWithoutAnEnd(t *testing.T) {
	awsfake.Start(t)
	c := connect(t, "")
	began := time.Now()
	_, err := c.available(t.Context(), "ami-0123456789abcdef0", Options{poll: time.Millisecond, seen: 50 * time.Millisecond, Info: func(string) {}})
	if err == nil || !strings.Contains(err.Error(), "it is not there") || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}
