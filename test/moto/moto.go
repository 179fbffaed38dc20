// Package moto starts moto's server: an AWS of another author, in memory, that
// speaks the wire protocol of EC2, EBS, Auto Scaling, ELB and S3.
package moto

import (
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Start runs a server with nothing in it until the test ends, points the SDK of
// this process at it, and returns its URL.
func Start(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	var out strings.Builder
	cmd := exec.Command("moto_server", "-H", "127.0.0.1", "-p", port)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(cmd.Environ(), "MOTO_EC2_LOAD_DEFAULT_AMIS=false")
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: `make setup` installs moto_server", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	url := "http://" + addr
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(url + "/moto-api/data.json")
		if err == nil {
			res.Body.Close()
			break
		}
		select {
		case <-ended:
			t.Fatalf("moto_server ended: %s", out.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatal(errors.Join(errors.New("moto_server does not answer"), err))
		}
	}
	for k, v := range map[string]string{"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "",
		"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} {
		t.Setenv(k, v)
	}
	return url
}
