package template

import "time"

// testKinds mirrors the option structs of the real backends, which this
// package may not import; cmd/rebake checks the templates against those.
func testKinds() Kinds {
	return Kinds{
		Builders:     map[string]func() any{"qemu": func() any { return new(qemuBuild) }},
		Provisioners: map[string]func() any{"shell": func() any { return new(shellStep) }, "file": func() any { return new(fileStep) }},
		Checks: map[string]func() any{
			"shell":   func() any { return new(shellCheck) },
			"http":    func() any { return new(httpCheck) },
			"tcp":     func() any { return new(tcpCheck) },
			"file":    func() any { return new(fileCheck) },
			"service": func() any { return new(serviceCheck) },
			"package": func() any { return new(packageCheck) },
			"command": func() any { return new(commandCheck) },
		},
		Pools:   map[string]func() any{"qemu": func() any { return new(qemuPool) }},
		Routers: map[string]func() any{"haproxy": func() any { return new(haproxyRouter) }},
	}
}

type qemuBuild struct {
	From struct {
		Debian   string `yaml:"debian"`
		URL      string `yaml:"url"`
		Checksum string `yaml:"checksum"`
		Image    string `yaml:"image"`
	} `yaml:"from" rebake:"required" jsonschema_description:"what the build starts from"`
	Memory   string        `yaml:"memory"`
	Disk     Size          `yaml:"disk"`
	CPUs     int           `yaml:"cpus"`
	Arch     string        `yaml:"arch" jsonschema:"enum=amd64,enum=arm64"`
	Firmware string        `yaml:"firmware" jsonschema:"enum=bios,enum=uefi"`
	Shutdown time.Duration `yaml:"shutdown_timeout"`
	SSH      struct {
		User    string        `yaml:"user"`
		Timeout time.Duration `yaml:"timeout"`
	} `yaml:"ssh"`
}

type shellStep struct {
	Inline            []string          `yaml:"inline" rebake:"shorthand"`
	Script            string            `yaml:"script"`
	Scripts           []string          `yaml:"scripts"`
	Env               map[string]string `yaml:"env" rebake:"secret"`
	Interpreter       string            `yaml:"interpreter"`
	Sudo              *bool             `yaml:"sudo"`
	ValidExitCodes    []int             `yaml:"valid_exit_codes"`
	ExpectDisconnect  bool              `yaml:"expect_disconnect"`
	StartRetryTimeout time.Duration     `yaml:"start_retry_timeout"`
	PauseAfter        Duration          `yaml:"pause_after"`
	RemoteFolder      string            `yaml:"remote_folder"`
	SkipClean         bool              `yaml:"skip_clean"`
}

type fileStep struct {
	Source      string   `yaml:"source"`
	Sources     []string `yaml:"sources"`
	Content     string   `yaml:"content" rebake:"secret"`
	Destination string   `yaml:"destination" rebake:"required"`
	Direction   string   `yaml:"direction" jsonschema:"enum=upload,enum=download"`
	Owner       string   `yaml:"owner"`
	Group       string   `yaml:"group"`
	Mode        string   `yaml:"mode"`
	Exclude     []string `yaml:"exclude"`
}

type shellCheck struct {
	Inline []string          `yaml:"inline" rebake:"required,shorthand"`
	Env    map[string]string `yaml:"env" rebake:"secret"`
}

type httpCheck struct {
	Port     int               `yaml:"port" rebake:"required"`
	Path     string            `yaml:"path"`
	Status   int               `yaml:"status"`
	Contains string            `yaml:"contains"`
	Header   map[string]string `yaml:"header"`
	Method   string            `yaml:"method"`
	Within   time.Duration     `yaml:"within"`
}

type tcpCheck struct {
	Port   int           `yaml:"port" rebake:"required"`
	Within time.Duration `yaml:"within"`
}

type fileCheck struct {
	Path     string `yaml:"path" rebake:"required"`
	Exists   *bool  `yaml:"exists"`
	Mode     string `yaml:"mode"`
	Owner    string `yaml:"owner"`
	Contains string `yaml:"contains"`
	SHA256   string `yaml:"sha256"`
}

type serviceCheck struct {
	Name  string `yaml:"name" rebake:"required,shorthand"`
	State string `yaml:"state"`
}

type packageCheck struct {
	Name      string `yaml:"name" rebake:"required,shorthand"`
	Version   string `yaml:"version"`
	Installed *bool  `yaml:"installed"`
}

type commandCheck struct {
	Run            string `yaml:"run" rebake:"required,shorthand"`
	Exit           int    `yaml:"exit"`
	StdoutContains string `yaml:"stdout_contains"`
}

type qemuPool struct {
	Memory string `yaml:"memory"`
	CPUs   int    `yaml:"cpus"`
}

type haproxyRouter struct {
	Listen string `yaml:"listen" rebake:"required"`
	Binary string `yaml:"binary"`
}
