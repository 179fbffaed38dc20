package provisioner

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rebake/rebake/artifact"
)

// Digest is the digest of v's canonical JSON: struct fields in their order, map
// keys sorted. Steps make their Key with it.
func Digest(v any) (artifact.Digest, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write the step's key: %w", err)
	}
	sum := sha256.Sum256(b)
	return artifact.Digest("sha256:" + hex.EncodeToString(sum[:])), nil
}

// Mask replaces the values of sensitive variables, so that a key says that a
// secret is there but nothing of what it is.
func Mask(s string, secrets []string) string {
	for _, v := range secrets {
		if v != "" && (len(v) >= 4 || s == v) {
			s = strings.ReplaceAll(s, v, "\x00secret\x00")
		}
	}
	return s
}
