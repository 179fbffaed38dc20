package qemu

import (
	"encoding/base64"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"gopkg.in/yaml.v3"
)

// seedFiles are what a seed became: files that only the owner can read.
type seedFiles struct {
	smbios []string // one SMBIOS type 11 string each
	iso    string
}

// maxCredentials keeps the SMBIOS table below its 64 KiB.
const maxCredentials = 40 << 10

var (
	hostnameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	userRE     = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

func (s Seed) check() error {
	if s.Hostname != "" && (len(s.Hostname) > 253 || !hostnameRE.MatchString(s.Hostname)) {
		return fmt.Errorf("%q is not a host name", s.Hostname)
	}
	if s.User != "" && !userRE.MatchString(s.User) {
		return fmt.Errorf("%q is not a user name", s.User)
	}
	for _, k := range s.AuthorizedKeys {
		if strings.ContainsAny(strings.TrimSpace(k), "\n\x00") {
			return errors.New("an authorized key holds more than one line")
		}
	}
	return nil
}

// write makes the seed's files in dir, mode 0600.
func (s Seed) write(dir string) (seedFiles, error) {
	if err := s.check(); err != nil {
		return seedFiles{}, err
	}
	switch s.Kind {
	case "":
		return seedFiles{}, nil
	case "credentials":
		extra := s.tmpfiles()
		cred := "io.systemd.credential.binary:tmpfiles.extra=" + base64.StdEncoding.EncodeToString([]byte(extra))
		if len(cred) > maxCredentials {
			return seedFiles{}, fmt.Errorf("user data of %d bytes is too long to hand over by SMBIOS: make it shorter, or let it fetch the rest", len(s.UserData))
		}
		path := filepath.Join(dir, "credentials")
		return seedFiles{smbios: []string{path}}, atomicfile.Write(path, []byte(cred), 0o600)
	case "nocloud":
		path := filepath.Join(dir, "cidata.iso")
		return seedFiles{iso: path}, s.writeISO(dir, path)
	}
	return seedFiles{}, fmt.Errorf("unknown kind of seed %q (nocloud or credentials)", s.Kind)
}

// tmpfiles are lines for systemd-tmpfiles (systemd 252 and later): a stock
// guest needs no software of ours to obey them. What is only of use to
// rebake-seed is under /run, so that it can never get into an image.
func (s Seed) tmpfiles() string {
	var b strings.Builder
	put := func(path, mode, owner, content string) {
		fmt.Fprintf(&b, "f+~ %s %s %s %s - %s\n", path, mode, owner, owner, base64.StdEncoding.EncodeToString([]byte(content)))
	}
	fmt.Fprintln(&b, "d /run/rebake 0700 root root -")
	put("/run/rebake/instance-id", "0600", "root", s.InstanceID+"\n")
	if s.Hostname != "" {
		put("/etc/hostname", "0644", "root", s.Hostname+"\n")
	}
	if len(s.AuthorizedKeys) > 0 {
		user, home := "root", "/root"
		if s.User != "" && s.User != "root" {
			user, home = s.User, "/home/"+s.User
		}
		fmt.Fprintf(&b, "d %s/.ssh 0700 %s %s -\n", home, user, user)
		put(home+"/.ssh/authorized_keys", "0600", user, strings.Join(trimmed(s.AuthorizedKeys), "\n")+"\n")
	}
	if len(s.HostKeyPEM) > 0 {
		put("/etc/ssh/ssh_host_ed25519_key", "0600", "root", string(s.HostKeyPEM))
	}
	if s.UserData != "" {
		put("/run/rebake/user-data", "0700", "root", s.UserData)
	}
	return b.String()
}

func trimmed(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = strings.TrimSpace(s)
	}
	return out
}

// nocloud returns the three files of the NoCloud data source. Keys go into the
// vendor data, so that the user data stays the user's own.
func (s Seed) nocloud() (map[string][]byte, error) {
	meta := map[string]any{"instance-id": s.InstanceID}
	if s.Hostname != "" {
		meta["local-hostname"] = s.Hostname
	}
	vendor := map[string]any{"ssh_deletekeys": true}
	if len(s.HostKeyPEM) > 0 {
		vendor["ssh_keys"] = map[string]string{"ed25519_private": string(s.HostKeyPEM)}
		vendor["ssh_genkeytypes"] = []string{}
	}
	keys := trimmed(s.AuthorizedKeys)
	switch s.User {
	case "":
		meta["public-keys"] = keys
	case "root":
		vendor["disable_root"] = false
		vendor["users"] = []any{map[string]any{"name": "root", "ssh_authorized_keys": keys}}
	default:
		vendor["users"] = []any{map[string]any{"name": s.User, "ssh_authorized_keys": keys, "sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash", "lock_passwd": true}}
	}
	m, err := yaml.Marshal(meta)
	if err != nil {
		return nil, err
	}
	v, err := yaml.Marshal(vendor)
	if err != nil {
		return nil, err
	}
	user := s.UserData
	if user == "" {
		user = "#cloud-config\n{}\n"
	}
	return map[string][]byte{"meta-data": m, "user-data": []byte(user), "vendor-data": append([]byte("#cloud-config\n"), v...)}, nil
}

const isoSize = 4 << 20

func (s Seed) writeISO(dir, path string) (err error) {
	files, err := s.nocloud()
	if err != nil {
		return err
	}
	if len(s.UserData) > isoSize/4 {
		return fmt.Errorf("user data of %d bytes is too long: at most %d", len(s.UserData), isoSize/4)
	}
	work := filepath.Join(dir, "cidata.tmp") // ours, not a temporary directory: nothing is left behind elsewhere
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	f, err := os.OpenFile(path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	iso, err := iso9660.Create(file.New(f, false), isoSize, 0, 2048, work)
	if err != nil {
		return fmt.Errorf("make the seed disk: %w", err)
	}
	for name, data := range files {
		w, err := iso.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return fmt.Errorf("write %s to the seed disk: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("write %s to the seed disk: %w", name, err)
		}
		if err := w.Close(); err != nil {
			return fmt.Errorf("write %s to the seed disk: %w", name, err)
		}
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "cidata"}); err != nil {
		return fmt.Errorf("make the seed disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
