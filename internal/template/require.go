package template

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// signBlock is sign: as it is written.
type signBlock struct {
	Key string `yaml:"key" rebake:"shorthand" jsonschema_description:"name or file of the private key that signs the image and what is said of it"`
}

// requireBlock is fleet.require, and a policy file, as they are written.
type requireBlock struct {
	SignedBy   []string `yaml:"signed_by" jsonschema_description:"names or files of public keys, one of which must have signed the image and all else that is asked for"`
	Tests      string   `yaml:"tests" jsonschema:"enum=passed" jsonschema_description:"passed: a test result is attached that says so"`
	SBOM       bool     `yaml:"sbom" jsonschema_description:"true: an SBOM is attached"`
	Provenance bool     `yaml:"provenance" jsonschema_description:"true: it is attached how the image was made"`
	NotRevoked bool     `yaml:"not_revoked" jsonschema_description:"true: neither the image nor one that it was made from was revoked"`
	MaxAge     Age      `yaml:"max_age" jsonschema_description:"how long ago the image was made at most, such as 30d or 12h"`
	Channel    string   `yaml:"channel" jsonschema_description:"tag that must point at the image"`
}

// Require is what an image must have.
type Require struct {
	SignedBy                            []string // names or paths of public keys
	Tests, SBOM, Provenance, NotRevoked bool
	MaxAge                              time.Duration // 0: any
	Channel                             string
}

// Age is a duration that may be given in days.
type Age time.Duration

// UnmarshalText reads 30d or what a duration is.
func (a *Age) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			*a = Age(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d > 0 {
		*a = Age(d)
		return nil
	}
	return fmt.Errorf("%q is no age such as 30d or 12h", b)
}

func (b *requireBlock) read(path string, at Block) (*Require, error) {
	if b == nil {
		return nil, nil
	}
	for i, k := range b.SignedBy {
		if strings.TrimSpace(k) == "" {
			return nil, at.Errorf(fmt.Sprintf("%ssigned_by.%d", path, i), "which key?")
		}
	}
	if b.Channel != "" && !tagPattern.MatchString(b.Channel) {
		return nil, at.Errorf(path+"channel", "%q cannot be a tag", b.Channel)
	}
	if b.Tests != "" && b.Tests != "passed" {
		return nil, at.Errorf(path+"tests", "tests can only be required to be: passed")
	}
	return &Require{b.SignedBy, b.Tests != "", b.SBOM, b.Provenance, b.NotRevoked, time.Duration(b.MaxAge), b.Channel}, nil
}

// LoadPolicy reads a file that holds what require: of a fleet does, and nothing
// else: no variables, no expressions.
func LoadPolicy(path string) (Require, error) {
	s, err := readSource(path)
	if err != nil {
		return Require{}, err
	}
	root, err := s.parse()
	if err != nil {
		return Require{}, err
	}
	if root == nil || root.kind != mapNode {
		return Require{}, s.errorf(0, 0, "tests: passed", "a policy is a mapping of what is required")
	}
	var doc requireBlock
	at := Block{n: root, src: s, line: 1, column: 1}
	if err := at.Decode(&doc); err != nil {
		return Require{}, err
	}
	r, err := doc.read("", at)
	if err != nil {
		return Require{}, err
	}
	return *r, nil
}

// shown are the variables whose values may be shown, and the names of the others.
func (l *loader) shown() (values map[string]string, secret []string) {
	values = map[string]string{}
	for _, name := range keys(l.scope.vars) {
		v := l.scope.vars[name]
		if v.Sensitive || len(v.taint) > 0 {
			secret = append(secret, name)
			continue
		}
		values[name] = text(v.value)
	}
	return values, secret
}
