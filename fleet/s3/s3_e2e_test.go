//go:build e2e

package s3_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/s3"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/versitygw"
)

var rounds = flag.Int("rounds", 20, "races of 16 processes for one lease")

// connect is an operator with connections of its own, on the server of the environment.
func connect(t *testing.T, prefix string, lease time.Duration) *s3.Home {
	t.Helper()
	h, err := s3.Open(t.Context(), "s3://"+versitygw.Bucket+"/"+prefix, s3.Options{Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func client(t *testing.T) *awss3.Client {
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return awss3.NewFromConfig(cfg, func(o *awss3.Options) { o.UsePathStyle = true })
}

// suite runs it, each part below a prefix of its own.
func suite(t *testing.T) {
	n := 0
	conformance.Home(t, func(t *testing.T) (fleet.Home, conformance.HomeOptions) {
		n++
		prefix := fmt.Sprint("suite-", n)
		bucket := versitygw.Bucket
		key := func(k string) *string { k = prefix + "/" + k; return &k }
		return connect(t, prefix, 3*time.Second), conformance.HomeOptions{
			Other: func(t *testing.T) fleet.Home { return connect(t, prefix, 3*time.Second) },
			Damage: func(t *testing.T, name string) {
				k := key("fleets/" + name + "/1/journal/00000003.json")
				out, err := client(t).GetObject(t.Context(), &awss3.GetObjectInput{Bucket: &bucket, Key: k})
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(out.Body)
				if err != nil {
					t.Fatal(err)
				}
				text := strings.Replace(string(b), `{"n":2}`, `{"n":7}`, 1)
				if _, err := client(t).PutObject(t.Context(), &awss3.PutObjectInput{Bucket: &bucket, Key: k, Body: strings.NewReader(text)}); err != nil || text == string(b) {
					t.Fatal(err)
				}
			},
			Lose: func(t *testing.T, name string) {
				if _, err := client(t).DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: &bucket, Key: key("fleets/" + name + ".json")}); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// Not on moto's server: of two conditional writes at once both are done there.
func TestHomeOnVersitygw(t *testing.T) {
	versitygw.Start(t)
	suite(t)
}

// operator is another process: this test, run as one.
type operator struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

const asOperator = "REBAKE_TEST_OPERATOR"

// start starts an operator with a lease of that length.
func start(t *testing.T, lease time.Duration) *operator {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asOperator+"="+lease.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	o := &operator{cmd, in, bufio.NewScanner(out)}
	if got := o.answer(); got != "ready" {
		t.Fatalf("an operator says %q", got)
	}
	return o
}

func (o *operator) say(word string) { fmt.Fprintln(o.in, word) }

func (o *operator) answer() string {
	o.out.Scan()
	return o.out.Text()
}

func (o *operator) do(word string) string {
	o.say(word)
	return o.answer()
}

func TestMain(m *testing.M) {
	if lease, err := time.ParseDuration(os.Getenv(asOperator)); err == nil {
		operate(lease)
		return
	}
	os.Exit(m.Run())
}

// operate is what an operator does: what it reads, word by word.
func operate(lease time.Duration) {
	ctx := context.Background()
	h, err := s3.Open(ctx, "s3://"+versitygw.Bucket+"/race", s3.Options{Lease: lease})
	if err != nil {
		fmt.Println(err)
		return
	}
	b := h.Books("web")
	var d fleet.Desk
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "take":
			if d, err = b.Take(ctx); err == nil {
				_, err = d.Open(ctx)
			}
		case "append":
			_, err = d.Append(ctx, "note", os.Getpid())
		case "release":
			err = d.Release(ctx)
		}
		switch {
		case err == nil:
			fmt.Println("done")
		case errors.Is(err, fleet.ErrLocked):
			fmt.Println("locked")
		case errors.Is(err, fleet.ErrStale):
			fmt.Println("stale")
		default:
			fmt.Printf("error: %q\n", err.Error())
		}
	}
}

// 16 processes race for one lease; each winner writes a record.
func TestOf16ProcessesOneWins(t *testing.T) {
	versitygw.Start(t)
	var all []*operator
	for range 16 {
		all = append(all, start(t, 5*time.Second))
	}
	began := time.Now()
	for round := range *rounds {
		for _, o := range all {
			o.say("take")
		}
		var won []*operator
		for _, o := range all {
			switch got := o.answer(); got {
			case "done":
				won = append(won, o)
			case "locked":
			default:
				t.Fatalf("round %d: %s", round, got)
			}
		}
		if len(won) != 1 {
			t.Fatalf("round %d: %d won", round, len(won))
		}
		if a, r := won[0].do("append"), won[0].do("release"); a != "done" || r != "done" {
			t.Fatalf("round %d: %s, %s", round, a, r)
		}
	}
	recs, err := connect(t, "race", 0).Books("web").Records(t.Context())
	if err != nil || len(recs) != *rounds {
		t.Errorf("%d records, %v", len(recs), err)
	}
	t.Logf("%d rounds in %.1fs", *rounds, time.Since(began).Seconds())
}

// A holder that is killed by SIGKILL is followed after its lease's length.
func TestAKilledProcessIsFollowed(t *testing.T) {
	versitygw.Start(t)
	o := start(t, 3*time.Second)
	if a, b := o.do("take"), o.do("append"); a != "done" || b != "done" {
		t.Fatal(a, b)
	}
	me := connect(t, "race", 3*time.Second)
	if _, err := me.Books("web").Take(t.Context()); !errors.Is(err, fleet.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", o.cmd.Process.Pid)) {
		t.Errorf("while it lives: %v", err)
	}
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d := take(t, me)
	if took := time.Since(began); took < time.Second || took > 8*time.Second {
		t.Errorf("followed after %s", took)
	} else {
		t.Logf("followed after %s", took)
	}
	note(t, d, 1)
	if err := d.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// A holder that was stopped by SIGSTOP, and wakes up when another was there,
// cannot write; one that nobody followed can.
func TestAStoppedProcessCannotWriteOnceItWasFollowed(t *testing.T) {
	versitygw.Start(t)
	o := start(t, 2*time.Second)
	if a, b := o.do("take"), o.do("append"); a != "done" || b != "done" {
		t.Fatal(a, b)
	}
	signal := func(s os.Signal) {
		t.Helper()
		if err := o.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	time.Sleep(3 * time.Second)
	signal(syscall.SIGCONT)
	if got := o.do("append"); got != "done" {
		t.Errorf("it was late, and nobody followed: %s", got)
	}
	signal(syscall.SIGSTOP)
	d := take(t, connect(t, "race", 2*time.Second))
	note(t, d, 1)
	o.say("append")
	signal(syscall.SIGCONT)
	if got := o.answer(); got != "stale" {
		t.Errorf("it was followed: %s", got)
	}
	note(t, d, 2)
	if err := d.Release(t.Context()); err != nil {
		t.Error(err)
	}
	recs, err := connect(t, "race", 0).Books("web").Records(t.Context())
	if err != nil || len(recs) != 4 {
		t.Errorf("%d records, %v", len(recs), err)
	}
	if got := o.do("append"); got != "stale" {
		t.Errorf("again: %s", got)
	}
}
