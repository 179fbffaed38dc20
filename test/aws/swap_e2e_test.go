//go:build e2e

// Package aws runs the rebake binary as a user would whose fleet is in AWS: an
// image becomes an AMI, two Auto Scaling groups swap behind an ALB, real requests
// flow. The AWS is test/awsfake.
package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/load"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
	"github.com/rebake/rebake/test/command"
	"github.com/rebake/rebake/test/disks"
)

var bin string

func TestMain(m *testing.M) {
	root, err := filepath.Abs("../..")
	if err == nil {
		bin = filepath.Join(root, ".cache", "e2e", "rebake-aws")
		build := exec.Command("go", "build", "-o", bin, "./cmd/rebake")
		build.Dir = root
		var out []byte
		if out, err = build.CombinedOutput(); err != nil {
			err = fmt.Errorf("build rebake: %w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// rig is an account, a state directory and a template's folder.
type rig struct {
	*awsfleet.World
	t         *testing.T
	cloud     *awsfake.Cloud
	url       string
	home, dir string
	began     time.Time // when all images were baked

	mu   sync.Mutex
	sick map[string]bool // AMIs whose instances answer 500
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, cloud: awsfake.Start(t), home: t.TempDir(), dir: t.TempDir(), began: time.Now().UTC().Truncate(time.Second), sick: map[string]bool{}}
	r.cloud.Set(func() {
		r.cloud.Status = func(i awsfake.Instance, _ *http.Request) int {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.sick[i.Image] {
				return http.StatusInternalServerError
			}
			return http.StatusOK
		}
	})
	r.World = awsfleet.New(t)
	store, err := oci.Open(state.Dir(r.home).Store())
	if err != nil {
		t.Fatal(err)
	}
	r.Store = store
	r.url = r.cloud.ListenerURL(r.Listener)
	r.write("web.yaml", fmt.Sprintf(`name: web
build:
  qemu: {from: {debian: bookworm}}
fleet:
  size: 3
  pool:
    asg:
      instance: {types: [t3.micro]}
      subnets: [%s]
      publish: true
  router:
    alb: {listener: "%s", priority: 10, deregistration_delay: 10s}
  health:
    http: {port: 80, path: /}
    interval: 5s
    within: 60s
    refuse_after: 2s
  deploy:
    steps: [{weight: 10, hold: 1s}, {weight: 50, hold: 1s}, {weight: 100, hold: 1s}]
    keep_old: 1h
    on_failure: rollback
retention:
  keep_last: 1
  min_age: 0s
  ami: {delete: 0s, min_age: 0s}
`, strings.Join(r.Subnets, ", "), r.Listener))
	return r
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// edit changes a text of the template.
func (r *rig) edit(from, to string) {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "web.yaml"))
	if err != nil || !strings.Contains(string(b), from) {
		r.t.Fatalf("no %q in the template: %v", from, err)
	}
	r.write("web.yaml", strings.Replace(string(b), from, to, 1))
}

// bake stands for a bake on this machine: what it makes is what a bake makes.
func (r *rig) bake(version string, disk []byte) artifact.Image {
	r.t.Helper()
	return disks.Bake(r.t, r.Store, artifact.Image{Name: "web", Version: version, Arch: "amd64", Firmware: "bios", Seed: "nocloud", User: "debian",
		Created: r.began}, disk)
}

func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+r.home)
	return cmd
}

// rebake runs the binary; its exit status must be want.
func (r *rig) rebake(want int, args ...string) (stdout, stderr string) {
	r.t.Helper()
	return command.Run(r.t, want, r.command(args...))
}

// ami is what `rebake ami ls` says of a version: its AMI, and the bytes that were sent for it.
func (r *rig) ami(version string) (id string, sent int64) {
	r.t.Helper()
	out, _ := r.rebake(0, "--output", "json", "ami", "ls", "web:"+version)
	for line := range strings.Lines(out) {
		var said struct {
			Result []struct {
				AMI  string
				Sent int64
			}
		}
		if json.Unmarshal([]byte(line), &said) == nil && len(said.Result) == 1 {
			return said.Result[0].AMI, said.Result[0].Sent
		}
	}
	r.t.Fatalf("no AMI of web:%s in %s", version, out)
	return "", 0
}

// under runs f while POSTs flow through the load balancer; none may fail.
func (r *rig) under(what string, f func()) {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	defer stop()
	done := make(chan load.Result, 1)
	go func() {
		done <- load.Run(ctx, load.Options{URL: r.url, Concurrency: 3, Pause: 5 * time.Millisecond, Header: "X-Image-Id"})
	}()
	f()
	stop()
	res := <-done
	r.t.Logf("%s: %d requests, %d failed, by AMI %v", what, res.Sent, res.Failed, res.ByVersion)
	if res.Sent < 100 {
		r.t.Errorf("%s: only %d requests were sent: the test is blind", what, res.Sent)
	}
	if res.Failed != 0 {
		r.t.Errorf("%s: %d of %d requests failed: %v", what, res.Failed, res.Sent, res.FirstErrors)
	}
}

