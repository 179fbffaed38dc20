package amazon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"strings"

	"gopkg.in/yaml.v3"
)

// EC2 takes 16 KiB of user data; what rebake adds to it stays well below 3 KiB.
const (
	maxUserDataOfEC2 = 16 << 10
	maxUserData      = 13 << 10
)

// userData tells cloud-init the machine's keys, and adds what the template gives.
func (b *Builder) userData(m *machine, host string) ([]byte, error) {
	own, err := cloudConfig(m, host)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(b.cfg.UserData) == "" {
		return own, nil
	}
	all, err := merged([]byte(b.cfg.UserData), own)
	if err != nil {
		return nil, fmt.Errorf("user_data: %w", err)
	}
	if len(all) > maxUserDataOfEC2 {
		return nil, fmt.Errorf("user_data has %d bytes with rebake's own, and EC2 takes %d: let it fetch the rest", len(all), maxUserDataOfEC2)
	}
	return all, nil
}

// cloudConfig is rebake's own part: the host key is pinned, so no other may be made.
func cloudConfig(m *machine, host string) ([]byte, error) {
	user := map[string]any{"name": m.user, "ssh_authorized_keys": []string{m.login.Authorized}}
	config := map[string]any{
		"ssh_deletekeys":  true,
		"ssh_genkeytypes": []string{},
		"ssh_keys":        map[string]string{"ed25519_private": string(m.host.PEM), "ed25519_public": m.host.Authorized},
		"users":           []any{user},
		"hostname":        host,
		// The last of the parts: what it has replaces what others have of the same name.
		"merge_how": "dict(replace)+list()+str()",
	}
	if m.user == "root" {
		config["disable_root"] = false
	} else {
		user["sudo"], user["shell"], user["lock_passwd"] = "ALL=(ALL) NOPASSWD:ALL", "/bin/bash", true
	}
	text, err := yaml.Marshal(config)
	return append([]byte("#cloud-config\n"), text...), err
}

// kindOf is how cloud-init calls user data that begins like this.
func kindOf(data []byte) string {
	for begin, kind := range map[string]string{
		"#!": "text/x-shellscript", "#cloud-config\n": "text/cloud-config", "#cloud-config\r": "text/cloud-config", "#include": "text/x-include-url",
		"#cloud-boothook": "text/cloud-boothook", "## template: jinja": "text/jinja2", "#part-handler": "text/part-handler", "#cloud-config-archive": "text/cloud-config-archive",
	} {
		if bytes.HasPrefix(data, []byte(begin)) {
			return kind
		}
	}
	return ""
}

// merged puts two into one MIME message; the first may be one itself.
func merged(given, own []byte) ([]byte, error) {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	fmt.Fprintf(&out, "Content-Type: multipart/mixed; boundary=%q\r\nMIME-Version: 1.0\r\n\r\n", w.Boundary())
	put := func(header textproto.MIMEHeader, data []byte) error {
		part, err := w.CreatePart(header)
		if err == nil {
			_, err = part.Write(data)
		}
		return err
	}
	var err error
	if kind := kindOf(given); kind != "" {
		err = put(textproto.MIMEHeader{"Content-Type": {kind + `; charset="utf-8"`}}, given)
	} else {
		err = parts(given, put)
	}
	if err == nil {
		err = put(textproto.MIMEHeader{"Content-Type": {`text/cloud-config; charset="utf-8"`}}, own)
	}
	err = errors.Join(err, w.Close()) // before the bytes are taken: it writes the end
	return out.Bytes(), err
}

// parts hands on the parts of a MIME message as they are.
func parts(given []byte, put func(textproto.MIMEHeader, []byte) error) error {
	msg, err := mail.ReadMessage(bytes.NewReader(given))
	if err != nil {
		return errors.New("it is neither a script (#!), #cloud-config, nor MIME, so cloud-init would pass over it")
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(kind, "multipart/") {
		return errors.New("a MIME message must have Content-Type: multipart/mixed with a boundary")
	}
	for r := multipart.NewReader(msg.Body, params["boundary"]); ; {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(part)
		if err == nil {
			err = put(part.Header, data)
		}
		if err != nil {
			return err
		}
	}
}
