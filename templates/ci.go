package templates

import (
	"embed"
	"slices"
)

//go:embed ci
var jobs embed.FS // jobs for every night, by the system that runs them

// ciFiles are the files of each kind: where they are here, and where they go.
var ciFiles = map[string][][2]string{
	"systemd": {{"ci/systemd/rebake.service", "rebake.service"}, {"ci/systemd/rebake.timer", "rebake.timer"}, {"ci/systemd/rebake-failed@.service", "rebake-failed@.service"}},
	"cron":    {{"ci/cron/rebake.cron", "rebake.cron"}},
	"github": {{"ci/github/rebake-nightly.yml", ".github/workflows/rebake-nightly.yml"},
		{"ci/github/rebake-release.yml", ".github/workflows/rebake-release.yml"}},
	"gitlab": {{"ci/gitlab/gitlab-ci.yml", ".gitlab-ci.yml"}},
}

// CIKinds lists what WriteCI knows, in alphabetical order.
func CIKinds() []string {
	var out []string
	for k := range ciFiles {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// WriteCI writes the files of a nightly job below dir, like Write.
func WriteCI(kind, dir string) ([]string, error) {
	return writeAll(jobs, ciFiles[kind], dir)
}
