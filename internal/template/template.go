// Package template reads a rebake template: strict YAML whose every error says
// file:line:column, shows the line and names the nearest valid key; variables;
// ${{ }} expressions. What belongs to a backend stays a Block that the backend
// decodes itself.
package template

import (
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/retain"
)

// Template is a file that was read, its variables set and its expressions evaluated.
type Template struct {
	Path      string // as given
	Dir       string // absolute; relative paths in the template start here
	Digest    artifact.Digest
	Name      string
	Version   string   // of the image, "" means a date serial
	Tagged    bool     // the version was made from git.tag
	Tags      []string // moving tags to point at a new image
	Labels    map[string]string
	Builds    []Build // in file order
	Steps     []Step  // provision:
	Tests     []Step  // test:
	Seal      Seal
	Fleet     *Fleet        // nil: no fleet
	Retention *retain.Rules // of the images of this name; nil: nothing is removed
	Store     string        // address of a registry; "": the local store
	Sign      string        // name or path of the key that signs; "": nobody does
	Secrets   []string      // values of sensitive variables, for the redactor

	Variables map[string]string // by name, as they were set; sensitive ones are not in it
	Sensitive []string          // names of those
}

// Build is one entry of build:, alias and kind the same unless `kind:` says otherwise.
type Build struct {
	Name  string // key in build:
	Kind  string // qemu, amazon
	Block Block
}

// Step is one entry of provision: or test:, the options that all kinds share
// already decoded.
type Step struct {
	Name        string // name: or kind plus index
	Kind        string // shell, file, http, …
	Block       Block
	Only        []string // build names
	Except      []string
	PauseBefore time.Duration
	Timeout     time.Duration // 0: none
	MaxRetries  int
	Cache       Cache
	Inputs      []string // files, directories and globs besides its own, relative to the template
}

// Cache says for how long a step's result may be used again.
type Cache struct {
	Never   bool
	MaxAge  *time.Duration // nil: the kind's own; 0: no limit
	Refresh string         // command whose output is an input of the step
}

// Applies tells whether the step runs in the named build.
func (s Step) Applies(build string) bool {
	for _, e := range s.Except {
		if e == build {
			return false
		}
	}
	for _, o := range s.Only {
		if o == build {
			return true
		}
	}
	return len(s.Only) == 0
}

// Seal is the seal: block.
type Seal struct {
	Skip      []string // ids of items not to apply
	Inventory string   // files, packages, contents or off; "" is files
}

// Fleet is the fleet: block.
type Fleet struct {
	Block      Block  // all of it, for errors
	Name       string // fleet.name or the template's
	Size       int
	UserData   string
	Pool       Block
	PoolKind   string
	Router     Block
	RouterKind string
	Health     Health
	Deploy     Deploy
	Require    *Require // nil: nothing
	State      string   // address of its shared state; "": the state directory
}

// Health is how an instance is judged.
type Health struct {
	Type     string // http or tcp
	Port     int
	Path     string
	Status   int
	Interval time.Duration
	Timeout  time.Duration
	Rise     int
	Fall     int
	Within   time.Duration // an instance must become healthy within this of its start
	Refuse   time.Duration // one that answers wrongly for so long is refused before that; 0: never
	Commands []string      // run over SSH in each new instance before traffic: exit 0 is healthy
}

// Options are what the command line and the caller bring to Load.
type Options struct {
	Vars     []string       // name=value from --var, in order
	VarFiles []string       // --var-file, YAML or JSON mappings, in order
	Environ  []string       // os.Environ() form; REBAKE_VAR_x are variables, others by env: only if declared
	Kinds    Kinds          // known backends
	Now      time.Time      // for ${{ now }}
	Scope    map[string]any // extra names for expressions (git, image)
	Version  string         // an expression, from --version, instead of the template's version; "": none
}

// Kinds lists the backends of each seam with a constructor of the pointer to
// the struct that its block decodes into: Load decodes each block once to
// find errors early, the JSON schema is generated from the same types.
type Kinds struct {
	Builders     map[string]func() any
	Provisioners map[string]func() any
	Checks       map[string]func() any
	Pools        map[string]func() any
	Routers      map[string]func() any
}
