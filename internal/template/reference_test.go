package template_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/internal/seal"
	"github.com/rebake/rebake/internal/template"
)

// described says where the reference has the table of each object of the
// template language: section, and heading within it.
var described = map[string]string{
	"document":           "template",
	"document.variables": "variables",
	"document.seal":      "seal/keys",
	"document.fleet":     "fleet", "document.fleet.health": "fleet/health",
	"document.fleet.health.http": "fleet/health http", "document.fleet.health.tcp": "fleet/health tcp",
	"document.sign": "template/sign", "document.retention": "template/retention", "document.retention.ami": "template/retention ami", "document.fleet.require": "fleet/require",
	"document.fleet.deploy": "deploy", "document.fleet.deploy.steps": "deploy/steps",
	"document.fleet.deploy.gates": "deploy/gates", "document.fleet.deploy.gates.error_rate": "deploy/gates/error_rate",
	"document.fleet.deploy.gates.latency": "deploy/gates/latency", "document.fleet.deploy.gates.canary": "deploy/gates/canary",
	"document.fleet.deploy.gates.command": "deploy/gates/command", "document.fleet.deploy.gates.http": "deploy/gates/http",
	"document.fleet.deploy.hooks": "deploy/hooks", "document.fleet.deploy.freeze": "deploy/freeze",
	"builder.qemu": "build/qemu", "builder.qemu.from": "build/from", "builder.qemu.ssh": "build/ssh",
	"document.fleet.deploy.gates.alarm": "deploy/gates/alarm",
	"pool.asg":                          "fleet/pool asg", "pool.asg.instance": "fleet/pool asg instance", "pool.asg.instance.volume": "fleet/pool asg volume",
	"pool.asg.capacity": "fleet/pool asg capacity", "pool.asg.health": "fleet/pool asg health",
	"router.alb": "fleet/router alb", "router.alb.target_groups": "fleet/router alb target_groups", "router.alb.preview": "fleet/router alb preview",
	"pool.qemu": "fleet/pool qemu", "router.haproxy": "fleet/router haproxy",
	"builder.amazon":                         "build/amazon",
	"builder.amazon.source":                  "build/amazon source",
	"builder.amazon.source.filter":           "build/amazon source filter",
	"builder.amazon.instance_type":           "build/amazon instance_type",
	"builder.amazon.spot":                    "build/amazon spot",
	"builder.amazon.network":                 "build/amazon network",
	"builder.amazon.network.vpc":             "build/amazon network vpc",
	"builder.amazon.network.subnet":          "build/amazon network subnet",
	"builder.amazon.network.security_groups": "build/amazon network security_groups",
	"builder.amazon.network.allow_from":      "build/amazon network allow_from",
	"builder.amazon.metadata":                "build/amazon metadata",
	"builder.amazon.root":                    "build/amazon root",
	"builder.amazon.volumes":                 "build/amazon volumes",
	"builder.amazon.ssh":                     "build/amazon ssh",
	"builder.amazon.ssh.bastion":             "build/amazon ssh bastion",
	"builder.amazon.ami":                     "build/amazon ami",
	"builder.amazon.ami.copy_to":             "build/amazon ami copy_to",
	"builder.amazon.ami.share":               "build/amazon ami share",
	"step":                                   "provision", "step.cache": "provision/cache",
	"provisioner.shell": "provision/shell", "provisioner.file": "provision/file", "provisioner.breakpoint": "provision/breakpoint",
	"check.shell": "test/shell", "check.command": "test/command", "check.http": "test/http", "check.tcp": "test/tcp",
	"check.file": "test/file", "check.service": "test/service", "check.package": "test/package",
}

type schemaNode struct {
	Description          string
	Properties           map[string]*schemaNode
	AnyOf                []*schemaNode
	Items                *schemaNode
	AdditionalProperties *schemaNode
	Defs                 map[string]*schemaNode `json:"$defs"`
}

// UnmarshalJSON takes true, the schema of anything, too.
func (n *schemaNode) UnmarshalJSON(raw []byte) error {
	type plain schemaNode
	if string(raw) == "true" || string(raw) == "false" {
		return nil
	}
	return json.Unmarshal(raw, (*plain)(n))
}

// objects lists the keys of each object below n, by its path.
func (n *schemaNode) objects(path string, into map[string]map[string]*schemaNode) {
	if len(n.Properties) > 0 {
		into[path] = n.Properties
		for key, p := range n.Properties {
			p.objects(path+"."+key, into)
		}
	}
	for _, alt := range n.AnyOf {
		alt.objects(path, into)
	}
	if n.Items != nil {
		n.Items.objects(path, into)
	}
	if n.AdditionalProperties != nil {
		n.AdditionalProperties.objects(path, into)
	}
}

