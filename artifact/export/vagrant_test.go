package export_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/artifact/importer"
)

func boxed(t *testing.T) (artifact.Store, artifact.Image, []byte) {
	s, img, data := image(t)
	img.Name, img.Version, img.Digest = "shop/web", "1.4.0", artifact.Digest("sha256:"+strings.Repeat("ab", 32))
	img.Arch, img.Firmware, img.Seed, img.User = "amd64", "bios", "credentials", "root"
	return s, img, data
}

// unbox returns a box's files, in their order.
func unbox(t *testing.T, path string) (names []string, files map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// credentialsIn are the system credentials that a Vagrantfile hands over.
func credentialsIn(t *testing.T, vagrantfile string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, m := range regexp.MustCompile(`"io\.systemd\.credential\.binary:([a-z.]+)=([^"]+)",`).FindAllStringSubmatch(vagrantfile, -1) {
		raw, err := base64.StdEncoding.DecodeString(m[2])
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]] = string(raw)
	}
	return out
}

func TestVagrant(t *testing.T) {
	s, img, data := boxed(t)
	dir := t.TempDir()
	var boxes [][]byte
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for i, name := range []string{"a.box", "b.box"} {
		runtime.GOMAXPROCS(1 + i)
		path := filepath.Join(dir, name)
		box, err := export.Vagrant(t.Context(), s, img, export.BoxOptions{}, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil || box.Size != int64(len(raw)) {
			t.Fatal(box, len(raw), err)
		}
		if out, err := exec.Command("sha256sum", path).Output(); err != nil || !strings.HasPrefix(string(out), box.Digest.Hex()) {
			t.Errorf("%s is not %s, %v", box.Digest, out, err)
		}
		boxes = append(boxes, raw)
	}
	only(t, dir, 2)
	if !bytes.Equal(boxes[0], boxes[1]) {
		t.Error("the same image gave two different boxes")
	}
	names, files := unbox(t, filepath.Join(dir, "a.box"))
	if diff := cmp.Diff([]string{"metadata.json", "Vagrantfile", "box.img"}, names); diff != "" {
		t.Error(diff)
	}
	var meta map[string]any
	if err := json.Unmarshal(files["metadata.json"], &meta); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"provider": "libvirt", "format": "qcow2", "virtual_size": 1.0, "architecture": "amd64", "rebake": map[string]any{
		"image": "shop/web:1.4.0", "digest": string(img.Digest), "firmware": "bios", "seed": "credentials", "user": "root"}}
	if diff := cmp.Diff(want, meta); diff != "" {
		t.Error(diff)
	}
	if bytes.Contains(files["box.img"], []byte(export.InsecureKey[20:60])) {
		t.Error("a key is in the disk")
	}
	cred := credentialsIn(t, string(files["Vagrantfile"]))
	keys := base64.StdEncoding.EncodeToString([]byte(export.InsecureKey + "\n"))
	if diff := cmp.Diff(map[string]string{"tmpfiles.extra": "d /root/.ssh 0700 root root -\nf~ /root/.ssh/authorized_keys 0600 root root - " + keys + "\n"}, cred); diff != "" {
		t.Error(diff)
	}
	// What was exported comes back as it was.
	src, err := importer.Open(t.Context(), filepath.Join(dir, "a.box"), importer.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Disk.Close()
	got, err := io.ReadAll(io.NewSectionReader(src.Disk, 0, src.Disk.Size()))
	if err != nil || !bytes.Equal(got, data) || src.Facts != (importer.Facts{Arch: "amd64", Firmware: "bios", Seed: "credentials", User: "root"}) {
		t.Errorf("%+v, %d bytes, %v", src.Facts, len(got), err)
	}
}

// The account and the keys that were asked for are in the box, in the way in
// which the image is told.
func TestVagrantUsers(t *testing.T) {
	s, img, _ := boxed(t)
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN1YdxBpNlzxDqfJyw me@example"
	dir := t.TempDir()
	get := func(seed, user, firmware, arch string, o export.BoxOptions) (string, map[string][]byte) {
		img := img
		img.Seed, img.User, img.Firmware, img.Arch = seed, user, firmware, arch
		path := filepath.Join(dir, "x.box")
		if _, err := export.Vagrant(t.Context(), s, img, o, path, nil); err != nil {
			t.Fatal(err)
		}
		_, files := unbox(t, path)
		return string(files["Vagrantfile"]), files
	}
	has := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%q is not in\n%s", w, text)
			}
		}
	}
	text, _ := get("credentials", "root", "bios", "amd64", export.BoxOptions{User: "vagrant", Keys: []string{key}})
	has(text, `config.ssh.username = "vagrant"`, "config.ssh.insert_key = false", `p.machine_arch = "x86_64"`)
	cred := credentialsIn(t, text)
	has(cred["sysusers.extra"], "u vagrant 1000 - /home/vagrant /bin/bash\n")
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	has(cred["tmpfiles.extra"], "d /home/vagrant 0755 vagrant vagrant -\n", "f~ /etc/sudoers.d/vagrant 0440 root root - "+b64("vagrant ALL=(ALL) NOPASSWD:ALL\n"),
		"f~ /home/vagrant/.ssh/authorized_keys 0600 vagrant vagrant - "+b64(key+"\n"))
	if strings.Contains(text, "sudo_command") {
		t.Error("vagrant needs sudo")
	}
	text, _ = get("credentials", "admin", "uefi", "arm64", export.BoxOptions{})
	cred = credentialsIn(t, text)
	has(text, `config.ssh.username = "admin"`, `p.machine_type = "virt"`, "p.loader = firmware", `p.arch = "aarch64"`)
	if cred["sysusers.extra"] != "" || strings.Contains(cred["tmpfiles.extra"], "sudoers") || strings.Contains(text, "insert_key") {
		t.Error("an account is made that the image has", cred)
	}
	text, files := get("nocloud", "debian", "uefi", "amd64", export.BoxOptions{})
	has(text, `config.ssh.username = "debian"`, `"-bios", firmware`)
	if len(credentialsIn(t, text)) > 0 {
		t.Error("credentials for cloud-init")
	}
	var meta struct {
		Disks  []map[string]string
		Rebake map[string]string
	}
	if err := json.Unmarshal(files["metadata.json"], &meta); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]map[string]string{{"path": "box.img", "format": "qcow2"}, {"path": "seed.img", "format": "qcow2"}}, meta.Disks); diff != "" || meta.Rebake["seed_disk"] != "seed.img" {
		t.Error(diff, meta.Rebake)
	}
	seed := readSeed(t, dir, files["seed.img"])
	has(seed["meta-data"], `{"instance-id":"rebake-abababababab"}`)
	has(seed["user-data"], "#cloud-config\n", `"name": "debian"`, `"sudo": "ALL=(ALL) NOPASSWD:ALL"`, export.InsecureKey)
	_, files = get("nocloud", "", "bios", "amd64", export.BoxOptions{Keys: []string{key}})
	has(readSeed(t, dir, files["seed.img"])["user-data"], `"disable_root": false`, `"name": "root"`, key)
}

