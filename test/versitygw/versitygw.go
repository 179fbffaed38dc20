// Package versitygw starts an S3 server of another author, on a folder. Unlike
// moto it does one conditional write after the other, as AWS does.
package versitygw

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rebake/rebake/artifact/ami"
)

// Bucket is made by Start.
const Bucket = "states"

// Start runs a server with one empty bucket until the test ends, and points the
// SDK of this process at it.
func Start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var out strings.Builder
	cmd := exec.Command("versitygw", "--access", "test", "--secret", "testtest", "--region", "eu-central-1", "--port", addr, "--quiet", "posix", t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: `make setup-aws` installs it", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	Use(t, "http://"+addr, "testtest")
	ready(t, "http://"+addr, ended, &out)
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, name := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }), Bucket
	if _, err := c.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
}

// Use points the SDK of this process at a server.
func Use(t testing.TB, url, secret string) {
	for k, v := range map[string]string{"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "",
		"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} {
		t.Setenv(k, v)
	}
}

func ready(t testing.TB, url string, ended chan struct{}, out *strings.Builder) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(url)
		if err == nil {
			res.Body.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("versitygw ended: %s", out.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatal(errors.Join(errors.New("versitygw does not answer"), err))
		}
	}
}
