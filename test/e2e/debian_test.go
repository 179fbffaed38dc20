//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The real guest, whole: a Debian base is made from packages, baked, sealed and
// tested in two boots; then the last step changes twice, and both builds go on
// from one saved memory without sharing what must not be shared.
func TestADebianGuestIsBakedTestedAndGoneOnFrom(t *testing.T) {
	lists := func() string { return strings.Join(files(t, "/var/lib/apt/lists"), "\n") }
	before := lists()
	if !strings.Contains(before, "Packages") {
		t.Fatal("there are no package lists to lose: the test is blind (apt-get update)")
	}
	w := newWorld(t)
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
	for _, change := range []string{"echo two", "echo three"} {
		write(change)
		began := time.Now()
		_, log := w.rebake(0, "build", "t.yaml", "--skip-test")
		t.Logf("last step changed: %.1fs", time.Since(began).Seconds())
		// The upload is so short that its state may not have been worth saving.
		if got := strings.TrimPrefix(ran(log), "file-2 "); got != "last" || strings.Contains(log, "boot debian:bookworm: started") {
			t.Errorf("a changed last step ran %q\n%s", got, log)
		}
		logs = append(logs, log)
	}
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