// languageObjects are all objects of the language with their keys. The options of
// every step, which the schema repeats in each kind, are an object of their own.
func languageObjects(t *testing.T) map[string][]string {
	t.Helper()
	raw, err := template.Schema(realKinds())
	if err != nil {
		t.Fatal(err)
	}
	var doc schemaNode
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string]*schemaNode{}
	doc.objects("document", found)
	for _, dispatch := range []string{"document.build", "document.provision", "document.test", "document.fleet.pool", "document.fleet.router"} {
		if len(found[dispatch]) == 0 {
			t.Errorf("no kinds at %s", dispatch)
		}
		delete(found, dispatch)
	}
	shared := map[string]*schemaNode{}
	for name, def := range doc.Defs {
		of := map[string]map[string]*schemaNode{}
		def.objects(name, of)
		for path, props := range of {
			for key, p := range props {
				if path == name && (strings.HasPrefix(name, "provisioner.") || strings.HasPrefix(name, "check.")) && slices.Contains(stepDescriptions, p.Description) {
					shared[key] = p
					delete(props, key)
				}
			}
			found[path] = props
		}
		delete(found, name+".cache")
	}
	for key, p := range shared {
		p.objects("step."+key, found)
	}
	found["step"] = shared
	out := map[string][]string{}
	for path, props := range found {
		if strings.HasPrefix(path, "builder.") {
			delete(props, "kind") // described in the text of build
		}
		for key := range props {
			out[path] = append(out[path], key)
		}
		slices.Sort(out[path])
	}
	return out
}

// stepDescriptions tell the options of every step from keys of the same name.
var stepDescriptions = template.StepDescriptions()

// tables are the keys of the tables of a section, by the heading above.
func tables(t *testing.T, section string) map[string][]string {
	t.Helper()
	text, err := template.Docs(section)
	if err != nil {
		t.Fatal(err)
	}
	out, heading, fenced := map[string][]string{}, section, false
	code := regexp.MustCompile("`([^`]+)`")
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced:
		case strings.HasPrefix(line, "##"):
			heading = section + "/" + strings.Trim(line, "# ")
		case strings.HasPrefix(line, "| `"):
			first, _, _ := strings.Cut(line[1:], "|")
			for _, m := range code.FindAllStringSubmatch(first, -1) {
				out[heading] = append(out[heading], m[1])
			}
		}
	}
	for _, keys := range out {
		slices.Sort(keys)
	}
	return out
}

func TestTheReferenceHasEveryKeyAndNoOther(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range template.Sections() {
		for heading, keys := range tables(t, s) {
			docs[heading] = keys
		}
	}
	for path, keys := range languageObjects(t) {
		at, ok := described[path]
		if !ok {
			t.Errorf("%s is nowhere in the reference: %v", path, keys)
			continue
		}
		if d := cmp.Diff(keys, docs[at]); d != "" {
			t.Errorf("%s: keys (-), described in %q (+):\n%s", path, at, d)
		}
		delete(docs, at)
	}
	delete(docs, "variables/Expressions") // names in expressions
	if d := cmp.Diff(sealItems(), docs["seal"]); d != "" {
		t.Errorf("items of the sealing list (-), described (+):\n%s", d)
	}
	delete(docs, "seal")
	for heading, keys := range docs {
		t.Errorf("%q describes what is not there: %v", heading, keys)
	}
}

func sealItems() []string {
	var ids []string
	for _, i := range seal.Items() {
		ids = append(ids, i.ID)
	}
	slices.Sort(ids)
	return ids
}

// TestTheReferenceSaysEveryDefault holds the defaults that the fields name
// against the rows of the reference.
func TestTheReferenceSaysEveryDefault(t *testing.T) {
	raw, err := template.Schema(realKinds())
	if err != nil {
		t.Fatal(err)
	}
	var doc schemaNode
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	value := regexp.MustCompile(`default:? ([0-9]+[a-zA-Z]*|/\S*|GET|active)\b`)
	seen := 0
	for name, def := range doc.Defs {
		of := map[string]map[string]*schemaNode{}
		def.objects(name, of)
		for path, props := range of {
			for key, p := range props {
				m := value.FindStringSubmatch(p.Description)
				if m == nil {
					continue
				}
				seen++
				section, heading, _ := strings.Cut(described[path], "/")
				text, err := template.Docs(section)
				if err != nil {
					t.Errorf("%s.%s: %v", path, key, err)
					continue
				}
				_, text, _ = strings.Cut(text, "# "+heading+"\n")
				row := regexp.MustCompile("(?m)^\\|[^|]*`" + key + "`.*$").FindString(text)
				if !strings.Contains(row, m[1]) {
					t.Errorf("%s.%s: the default %s is not in the row %q", path, key, m[1], row)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d defaults were found", seen)
	}
}

func TestTheReferenceSkipsItemsThatExist(t *testing.T) {
	text, err := template.Docs("seal")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`skip: \[(.*)\]`).FindStringSubmatch(text)
	if m == nil {
		t.Fatal("no example")
	}
	if err := seal.CheckSkip(strings.Split(m[1], ", ")); err != nil {
		t.Error(err)
	}
}
