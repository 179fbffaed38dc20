package template_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	buildamazon "github.com/rebake/rebake/builder/amazon"
	buildqemu "github.com/rebake/rebake/builder/qemu"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/fleet/haproxy"
	poolqemu "github.com/rebake/rebake/fleet/qemu"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner/breakpoint"
	"github.com/rebake/rebake/provisioner/file"
	"github.com/rebake/rebake/provisioner/shell"
)

// realKinds are the types of the backends themselves, so that neither the
// reference nor a shipped template promises what they do not take.
func realKinds() template.Kinds {
	return template.Kinds{
		Builders:     map[string]func() any{"qemu": func() any { return new(buildqemu.Config) }, "amazon": func() any { return new(buildamazon.Config) }},
		Provisioners: map[string]func() any{"shell": func() any { return new(shell.Config) }, "file": func() any { return new(file.Config) }, "breakpoint": func() any { return new(breakpoint.Config) }},
		Checks:       check.Kinds(),
		Pools:        map[string]func() any{"qemu": func() any { return new(poolqemu.Config) }, "asg": func() any { return new(asg.Config) }},
		Routers:      map[string]func() any{"haproxy": func() any { return new(haproxy.Config) }, "alb": func() any { return new(alb.Config) }},
	}
}

func TestMain(m *testing.M) {
	template.TestKinds = realKinds
	os.Exit(m.Run())
}

func TestShippedTemplatesFitTheBackends(t *testing.T) {
	files, err := filepath.Glob("../../templates/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d templates, %v", len(files), err)
	}
	for _, f := range files {
		o := template.Options{Kinds: realKinds()}
		if filepath.Base(f) == "from-url.yaml" {
			o.Vars = []string{"url=file:base.qcow2", "checksum=sha256:" + strings.Repeat("0", 64)}
		}
		if _, err := template.Load(f, o); err != nil {
			t.Error(err)
		}
	}
}
