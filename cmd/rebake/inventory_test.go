package main

import (
	"context"
	"encoding/json"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rogpeppe/go-internal/testscript"
)

// scriptHolds REF FILE attaches an inventory to an image of the store.
func scriptHolds(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: holds REF FILE")
	}
	inv := inventory.Inventory{Format: 1}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &inv))
	raw, err := inventory.Encode(&inv)
	ts.Check(err)
	s, err := oci.Open(home(ts).Store())
	ts.Check(err)
	ref, err := artifact.ParseRef(args[0])
	ts.Check(err)
	img, err := s.Resolve(context.Background(), ref)
	ts.Check(err)
	_, err = s.Attach(context.Background(), img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: img.Created}, raw)
	ts.Check(err)
}
