package amazon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/fake"
	"gopkg.in/yaml.v3"
)

const here, there = "eu-central-1", "us-west-2"

// world is a cloud whose instances are guests of this process: each is told its
// keys by its user data, and boots from the bytes of its AMI.
type world struct {
	t     *testing.T
	cloud *awsfake.Cloud
	fb    *fake.Builder
	deps  Deps
	store *oci.Store
	port  int
	base  string // AMI
	ec2   *ec2.Client
	ebs   *ebs.Client

	mu    sync.Mutex
	lives map[string]*fake.Seeded // by instance
	roots map[string]string       // instance, by volume
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, cloud: awsfake.New(), lives: map[string]*fake.Seeded{}, roots: map[string]string{}}
	w.fb = &fake.Builder{Dir: filepath.Join(dir, "guests"), Cache: filepath.Join(dir, "cache")}
	w.cloud.Speed = 1000
	w.cloud.Backend, w.cloud.VolumeContent = w.guest, w.content
	w.cloud.Serve()
	t.Cleanup(w.cloud.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.ok(err)
	w.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	w.store, err = oci.Open(filepath.Join(dir, "store"))
	w.ok(err)
	w.deps = Deps{State: state.Dir(filepath.Join(dir, "home")), Store: w.store, Config: w.config(w.cloud.URL()), poll: 5 * time.Millisecond, settle: 250 * time.Millisecond}
	cfg, err := w.deps.Config(t.Context(), here)
	w.ok(err)
	w.ec2, w.ebs = ec2.NewFromConfig(cfg), ebs.NewFromConfig(cfg)
	w.base = w.image("base", w.fb)
	return w
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// config is for clients that speak to an URL.
func (w *world) config(url string) func(context.Context, string) (aws.Config, error) {
	return func(_ context.Context, region string) (aws.Config, error) {
		if region == "" {
			region = here
		}
		return aws.Config{Region: region, BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""), RetryMaxAttempts: 3}, nil
	}
}

// image makes an AMI of somebody's of a base's bytes.
func (w *world) image(name string, fb *fake.Builder) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	w.ok(fb.PackBase(path))
	data, err := os.ReadFile(path)
	w.ok(err)
	ctx := context.Background()
	start, err := w.ebs.StartSnapshot(ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1)})
	w.ok(err)
	n := int32(0)
	for ; len(data) > 0; n++ {
		block := make([]byte, ami.BlockSize)
		data = data[copy(block, data):]
		sum := sha256.Sum256(block)
		_, err := w.ebs.PutSnapshotBlock(ctx, &ebs.PutSnapshotBlockInput{SnapshotId: start.SnapshotId, BlockIndex: aws.Int32(n), BlockData: bytes.NewReader(block), DataLength: aws.Int32(ami.BlockSize),
			Checksum: aws.String(base64.StdEncoding.EncodeToString(sum[:])), ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256})
		w.ok(err)
	}
	_, err = w.ebs.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{SnapshotId: start.SnapshotId, ChangedBlocksCount: &n})
	w.ok(err)
	w.ok((&region{name: here, ec2: w.ec2}).completed(ctx, w.deps, *start.SnapshotId))
	out, err := w.ec2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: &name, Architecture: types.ArchitectureValuesX8664, RootDeviceName: aws.String("/dev/xvda"), VirtualizationType: aws.String("hvm"),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: start.SnapshotId}}}})
	w.ok(err)
	_, err = (&region{name: here, ec2: w.ec2}).available(ctx, w.deps, *out.ImageId)
	w.ok(err)
	return *out.ImageId
}

func (w *world) builder(change ...func(*Config)) *Builder {
	w.t.Helper()
	cfg := Config{Region: here, Source: Source{AMI: w.base}, Types: Types{AnyOf: []string{"t3.small"}}, SSH: SSH{User: "root", Port: w.port}, Shutdown: 5 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	b, err := New(cfg, w.deps)
	w.ok(err)
	return b
}

// guest boots the guest of an instance.
func (w *world) guest(i awsfake.Instance) (string, func(), error) {
	disk, err := w.disk(i.Image)
	if err != nil {
		return "", nil, err
	}
	host, authorized, err := told3(i.UserData)
	if err != nil || len(host) == 0 { // somebody else's
		return "", nil, err
	}
	s, err := w.fb.Start(i.ID, disk, fake.Seed{HostKey: host, Authorized: authorized, Addr: fmt.Sprintf("%s:%d", i.IP, w.port)})
	if err != nil {
		return "", nil, err
	}
	volumes, err := w.ec2.DescribeVolumes(context.Background(), &ec2.DescribeVolumesInput{Filters: []types.Filter{filter("attachment.instance-id", i.ID)}})
	if err != nil {
		return "", nil, err
	}
	w.mu.Lock()
	w.lives[i.ID] = s
	for _, v := range volumes.Volumes {
		w.roots[*v.VolumeId] = i.ID
	}
	w.mu.Unlock()
	var mu sync.Mutex
	pressed := false
	go func() {
		<-s.Done()
		mu.Lock()
		defer mu.Unlock()
		if !pressed && s.Clean() {
			w.cloud.PowerOff(i.Region, i.ID)
		}
	}()
	return "", func() {
		mu.Lock()
		pressed = true
		mu.Unlock()
		s.Press()
	}, nil
}

// disk are the bytes of an AMI's snapshot.
func (w *world) disk(image string) (io.Reader, error) {
	ctx := context.Background()
	out, err := w.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{image}})
	if err != nil || len(out.Images) != 1 {
		return nil, errors.Join(fmt.Errorf("no image %s", image), err)
	}
	snapshot := out.Images[0].BlockDeviceMappings[0].Ebs.SnapshotId
	list, err := w.ebs.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: snapshot})
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	for _, b := range list.Blocks {
		got, err := w.ebs.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: snapshot, BlockIndex: b.BlockIndex, BlockToken: b.BlockToken})
		if err != nil {
			return nil, err
		}
		all.Write(make([]byte, int(*b.BlockIndex)*ami.BlockSize-all.Len()))
		if _, err := io.Copy(&all, got.BlockData); err != nil {
			return nil, err
		}
	}
	return &all, nil
}

