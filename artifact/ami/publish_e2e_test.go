//go:build e2e

package ami

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/rebake/rebake/test/moto"
)

// blocksOf reads what a snapshot itself holds: EBS lists a parent's blocks with a
// child's, moto the child's own. moto's list is not of the SDK's form (a number is
// a string), so it is read without the SDK.
func blocksOf(t *testing.T, c *Cloud, snapshot string) map[int32][]byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, os.Getenv("AWS_ENDPOINT_URL")+"/snapshots/"+snapshot+"/blocks", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+c.Region+"/ebs/aws4_request, SignedHeaders=host, Signature=0")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var list struct {
		Blocks []struct {
			BlockIndex json.Number
			BlockToken string
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	out := map[int32][]byte{}
	for _, b := range list.Blocks {
		index, err := b.BlockIndex.Int64()
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.EBS.GetSnapshotBlock(t.Context(), &ebs.GetSnapshotBlockInput{SnapshotId: &snapshot, BlockIndex: aws.Int32(int32(index)), BlockToken: &b.BlockToken})
		if err != nil {
			t.Fatal(err)
		}
		if out[int32(index)], err = io.ReadAll(got.BlockData); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func lay(disk []byte, blocks map[int32][]byte) []byte {
	disk = bytes.Clone(disk)
	for i, b := range blocks {
		copy(disk[int(i)*BlockSize:], b)
	}
	return disk
}

func TestAnImageBecomesAnAMIAndTheNextSendsOnlyWhatChanged(t *testing.T) {
	calls := recorded(t, moto.Start(t))
	c, far, s := connect(t, "eu-central-1"), connect(t, "us-west-2"), openStore(t)
	one := someDisk(1)
	img := baked(t, s, "1.0.0", one)
	const key = "arn:aws:kms:us-west-2:111122223333:key/1"
	o := Options{poll: time.Millisecond, Copy: []*Cloud{far}, Tags: map[string]string{"team": "web"}, Users: []string{"111122223333"},
		BootMode: "uefi-preferred", CopyKMSKeys: map[string]string{"us-west-2": key}}
	records, err := Publish(t.Context(), c, s, img, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 2 || records[1].Region != "us-west-2" || records[1].From != records[0].AMI || records[1].AMI == "" {
		t.Fatalf("records: %+v", records)
	}
	first := records[0]
	blocks := blocksOf(t, c, first.Snapshot)
	if want := differ(one, make([]byte, diskSize)); len(blocks) != want || first.Sent != int64(want)*BlockSize {
		t.Errorf("%d blocks, %d bytes travelled; the disk has %d that are not zeros", len(blocks), first.Sent, want)
	}
	if !bytes.Equal(lay(make([]byte, diskSize), blocks), one) {
		t.Error("the snapshot's blocks are not the disk")
	}
	out, err := c.EC2.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{first.AMI}})
	if err != nil {
		t.Fatal(err)
	}
	if i := out.Images[0]; aws.ToString(i.Name) != Name(img) || tagOf(i.Tags, TagImage) != "web:1.0.0" || tagOf(i.Tags, "team") != "web" {
		t.Errorf("the AMI has name %s, tags %v", aws.ToString(i.Name), i.Tags)
	}
	// moto does not keep these, so the call itself is looked at.
	for _, v := range calls("RegisterImage") {
		for k, want := range map[string]string{"BlockDeviceMapping.1.Ebs.SnapshotId": first.Snapshot, "RootDeviceName": rootDevice, "BlockDeviceMapping.1.DeviceName": rootDevice,
			"ImdsSupport": "v2.0", "BootMode": "uefi-preferred", "Architecture": "x86_64", "EnaSupport": "true"} {
			if v.Get(k) != want {
				t.Errorf("RegisterImage: %s is %q, want %q", k, v.Get(k), want)
			}
		}
	}
	for _, v := range calls("CopyImage") {
		for k, want := range map[string]string{"Encrypted": "true", "KmsKeyId": key, "SourceRegion": "eu-central-1", "TagSpecification.2.ResourceType": "snapshot"} {
			if v.Get(k) != want {
				t.Errorf("CopyImage: %s is %q, want %q", k, v.Get(k), want)
			}
		}
	}
	if records[1].KMSKey != key {
		t.Errorf("the copy's record: %+v", records[1])
	}
	for _, r := range records {
		if err := Keep(t.Context(), s, img, r); err != nil {
			t.Fatal(err)
		}
	}

	// The same again finds what is there.
	again, err := Publish(t.Context(), c, s, img, o)
	if err != nil || again[0].AMI != first.AMI || again[0].Sent != 0 || again[1].AMI != records[1].AMI || len(calls("RegisterImage")) != 1 || len(calls("CopyImage")) != 1 {
		t.Errorf("published again: %+v, %v", again, err)
	}

	// The next image: one part changed, one wiped.
	two := bytes.Clone(one)
	copy(two[3<<20:], "changed")
	clear(two[8<<20 : 9<<20])
	next := baked(t, s, "1.1.0", two)
	if o.Parents, err = Parents(t.Context(), s, next, c.Region); err != nil || len(o.Parents) != 1 {
		t.Fatalf("parents: %+v, %v", o.Parents, err)
	}
	o.Copy = nil
	records, err = Publish(t.Context(), c, s, next, o)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(differ(one, two)) * BlockSize; records[0].Sent != want || records[0].From != first.Snapshot {
		t.Errorf("%d bytes travelled onto %s; what changed is %d", records[0].Sent, records[0].From, want)
	}
	if !bytes.Equal(lay(one, blocksOf(t, c, records[0].Snapshot)), two) {
		t.Error("the second snapshot's blocks on the first's are not the disk")
	}
}

// recorded puts a proxy between the SDK and the server, and returns the calls of an action.
func recorded(t *testing.T, to string) func(action string) []url.Values {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []url.Values
	pass := httputil.NewSingleHostReverseProxy(u)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == "/" {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if v, err := url.ParseQuery(string(body)); err == nil {
				mu.Lock()
				all = append(all, v)
				mu.Unlock()
			}
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	t.Setenv("AWS_ENDPOINT_URL", srv.URL)
	return func(action string) (out []url.Values) {
		mu.Lock()
		defer mu.Unlock()
		for _, v := range all {
			if v.Get("Action") == action {
				out = append(out, v)
			}
		}
		return out
	}
}

// cutting passes requests on until it has seen some blocks; then the owner is
// told, and each further block's connection is cut.
func cutting(t *testing.T, to string, after int64, told func()) string {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	var puts atomic.Int64
	pass := httputil.NewSingleHostReverseProxy(u)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && puts.Add(1) > after {
			told()
			panic(http.ErrAbortHandler)
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestAPublicationThatWasCutOffGoesOn(t *testing.T) {
	real := moto.Start(t)
	s, work := openStore(t), t.TempDir()
	data := someDisk(2)
	img := baked(t, s, "1.0.0", data)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	t.Setenv("AWS_ENDPOINT_URL", cutting(t, real, 3, cancel))
	o := Options{poll: time.Millisecond, Work: work, Parallel: 1}
	if _, err := Publish(ctx, connect(t, ""), s, img, o); err == nil {
		t.Fatal("it did not notice that the connection was cut")
	}
	left, err := filepath.Glob(filepath.Join(work, "*.blocks"))
	if err != nil || len(left) != 1 {
		t.Fatalf("progress: %v, %v", left, err)
	}
	t.Setenv("AWS_ENDPOINT_URL", real)
	var said []string
	o.Info = func(text string) { said = append(said, text) }
	c := connect(t, "")
	records, err := Publish(t.Context(), c, s, img, o)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(differ(data, make([]byte, diskSize))) * BlockSize
	if !strings.Contains(strings.Join(said, "\n"), "going on with snapshot "+records[0].Snapshot) || records[0].Sent != total-3*BlockSize {
		t.Errorf("%d of %d bytes travelled the second time; it said %q", records[0].Sent, total, said)
	}
	if !bytes.Equal(lay(make([]byte, diskSize), blocksOf(t, c, records[0].Snapshot)), data) {
		t.Error("the snapshot's blocks are not the disk")
	}
	if _, err := os.Stat(left[0]); !errors.Is(err, os.ErrNotExist) {
		t.Error("progress is kept for ever")
	}
}

// EBS refuses a second completion. A publication that died right after the first
// one, before it knew, ends well.
func TestAPublicationThatDiedAfterTheCompletionEndsWell(t *testing.T) {
	real := moto.Start(t)
	u, err := url.Parse(real)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var completions atomic.Int64
	pass := httputil.NewSingleHostReverseProxy(u)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/snapshots/completion/") {
			pass.ServeHTTP(w, r)
			return
		}
		if completions.Add(1) == 1 {
			pass.ServeHTTP(httptest.NewRecorder(), r) // it is done, and nobody hears of it
			cancel()
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Amzn-Errortype", "ConflictException")
		w.WriteHeader(http.StatusConflict)
	}))
	defer srv.Close()
	t.Setenv("AWS_ENDPOINT_URL", srv.URL)
	s, work, data := openStore(t), t.TempDir(), someDisk(3)
	img := baked(t, s, "1.0.0", data)
	o := Options{poll: time.Millisecond, Work: work}
	if _, err := Publish(ctx, connect(t, ""), s, img, o); err == nil {
		t.Fatal("it did not notice that it was cut off")
	}
	c := connect(t, "")
	records, err := Publish(t.Context(), c, s, img, o)
	if err != nil || completions.Load() < 2 {
		t.Fatalf("%v after %d completions", err, completions.Load())
	}
	if !bytes.Equal(lay(make([]byte, diskSize), blocksOf(t, c, records[0].Snapshot)), data) || records[0].Sent != 0 {
		t.Errorf("the snapshot's blocks are not the disk, or travelled twice: %+v", records[0])
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("progress is kept for ever: %v, %v", left, err)
	}
}
