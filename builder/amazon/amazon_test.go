package amazon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

func TestTheAmazonBuilderKeepsItsContract(t *testing.T) {
	conformance.Builder(t, func(t *testing.T) conformance.BuilderWorld {
		w := newWorld(t)
		web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "it works") }))
		t.Cleanup(web.Close)
		var port int
		if _, err := fmt.Sscanf(web.Listener.Addr().String(), "127.0.0.1:%d", &port); err != nil {
			t.Fatal(err)
		}
		other := w.image("other", &fake.Builder{Base: map[string]string{"etc/motd": "other\n"}})
		return conformance.BuilderWorld{
			Builder: w.builder(), Port: port,
			Again: func(*testing.T) builder.Builder { return w.builder() },
			Other: func(*testing.T) builder.Builder { return w.builder(func(c *Config) { c.Source.AMI = other }) },
			Kill: func(t *testing.T, id string) {
				found, err := (&region{ec2: w.ec2}).instances(t.Context(), id)
				w.ok(err)
				for _, i := range found {
					if i.State.Name == types.InstanceStateNameRunning || i.State.Name == types.InstanceStateNameStopping {
						w.cloud.EndInstance(here, *i.InstanceId)
					}
				}
			},
			Leftovers: func(t *testing.T) []string {
				left := w.tagged("")
				entries, err := os.ReadDir(w.deps.State.Builds())
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				for _, e := range entries {
					left = append(left, e.Name())
				}
				return left
			},
		}
	})
}

// off has the guest of machine m power off by itself, once it is up.
func (w *world) off(m builder.Machine) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !w.guests.Live(m.(*machine).instance); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("the guest does not come up")
		}
	}
	w.cloud.PowerOff(here, m.(*machine).instance)
}

// baked brings a machine up and captures it.
func (w *world) baked(b *Builder, id string) artifact.Disk {
	w.t.Helper()
	m, err := b.Boot(w.t.Context(), id)
	w.ok(err)
	w.off(m)
	d, err := m.Capture(w.t.Context())
	w.ok(err)
	return d
}

// described is an image of a disk that the store has, and does not show yet.
func (w *world) described(d artifact.Disk, version string) artifact.Image {
	w.t.Helper()
	content, _, err := w.store.Write(w.t.Context(), d, nil)
	w.ok(err)
	img, err := w.store.Describe(w.t.Context(), artifact.Image{Name: "web", Version: version, Content: content, Created: time.Now().UTC().Truncate(time.Second),
		Arch: "amd64", Firmware: "bios", Seed: "nocloud", User: "root", DiskSize: d.Size()})
	w.ok(err)
	return img
}

// register makes the image visible with what was published of it.
func (w *world) register(img artifact.Image, docs []builder.Document) {
	w.t.Helper()
	for _, d := range docs {
		_, err := w.store.Attach(w.t.Context(), img.Digest, d.Attachment, d.Body)
		w.ok(err)
	}
	_, err := w.store.Register(w.t.Context(), img)
	w.ok(err)
}

