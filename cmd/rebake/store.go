package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/artifact/registry"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/urfave/cli/v2"
)

func storeFlag() cli.Flag {
	return &cli.StringFlag{Name: "store", EnvVars: []string{"REBAKE_STORE"}, Usage: "where images are: a registry, as `oci://HOST/PREFIX`, or local; instead of the template's store:"}
}

func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", EnvVars: []string{"REBAKE_STATE"}, Usage: "where fleets' journals and locks are: a bucket, as `s3://BUCKET/PREFIX`, or local; instead of the template's fleet.state:"}
}

// sharedState is what --state names.
func sharedState(address string) (string, error) {
	address = strings.TrimRight(address, "/")
	if address != "" && address != pipeline.LocalState && !template.IsState(address) {
		return "", usagef("for example --state s3://my-team/rebake", "%q is no shared state", address)
	}
	return address, nil
}

// localStore is how --store names the one of the state directory.
const localStore = "local"

// openStore opens the store of an address, "" the local one.
func (s *session) openStore(env pipeline.Env, address string) (artifact.Store, error) {
	local, err := oci.Open(env.State.Store())
	if err != nil || address == "" {
		return local, err
	}
	at, err := registry.Parse(address)
	if err != nil {
		return nil, err
	}
	return registry.Open(local, at, registry.Options{Warn: func(text string) { event.Warnf(s.ctx, "%s", text) }})
}

// useStore makes the run work with the store of an address.
func (s *session) useStore(address string) error {
	if address == localStore {
		address = ""
	}
	address = strings.TrimSuffix(address, "/")
	env, err := s.Env.In(address)
	if err != nil {
		return usagef("for example --store oci://registry.example.com/team", "%v", err)
	}
	s.Env = env
	return nil
}

// storeOf uses the template's store, unless the command line gave one.
func (s *session) storeOf(t *template.Template) error {
	switch {
	case s.c.String("store") != "":
		return nil
	case s.templates > 0 && t.Store != s.Env.Address:
		return usagef("run them one after the other, or give all the same --store", "%s has the store %q, and another template %q", t.Path, t.Store, s.Env.Address)
	}
	s.templates++
	return s.useStore(t.Store)
}

// local is the layout of this machine, also below a registry's store.
func (s *session) local() (*oci.Store, error) {
	switch st := s.Store.(type) {
	case *oci.Store:
		return st, nil
	case *registry.Store:
		return st.Local(), nil
	}
	return nil, fmt.Errorf("the store %T cannot do that", s.Store)
}

// can is the store's optional power P.
func can[P any](s *session) (P, error) {
	p, ok := s.Store.(P)
	if !ok {
		return p, fmt.Errorf("the store %T cannot do that", s.Store)
	}
	return p, nil
}

// storeHint says what to do when a registry does not do what was asked.
func storeHint(err error) string {
	var away *registry.UnreachableError
	switch {
	case errors.As(err, &away):
		return "what is here already: `rebake --store local images ls`; a store without TLS is oci+http://HOST/PREFIX"
	case errors.Is(err, registry.ErrNoDelete):
		return "its operator can allow it (docker-registry: storage.delete.enabled)"
	}
	return ""
}
