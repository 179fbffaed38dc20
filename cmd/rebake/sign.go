package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func signKeyFlag() cli.Flag {
	return &cli.StringFlag{Name: "sign-key", Usage: "sign the image with the private key of this `NAME` or file, instead of the template's; $REBAKE_KEY is read too, and may hold the key itself"}
}

// signKey finds the key that signs: the option's, else that of the environment,
// which may be the PEM text itself, so that it is in no file; nil: there is none.
func (s *session) signKey(spec string) (*statement.Key, error) {
	const pemHead = "-----BEGIN"
	if strings.HasPrefix(spec, pemHead) {
		return nil, usagef("every process can read arguments: put it into $REBAKE_KEY, or a file", "a private key is no argument")
	}
	where := "--sign-key"
	if spec == "" {
		spec, where = os.Getenv("REBAKE_KEY"), "$REBAKE_KEY"
	}
	switch {
	case spec == "":
		return nil, nil
	case strings.HasPrefix(spec, pemHead):
		s.red.Add(spec)
		k, err := statement.ParseKey([]byte(spec))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		return k, nil
	}
	return keyring.Dir(s.State.Keys()).Private(spec, "")
}

func keyCommand() *cli.Command {
	return &cli.Command{
		Name: "key", Usage: "signing keys: generate, ls, show",
		Subcommands: []*cli.Command{
			{Name: "generate", Usage: "make a key to sign images with", ArgsUsage: "NAME",
				Flags: []cli.Flag{&cli.StringFlag{Name: "type", Value: statement.Types()[0], Usage: "`TYPE` of the key: " + strings.Join(statement.Types(), " or ")}},
				Description: help("Writes NAME.key (private, mode 0600, PKCS #8 without a passphrase) and NAME.pub into keys/ of the\nstate directory. Nothing is written over. Keep the private half where only who signs can read it,\nand commit the public half beside the template.",
					"rebake key generate release\nrebake key show release > release.pub"), Action: with(keyGenerate)},
			{Name: "ls", Usage: "list the keys",
				Description: help("Lists the keys of the state directory.", "rebake key ls"), Action: with(keyLs)},
			{Name: "show", Usage: "print a public key", ArgsUsage: "NAME",
				Description: help("Prints the public half as PEM, as `rebake verify`, `cosign verify --key` and openssl read it.", "rebake key show release > release.pub"), Action: with(keyShow)},
		},
	}
}

// shownKey is a key as commands tell it.
type shownKey struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	ID      string `json:"id"` // sha256 of the public key, hex
	Private bool   `json:"private"`
	PEM     string `json:"pem"` // public
}

func (s *session) shown(p statement.Public) shownKey {
	return shownKey{p.Name, p.Type(), p.ID(), keyring.Dir(s.State.Keys()).HasPrivate(p.Name), string(p.PEM())}
}

func keyGenerate(s *session) error {
	name, err := arg(s.c, "a name for the key")
	if err != nil {
		return err
	}
	kind := s.c.String("type")
	p, err := keyring.Dir(s.State.Keys()).Generate(name, kind)
	if errors.Is(err, keyring.ErrExists) {
		return hinted(err, "keys are never written over: give another name, or move that one away")
	}
	if err != nil {
		return usagef("`rebake key generate --help` shows an example", "%v", err)
	}
	return s.result(s.shown(p), fmt.Sprintf("made %s, %s\nprivate  %s\npublic   %s\n", p, p.Type(),
		filepath.Join(s.State.Keys(), name+".key"), filepath.Join(s.State.Keys(), name+".pub")))
}

func keyLs(s *session) error {
	list, err := keyring.Dir(s.State.Keys()).List()
	if err != nil {
		return err
	}
	all := []shownKey{}
	rows := [][]string{{"NAME", "TYPE", "ID", "PRIVATE"}}
	for _, p := range list {
		k := s.shown(p)
		all = append(all, k)
		rows = append(rows, []string{k.Name, k.Type, k.ID[:12], map[bool]string{true: "yes", false: "no"}[k.Private]})
	}
	if len(all) == 0 {
		return s.result(all, "no keys yet: `rebake key generate NAME` makes one")
	}
	return s.result(all, ui.Table(rows))
}

