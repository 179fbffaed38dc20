package pipeline_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
)

// propertyRounds and propertySeed, from the environment: how many random
// templates are baked, and the first one's seed, which a failure prints.
const propertyRounds, propertySeed = "REBAKE_TEST_ROUNDS", "REBAKE_TEST_SEED"

const secretValue = "s3cr3t-t0ken"

// project is a template with its files, made at random.
type project struct {
	r     *rand.Rand
	dir   string
	motd  string // a file of the base: another one is another base
	keeps string // one more item of the seal that is left out
	steps []string
	next  int
}

func (p *project) pick(list ...string) string { return list[p.r.IntN(len(list))] }

// step makes one that writes, appends, deletes, changes modes or makes links.
func (p *project) step() string {
	p.next++
	path := func() string { return p.pick("a", "b", "c", "d/e", "../srv/tree/x") }
	var lines []string
	for range 1 + p.r.IntN(3) {
		f, n := path(), p.next*100+p.r.IntN(100)
		lines = append(lines, p.pick(
			fmt.Sprintf("mkdir -p d ../srv/tree; echo %d >>%s", n, f),
			fmt.Sprintf("mkdir -p d ../srv/tree; echo %d >%s", n, f),
			fmt.Sprintf("rm -rf %s", f),
			fmt.Sprintf("chmod %s %s 2>/dev/null || true", p.pick("600", "755", "4644", "000"), f),
			fmt.Sprintf("mkdir -p m; chmod %s m", p.pick("700", "775", "1777")),
			fmt.Sprintf("ln -sfn %d l", n),
			fmt.Sprintf("cat a b >>%d 2>/dev/null || true", n),
			"echo $R >>r"))
	}
	switch p.r.IntN(6) {
	case 0:
		return fmt.Sprintf(`file: {source: src/, destination: /srv/%s%s}`, p.pick("tree", "other"), p.pick("", ", mode: \"0640\""))
	case 1:
		return fmt.Sprintf(`file: {content: "%d\n", destination: /srv/tree/x}`, p.next)
	}
	options := p.pick("", "", "", "", ", cache: false", ", cache: {max_age: 1h}", `, cache: {refresh: "cat a 2>/dev/null"}`, ", inputs: [src]", ", except: [fake]")
	return fmt.Sprintf("shell: {inline: [%q], env: {R: \"${{ var.release }}\", T: \"${{ var.token }}\"}%s}", strings.Join(lines, "\n"), options)
}

func (p *project) text() string {
	return fmt.Sprintf("name: web\nvariables: {release: {default: \"1\"}, token: {default: %s, sensitive: true}}\nbuild: {fake: {motd: %q}, spare: {kind: fake}}\nprovision:\n  - %s\n%s",
		secretValue, p.motd, strings.Join(p.steps, "\n  - "), strings.Replace(sealQuickly, "[", "["+p.keeps, 1))
}

