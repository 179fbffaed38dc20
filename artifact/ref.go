package artifact

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Ref names an image: name, name:version, name:tag or name@sha256:….
// Names are lower-case letters and digits, with . _ - between them and / between
// parts, at most 128 bytes; versions and tags
// [A-Za-z0-9_][A-Za-z0-9._+-]{0,127}.
type Ref struct {
	Name   string
	Tag    string // version or tag; "latest" when neither is given
	Digest Digest // full, or a prefix of at least 12 hex digits
}

// Latest is the tag that a reference without one means.
const Latest = "latest"

const minPrefix = 12

var (
	namePart = regexp.MustCompile(`^[a-z0-9]+(?:[._-]+[a-z0-9]+)*$`)
	tagForm  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$`)
)

// ParseRef reads a reference; its error says which part is wrong.
func ParseRef(s string) (Ref, error) {
	var r Ref
	rest, digest, pinned := strings.Cut(s, "@")
	r.Name, r.Tag, _ = strings.Cut(rest, ":")
	if err := CheckName(r.Name); err != nil {
		return Ref{}, fmt.Errorf("image reference %.200q: %w", s, err)
	}
	switch {
	case pinned && strings.Contains(rest, ":"):
		return Ref{}, fmt.Errorf("image reference %.200q: give a tag or a digest, not both", s)
	case pinned:
		hexa := strings.TrimPrefix(digest, "sha256:")
		if len(hexa) < minPrefix || len(hexa) > 64 || strings.Trim(hexa, "0123456789abcdef") != "" {
			return Ref{}, fmt.Errorf("image reference %.200q: a digest is sha256: and %d to 64 lower-case hex digits", s, minPrefix)
		}
		r.Digest = Digest("sha256:" + hexa)
		return r, nil
	case !strings.Contains(rest, ":"):
		r.Tag = Latest
		return r, nil
	}
	if err := CheckTag(r.Tag); err != nil {
		return Ref{}, fmt.Errorf("image reference %.200q: %w", s, err)
	}
	return r, nil
}

// CheckName says what is wrong with an image name, or nil.
func CheckName(name string) error {
	if name == "" {
		return errors.New("the name is missing")
	}
	if len(name) > 128 {
		return errors.New("the name is longer than 128 bytes")
	}
	for _, part := range strings.Split(name, "/") {
		if !namePart.MatchString(part) {
			return fmt.Errorf("name %q: use lower-case letters, digits and . _ - between them", name)
		}
	}
	return nil
}

// CheckTag says what is wrong with a version or tag, or nil.
func CheckTag(tag string) error {
	if !tagForm.MatchString(tag) {
		return fmt.Errorf("%.150q is no version or tag: letters, digits and _ . + -, at most 128", tag)
	}
	return nil
}

// String is the reference as ParseRef reads it.
func (r Ref) String() string {
	switch {
	case r.Digest != "":
		return r.Name + "@" + string(r.Digest)
	case r.Tag != "":
		return r.Name + ":" + r.Tag
	}
	return r.Name
}

// Hex is the digest without "sha256:".
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Validate says what is wrong with a digest, or nil. A valid one is safe as a file name.
func (d Digest) Validate() error {
	h, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(h) != 64 || strings.ToLower(h) != h {
		return fmt.Errorf("%.100q is no sha256 digest", string(d))
	}
	if _, err := hex.DecodeString(h); err != nil {
		return fmt.Errorf("%.100q is no sha256 digest", string(d))
	}
	return nil
}