func keyShow(s *session) error {
	name, err := arg(s.c, "a key's name")
	if err != nil {
		return err
	}
	p, err := keyring.Dir(s.State.Keys()).Public(name, "")
	if err != nil {
		return err
	}
	k := s.shown(p)
	return s.result(k, k.PEM)
}

func signCommand() *cli.Command {
	return &cli.Command{
		Name: "sign", Usage: "sign an image, and what is attached to it", ArgsUsage: "REF",
		Flags: []cli.Flag{&cli.StringFlag{Name: "key", Usage: "`NAME` or file of the private key; else $REBAKE_KEY, which may hold the key itself"}},
		Description: help("Signs the digest of the image's manifest, and every statement (provenance, test result, SBOM) that is\nattached to it without a signature: who signs stands for them. `cosign verify --key` reads the\nsignature too. Signing again with the same key changes nothing.",
			"rebake sign web:1.4.0 --key release\nrebake verify web:1.4.0 --key release"),
		Action: with(func(s *session) error {
			name, err := arg(s.c, "an image reference")
			if err != nil {
				return err
			}
			key, err := s.signKey(s.c.String("key"))
			if err != nil {
				return err
			}
			if key == nil {
				return usagef("`rebake key ls` lists the keys, `rebake key generate NAME` makes one", "sign with which key? give --key, or $REBAKE_KEY")
			}
			_, img, err := s.resolve(name)
			if err != nil {
				return err
			}
			done, err := pipeline.Sign(s.ctx, s.Env, img, key)
			if err != nil {
				return err
			}
			return s.result(map[string]any{"image": img.Digest, "key": key.Public().ID(), "signed": done},
				fmt.Sprintf("signed %s:%s (%s) with %s: %d statements\n", img.Name, img.Version, short(img.Digest), key.Public(), len(done)))
		}),
	}
}

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check an image: its signatures, what is said of it, its bytes", ArgsUsage: "REF",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "key", Usage: "`NAME` or file of a public key, one of which must have signed the image (repeatable)"},
			&cli.StringFlag{Name: "policy", Usage: "`FILE` with what require: of a fleet holds: signed_by, tests, sbom, provenance, not_revoked, max_age, channel"}},
		Description: help("Prints a line for each check. The bytes of the image in the store are always hashed again; signatures\nare asked for with --key or --policy. With keys, only statements that one of them signed count.",
			"rebake verify web:1.4.0 --key release.pub\nrebake verify web:stable --policy production.yaml", "7 the image does not have what was asked for"),
		Action: with(verify),
	}
}

func verify(s *session) error {
	name, err := arg(s.c, "an image reference")
	if err != nil {
		return err
	}
	var want template.Require
	base := ""
	if path := s.c.String("policy"); path != "" {
		if want, err = template.LoadPolicy(path); err != nil {
			return err
		}
		base = filepath.Dir(path)
	}
	rules, err := pipeline.Rules(s.Env, want, base)
	if err != nil {
		return err
	}
	more, err := pipeline.Rules(s.Env, template.Require{SignedBy: s.c.StringSlice("key")}, "")
	if err != nil {
		return err
	}
	rules.SignedBy = append(rules.SignedBy, more.SignedBy...)
	_, img, err := s.resolve(name)
	if err != nil {
		return err
	}
	found, err := pipeline.VerifyImage(s.ctx, s.Env, img, rules)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "image  %s:%s %s, made %s\n", img.Name, img.Version, img.Digest, img.Created.Local().Format(time.DateTime))
	for _, f := range found {
		fmt.Fprintf(&b, "%-6s %s: %s\n", map[bool]string{true: "ok", false: "FAILED"}[f.OK], f.Check, f.Detail)
	}
	if err := s.result(map[string]any{"image": img.Digest, "findings": found}, b.String()); err != nil {
		return err
	}
	return require.Refused(img, found)
}
