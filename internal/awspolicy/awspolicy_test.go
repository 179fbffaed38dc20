package awspolicy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/template"
)

// anything takes a block as it is.
type anything struct {
	Region     string   `yaml:"region"`
	Profile    string   `yaml:"instance_profile"`
	SSH        ssh      `yaml:"ssh"`
	Root       volume   `yaml:"root"`
	AMI        amiBlock `yaml:"ami"`
	Network    network  `yaml:"network"`
	Publish    bool     `yaml:"publish"`
	LaunchFrom string   `yaml:"launch_template"`
	Rule       string   `yaml:"rule"`
}
type ssh struct {
	SSM bool `yaml:"ssm"`
}
type network struct {
	Groups []string `yaml:"security_groups"`
}
type volume struct {
	KMSKey    string `yaml:"kms_key"`
	Encrypted bool   `yaml:"encrypted"`
}
type amiBlock struct {
	CopyTo  []copyTo `yaml:"copy_to"`
	Protect bool     `yaml:"protect"`
}
type copyTo struct {
	Region string `yaml:"region"`
	KMSKey string `yaml:"kms_key"`
}

func load(t *testing.T, text string) *template.Template {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := func() any { return new(anything) }
	tpl, err := template.Load(path, template.Options{Kinds: template.Kinds{Builders: map[string]func() any{"amazon": a, "qemu": a},
		Pools: map[string]func() any{"asg": a, "qemu": a}, Routers: map[string]func() any{"alb": a, "haproxy": a}}})
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func TestATemplateNeedsWhatItsBlocksSay(t *testing.T) {
	const fleet = "\nfleet: {health: {tcp: 80}, pool: {%P}, router: {%R}%S}"
	with := func(pool, router string) string {
		return strings.NewReplacer("%P", pool, "%R", router, "%S", "").Replace(fleet)
	}
	for name, c := range map[string]struct {
		text string
		want []Feature
		keys []string
	}{
		"nothing of AWS":    {"build: {qemu: {}}" + with("qemu: {}", "haproxy: {}"), nil, nil},
		"a bake":            {"build: {amazon: {}}", []Feature{Bake, Group}, nil},
		"a bake in a group": {"build: {amazon: {network: {security_groups: [sg-1]}}}", []Feature{Bake}, nil},
		"all of a bake": {"build: {amazon: {ssh: {ssm: true}, instance_profile: baker, root: {kms_key: 'arn:aws:kms:eu-central-1:1:key/a'}, ami: {protect: true, copy_to: [{region: us-west-2, kms_key: 'arn:aws:kms:us-west-2:1:key/b'}]}}}",
			[]Feature{Copy, Protect, Keys, Bake, Group, SSM, Profile}, []string{"arn:aws:kms:eu-central-1:1:key/a", "arn:aws:kms:us-west-2:1:key/b"}},
		"keys by alias":         {"build: {amazon: {root: {kms_key: alias/x}}}", []Feature{Keys, Bake, Group}, nil},
		"encrypted":             {"build: {amazon: {root: {encrypted: true}}}", []Feature{Keys, Bake, Group}, nil},
		"not encrypted":         {"build: {amazon: {root: {encrypted: false}, ssh: {ssm: false}}}", []Feature{Bake, Group}, nil},
		"a fleet":               {"build: {qemu: {}}" + with("asg: {publish: true}", "alb: {}"), []Feature{Publish, Pool, Router, Gates}, nil},
		"behind another's rule": {"build: {qemu: {}}" + with("qemu: {}", "alb: {rule: 'arn:aws:elasticloadbalancing:eu-central-1:1:listener-rule/app/a/b/c/d'}"), []Feature{Router, Adopted, Gates}, nil},
		"a copied fleet":        {"build: {qemu: {}}" + with("asg: {launch_template: 'web:3'}", "haproxy: {}"), []Feature{Profile, Pool}, nil},
		"retention":             {"build: {qemu: {}}\nretention: {ami: {delete: 90d}}", []Feature{Retention}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := For(load(t, "name: web\n"+c.text+"\n"))
			if err != nil || !slices.Equal(n.List(), c.want) || !slices.Equal(n.KeyARNs, c.keys) {
				t.Errorf("%q, keys %q, %v; want %q, %q", n.List(), n.KeyARNs, err, c.want, c.keys)
			}
		})
	}
}

