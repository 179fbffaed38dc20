package amazon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsguest"
	"github.com/rebake/rebake/test/fake"
)

const here, there = "eu-central-1", "us-west-2"

// world is a cloud whose instances are guests of this process: each is told its
// keys by its user data, and boots from the bytes of its AMI.
type world struct {
	t      *testing.T
	cloud  *awsfake.Cloud
	guests *awsguest.Guests
	deps   Deps
	store  *oci.Store
	port   int
	base   string // AMI
	ec2    *ec2.Client
	ebs    *ebs.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, cloud: awsfake.New()}
	w.cloud.Speed = 1000
	w.cloud.Serve()
	t.Cleanup(w.cloud.Close)
	var err error
	w.store, err = oci.Open(filepath.Join(dir, "store"))
	w.ok(err)
	w.deps = Deps{State: state.Dir(filepath.Join(dir, "home")), Store: w.store, Config: w.config(w.cloud.URL()), poll: 5 * time.Millisecond, settle: 250 * time.Millisecond}
	cfg, err := w.deps.Config(t.Context(), here)
	w.ok(err)
	w.ec2, w.ebs = ec2.NewFromConfig(cfg), ebs.NewFromConfig(cfg)
	w.guests = awsguest.In(t, w.cloud, cfg)
	w.port = w.guests.Port
	w.base = w.image("base", w.guests.Machines)
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
	return w.guests.Image(name, fb)
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