// readSeed reads a seed disk as a guest does: by its file system's label.
func readSeed(t *testing.T, dir string, qcow2 []byte) map[string]string {
	t.Helper()
	path, raw := filepath.Join(dir, "seed.qcow2"), filepath.Join(dir, "seed.raw")
	if err := os.WriteFile(path, qcow2, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vfat, err := fat12.Read(file.New(f, true), 1<<20, 0, 512)
	if err != nil {
		t.Fatal(err)
	}
	if vfat.Label() != "cidata" {
		t.Errorf("its label is %q", vfat.Label())
	}
	out := map[string]string{}
	for _, name := range []string{"meta-data", "user-data"} {
		b, err := vfat.ReadFile("/" + name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// Nothing but what is known gets into a file that is run on somebody's computer.
func TestVagrantRefuses(t *testing.T) {
	s, img, _ := boxed(t)
	for name, c := range map[string]struct {
		seed string
		o    export.BoxOptions
		want string
	}{
		"an account that is Ruby": {"credentials", export.BoxOptions{User: "a\" + `id`"}, "no account"},
		"a key of two lines":      {"credentials", export.BoxOptions{Keys: []string{"ssh-rsa AAAA\nssh-rsa BBBB"}}, "no public key"},
		"a private key":           {"credentials", export.BoxOptions{Keys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}, "no public key"},
		"an unknown seed":         {"", export.BoxOptions{}, "nobody could be let in"},
	} {
		img.Seed = c.seed
		dir := t.TempDir()
		if _, err := export.Vagrant(t.Context(), s, img, c.o, filepath.Join(dir, "x.box"), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
		only(t, dir, 0)
	}
}

// The recipe changes with anything but the disk that a box is made of.
func TestBoxRecipe(t *testing.T) {
	_, img, _ := boxed(t)
	seen := map[artifact.Digest]string{}
	for name, f := range map[string]func(*artifact.Image, *export.BoxOptions){
		"as it is":         func(*artifact.Image, *export.BoxOptions) {},
		"another account":  func(_ *artifact.Image, o *export.BoxOptions) { o.User = "vagrant" },
		"another key":      func(_ *artifact.Image, o *export.BoxOptions) { o.Keys = []string{"ssh-rsa AAAA"} },
		"another image":    func(i *artifact.Image, _ *export.BoxOptions) { i.Digest = "sha256:1" },
		"another seed":     func(i *artifact.Image, _ *export.BoxOptions) { i.Seed = "nocloud" },
		"another firmware": func(i *artifact.Image, _ *export.BoxOptions) { i.Firmware = "uefi" },
	} {
		i, o := img, export.BoxOptions{}
		f(&i, &o)
		d, err := export.BoxRecipe(i, o)
		if err != nil || seen[d] != "" {
			t.Errorf("%s: %s as %s, %v", name, d, seen[d], err)
		}
		seen[d] = name
		if again, _ := export.BoxRecipe(i, o); again != d {
			t.Errorf("%s: two recipes", name)
		}
	}
}
