package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/fleet"
	fleets3 "github.com/rebake/rebake/fleet/s3"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/bucket"
	"github.com/rebake/rebake/test/fake"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rebake": main})
}

// TestScripts runs test/script/*.txtar: rebake as a user types it, each script
// with a home of its own. test/script/README.md lists the commands added here.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "../../test/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(4 * time.Minute), // of all together, on a machine that is busy too: a hang is a failure
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("REBAKE_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("TMPDIR", filepath.Join(e.WorkDir, ".tmp"))
			e.Setenv("NO_PROXY", "127.0.0.1")
			e.Values[stallKey{}] = make(chan struct{}, 1)
			e.Values[awsKey{}] = new(*awsfake.Cloud)
			e.Values[bucketKey{}] = new(s3Server)
			l, err := net.Listen("tcp", "127.0.0.1:0") // a free address for a router
			if err != nil {
				return err
			}
			e.Setenv("ADDR", l.Addr().String())
			l.Close()
			e.Defer(func() { endRouters(e) })
			bin, err := exec.LookPath("rebake") // testscript.Main put it there
			e.Setenv("BIN", filepath.Dir(bin))
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ok": scriptOK, "fails": scriptFails, "json": scriptJSON, "mkimage": scriptMkimage,
			"mkfleet": scriptMkfleet, "hold": scriptHold, "stall": scriptStall, "schema": scriptSchema,
			"registry": scriptRegistry, "doctor": scriptDoctor, "printf": scriptPrintf, "damage": scriptDamage, "serve": scriptServe, "holds": scriptHolds,
			"aws": scriptAWS, "bucket": scriptBucket,
		},
	})
}

// endRouters ends what a script that failed half way left running.
func endRouters(e *testscript.Env) {
	pids, err := filepath.Glob(filepath.Join(e.Getenv("REBAKE_HOME"), "fleets", "*", "haproxy.pid"))
	if err != nil {
		e.T().Fatal(err)
	}
	for _, p := range pids {
		name := filepath.Base(filepath.Dir(p))
		cmd := exec.Command(filepath.Join(e.Getenv("BIN"), "rebake"), "fleet", "destroy", name, "--yes")
		cmd.Env = append(os.Environ(), "REBAKE_HOME="+e.Getenv("REBAKE_HOME"))
		if out, err := cmd.CombinedOutput(); err != nil {
			e.T().Log(fmt.Sprintf("end the router of %s: %v: %s", name, err, out))
		}
	}
}

// scriptOK PROGRAM… runs what must end with status 0.
func scriptOK(ts *testscript.TestScript, neg bool, args []string) {
	scriptFails(ts, neg, append([]string{"0"}, args...))
}

// scriptFails STATUS PROGRAM… runs a program, holds its exit status to the number, and holds
// rebake to what is true of every command: an error is said once on standard
// error, in one form; nothing else goes there that looks like one; no panic.
func scriptFails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: ok PROGRAM… or fails STATUS PROGRAM…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	out, errOut := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	errs := strings.Count("\n"+errOut, "\nrebake: error: ")
	switch {
	case strings.Contains(errOut, "goroutine ") || strings.Contains(errOut, "panic: "):
		ts.Fatalf("it panics")
	case got != 0 && errs != 1, got == 0 && errs != 0:
		ts.Fatalf("status %d with %d errors on standard error", got, errs)
	case strings.Contains(out, "rebake: error: "):
		ts.Fatalf("an error on standard output")
	case got == exitUsage && out != "":
		ts.Fatalf("bad input, yet something on standard output")
	}
}

// scriptJSON holds standard output to docs/events.md: an object a line, the last
// one the result. Arguments are paths in the result (0.name) that must be
// there, or with =VALUE must have that text.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\n"), "\n")
	var last map[string]any
	for i, l := range lines {
		last = nil
		if err := json.Unmarshal([]byte(l), &last); err != nil {
			ts.Fatalf("line %d is no JSON object: %v", i+1, err)
		}
		if kind := last["kind"]; kind == nil || (kind == "result") != (i == len(lines)-1) {
			ts.Fatalf("line %d of %d has kind %v", i+1, len(lines), kind)
		}
	}
	for _, a := range args {
		path, want, valued := strings.Cut(a, "=")
		got, ok := at(last["result"], strings.Split(path, "."))
		if text := fmt.Sprint(got); ok == neg && !valued || valued && (ok && text == want) == neg {
			ts.Fatalf("%s is %q (there: %t)", a, text, ok)
		}
	}
}