func TestAnAMIIsTheImagesOwnOnceTheImageIsThere(t *testing.T) {
	w := newWorld(t)
	b := w.builder(func(c *Config) {
		c.AMI = AMI{Tags: map[string]string{"team": "web"}, CopyTo: []Copy{{Region: there}}, Share: Share{Users: []string{"111122223333"}}, Deprecate: 90 * 24 * time.Hour, Protect: true}
		c.Tags = map[string]string{"cost": "ci"}
	})
	d := w.baked(b, "01a")
	defer d.Close()
	if got := w.tagged("01a"); len(got) != 4 || !strings.Contains(strings.Join(got, "\n"), "cost=ci") { // instance, volume, snapshot, group
		t.Errorf("after the capture there is %q", got)
	}
	img := w.described(d, "1.0.0")
	docs, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	again, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	if len(docs) != 2 || string(again[0].Body) != string(docs[0].Body) {
		t.Errorf("published again: %s, was %s", again[0].Body, docs[0].Body)
	}
	w.register(img, docs)
	w.ok(b.Destroy(t.Context(), "01a"))
	if left := w.tagged(""); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	records, err := ami.Records(t.Context(), w.store, img)
	w.ok(err)
	if len(records) != 2 || records[0].Region != here || records[1].Region != there || records[1].From != records[0].AMI || records[0].Name != ami.Name(img) || records[0].Account != awsfake.Account {
		t.Fatalf("records: %+v", records)
	}
	for _, r := range records {
		reg, err := w.deps.connect(t.Context(), r.Region)
		w.ok(err)
		out, err := reg.images(t.Context(), filter("image-id", r.AMI))
		w.ok(err)
		if len(out) != 1 {
			t.Fatalf("%s is gone", r.AMI)
		}
		i := out[0]
		if tagOf(i.Tags, "team") != "web" || tagOf(i.Tags, ami.TagDigest) != string(img.Digest) || i.ImdsSupport != types.ImdsSupportValuesV20 && r.Region == here {
			t.Errorf("%s: %+v", r.AMI, i)
		}
		if !strings.HasPrefix(aws.ToString(i.DeregistrationProtection), "enabled") || aws.ToString(i.DeprecationTime) == "" {
			t.Errorf("%s: protection %q, deprecation %q", r.AMI, aws.ToString(i.DeregistrationProtection), aws.ToString(i.DeprecationTime))
		}
		snapshots, err := reg.ec2.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: []string{r.Snapshot}})
		w.ok(err)
		if tagOf(snapshots.Snapshots[0].Tags, ami.TagContent) != string(img.Content) {
			t.Errorf("%s: %v", r.Snapshot, snapshots.Snapshots[0].Tags)
		}
	}
	raw, err := os.ReadFile(w.deps.State.Logs() + "/01a-" + awscalls.Name)
	if err != nil || !strings.Contains(string(raw), `"call":"EC2.RegisterImage","region":"eu-central-1","with":{"Name":"`+ami.Name(img)) {
		t.Errorf("the calls were not kept: %v\n%s", err, raw)
	}
	if strings.Contains(string(raw), "PRIVATE KEY") || strings.Contains(string(raw), "cost") {
		t.Errorf("more is kept than calls:\n%s", raw)
	}

	// The next image on top of it reads only what changed.
	next := w.builder(func(c *Config) { c.Source = Source{Image: "web:1.0.0"} })
	base, err := next.Prepare(t.Context())
	if err != nil || base.Digest != img.Digest || base.Ref != "web:1.0.0" {
		t.Fatalf("%+v, %v", base, err)
	}
	w.cloud.ResetCalls()
	d2 := w.baked(next, "01b")
	defer d2.Close()
	extents, err := d2.Extents(t.Context())
	w.ok(err)
	if d2.Parent() != img.Content || !slices.ContainsFunc(extents, func(e artifact.Extent) bool { return e.Inherited || e.Zero }) {
		t.Errorf("parent %q, extents %+v", d2.Parent(), extents)
	}
	w.described(d2, "1.0.1")
	w.ok(next.Destroy(t.Context(), "01b"))
	if n := w.cloud.Calls()["ec2:DeleteTags"]; n != 0 {
		t.Errorf("%d calls took tags from an image that was not registered", n)
	}
}

