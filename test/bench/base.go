package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

//go:embed files
var files embed.FS

// makeBase bakes the disk that both tools start from, once in this folder's life.
func (b *bench) makeBase(ctx context.Context) error {
	b.base = filepath.Join(b.work, "base", "base.qcow2")
	if _, err := os.Stat(b.base); errors.Is(err, fs.ErrNotExist) {
		b.note("making the base disk: Debian, a minute or two")
		home := filepath.Join(b.work, "base", "home")
		template := filepath.Join(b.work, "input", "base.yaml")
		for _, args := range [][]string{
			{"build", template, "--skip-test", "--tag", "base", "--force"},
			{"images", "export", "bench-base:base", b.base + ".new"},
		} {
			c := command{args: append([]string{b.rebake}, args...), env: []string{"REBAKE_HOME=" + home}, log: filepath.Join(b.work, "logs", "base.log")}
			if _, _, err := measure(ctx, c); err != nil {
				return fmt.Errorf("make the base disk: %w", err)
			}
		}
		if err := errors.Join(os.RemoveAll(home), os.Rename(b.base+".new", b.base)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	f, err := os.Open(b.base)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	b.checksum = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return err
}

// makeKeys writes what Packer's guests are told: the same lines by the same way
// (SMBIOS) as rebake tells its own, so that neither makes host keys at boot.
func (b *bench) makeKeys() error {
	b.key, b.seed = filepath.Join(b.work, "packer", "key"), filepath.Join(b.work, "packer", "seed")
	user, userPEM, err := newKey()
	if err != nil {
		return err
	}
	_, hostPEM, err := newKey()
	if err != nil {
		return err
	}
	lines := "d /root/.ssh 0700 root root -\n"
	for _, f := range []struct {
		path string
		data []byte
	}{{"/root/.ssh/authorized_keys", ssh.MarshalAuthorizedKey(user)}, {"/etc/ssh/ssh_host_ed25519_key", hostPEM}} {
		lines += fmt.Sprintf("f+~ %s 0600 root root - %s\n", f.path, base64.StdEncoding.EncodeToString(f.data))
	}
	seed := "io.systemd.credential.binary:tmpfiles.extra=" + base64.StdEncoding.EncodeToString([]byte(lines))
	return errors.Join(os.WriteFile(b.key, userPEM, 0o600), os.WriteFile(b.seed, []byte(seed), 0o600))
}

func newKey() (ssh.PublicKey, []byte, error) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(priv, "rebake bench")
	if err != nil {
		return nil, nil, err
	}
	k, err := ssh.NewPublicKey(pub)
	return k, pem.EncodeToMemory(block), err
}

// makeInput writes the templates, and the files that they upload: the same in
// every run of the benchmark.
func (b *bench) makeInput() error {
	dir := filepath.Join(b.work, "input")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, d := range []string{dir, filepath.Join(b.work, "base"), filepath.Join(b.work, "logs"), filepath.Join(b.work, "packer", "tmp"), filepath.Join(b.work, "homes")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{"base.yaml", "real.yaml", "trivial.yaml", "files.yaml", "packages.sh", "release.sh"} {
		raw, err := files.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o755); err != nil { //nolint:gosec // scripts
			return err
		}
	}
	for _, name := range []string{"real", "trivial", "files"} {
		raw, err := packerTemplate(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), raw, 0o600); err != nil {
			return err
		}
	}
	r := rand.NewChaCha8([32]byte{1})
	if err := writeRandom(r, filepath.Join(dir, "big.bin"), 100<<20); err != nil {
		return err
	}
	for i := range 1000 {
		if err := writeRandom(r, filepath.Join(dir, "small", fmt.Sprintf("%02d", i%50), fmt.Sprintf("%04d", i)), 2<<10); err != nil {
			return err
		}
	}
	for i := range 200 { // an application: text, 3 MB
		text := strings.Repeat(fmt.Sprintf("def handler_%d(request):\n    return render(request, %q)\n\n", i, hex.EncodeToString(fill(r, 24))), 140)
		if err := writeFile(filepath.Join(dir, "app", fmt.Sprintf("part%02d", i%20), fmt.Sprintf("m%03d.py", i)), []byte(text)); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, "app", "static", "index.html"), []byte("<h1>bench</h1>\n"))
}

// packerTemplate is packer.json with the provisioners of one template in it.
func packerTemplate(name string) ([]byte, error) {
	var tpl, steps map[string]json.RawMessage
	for file, into := range map[string]any{"packer.json": &tpl, "packer-provisioners.json": &steps} {
		raw, err := files.ReadFile("files/" + file)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	tpl["provisioners"] = steps[name]
	return json.MarshalIndent(tpl, "", "  ")
}

func fill(r *rand.ChaCha8, n int) []byte {
	buf := make([]byte, n)
	_, _ = r.Read(buf) // never fails
	return buf
}

// writeRandom writes bytes that no compression makes smaller.
func writeRandom(r *rand.ChaCha8, path string, n int) error { return writeFile(path, fill(r, n)) }

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// makeSeedHome builds once on the base and forgets all but the base itself: a
// state directory in which the base disk is ready and nothing else is.
func (b *bench) makeSeedHome(ctx context.Context) (run, error) {
	home := b.seedHome()
	if err := os.RemoveAll(home); err != nil {
		return run{}, err
	}
	r, err := b.rebakeBuild(ctx, "a base never seen before", 0, rebakeBuild{template: "trivial", home: home, changed: true, vars: map[string]string{"release": "seed"}})
	if err != nil {
		return r, err
	}
	if err := b.forgetImages(ctx, home); err != nil {
		return r, err
	}
	return r, errors.Join(os.RemoveAll(filepath.Join(home, "cache", "checkpoints")), os.RemoveAll(filepath.Join(home, "logs")))
}

func (b *bench) seedHome() string { return filepath.Join(b.work, "homes", "seed") }

// forgetImages removes every image; what they share with the base stays.
func (b *bench) forgetImages(ctx context.Context, home string) error {
	out, err := b.ask(ctx, home, "images", "ls")
	if err != nil {
		return err
	}
	var ls struct {
		Result []struct{ Name, Version string }
	}
	if err := json.Unmarshal(out, &ls); err != nil {
		return err
	}
	for _, i := range ls.Result {
		if _, err := b.ask(ctx, home, "images", "rm", i.Name+":"+i.Version); err != nil {
			return err
		}
	}
	return nil
}

// freshHome is a copy of the seed home.
func (b *bench) freshHome(ctx context.Context, name string) (string, error) {
	home := filepath.Join(b.work, "homes", name)
	if err := os.RemoveAll(home); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", b.seedHome(), home).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy the seed home: %w: %s", err, out)
	}
	return home, nil
}

// ask runs a rebake command that is not measured.
func (b *bench) ask(ctx context.Context, home string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.rebake, append([]string{"--output", "json"}, args...)...)
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+home)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("rebake %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}