func at(v any, path []string) (any, bool) {
	if len(path) == 0 || path[0] == "" {
		return v, true
	}
	switch x := v.(type) {
	case map[string]any:
		if in, ok := x[path[0]]; ok {
			return at(in, path[1:])
		}
	case []any:
		if path[0] == "length" {
			return len(x), true
		}
		if i, err := strconv.Atoi(path[0]); err == nil && i < len(x) {
			return at(x[i], path[1:])
		}
	}
	return nil, false
}

func home(ts *testscript.TestScript) state.Dir { return state.Dir(ts.Getenv("REBAKE_HOME")) }

// scriptMkimage [-from REF] NAME VERSION SIZE [TAG | as=TEMPLATE | age=DURATION | retention=JSON | seed=KIND]…
// stores an image as the pipeline does: chunks first, then the version, then the tags.
// The disk is the same for the same NAME and SIZE, the inputs are those of the template.
func scriptMkimage(ts *testscript.TestScript, neg bool, args []string) {
	from := ""
	if len(args) > 1 && args[0] == "-from" {
		from, args = args[1], args[2:]
	}
	if neg || len(args) < 3 {
		ts.Fatalf("usage: mkimage [-from REF] NAME VERSION SIZE [TAG…] [as=TEMPLATE]")
	}
	size, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	disk := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(len(args[0])), uint64(size)))
	for i := range disk[:size/2] { // the other half is a hole
		disk[i] = byte(r.Uint32())
	}
	path := ts.MkAbs("disk-" + args[0] + "-" + args[1])
	ts.Check(os.WriteFile(path, disk, 0o600))
	d, err := artifact.FileDisk(path)
	ts.Check(err)
	defer d.Close()
	s, err := oci.Open(home(ts).Store())
	ts.Check(err)
	ctx := context.Background()
	content, added, err := s.Write(ctx, d, nil)
	ts.Check(err)
	lineage := artifact.Lineage{Template: args[0], Parent: "debian:bookworm", BuildID: "01script", Builder: "qemu", Rebake: "dev"}
	made, labels, tags, seed := time.Now().UTC().Truncate(time.Second), map[string]string(nil), []string{artifact.Latest}, "credentials"
	for _, a := range args[3:] {
		switch key, value, _ := strings.Cut(a, "="); key {
		case "as":
			lineage.InputsDigest = inputsOf(ts, value)
		case "age":
			age, err := time.ParseDuration(value)
			ts.Check(err)
			made = made.Add(-age)
		case "seed":
			seed = value
		case "retention":
			labels = map[string]string{"dev.rebake.retention": value}
		default:
			tags = append(tags, a)
		}
	}
	if from != "" {
		ref, err := artifact.ParseRef(from)
		ts.Check(err)
		base, err := s.Resolve(ctx, ref)
		ts.Check(err)
		lineage.From, lineage.Parent, lineage.ParentDigest = from, base.Name+":"+base.Version, base.Digest
		lineage.Ancestors = append([]artifact.Ancestor{{Ref: base.Lineage.Parent, Digest: base.Lineage.ParentDigest}}, base.Lineage.Ancestors...)
	}
	img, err := s.Register(ctx, artifact.Image{
		Name: args[0], Version: args[1], Content: content, StoredNew: added, DiskSize: size, Labels: labels,
		Created: made, Arch: "amd64", Firmware: "bios", Seed: seed, User: "root",
		Lineage: lineage,
		Tests:   []artifact.TestResult{{Name: "service nginx", Passed: true, Seconds: 0.1}},
	})
	ts.Check(err)
	for _, tag := range tags {
		ts.Check(s.Tag(ctx, img.Name, tag, img.Digest))
	}
}

// inputsOf is the digest of all that decides the image of a template.
func inputsOf(ts *testscript.TestScript, tpl string) artifact.Digest {
	ts.Check(ts.Exec("rebake", "--output", "json", "plan", tpl))
	var last struct {
		Result []pipeline.Plan
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &last))
	if len(last.Result) != 1 || last.Result[0].Inputs == "" {
		ts.Fatalf("nobody can tell the inputs of %s", tpl)
	}
	return last.Result[0].Inputs
}