// content are the bytes of a volume: those of its guest's disk.
func (w *world) content(volume string, _ awsfake.Instance) (io.ReaderAt, int64) {
	w.mu.Lock()
	id := w.roots[volume]
	s := w.lives[id]
	w.mu.Unlock()
	if s == nil {
		return nil, 0
	}
	path := filepath.Join(w.fb.Dir, id+".disk")
	if err := s.Pack(path); err != nil {
		w.t.Error(err)
		return nil, 0
	}
	data, err := os.ReadFile(path)
	if err != nil {
		w.t.Error(err)
	}
	return bytes.NewReader(data), int64(len(data))
}

// told3 reads what a guest's cloud-init would: the last cloud-config there is.
func told3(userData string) (host []byte, authorized []string, err error) {
	at := strings.LastIndex(userData, "#cloud-config\n")
	if at < 0 {
		return nil, nil, errors.New("no cloud-config")
	}
	text := userData[at:]
	if m := regexp.MustCompile(`\r\n--[0-9a-f]+--`).FindStringIndex(text); m != nil {
		text = text[:m[0]]
	}
	var c struct {
		Keys struct {
			Private string `yaml:"ed25519_private"`
		} `yaml:"ssh_keys"`
		Users []struct {
			Authorized []string `yaml:"ssh_authorized_keys"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal([]byte(text), &c); err != nil || len(c.Users) != 1 {
		return nil, nil, errors.Join(errors.New("not rebake's"), err)
	}
	return []byte(c.Keys.Private), c.Users[0].Authorized, nil
}

// tagged lists all that has a build's tag, in both regions; "" is any build.
func (w *world) tagged(id string) (out []string) {
	w.t.Helper()
	f := []types.Filter{filter("tag:"+TagBuild, id)}
	if id == "" {
		f = []types.Filter{filter("tag-key", TagBuild)}
	}
	for _, name := range []string{here, there} {
		out = append(out, w.list(name, f)...)
	}
	return out
}

// list are the resources of a region, in words.
func (w *world) list(name string, f []types.Filter) []string {
	w.t.Helper()
	cfg, err := w.config(w.cloud.URL())(context.Background(), name)
	w.ok(err)
	return w.listBy(ec2.NewFromConfig(cfg), name, f)
}

func (w *world) listBy(c *ec2.Client, name string, f []types.Filter) (out []string) {
	w.t.Helper()
	ctx := context.Background()
	instances, err := c.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: f})
	w.ok(err)
	for _, r := range instances.Reservations {
		for _, i := range r.Instances {
			if i.State.Name != types.InstanceStateNameTerminated {
				out = append(out, fmt.Sprintf("%s %s %s %v", name, *i.InstanceId, i.State.Name, tagText(i.Tags)))
			}
		}
	}
	images, err := c.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: f})
	w.ok(err)
	for _, i := range images.Images {
		out = append(out, fmt.Sprintf("%s %s %v", name, *i.ImageId, tagText(i.Tags)))
	}
	snapshots, err := c.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: f})
	w.ok(err)
	for _, s := range snapshots.Snapshots {
		out = append(out, fmt.Sprintf("%s %s %v", name, *s.SnapshotId, tagText(s.Tags)))
	}
	volumes, err := c.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: f})
	w.ok(err)
	for _, v := range volumes.Volumes {
		out = append(out, fmt.Sprintf("%s %s %v", name, *v.VolumeId, tagText(v.Tags)))
	}
	groups, err := c.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: f})
	w.ok(err)
	for _, g := range groups.SecurityGroups {
		out = append(out, fmt.Sprintf("%s %s %v", name, *g.GroupId, tagText(g.Tags)))
	}
	slices.Sort(out)
	return out
}

func tagText(tags []types.Tag) (out []string) {
	for _, t := range tags {
		out = append(out, aws.ToString(t.Key)+"="+aws.ToString(t.Value))
	}
	slices.Sort(out)
	return out
}

// gate stands before the cloud: it lets a number of changing calls through, and
// then nothing, as if the process that calls were dead.
type gate struct {
	cloud  http.Handler
	mu     sync.Mutex
	left   int  // calls that go through; the next one is the last
	done   bool // the last one is done, and not heard of; else it never arrives
	dead   bool
	last   string
	killed func()
}

func (g *gate) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	action := regexp.MustCompile(`(?:^|&)Action=([A-Za-z]+)`).FindSubmatch(body)
	g.mu.Lock()
	if !g.dead && action != nil && !awscalls.Reads(string(action[1])) {
		if g.left--; g.left < 0 {
			g.dead, g.last = true, string(action[1])
			if g.done {
				g.cloud.ServeHTTP(discard{}, r)
			}
			g.killed()
		}
	}
	dead := g.dead
	g.mu.Unlock()
	if dead {
		panic(http.ErrAbortHandler)
	}
	g.cloud.ServeHTTP(rw, r)
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
