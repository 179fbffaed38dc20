//go:build e2e

package aws

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/versitygw"
)

// machine is another computer of the same team: the same account and template,
// a state directory of its own, the same images by the same digests.
func (r *rig) machine(versions ...string) *rig {
	r.t.Helper()
	m := &rig{World: r.World, t: r.t, cloud: r.cloud, url: r.url, home: r.t.TempDir(), dir: r.dir, began: r.began, sick: r.sick}
	store, err := oci.Open(state.Dir(m.home).Store())
	if err != nil {
		r.t.Fatal(err)
	}
	world := *r.World
	world.Store = store
	m.World = &world
	for _, v := range versions {
		m.bake(v, disk(v))
	}
	return m
}

// A deployment that one machine began and died of is ended by another, which has
// nothing of it but the bucket.
func TestTwoMachinesHaveOneFleet(t *testing.T) {
	versitygw.Start(t)
	bucket := os.Getenv("AWS_ENDPOINT_URL")
	ci := newRig(t)
	t.Setenv("AWS_ENDPOINT_URL_S3", bucket)
	t.Setenv("AWS_SECRET_ACCESS_KEY", versitygw.Secret)
	t.Setenv("REBAKE_STATE", "s3://"+versitygw.Bucket+"/team")
	for _, v := range []string{"1.0.0", "2.0.0"} {
		ci.bake(v, disk(v))
	}
	laptop := ci.machine("1.0.0", "2.0.0")

	ci.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0")
	v1, _ := ci.ami("1.0.0")
	ls, _ := laptop.rebake(0, "fleet", "ls")
	if !strings.Contains(ls, "1.0.0") {
		t.Errorf("the laptop does not know the fleet:\n%s", ls)
	}

	ci.under("a swap that one machine begins and another ends", func() {
		cmd := ci.command("deploy", "web.yaml", "--image", "web:2.0.0")
		var errb bytes.Buffer
		cmd.Stderr = &errb
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for answers(t, ci.url) == v1 { // until traffic moves
			select {
			case err := <-ended:
				t.Fatalf("it ended before any traffic moved: %v\n%s", err, errb.String())
			case <-time.After(10 * time.Millisecond):
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended
		_, said := laptop.rebake(0, "deploy", "resume", "web")
		if !strings.Contains(said, "sign of life") {
			t.Errorf("that the lease of the dead one is waited for is not said:\n%s", said)
		}
	})
	v2, _ := ci.ami("2.0.0")
	ci.serves(v2)
	laptop.under("rollback from the other machine", func() { laptop.rebake(0, "rollback", "web") })
	ci.serves(v1)
	past, _ := ci.rebake(0, "fleet", "history", "web")
	if strings.Count(past, "2.0.0") == 0 || strings.Count(past, "1.0.0") < 2 {
		t.Errorf("the history is not that of both machines:\n%s", past)
	}
	ci.rebake(0, "fleet", "destroy", "web", "--yes")
	if left := ci.Left(t, "web"); len(left) > 0 {
		t.Errorf("destroy left %v", left)
	}
	if ls, _ := laptop.rebake(0, "fleet", "ls"); !strings.Contains(ls, "no fleets yet") {
		t.Errorf("the laptop still knows a fleet:\n%s", ls)
	}
	// What each machine called stays with it: the destroyer's in the logs.
	if logs, err := filepath.Glob(filepath.Join(state.Dir(ci.home).Logs(), "fleet-web-*-calls.jsonl")); err != nil || len(logs) != 1 {
		t.Errorf("what the first machine called is in %v, %v", logs, err)
	}
	if _, err := os.Stat(state.Dir(ci.home).Fleet("web")); !os.IsNotExist(err) {
		t.Errorf("the directory of a fleet that was destroyed is there: %v", err)
	}
	if all, err := awscalls.Read(state.Dir(laptop.home).Calls("web")); err != nil || len(all) < 4 {
		t.Errorf("the laptop wrote %d lines of what it called, %v", len(all), err)
	}
}

// answers is the AMI of the instance that answers one request.
func answers(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.Header.Get("X-Image-Id")
}
