// Package moto starts moto's server: an AWS of another author, in memory, that
// speaks the wire protocol of EC2, EBS, Auto Scaling, ELB and S3.
package moto

import (
	"net"
	"os/exec"
	"testing"

	"github.com/rebake/rebake/test/servers"
)

// Start runs a server with nothing in it until the test ends, points the SDK of
// this process at it, and returns its URL.
func Start(t testing.TB) string {
	t.Helper()
	addr, err := servers.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("moto_server", "-H", "127.0.0.1", "-p", port)
	cmd.Env = append(cmd.Environ(), "MOTO_EC2_LOAD_DEFAULT_AMIS=false")
	url := "http://" + addr
	servers.Program(t, cmd, url+"/moto-api/data.json", "setup-aws")
	for k, v := range servers.AWS(url, "test") {
		t.Setenv(k, v)
	}
	return url
}