func (p *project) write(t *testing.T, name, data string) {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// edit changes something.
func (p *project) edit(t *testing.T) (what string) {
	t.Helper()
	i := p.r.IntN(len(p.steps))
	what = p.pick("insert", "change", "change", "delete", "swap", "byte", "mode", "name", "base", "seal")
	switch src := filepath.Join(p.dir, "src"); what {
	case "insert":
		p.steps = slices.Insert(p.steps, i, p.step())
	case "delete":
		if len(p.steps) > 1 {
			p.steps = slices.Delete(p.steps, i, i+1)
		}
	case "change":
		p.steps[i] = p.step()
	case "swap":
		j := p.r.IntN(len(p.steps))
		p.steps[i], p.steps[j] = p.steps[j], p.steps[i]
	case "byte":
		p.write(t, "src/page", strconv.Itoa(p.r.Int()))
	case "mode":
		if err := os.Chmod(filepath.Join(src, "page"), os.FileMode(p.r.IntN(2)*0o111+0o644)); err != nil {
			t.Fatal(err)
		}
	case "base":
		p.motd = p.pick("", "one", "two")
	case "seal":
		p.keeps = p.pick("", "logs, ") // machine-id and hostname are each machine's own
	case "name":
		p.write(t, "src/new"+strconv.Itoa(p.r.IntN(100)), "new")
	}
	return what
}

// A build that goes on from whatever was saved gives the guest that one from
// nothing gives. Left out of the comparison is what inventory leaves out.
func TestACachedBuildIsAnUncachedOne(t *testing.T) {
	t.Parallel()
	rounds, seed := 3, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv(propertyRounds)); err == nil {
		rounds = n
	}
	if n, err := strconv.ParseUint(os.Getenv(propertySeed), 10, 64); err == nil {
		seed = n
	}
	wentOn := 0
	for i := range uint64(rounds) {
		t.Logf("%s=%d %s=1 replays it", propertySeed, seed+i, propertyRounds)
		w := cached(t)
		p := &project{r: rand.New(rand.NewPCG(seed+i, 0)), dir: t.TempDir()}
		p.write(t, "src/page", "page")
		p.write(t, "src/sub/x", "x")
		for range 2 + p.r.IntN(3) {
			p.steps = append(p.steps, p.step())
		}
		o := pipeline.BakeOptions{SkipTest: true, Only: []string{"fake"}}
		byInputs := map[string]map[string]string{}
		for range 4 {
			release := "release=" + strconv.Itoa(p.r.IntN(2))
			what := p.edit(t)
			got, err := pipeline.Bake(w.record(t.Context()), w.env, w.loadIn(p.dir, p.text(), release), o)
			if err != nil {
				t.Fatalf("after %s: %v\n%s", what, err, p.text())
			}
			if strings.Contains(w.said(), "start go on after") {
				wentOn++
			}
			w.ran()
			fresh := cached(t)
			uncached := o
			uncached.NoCache = true
			want, err := pipeline.Bake(fresh.record(t.Context()), fresh.env, fresh.loadIn(p.dir, p.text(), release), uncached)
			if err != nil {
				t.Fatal(err)
			}
			a, b := w.inventory(got[0].Image), fresh.inventory(want[0].Image)
			if !maps.Equal(a, b) {
				t.Fatalf("after %s the cached build has\n%v\nand the other\n%v\n%s", what, a, b, p.text())
			}
			if x, y := got[0].Image.Lineage.InputsDigest, want[0].Image.Lineage.InputsDigest; x != y {
				t.Errorf("in another state directory the inputs are %s, not %s\n%s", y, x, p.text())
			} else if x != "" && byInputs[string(x)] != nil && !maps.Equal(byInputs[string(x)], a) {
				t.Errorf("two guests of the inputs %s\n%s", x, p.text())
			} else {
				byInputs[string(x)] = a
			}
			noSecret(t, string(w.env.State))
		}
	}
	if wentOn == 0 {
		t.Error("no build went on from a checkpoint: the test is blind")
	}
}

// noSecret looks for the secret in keys, notes and trails: all files but the guests' own.
func noSecret(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".tar") {
			return err
		}
		raw, err := os.ReadFile(path)
		if strings.Contains(string(raw), secretValue) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWhatChangesNoGuestChangesNoKey(t *testing.T) {
	t.Parallel()
	for i := range uint64(20) {
		seed := uint64(time.Now().UnixNano()) + i
		p := &project{r: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
		p.write(t, "src/page", "page")
		for range 3 {
			p.steps = append(p.steps, p.step())
		}
		keys := func(p *project, text string, vars ...string) []string {
			w := newWorld(t, t.TempDir(), &fake.Store{})
			plans, err := pipeline.MakePlan(t.Context(), w.env, w.loadIn(p.dir, text, vars...), pipeline.BakeOptions{Only: []string{"fake"}})
			if err != nil {
				t.Fatal(err)
			}
			out := []string{string(plans[0].Boot.Key)}
			for _, s := range plans[0].Steps {
				out = append(out, string(s.Key))
			}
			return append(out, string(plans[0].Inputs))
		}
		was := keys(p, p.text())
		other := &project{r: p.r, dir: filepath.Join(t.TempDir(), "a [b] 'c'"), steps: p.steps}
		if err := os.CopyFS(other.dir, os.DirFS(p.dir)); err != nil {
			t.Fatal(err)
		}
		old := time.Unix(1, 0)
		if err := os.Chtimes(filepath.Join(other.dir, "src", "page"), old, old); err != nil {
			t.Fatal(err)
		}
		for name, got := range map[string][]string{
			"another folder and time":     keys(other, p.text()),
			"a comment":                   keys(p, "# hello\n"+strings.Replace(p.text(), "provision:", "provision: # all", 1)),
			"a name of a step":            keys(p, strings.Replace(p.text(), "  - shell: {", "  - shell: {name: other, ", 1)),
			"another value of a secret":   keys(p, p.text(), "token=another"),
			"how long it may take, a tag": keys(p, "tags: [more]\n"+strings.ReplaceAll(p.text(), "  - shell: {", "  - shell: {timeout: 1h, max_retries: 2, ")),
			"a step of another build":     keys(p, strings.Replace(p.text(), "provision:\n", "provision:\n  - shell: {inline: [x], only: [spare]}\n", 1)),
		} {
			if !slices.Equal(was, got) {
				t.Errorf("seed %d: %s changes a key\n%s\n%v\n%v", seed, name, p.text(), was, got)
			}
		}
		changed := strings.Replace(p.text(), "provision:\n", "provision:\n  - shell: {inline: [x]}\n", 1)
		if got := keys(p, changed); got[0] != was[0] || got[1] == was[1] {
			t.Errorf("seed %d: another first step: %v, %v", seed, was, got)
		}
	}
}
