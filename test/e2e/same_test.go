//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// eachOwn are files of the tiny guest that differ between two boots of one
// image, and why. Nothing else is left out.
var eachOwn = []string{
	"/etc/dropbear",            // host keys, made or seeded for each machine
	"/etc/ssh/ssh_host_",       // the same
	"/root/.ssh",               // the key of the build
	"/etc/machine-id",          // made at each boot of an unsealed guest
	"/etc/hostname",            // the build's id
	"/var/lib/rebake/instance", // the same
	"/var/log/",                // times
	"/inventory",               // this list
}

// A build that goes on from what was saved gives the guest that one from nothing
// gives: each file's path, mode, owner and content, asked in the guest.
func TestACachedBuildIsAnUncachedOneInARealGuest(t *testing.T) {
	t.Parallel() // it waits more than it works
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	w.write("src/page", "page\n")
	w.write("src/sub/x", "x\n")
	slow := func(n int) string { // its state is worth to be saved
		do := []string{
			fmt.Sprintf("echo %d >> /srv/log", r.IntN(1000)), fmt.Sprintf("chown %d:%d /srv/log", r.IntN(9), r.IntN(9)), "chmod 4711 /srv/log",
			fmt.Sprintf("mkdir -p /srv/%d/a && ln -sfn ../log /srv/%d/a/l", r.IntN(3), n), "rm -rf /srv/0", "cp -a /www /srv/copy",
		}
		r.Shuffle(len(do), func(i, j int) { do[i], do[j] = do[j], do[i] })
		return fmt.Sprintf(`shell: {name: s%d, inline: ["sleep 2; mkdir -p /srv; touch /srv/log; mkdir -p /srv/%d/a", %q, %q]}`, n, n, do[0], do[1])
	}
	steps := []string{
		slow(1),
		fmt.Sprintf(`file: {source: src/, destination: /srv/tree, owner: "%d", mode: "0640"}`, r.IntN(9)),
		slow(2),
		slow(3),
		`shell: {name: list, cache: false, inline: [` +
			`"find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \\) -prune -o -exec stat -c '%n %A %u:%g %h %N' {} + | sort > /inventory.1", ` +
			`"find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \\) -prune -o -type f ! -path '/inventory*' -exec sha256sum {} + | sort -k2 > /inventory.2"]}`,
		`file: {direction: download, source: /inventory.1, destination: inventory.1}`,
		`file: {direction: download, source: /inventory.2, destination: inventory.2}`,
	}
	build := func(flags ...string) (ranSteps string, list []string) {
		t.Helper()
		text := fmt.Sprintf("name: same\nbuild:\n  qemu:\n    from: {url: \"file:%s\", checksum: \"%s\"}\n    memory: 192M\nprovision:\n  - %s\n", guest.path, guest.sum, strings.Join(steps, "\n  - "))
		w.write("same.yaml", text)
		_, said := w.rebake(0, append([]string{"build", "same.yaml", "--skip-test", "--force"}, flags...)...)
		for _, name := range []string{"inventory.1", "inventory.2"} {
			raw, err := os.ReadFile(w.dir + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, strings.Split(string(raw), "\n")...)
		}
		return ran(said), slices.DeleteFunc(list, func(line string) bool {
			return slices.ContainsFunc(eachOwn, func(p string) bool { return strings.Contains(line, p) })
		})
	}
	build()
	edits := []func(){
		func() { steps[3] = slow(3) },
		func() { steps[2] = slow(2) },
		func() { w.write("src/page", fmt.Sprint(r.Int())) },
	}
	edits[r.IntN(len(edits))]() // one in each run
	did, cached := build()
	all, fresh := build("--no-cache")
	if did == all {
		t.Errorf("nothing was taken from the cache: both ran %q", did)
	}
	if len(cached) < 100 {
		t.Fatalf("only %d lines: the test is blind", len(cached))
	}
	if !slices.Equal(cached, fresh) {
		t.Errorf("after %q went on, in the one and not in the other:\n%s\n%s", did, strings.Join(without(cached, fresh), "\n"), strings.Join(without(fresh, cached), "\n"))
	}
}

func without(a, b []string) (only []string) {
	for _, line := range a {
		if !slices.Contains(b, line) {
			only = append(only, line)
		}
	}
	return only
}
