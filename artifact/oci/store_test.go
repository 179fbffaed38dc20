package oci_test

import (
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/conformance"
)

func TestStore(t *testing.T) {
	conformance.Store(t, func(t *testing.T) artifact.Store { return openStore(t) })
}

func openStore(t testing.TB) *oci.Store {
	s, err := oci.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