// scriptRegistry [referrers] starts a registry of this process and sets $REGISTRY.
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	opts := []ggcr.Option{ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(slices.Contains(args, "referrers"))}
	s := httptest.NewServer(ggcr.New(opts...))
	ts.Defer(s.Close)
	ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "http://"))
}

// scriptMkfleet NAME [ref | bad=ref | pause=ref]… has a fleet deploy images of the
// store one after the other: the engine and its journal are the real ones, the
// machines are the fakes that pass the suites. bad= never becomes healthy, so
// that it is rolled back; pause= neither, and its policy leaves it blocked.
func scriptMkfleet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mkfleet NAME [REF | bad=REF | pause=REF]…")
	}
	s, err := oci.Open(home(ts).Store())
	ts.Check(err)
	health := fleet.HealthCheck{Type: "http", Port: 80, Path: "/", Status: 200, Interval: 10 * time.Millisecond, Timeout: time.Second, Rise: 1, Fall: 2}
	cfg := fleet.Config{
		Name: args[0], Template: "web.yaml", Size: 2, PoolKind: "qemu", Pool: json.RawMessage(`{"memory":"256M"}`),
		RouterKind: "haproxy", Router: json.RawMessage(fmt.Sprintf(`{"listen":%q}`, ts.Getenv("ADDR"))), Health: health,
		Policy: fleet.Policy{Port: 80, Within: 300 * time.Millisecond, KeepOld: time.Hour},
	}
	pool := &fake.Pool{Behave: map[artifact.Digest]fake.Behaviour{}}
	router := &fake.Router{Check: pool.Check, Rise: 1, Every: 10 * time.Millisecond}
	for _, a := range args[1:] {
		how, text, ok := strings.Cut(a, "=")
		if !ok {
			how, text = "", a
		}
		ref, err := artifact.ParseRef(text)
		ts.Check(err)
		img, err := s.Resolve(context.Background(), ref)
		ts.Check(err)
		img.Tags = nil
		pool.Behave[img.Digest] = fake.Behaviour{Never: how != ""}
		cfg.Policy.OnFailure = map[string]string{"pause": "pause"}[how]
		cfg.Policy, err = cfg.Policy.Complete()
		ts.Check(err)
		d := &fleet.Deployer{Dir: home(ts).Fleet(cfg.Name), Config: cfg, Pool: pool, Router: router, Poll: time.Millisecond}
		if at := ts.Getenv("SHARED"); at != "" {
			h, err := fleets3.Open(context.Background(), at, fleets3.Options{Client: ts.Value(bucketKey{}).(*s3Server).Client(nil)})
			ts.Check(err)
			d.Books = h.Books(cfg.Name)
		}
		_, err = d.Deploy(context.Background(), fleet.Request{Spec: fleet.Spec{Image: img, Size: cfg.Size, Ports: []int{80}}, Policy: cfg.Policy})
		want := map[string]error{"bad": fleet.ErrRolledBack, "pause": fleet.ErrBlocked}[how]
		if !errors.Is(err, want) {
			ts.Fatalf("deploy %s: %v", a, err)
		}
	}
}

type bucketKey struct{}

// scriptBucket starts an S3 server and points the SDK at it; `bucket end` ends it.
// While $SHARED is the address of a state in it, mkfleet's fleets are there.
func scriptBucket(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.Value(bucketKey{}).(*s3Server)
	if len(args) == 1 && args[0] == "end" {
		b.http.Close()
		return
	}
	if neg || len(args) > 0 {
		ts.Fatalf("usage: bucket [end]")
	}
	b.http = httptest.NewServer(&b.Server)
	ts.Defer(b.http.Close)
	for k, v := range map[string]string{"AWS_ENDPOINT_URL": b.http.URL, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
		"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"} {
		ts.Setenv(k, v)
	}
}

// s3Server is a script's bucket.
type s3Server struct {
	bucket.Server
	http *httptest.Server
}

// scriptHold FILE takes a file's lock until the script ends, as another rebake would.
func scriptHold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold FILE")
	}
	l := flock.New(ts.MkAbs(args[0]))
	if ok, err := l.TryLock(); !ok {
		ts.Fatalf("lock %s: %v", args[0], err)
	}
	ts.Defer(func() { l.Close() })
}

type stallKey struct{}

