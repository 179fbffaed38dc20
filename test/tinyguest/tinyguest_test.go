package tinyguest

import (
	"context"
	"os"
	"testing"
)

func TestBuild(t *testing.T) {
	dir := os.Getenv("TINYDIR")
	if dir == "" {
		dir = t.TempDir()
	}
	p, s, err := Build(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p, s)
}
