package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// readGit asks git about the commit that dir is at. A repository's own
// configuration may name programs to run; the one that status would run is off.
func readGit(dir string) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false", "-C", dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("rev-parse", "--verify", "HEAD")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("git is not installed, and an expression uses it")
	}
	if err != nil {
		return nil, hinted{errors.New("the template is not in a git repository with a commit"), "run `git init` and commit, or do without git in expressions"}
	}
	short, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return nil, fmt.Errorf("cannot read the git commit: %w", err)
	}
	tag, err := git("describe", "--tags", "--exact-match", "HEAD")
	if err != nil {
		tag = "" // no tag at this commit
	}
	changes, err := git("status", "--porcelain")
	if err != nil {
		return nil, fmt.Errorf("cannot read the git status: %w", err)
	}
	return map[string]any{"commit": commit, "short": short, "tag": tag, "dirty": changes != ""}, nil
}
