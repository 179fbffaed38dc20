package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The slow network is made, is slow, and is removed. Where that is not
// allowed there is nothing to test: the benchmark says so on its page.
func TestSlowNetworkIsSlowAndLeavesNothing(t *testing.T) {
	n, err := slowNetwork(t.Context())
	if errors.Is(err, errNotAllowed) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		trip, err := inNamespace(n.path(), dialLoopback)
		if err != nil || trip < 80*time.Millisecond {
			t.Errorf("round trip %s, %v", trip, err)
		}
	}
	if err := n.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "ip", "netns", "list").Output(); err != nil || strings.Contains(string(out), n.name) {
		t.Errorf("%s is left: %s %v", n.name, out, err)
	}
}
