// Package journal is an append-only file of chained, checksummed JSON lines,
// fsynced before Append returns. A torn last line is legal; anything else that
// does not verify is ErrCorrupt and nothing is changed.
package journal

import (
	"encoding/json"
	"time"
)

// Record is one line.
type Record struct {
	Seq  int             `json:"seq"` // from 1
	Time time.Time       `json:"time"`
	Kind string          `json:"kind"`
	Data json.RawMessage `json:"data,omitempty"`
	Prev string          `json:"prev"` // Sum of the record before, "" for the first
	Sum  string          `json:"sum"`  // hex sha256 of the record without Sum
}
