package amazon

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/test/awsguest"
)

func seeded(t *testing.T, user, given string) ([]byte, error) {
	t.Helper()
	b, err := New(Config{Source: Source{AMI: "ami-1"}, Types: Types{AnyOf: []string{"t3.small"}}, SSH: SSH{User: user}, UserData: given}, Deps{})
	if err != nil {
		return nil, err
	}
	m := &machine{b: b, user: user}
	if m.login, err = ssh.NewKey(); err != nil {
		t.Fatal(err)
	}
	if m.host, err = ssh.NewKey(); err != nil {
		t.Fatal(err)
	}
	return b.userData(m, "build-1")
}

func TestUserDataIsMerged(t *testing.T) {
	nested := "Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n\n--x\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho one\n--x\nContent-Type: text/cloud-boothook\n\n#cloud-boothook\ntrue\n--x--\n"
	for name, c := range map[string]struct {
		given string
		want  []string
	}{
		"a script":     {"#!/bin/sh\necho hello\n", []string{"text/x-shellscript #!/bin/sh\necho hello\n"}},
		"cloud-config": {"#cloud-config\npackages: [git]\n", []string{"text/cloud-config #cloud-config\npackages: [git]\n"}},
		"an include":   {"#include\nhttps://example.org/x\n", []string{"text/x-include-url #include\nhttps://example.org/x\n"}},
		"MIME":         {nested, []string{"text/x-shellscript #!/bin/sh\necho one", "text/cloud-boothook #cloud-boothook\ntrue"}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := seeded(t, "admin", c.given)
			if err != nil {
				t.Fatal(err)
			}
			msg, err := mail.ReadMessage(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
			if err != nil {
				t.Fatal(err)
			}
			var parts []string
			for r := multipart.NewReader(msg.Body, params["boundary"]); ; {
				p, err := r.NextPart()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(p)
				if err != nil {
					t.Fatal(err)
				}
				kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
				if err != nil {
					t.Fatal(err)
				}
				parts = append(parts, kind+" "+string(body))
			}
			own := parts[len(parts)-1]
			if fmt.Sprintf("%q", parts[:len(parts)-1]) != fmt.Sprintf("%q", c.want) {
				t.Errorf("parts %q", parts)
			}
			for _, want := range []string{"text/cloud-config #cloud-config\n", "ssh_deletekeys: true", "OPENSSH PRIVATE KEY", "name: admin", "NOPASSWD", "merge_how: dict(replace)"} {
				if !strings.Contains(own, want) {
					t.Errorf("the last part lacks %q:\n%s", want, own)
				}
			}
			host, authorized, err := awsguest.Told(string(data))
			if err != nil || len(host) == 0 || len(authorized) != 1 {
				t.Errorf("a guest reads %q, %q, %v", host, authorized, err)
			}
		})
	}
	alone, err := seeded(t, "root", "")
	if err != nil || !strings.HasPrefix(string(alone), "#cloud-config\n") || !strings.Contains(string(alone), "disable_root: false") || len(alone) > maxUserDataOfEC2-maxUserData {
		t.Errorf("%d bytes, %v:\n%s", len(alone), err, alone)
	}
	for given, want := range map[string]string{
		"hello\n": "neither a script", strings.Repeat("#!/bin/sh\n", 1500): "let it fetch the rest", "Content-Type: text/plain\n\nx": "multipart/mixed",
	} {
		if _, err := seeded(t, "root", given); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", given, err)
		}
	}
}

func TestAConfigurationIsCheckedBeforeAnybodyIsAsked(t *testing.T) {
	good := func() Config {
		return Config{Region: here, Source: Source{AMI: "ami-1"}, Types: Types{AnyOf: []string{"t3.small"}}, SSH: SSH{User: "admin"}}
	}
	if _, err := New(good(), Deps{}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"exactly one of":      func(c *Config) { c.Source.Image = "base:1" },
		"anybody can give":    func(c *Config) { c.Source = Source{Filter: &AMIFilter{Name: "x"}} },
		"ssh.user":            func(c *Config) { c.SSH.User = "" },
		"instance_type":       func(c *Config) { c.Types.AnyOf = nil },
		"not both":            func(c *Config) { c.Profile = "p"; c.SSH.SSM, c.SSH.Bastion = true, &Bastion{} },
		"AmazonSSMManaged":    func(c *Config) { c.SSH.SSM = true },
		"is no network":       func(c *Config) { c.Network.From.List = []string{"everybody"} },
		"whole gigabytes":     func(c *Config) { c.Root.Size = 512 << 20 },
		"not yours to give":   func(c *Config) { c.Tags = map[string]string{"rebake:build": "x"} },
		"is no public key":    func(c *Config) { c.SSH.Bastion = &Bastion{HostKey: "trust me"} },
		"is there already":    func(c *Config) { c.AMI.CopyTo = []Copy{{Region: here}} },
		"give id or filter":   func(c *Config) { c.Network.VPC = Pick{ID: "vpc-1", Filter: map[string]string{"a": "b"}} },
		"there is room for":   func(c *Config) { c.UserData = strings.Repeat("x", maxUserData+1) },
		"ssh.port: 70000 is ": func(c *Config) { c.SSH.Port = 70000 },
	} {
		c := good()
		change(&c)
		if _, err := New(c, Deps{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
