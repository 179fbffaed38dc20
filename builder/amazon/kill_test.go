package amazon

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
)

// foreign makes resources of others, some of names and tags that are near ours.
func (w *world) foreign() []string {
	w.t.Helper()
	ctx := context.Background()
	other := types.Tag{Key: aws.String(TagBuild), Value: aws.String("01k2")}
	for _, tags := range [][]types.Tag{{other}, {{Key: aws.String("Name"), Value: aws.String("rebake-01k")}}} {
		_, err := w.ec2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: &w.base, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: "t3.small",
			UserData:          aws.String("I2Nsb3VkLWNvbmZpZwp1c2VyczogW3tuYW1lOiBvdGhlcn1dCg=="),
			TagSpecifications: tagged(tags, types.ResourceTypeInstance, types.ResourceTypeVolume)})
		w.ok(err)
	}
	vpc, err := w.ec2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
	w.ok(err)
	for name, tags := range map[string][]types.Tag{"rebake-01k2": {other}, "web": {{Key: aws.String("team"), Value: aws.String("web")}}} {
		_, err := w.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: &name, Description: &name, VpcId: vpc.Vpcs[0].VpcId, TagSpecifications: tagged(tags, types.ResourceTypeSecurityGroup)})
		w.ok(err)
	}
	_, err = w.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{w.base}, Tags: []types.Tag{other}})
	w.ok(err)
	var mine []string
	for range 200 { // until nothing of it changes any more
		now := w.all()
		if slices.Equal(now, mine) && strings.Count(strings.Join(now, "\n"), " running ") == 2 {
			return now
		}
		mine = now
		time.Sleep(5 * time.Millisecond)
	}
	w.t.Fatalf("the others' instances do not run: %q", mine)
	return nil
}

// all is every resource that there is.
func (w *world) all() []string { return append(w.list(here, nil), w.list(there, nil)...) }

// bake is a whole build as the pipeline makes it.
func (w *world) bake(ctx context.Context, b *Builder, id string) error {
	m, err := b.Boot(ctx, id)
	if err != nil {
		return err
	}
	w.off(m)
	d, err := m.Capture(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	content, _, err := w.store.Write(ctx, d, nil)
	if err != nil {
		return err
	}
	if _, err := b.BootTest(ctx, id+"-t1", d, []int{80}); err != nil {
		return err
	}
	if err := b.Destroy(ctx, id+"-t1"); err != nil {
		return err
	}
	img, err := w.store.Describe(ctx, artifact.Image{Name: "web", Version: "1.0.0", Content: content, Created: time.Now().UTC().Truncate(time.Second),
		Arch: "amd64", Firmware: "bios", Seed: "nocloud", User: "root", DiskSize: d.Size()})
	if err != nil {
		return err
	}
	docs, err := b.Publish(ctx, id, d, img)
	if err != nil {
		return err
	}
	for _, doc := range docs {
		if _, err := w.store.Attach(ctx, img.Digest, doc.Attachment, doc.Body); err != nil {
			return err
		}
	}
	if _, err := w.store.Register(ctx, img); err != nil {
		return err
	}
	return b.Destroy(ctx, id)
}

var errKilled = errors.New("killed")

// A build dies at each call that changes something: before the cloud got it, and
// after it did and nobody heard of that. What is left is removed by another process
// that knows the state directory alone, and nothing else is.
func TestAKilledBuildLeavesNothing(t *testing.T) {
	for _, done := range []bool{false, true} {
		ended := false
		for n := 0; !ended && n < 100; n++ {
			name := fmt.Sprintf("%02d", n)
			if done {
				name += " after"
			}
			if !everyPoint && n%4 != map[bool]int{false: 0, true: 2}[done] {
				continue
			}
			ended = true // unless a kill says otherwise
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				before := w.foreign()
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				g := &gate{cloud: w.cloud, left: n, done: done, killed: func() { cancel(errKilled) }}
				srv := httptest.NewServer(g)
				defer srv.Close()
				change := func(c *Config) { c.AMI.CopyTo = []Copy{{Region: there}}; c.AMI.Protect = true }
				b := w.builder(change)
				b.deps.Config = w.config(srv.URL)
				err := w.bake(ctx, b, "01k")
				if g.dead != (err != nil) {
					t.Fatalf("killed: %v, the build ended with %v", g.dead, err)
				}
				ended = !g.dead
				w.ok(b.letGo("01k"))
				w.ok(b.letGo("01k-t1"))
				for _, id := range []string{"01k-t1", "01k"} { // as gc does: a test machine's AMI holds the build's snapshot
					w.ok(Destroy(t.Context(), w.deps, id))
				}
				time.Sleep(20 * time.Millisecond) // what is late by then is seen
				var own []string
				if img, err := w.store.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1.0.0"}); err == nil {
					records, err := ami.Records(t.Context(), w.store, img)
					w.ok(err)
					for _, r := range records {
						own = append(own, r.AMI, r.Snapshot)
					}
					if len(own) != 4 {
						t.Errorf("the image has the records %+v", records)
					}
				} else if !errors.Is(err, artifact.ErrNotFound) {
					t.Fatal(err)
				}
				after := w.all()
				text := strings.Join(after, "\n")
				for _, id := range own {
					if !strings.Contains(text, id) {
						t.Errorf("the image's %s is gone", id)
					}
				}
				left := slices.DeleteFunc(slices.Clone(after), func(s string) bool {
					return slices.Contains(before, s) || slices.ContainsFunc(own, func(id string) bool { return strings.Contains(s, id) })
				})
				if len(left) > 0 {
					t.Errorf("killed at %s, left: %q", g.last, left)
				}
				for _, s := range before {
					if !slices.Contains(after, s) {
						t.Errorf("killed at %s, others lost %s", g.last, s)
					}
				}
				if strings.Contains(text, TagBuild+"=01k ") || strings.Contains(text, TagBuild+"=01k]") {
					t.Errorf("the build's tag is left:\n%s", text)
				}
			})
		}
		if !ended {
			t.Error("the build never came to its end")
		}
	}
}