func TestWithoutCapacityTheNextPlaceIsTried(t *testing.T) {
	w := newWorld(t)
	w.cloud.Set(func() {
		w.cloud.Capacity = func(zone, kind string) string {
			if kind == "c7i.large" {
				return "We currently do not have sufficient c7i.large capacity in " + zone
			}
			return ""
		}
	})
	var said []string
	ctx := event.With(t.Context(), func(e event.Event) { said = append(said, e.Text) }, &event.Redactor{})
	b := w.builder(func(c *Config) { c.Types.AnyOf = []string{"c7i.large", "m7i.large"} })
	m, err := b.Boot(ctx, "01a")
	w.ok(err)
	found, err := (&region{ec2: w.ec2}).instances(ctx, "01a")
	w.ok(err)
	if len(found) != 1 || found[0].InstanceType != "m7i.large" || m.(*machine).instance != *found[0].InstanceId {
		t.Errorf("%+v", found)
	}
	if text := strings.Join(said, "\n"); strings.Count(text, "c7i.large in eu-central-1") != 3 || !strings.Contains(text, "no capacity") {
		t.Errorf("it said:\n%s", text)
	}
	w.ok(b.Destroy(ctx, "01a"))
	none := w.builder(func(c *Config) { c.Types.AnyOf = []string{"c7i.large"}; c.Spot = Spot{Use: true, OnDemand: true} })
	w.cloud.ResetCalls()
	if _, err := none.Boot(ctx, "01b"); err == nil || strings.Count(err.Error(), "no capacity") != 6 || !strings.Contains(err.Error(), "spot c7i.large in eu-central-1") {
		t.Errorf("got %v", err)
	}
	if n := w.cloud.Calls()["ec2:RunInstances"]; n != 6 {
		t.Errorf("%d launches were tried at 6 places", n)
	}
	w.ok(none.Destroy(ctx, "01b"))
	if left := w.tagged(""); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestASpotInstancesVolumeOutlivesIt(t *testing.T) {
	w := newWorld(t)
	b := w.builder(func(c *Config) { c.Spot.Use = true })
	d := w.baked(b, "01a")
	defer d.Close()
	img := w.described(d, "1.0.0")
	if img.DiskSize != 1<<30 {
		t.Errorf("the disk has %d bytes", img.DiskSize)
	}
	m, err := b.BootTest(t.Context(), "01a-t1", d, nil)
	w.ok(err)
	if _, err := m.Endpoint(t.Context()); err != nil {
		t.Error(err)
	}
	w.ok(b.Destroy(t.Context(), "01a-t1"))
	w.ok(b.Destroy(t.Context(), "01a"))
	if left := w.tagged(""); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestWhatIsRefusedIsSaidInWords(t *testing.T) {
	w := newWorld(t)
	for action, want := range map[string]string{
		"ec2:RunInstances": "lacks the permission ec2:RunInstances", "ec2:CreateSecurityGroup": "lacks the permission ec2:CreateSecurityGroup",
		"ec2:DescribeImages": "lacks the permission ec2:DescribeImages",
	} {
		w.cloud.Set(func() { w.cloud.Deny = func(a string) bool { return a == action } })
		b := w.builder()
		if _, err := b.Boot(t.Context(), "01a"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", action, err)
		}
		w.cloud.Set(func() { w.cloud.Deny = nil })
		w.ok(b.Destroy(t.Context(), "01a"))
	}
	if left := w.tagged(""); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// What was just made is not listed everywhere at once.
func TestWhatIsNotSeenYetIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.cloud.Set(func() { w.cloud.Lag = 20 * time.Second }) // 20 ms here
	b := w.builder()
	d := w.baked(b, "01a")
	defer d.Close()
	w.described(d, "1.0.0")
	w.ok(b.Destroy(t.Context(), "01a"))

	// The process dies right after a launch: the instance is not listed yet.
	w.cloud.Set(func() { w.cloud.Lag = 100 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	w.cloud.Fault(awsfake.Fault{Action: "ec2:RunInstances", After: true, Match: func(*awsfake.Call) bool { cancel(); return true }})
	if _, err := w.builder().Boot(ctx, "01b"); err == nil {
		t.Fatal("it did not notice that it was cut off")
	}
	w.ok(Destroy(t.Context(), w.deps, "01b"))
	time.Sleep(120 * time.Millisecond)
	if left := w.tagged(""); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Every call that changes something is written down before the cloud gets it.
func TestNoCallIsMadeThatIsNotWrittenDown(t *testing.T) {
	w := newWorld(t)
	b := w.builder(func(c *Config) { c.AMI.CopyTo = []Copy{{Region: there}} })
	d := w.baked(b, "01a")
	defer d.Close()
	img := w.described(d, "1.0.0")
	docs, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	w.register(img, docs)
	w.ok(b.Destroy(t.Context(), "01a"))
	raw, err := os.ReadFile(w.deps.State.Logs() + "/01a-" + awscalls.Name)
	w.ok(err)
	written := map[string]int{}
	for _, line := range strings.Split(string(raw), "\n") {
		var e awscalls.Entry
		if json.Unmarshal([]byte(line), &e) == nil && e.Call != "" {
			written[strings.ToLower(e.Call[:4])+e.Call[4:]]++
		}
	}
	seen := 0
	for action, n := range w.cloud.Calls() {
		service, op, _ := strings.Cut(action, ":")
		if awscalls.Reads(op) || service == "ebs" || op == "RegisterImage" { // the base's own are the test's
			continue
		}
		seen++
		if got := written[service+"."+op]; got != n {
			t.Errorf("%s: %d calls, %d are written down", action, n, got)
		}
	}
	if seen < 7 || written["ec2.RegisterImage"] != 1 {
		t.Errorf("the test is blind: %v", written)
	}
}

func TestASourceThatCannotBecomeAnAMIIsRefused(t *testing.T) {
	w := newWorld(t)
	for want, of := range map[string]types.Image{
		"is billed by its AMI": {Name: aws.String("market"), ProductCodes: []types.ProductCode{{ProductCodeId: aws.String("abc"), ProductCodeType: "marketplace"}}},
		"rebake bakes Linux":   {Name: aws.String("win"), Platform: types.PlatformValuesWindows},
	} {
		id := w.cloud.AddImage(here, of)
		if _, err := w.builder(func(c *Config) { c.Source.AMI = id }).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", *of.Name, err)
		}
	}
	found := w.builder(func(c *Config) { c.Source = Source{Filter: &AMIFilter{Owners: []string{"self"}, Name: "bas?"}} })
	if base, err := found.Prepare(t.Context()); err != nil || base.Ref != w.base {
		t.Errorf("by a filter: %+v, %v", base, err)
	}
	w.image("base2", w.guests.Machines)
	many := w.builder(func(c *Config) { c.Source = Source{Filter: &AMIFilter{Owners: []string{"self"}, Name: "base*"}} })
	if _, err := many.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "say newest: true") {
		t.Errorf("of two AMIs: %v", err)
	}
}

// What is known here of a source is said without a call: of an image of the store
// whether it has an AMI in the region, of somebody's AMI nothing.
func TestCheckAsksNobody(t *testing.T) {
	w := newWorld(t)
	b := w.builder()
	d := w.baked(b, "01a")
	img := w.described(d, "1.0.0")
	docs, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	w.register(img, docs)
	w.ok(errors.Join(d.Close(), b.Destroy(t.Context(), "01a")))
	w.cloud.ResetCalls()
	for _, c := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"somebody's", "", func(c *Config) { c.Source = Source{AMI: "ami-none"} }},
		{"an image", "", func(c *Config) { c.Source = Source{Image: "web:1.0.0"} }},
		{"an image elsewhere", "web:1.0.0 has no AMI in " + there, func(c *Config) { c.Source, c.Region = Source{Image: "web:1.0.0"}, there }},
		{"no image", "web:2.0.0", func(c *Config) { c.Source = Source{Image: "web:2.0.0"} }},
	} {
		if err := w.builder(c.change).Check(t.Context()); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if calls := w.cloud.Calls(); len(calls) > 0 {
		t.Errorf("asked: %v", calls)
	}
}

// EC2 may take long with a guest that has powered off; that is no reason to lose it.
func TestASlowStopIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.cloud.Set(func() { w.cloud.Delays.Stopping = 500 * time.Second }) // 500 ms here
	b := w.builder(func(c *Config) { c.Shutdown = 100 * time.Millisecond })
	m, err := b.Boot(t.Context(), "01a")
	w.ok(err)
	w.off(m)
	for end := time.Now().Add(20 * time.Second); m.(*machine).now() == types.InstanceStateNameRunning && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	d, err := m.Capture(t.Context())
	w.ok(err)
	w.ok(d.Close())
	m, err = b.Boot(t.Context(), "01b")
	w.ok(err)
	if _, err := m.Capture(t.Context()); err == nil || !strings.Contains(err.Error(), "shutdown_timeout") {
		t.Errorf("a guest that EC2 was told to stop: %v", err)
	}
	w.ok(errors.Join(b.Destroy(t.Context(), "01a"), b.Destroy(t.Context(), "01b")))
}