// scriptStall starts a server that never answers and sets $STALL to its URL;
// `stall wait` waits until somebody has asked it.
func scriptStall(ts *testscript.TestScript, neg bool, args []string) {
	asked := ts.Value(stallKey{}).(chan struct{})
	if len(args) == 1 && args[0] == "wait" {
		select {
		case <-asked:
		case <-time.After(20 * time.Second):
			ts.Fatalf("nobody asked within 20s")
		}
		return
	}
	end := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-end
	}))
	ts.Setenv("STALL", srv.URL)
	ts.Defer(func() {
		close(end)
		srv.CloseClientConnections()
		srv.Close()
	})
}

type awsKey struct{}

// scriptAWS starts an AWS with nothing in it, for the script; `aws deny ACTION`
// refuses a call, as ec2:DescribeInstances, from then on, `aws deny` none.
func scriptAWS(ts *testscript.TestScript, neg bool, args []string) {
	cloud, _ := ts.Value(awsKey{}).(**awsfake.Cloud)
	switch {
	case neg || len(args) > 2 || len(args) > 0 && args[0] != "deny":
		ts.Fatalf("usage: aws [deny [ACTION]]")
	case len(args) > 0:
		(*cloud).Set(func() { (*cloud).Deny = func(action string) bool { return len(args) > 1 && action == args[1] } })
	default:
		c := awsfake.New()
		c.Speed = 1000
		for k, v := range c.Env(c.Serve()) {
			ts.Setenv(k, v)
		}
		*cloud = c
		ts.Defer(c.Close)
	}
}

// scriptServe DIR serves the files of a directory and sets $SERVE to their URL.
func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve DIR")
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[0]))))
	ts.Setenv("SERVE", srv.URL)
	ts.Defer(srv.Close)
}

// scriptSchema SCHEMA TEMPLATE… compiles a JSON Schema and holds templates to it.
func scriptSchema(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: [!] schema FILE [TEMPLATE…]")
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(ts.ReadFile(args[0])))
	ts.Check(err)
	c := jsonschema.NewCompiler()
	ts.Check(c.AddResource("schema.json", doc))
	s, err := c.Compile("schema.json")
	ts.Check(err)
	for _, path := range args[1:] {
		var v any
		ts.Check(yaml.Unmarshal([]byte(ts.ReadFile(path)), &v))
		if err := s.Validate(v); (err != nil) != neg {
			ts.Fatalf("%s: %v", path, err)
		}
	}
}

// scriptDoctor runs `rebake --output json doctor` and holds its exit status to
// what it says: 1 exactly if a part that is not optional will not do.
func scriptDoctor(ts *testscript.TestScript, neg bool, _ []string) {
	err := ts.Exec("rebake", "--output", "json", "doctor")
	var last struct {
		Result []struct {
			Part, Needed, Why string
			OK, Optional      bool
		}
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &last))
	bad := 0
	for _, f := range last.Result {
		if f.Part == "" || f.Needed == "" || !f.OK && f.Why == "" {
			ts.Fatalf("says too little: %+v", f)
		}
		if !f.OK && !f.Optional {
			bad++
		}
	}
	if len(last.Result) == 0 || (err != nil) != (bad > 0) || strings.Contains(ts.ReadFile("stderr"), "rebake: error: ") != (bad > 0) {
		ts.Fatalf("%d parts will not do, yet: %v", bad, err)
	}
}

// scriptPrintf FILE TEXT COUNT [TEXT COUNT]… writes what a script's own file
// cannot hold: Go escapes, and repetition.
func scriptPrintf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args)%2 == 0 {
		ts.Fatalf("usage: printf FILE TEXT COUNT…")
	}
	var b bytes.Buffer
	for i := 1; i < len(args); i += 2 {
		text, err := strconv.Unquote(`"` + args[i] + `"`)
		ts.Check(err)
		n, err := strconv.Atoi(args[i+1])
		ts.Check(err)
		for range n {
			b.WriteString(text)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// scriptDamage turns a bit in the middle of the largest file below DIR.
func scriptDamage(ts *testscript.TestScript, neg bool, args []string) {
	var largest string
	var size int64
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if fi, err := d.Info(); err == nil && fi.Size() > size {
			largest, size = path, fi.Size()
		}
		return nil
	}))
	b, err := os.ReadFile(largest)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.Chmod(largest, 0o600))
	ts.Check(os.WriteFile(largest, b, 0o600))
}
