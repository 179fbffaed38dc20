package inventory

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The published schemas: CycloneDX/specification (1.6, with SPDX's list of licences
// and JSF, which it refers to) and SPDX 2.3 from spdx/spdx-java-jackson-store.
func schema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	for _, file := range []string{"bom-1.6.schema.json", "spdx.schema.json", "jsf-0.82.schema.json", "spdx-2.3.schema.json"} {
		l, err := jsonschema.FileLoader{}.Load("file://" + filepath.ToSlash(abs(t, filepath.Join("testdata/schemas", file))))
		if err != nil {
			t.Fatal(err)
		}
		id, _ := l.(map[string]any)["$id"].(string)
		if err := c.AddResource(id, l); err != nil {
			t.Fatal(err)
		}
		if file == name {
			name = id
		}
	}
	c.AssertFormat()
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func abs(t *testing.T, p string) string {
	t.Helper()
	a, err := filepath.Abs(p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestBillsOfMaterialsFollowThePublishedSchemas(t *testing.T) {
	inv := &Inventory{OS: map[string]string{"ID": "debian", "VERSION_ID": "12"}, Packages: []Package{
		{"dpkg", "libstdc++6", "1:12.2.0-14+deb12u1", "amd64", "gcc-12"}, {"rpm", "bash", "2:5.1-1", "x86_64", ""}, {"apk", "musl", "1.2.4-r2", "", "musl"},
	}}
	img := Subject{"web", "1.4.0", "sha256:" + strings.Repeat("0a", 32), time.Date(2026, 11, 27, 1, 2, 3, 0, time.FixedZone("", 3600)), "1.0"}
	for name, f := range map[string]func(*Inventory, Subject) ([]byte, error){"bom-1.6.schema.json": CycloneDX, "spdx-2.3.schema.json": SPDX} {
		s := schema(t, name)
		for _, i := range []*Inventory{inv, {}} {
			b, err := f(i, img)
			if err != nil {
				t.Fatal(err)
			}
			again, _ := f(i, img)
			if !bytes.Equal(b, again) {
				t.Errorf("%s: twice, and not the same", name)
			}
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if i == inv && !bytes.Contains(b, []byte(`pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64\u0026distro=debian-12`)) {
				t.Errorf("no purl in %s", b)
			}
			if o, ok := v.(map[string]any); ok { // the validator does look
				delete(o, "bomFormat")
				delete(o, "creationInfo")
			}
			if s.Validate(v) == nil {
				t.Errorf("%s takes anything", name)
			}
		}
		if _, err := f(inv, Subject{Name: "web", Version: "1", Digest: "sha256:zz"}); err == nil {
			t.Error("an image without a digest")
		}
	}
	if got := inv.PURL(inv.Packages[1]); got != "pkg:rpm/debian/bash@5.1-1?arch=x86_64&distro=debian-12&epoch=2" {
		t.Error(got)
	}
}
