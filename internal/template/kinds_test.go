package template

// What the tests of the decoder decode blocks into.

type qemuBuild struct {
	From struct {
		Debian string `yaml:"debian"`
	} `yaml:"from" rebake:"required"`
	Memory Size   `yaml:"memory"`
	Disk   Size   `yaml:"disk"`
	Arch   string `yaml:"arch" jsonschema:"enum=amd64,enum=arm64"`
}

type shellStep struct {
	Inline         []string          `yaml:"inline" rebake:"shorthand"`
	Script         string            `yaml:"script"`
	Env            map[string]string `yaml:"env" rebake:"secret"`
	Sudo           *bool             `yaml:"sudo"`
	ValidExitCodes []int             `yaml:"valid_exit_codes"`
	PauseAfter     Duration          `yaml:"pause_after"`
}

type fileStep struct {
	Content     string `yaml:"content" rebake:"secret"`
	Destination string `yaml:"destination" rebake:"required"`
}
