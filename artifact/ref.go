package artifact

// Ref names an image: name, name:version, name:tag or name@sha256:….
// Names are [a-z0-9][a-z0-9._-]* with / between parts, at most 128 bytes; versions and tags
// [A-Za-z0-9_][A-Za-z0-9._+-]{0,127}.
type Ref struct {
	Name   string
	Tag    string // version or tag; "latest" when neither is given
	Digest Digest // full, or a prefix
}