func TestTheRegionIsTheBlocks(t *testing.T) {
	n, err := For(load(t, "name: web\nbuild: {amazon: {region: cn-north-1}}\n"))
	if err != nil || n.Region != "cn-north-1" || n.Partition != "aws-cn" {
		t.Errorf("%+v, %v", n, err)
	}
}

func all() Need {
	n := Need{KeyARNs: []string{"arn:aws-cn:kms:cn-north-1:1:key/a"}, Partition: PartitionOf("cn-north-1"), Adopted: []string{"arn:aws-cn:elasticloadbalancing:cn-north-1:1:listener-rule/app/a/b/c/d"}}
	for _, f := range Features() {
		n.Add(f, "test")
	}
	n.InBucket("s3://bucket/team/web")
	return n
}

var (
	actionForm = regexp.MustCompile(`^[a-z0-9]+:[A-Z][A-Za-z0-9]+$`)
	sidForm    = regexp.MustCompile(`^[A-Za-z0-9]+$`)
	arnForm    = regexp.MustCompile(`^(\*|arn:aws-cn:[a-z0-9-]+:[^:]*:[^:]*:.+)$`)
)

func TestAPolicyIsOneThatIAMTakes(t *testing.T) {
	if len(table) != len(Features()) {
		t.Errorf("%d features in the table, %d listed", len(table), len(Features()))
	}
	n := all()
	p := n.Policy()
	sids := map[string]bool{}
	granted := map[string]bool{}
	for _, s := range p.Statement {
		if sids[s.Sid] || !sidForm.MatchString(s.Sid) {
			t.Errorf("Sid %q", s.Sid)
		}
		sids[s.Sid] = true
		if len(s.Action) == 0 || len(s.Resource) == 0 || s.Effect != "Allow" {
			t.Errorf("%+v", s)
		}
		for _, a := range s.Action {
			granted[a] = true
			if !actionForm.MatchString(a) {
				t.Errorf("%s: action %q", s.Sid, a)
			}
		}
		for _, r := range s.Resource {
			if !arnForm.MatchString(r) || strings.Contains(r, "PARTITION") || strings.Contains(r, "BUCKET") || strings.Contains(r, "PREFIX") {
				t.Errorf("%s: resource %q", s.Sid, r)
			}
		}
	}
	for _, a := range n.Actions() {
		if !granted[a] {
			t.Errorf("%s is needed and not granted", a)
		}
	}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"arn:aws-cn:s3:::bucket/team/web/*"`, `"s3:prefix":["team/web/*"]`, `"arn:aws-cn:kms:cn-north-1:1:key/a"`, `"aws:ResourceTag/rebake:build":["false"]`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s is not in %s", want, raw)
		}
	}
	for _, unwanted := range []string{"PARTITION", `"*:*"`, `:*"]`, `"Condition":null`} {
		if strings.Contains(string(raw), unwanted) {
			t.Errorf("%s is in %s", unwanted, raw)
		}
	}
}

// What ends or deletes is never granted on everything.
func TestWhatDestroysIsBoundToATag(t *testing.T) {
	for f, grants := range table {
		for _, g := range grants {
			for _, a := range g.Actions() {
				_, verb, _ := strings.Cut(a, ":")
				destroys := strings.HasPrefix(verb, "Delete") || strings.HasPrefix(verb, "Terminate") || strings.HasPrefix(verb, "Deregister") || strings.HasPrefix(verb, "Disable") || strings.HasPrefix(verb, "Stop")
				if destroys && g.When == nil && f != State && f != SSM && f != Adopted {
					t.Errorf("%s: %s on all of %q", f, a, g.Resources)
				}
			}
		}
	}
}

func TestAllOfItFitsIntoOnePolicyOfARole(t *testing.T) {
	if n := all().Policy().Size(); n > MaxInline {
		t.Errorf("%d characters, and IAM takes %d", n, MaxInline)
	}
}
