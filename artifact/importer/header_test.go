package importer_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact/importer"
)

func TestCheckQcow2(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(h []byte)
		want  string // "": it is good
	}{
		"good":          {func([]byte) {}, ""},
		"version":       {func(h []byte) { h[7] = 9 }, "unknown version 9"},
		"backing file":  {func(h []byte) { binary.BigEndian.PutUint64(h[8:], 512) }, "backing file"},
		"data file":     {func(h []byte) { binary.BigEndian.PutUint64(h[72:], 4) }, "external data file"},
		"encrypted":     {func(h []byte) { binary.BigEndian.PutUint32(h[32:], 2) }, "encrypted"},
		"snapshots":     {func(h []byte) { binary.BigEndian.PutUint32(h[60:], 1) }, "snapshots"},
		"huge L1":       {func(h []byte) { binary.BigEndian.PutUint32(h[36:], 1<<31) }, "first table"},
		"absurd length": {func(h []byte) { binary.BigEndian.PutUint64(h[24:], 1<<60) }, "larger than 16 TiB"},
	} {
		t.Run(name, func(t *testing.T) {
			h := make([]byte, 512)
			copy(h, "QFI\xfb\x00\x00\x00\x03")
			c.spoil(h)
			is, err := importer.CheckQcow2(bytes.NewReader(h))
			switch {
			case c.want == "" && (err != nil || !is):
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
}
