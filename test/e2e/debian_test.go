//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/inventory"
)

// The real guest, whole: a Debian base is made from packages, baked, sealed and
// tested in two boots; then the last step changes twice, and both builds go on
// from one saved memory without sharing what must not be shared.
func TestADebianGuestIsBakedTestedAndGoneOnFrom(t *testing.T) {
	t.Parallel()
	lists := func() string { return strings.Join(files(t, "/var/lib/apt/lists"), "\n") }
	before := lists()
	if !strings.Contains(before, "Packages") {
		t.Fatal("there are no package lists to lose: the test is blind (apt-get update)")
	}
	w := newWorld(t)
	w.bases = true
	write := func(last string) {
		w.write("t.yaml", fmt.Sprintf(`name: real
build:
  qemu:
    from: {debian: bookworm}
provision:
  - shell: {name: user, inline: ["adduser --system --group app", "sleep 5"]}
  - file: {content: "hello\n", destination: /srv/app/hello, owner: app, mode: "0640"}
  - shell: {name: last, inline: [%q, "echo id: $(cat /etc/machine-id) random: $(head -c 32 /dev/urandom | sha256sum | cut -c1-64) now: $(date +%%s)", "systemctl is-system-running --wait || true"]}
test:
  - command: {run: "id app && dpkg --audit"}
  - service: {name: ssh}
`, last))
	}
	write("true")
	out, log := w.rebake(0, "build", "t.yaml")
	if !strings.Contains(out, "baked real:") {
		t.Errorf("no summary in %q", out)
	}
	img := w.image("real:latest")
	for _, r := range img.Tests {
		if !r.Passed {
			t.Errorf("%s did not pass", r.Name)
		}
	}
	if len(img.Tests) < 6 {
		t.Errorf("only %d test results", len(img.Tests))
	}
	if got := lists(); got != before { // the base is made with this computer's apt
		t.Errorf("the package lists were\n%s\nand are\n%s", before, got)
	}
	if !strings.Contains(log, "boot debian:bookworm: started") {
		t.Errorf("the first build did not boot:\n%s", log)
	}

	said := regexp.MustCompile(`id: (\w+) random: ([0-9a-f]{64}) now: (\d+)`)
	logs := []string{log}
	versions := []string{img.Version}
	// A package of the guest's own making, with a setuid program; dpkg logs what it does.
	install := `: >/var/log/dpkg.log; mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin && cp /bin/true /tmp/p/usr/bin/rebake-tool && chmod 4755 /tmp/p/usr/bin/rebake-tool &&
printf 'Package: rebake-tool\nVersion: 1:2.0~rc1-1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: for a test\n' >/tmp/p/DEBIAN/control &&
dpkg-deb --build /tmp/p /tmp/p.deb && dpkg -i /tmp/p.deb && sed 's/^/dpkg.log: /' /var/log/dpkg.log`
	for _, change := range []string{"echo two", install} {
		write(change)
		began := time.Now()
		_, log := w.rebake(0, "build", "t.yaml", "--skip-test")
		t.Logf("last step changed: %.1fs", time.Since(began).Seconds())
		// The upload is so short that its state may not have been worth saving.
		if got := strings.TrimPrefix(ran(log), "file-2 "); got != "last" || strings.Contains(log, "boot debian:bookworm: started") {
			t.Errorf("a changed last step ran %q\n%s", got, log)
		}
		logs, versions = append(logs, log), append(versions, w.image("real:latest").Version)
	}
	w.namesWhatDpkgDid("real:"+versions[1], "real:"+versions[2], logs[2])
	seen := map[string]bool{}
	for _, log := range logs {
		m := said.FindStringSubmatch(log)
		if m == nil {
			t.Fatalf("the guest did not tell:\n%s", log)
		}
		if seen[m[2]] {
			t.Error("two guests have the same random numbers")
		}
		seen[m[2]] = true
		sec, err := time.ParseDuration(m[3] + "s")
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Since(time.Unix(int64(sec.Seconds()), 0)); off < -time.Minute || off > 10*time.Minute {
			t.Errorf("the guest's clock is off by %s", off)
		}
	}
}

// namesWhatDpkgDid holds the diff of two images to what dpkg in the guest wrote down.
func (w *world) namesWhatDpkgDid(a, b, log string) {
	w.t.Helper()
	want := map[string]string{}
	for _, m := range regexp.MustCompile(`dpkg\.log: \S+ \S+ status installed (\S+):\S+ (\S+)`).FindAllStringSubmatch(log, -1) {
		want[m[1]] = m[2]
	}
	out, _ := w.rebake(0, "--output", "json", "diff", a, b)
	var o struct{ Result inventory.Diff }
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &o); err != nil {
		w.t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range o.Result.Packages {
		got[c.Name] = c.To
	}
	if len(want) == 0 || !maps.Equal(got, want) || o.Result.Packages[0].What != inventory.Added {
		w.t.Errorf("diff names %v, dpkg's log %v", got, want)
	}
	if d := o.Result; !slices.Equal(d.SetID, []string{"/usr/bin/rebake-tool"}) || len(d.Users)+len(d.Ports)+len(d.Units)+len(d.SSHD)+len(d.Kernel)+len(d.Unknown) > 0 {
		w.t.Errorf("%+v", d)
	}
	text, _ := w.rebake(0, "diff", a, b, "--files")
	w.t.Log(text)
	w.rebake(7, "diff", a, b, "--fail-on", "setuid,user")
	if out, _ := w.rebake(0, "blame", "real", "--package", "rebake-tool"); !strings.Contains(out, "package rebake-tool came with "+b) {
		w.t.Error(out)
	}
	if n := len(w.inventory(b).SSHD); n < 20 {
		w.t.Errorf("%d settings of sshd", n)
	}
}
