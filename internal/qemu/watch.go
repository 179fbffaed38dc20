package qemu

import (
	"os"
	"os/exec"
)

// watcher kills the process that it becomes when descriptor 3 closes unread:
// its other end is the owner's. A line on it means that the process has ended.
const watcher = `(read -r line <&3 || kill -9 $$) </dev/null >/dev/null 2>&1 &
exec "$@" 3<&-`

// spawnWatched is how a process dies with its owner where the kernel has no
// parent-death signal. The process keeps the number that cmd was started with.
func spawnWatched(cmd *exec.Cmd) (wait func() error, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Args = append([]string{"/bin/sh", "-c", watcher, "rebake", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.ExtraFiles = []*os.File{r}
	err = cmd.Start()
	r.Close()
	if err != nil {
		w.Close()
		return nil, err
	}
	return func() error {
		err := cmd.Wait()
		_, _ = w.WriteString("ended\n")
		w.Close()
		return err
	}, nil
}
