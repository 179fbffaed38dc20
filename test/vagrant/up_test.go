//go:build vagrant

package vagrant

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact/export"
)

// libvirt has a libvirtd answer: the system's, or one that lives as long as the test.
func libvirt(t *testing.T) {
	answers := func() bool { return exec.Command("virsh", "-c", "qemu:///system", "version").Run() == nil }
	if answers() {
		return
	}
	for _, name := range []string{"virtlogd", "libvirtd"} {
		cmd := exec.Command(name)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if err := cmd.Start(); err != nil {
			t.Fatalf("no libvirtd answers at qemu:///system, and none can be started: %v", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		})
	}
	for end := time.Now().Add(time.Minute); !answers(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("libvirtd did not answer within a minute: this test needs root, or a user of the group libvirt")
		}
	}
}

// Emulated, since this is to run everywhere; the account and its keys are the box's own.
const vagrantfile = `Vagrant.configure("2") do |config|
  config.vm.box = "NAME"
  config.vm.boot_timeout = 1200
  config.vm.provision :shell, inline: "echo provisioned as $(id -un) > /root/provisioned"
  config.vm.provider :libvirt do |p|
    p.default_prefix = "rebake-e2e-"
    p.driver = "qemu"
    p.cpu_mode = "custom"
    p.cpu_model = "qemu64"
    p.graphics_type = "none"
  end
end
`

const template = `name: NAME
build:
  qemu:
    from: {debian: bookworm}
provision:
  - shell: {inline: ["! [ NAME = cloud ] || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends cloud-init; }"]}
`

// A box comes up under Vagrant, which gets in, puts its own key in the place of
// the one that everybody has, provisions, and gets in after a reboot too: told by
// credentials as root, and by NoCloud as an account that the image lacks.
func TestUp(t *testing.T) {
	libvirt(t)
	w := newWorld(t)
	for _, c := range []struct {
		name, user string
		flags      []string
	}{
		{"plain", "root", nil},
		{"account", "vagrant", []string{"--box-user", "vagrant"}},
		{"cloud", "vagrant", []string{"--box-user", "vagrant"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t, w.dir}
			w.write("t.yaml", strings.ReplaceAll(template, "NAME", c.name))
			w.run(true, bin, "build", "t.yaml", "--version", "1.0.0", "--skip-test")
			ref := c.name + ":1.0.0"
			if c.name == "cloud" { // the same disk, as a distribution's cloud image
				w.run(true, bin, "images", "export", ref, "cloud.qcow2")
				w.run(true, bin, "import", "cloud.qcow2", "cloud:1.0.1")
				ref = "cloud:1.0.1"
			}
			w.run(true, bin, append([]string{"vagrant", "publish", ref, "boxes"}, c.flags...)...)
			w.run(true, "vagrant", "box", "add", "boxes/"+c.name+".json", "--provider", "libvirt")
			w.write("Vagrantfile", strings.ReplaceAll(vagrantfile, "NAME", c.name))
			defer func() {
				w.run(true, "vagrant", "destroy", "-f")
				for _, v := range strings.Fields(w.run(true, "virsh", "-c", "qemu:///system", "vol-list", "default")) {
					if strings.HasPrefix(v, c.name+"_vagrant_box_image_") {
						w.run(true, "virsh", "-c", "qemu:///system", "vol-delete", "--pool", "default", v)
					}
				}
			}()
			w.run(true, "vagrant", "up", "--provider", "libvirt")
			look := func() {
				t.Helper()
				out := w.run(true, "vagrant", "ssh", "-c", "id -un; cat ~/.ssh/authorized_keys; sudo cat /root/provisioned || cat /root/provisioned")
				if !strings.HasPrefix(out, c.user) || !strings.Contains(out, "provisioned as root") {
					t.Errorf("in the machine: %s", out)
				}
				if strings.Contains(out, strings.Fields(export.InsecureKey)[1]) || strings.Count(out, "ssh-") != 1 {
					t.Errorf("not the machine's own key alone lets in:\n%s", out)
				}
			}
			look()
			w.run(true, "vagrant", "reload")
			look()
		})
	}
}
