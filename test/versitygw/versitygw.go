// Package versitygw starts an S3 server of another author, on a folder. Unlike
// moto it does one conditional write after the other, as AWS does.
package versitygw

import (
	"os/exec"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/test/servers"
)

// Bucket is made by Start; Secret is of its one account.
const (
	Bucket = "states"
	Secret = "testtest"
)

// Start runs a server with one empty bucket until the test ends, and points the
// SDK of this process at it.
func Start(t testing.TB) {
	t.Helper()
	addr, err := servers.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	servers.Program(t, exec.Command("versitygw", "--access", "test", "--secret", Secret, "--region", "eu-central-1", "--port", addr, "--quiet", "posix", t.TempDir()),
		"http://"+addr, "setup-aws")
	for k, v := range servers.AWS("http://"+addr, Secret) {
		t.Setenv(k, v)
	}
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, name := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }), Bucket
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
}