// serves checks that some requests are answered by this AMI's instances alone.
func (r *rig) serves(ami string) {
	r.t.Helper()
	for range 20 {
		res, err := http.Get(r.url)
		if err != nil {
			r.t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("X-Image-Id"); got != ami {
			r.t.Fatalf("%s answers, not %s", got, ami)
		}
	}
}

// killed runs a command and kills it once the fleet's journal has so many more records.
func (r *rig) killed(more int, args ...string) {
	r.t.Helper()
	journal := filepath.Join(state.Dir(r.home).Fleet("web"), "journal.jsonl")
	lines := func() int {
		b, err := os.ReadFile(journal)
		if err != nil {
			r.t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	before := lines()
	cmd := r.command(args...)
	var errb bytes.Buffer
	cmd.Stderr = &errb
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for lines() < before+more {
		select {
		case err := <-ended:
			r.t.Fatalf("it ended after %d records: %v\n%s", lines()-before, err, errb.String())
		case <-time.After(time.Millisecond):
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-ended
	r.t.Logf("rebake %s: killed after %d records", strings.Join(args, " "), lines()-before)
}

// disk is some megabytes with a version in it.
func disk(version string) []byte {
	b := make([]byte, 4<<20)
	for i := range b {
		b[i] = byte(i >> 12)
	}
	copy(b[1<<20:], slices.Repeat([]byte(version+"\n"), 1000))
	return b
}

func TestAFleetInAWSIsSwappedRolledBackAndPruned(t *testing.T) {
	r := newRig(t)
	for _, v := range []string{"1.0.0", "2.0.0", "3.0.0"} {
		r.bake(v, disk(v))
	}

	// A bake of this machine becomes an AMI; the next one sends only what changed.
	r.rebake(0, "ami", "publish", "web:1.0.0")
	r.rebake(0, "ami", "publish", "web:3.0.0")
	v1, all := r.ami("1.0.0")
	v3, changed := r.ami("3.0.0")
	if all != 4<<20 || changed != 512<<10 {
		t.Errorf("%d bytes were sent for the first AMI, and %d for the one with another block", all, changed)
	}

	plan, _ := r.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0", "--plan")
	if !strings.Contains(plan, "rebake-web-SLOT-DEPLOYMENT") {
		t.Errorf("the plan does not say what else must leave alone:\n%s", plan)
	}
	r.cloud.ResetCalls()
	r.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0")
	r.serves(v1)

	// The swap publishes the image that it needs, and is killed three times.
	r.under("swap, killed and resumed", func() {
		r.killed(3, "deploy", "web.yaml", "--image", "web:2.0.0")
		r.killed(5, "deploy", "resume", "web")
		r.killed(5, "deploy", "resume", "web")
		r.rebake(0, "deploy", "resume", "web")
	})
	v2, _ := r.ami("2.0.0")
	r.serves(v2)

	// An image that answers wrongly never gets to serve.
	r.mu.Lock()
	r.sick[v3] = true
	r.mu.Unlock()
	r.under("a broken image", func() {
		_, why := r.rebake(3, "deploy", "web.yaml", "--image", "web:3.0.0")
		if !strings.Contains(why, "L7STS/500") {
			t.Errorf("why it was refused is not said:\n%s", why)
		}
	})
	r.serves(v2)

	r.under("rollback", func() { r.rebake(0, "rollback", "web", "1.0.0") })
	r.serves(v1)
	status, _ := r.rebake(0, "fleet", "status", "web")
	for _, word := range []string{"1.0.0", "L7OK"} {
		if !strings.Contains(status, word) {
			t.Errorf("no %s in the status:\n%s", word, status)
		}
	}

	// What serves, and what one can go back to, stays, though no rule keeps it; the
	// AMI of what goes goes with it.
	r.rebake(0, "images", "prune", "--template", "web.yaml", "--yes")
	if !r.there(v1) || !r.there(v2) || !r.there(v3) {
		t.Errorf("1.0.0 serves, 2.0.0 was proven before it, 3.0.0 is the newest: %t %t %t", r.there(v1), r.there(v2), r.there(v3))
	}
	r.rebake(0, "fleet", "destroy", "web", "--yes")
	if left := r.Left(t, "web"); len(left) > 0 {
		t.Errorf("destroy left %v", left)
	}
	r.wroteDown()
	r.rebake(0, "images", "prune", "--template", "web.yaml", "--yes")
	if r.there(v1) || r.there(v2) || !r.there(v3) {
		t.Errorf("the newest alone is kept: %t %t %t", r.there(v1), r.there(v2), r.there(v3))
	}
}

// wroteDown checks what is left of a fleet on this machine once it is destroyed: each
// kind of call that changed something, in the logs.
func (r *rig) wroteDown() {
	r.t.Helper()
	if _, err := os.Stat(state.Dir(r.home).Fleet("web")); !os.IsNotExist(err) {
		r.t.Errorf("the directory of a fleet that was destroyed is there: %v", err)
	}
	logs, err := filepath.Glob(filepath.Join(state.Dir(r.home).Logs(), "fleet-web-*-calls.jsonl"))
	if err != nil || len(logs) != 1 {
		r.t.Fatalf("what was called is in %v, %v", logs, err)
	}
	all, err := awscalls.Read(logs[0])
	if err != nil {
		r.t.Fatal(err)
	}
	written := map[string]bool{}
	for _, e := range all {
		_, op, _ := strings.Cut(e.Call, ".")
		written[op] = true
	}
	seen := 0
	for action := range r.cloud.Calls() {
		if _, op, _ := strings.Cut(action, ":"); !awscalls.Reads(op) {
			if seen++; !written[op] {
				r.t.Errorf("%s was called, and is not written down", action)
			}
		}
	}
	if seen < 15 {
		r.t.Errorf("only %d kinds of calls changed something: the test is blind", seen)
	}
}

// there tells whether EC2 has an AMI.
func (r *rig) there(ami string) bool {
	r.t.Helper()
	out, err := r.EC2.DescribeImages(r.t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{{Name: ptr("image-id"), Values: []string{ami}}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return len(out.Images) == 1
}

func ptr[T any](v T) *T { return &v }
