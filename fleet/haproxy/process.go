package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// locked runs f alone, among goroutines and among processes.
func (r *Router) locked(ctx context.Context, f func() error) error {
	return r.alone(ctx, func() error {
		if err := r.fence.Check(r.file(epochName)); err != nil {
			return err
		}
		return f()
	})
}

// alone is locked, whoever holds the fleet.
func (r *Router) alone(ctx context.Context, f func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	lock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	r.held = lock
	return f()
}

// Fence implements fleet.Fencer.
func (r *Router) Fence(ctx context.Context, epoch int64) error {
	return r.alone(ctx, func() error { return r.fence.Raise(r.file(epochName), epoch) })
}

// lock opens and locks the lock file; a killed process leaves no lock.
func (r *Router) lock(ctx context.Context) (*os.File, error) {
	for {
		f, err := os.OpenFile(r.file(lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			a, err1 := f.Stat()
			b, err2 := os.Stat(r.file(lockName))
			if err1 == nil && err2 == nil && os.SameFile(a, b) {
				return f, nil
			}
			f.Close() // Remove was faster: the file is another one now
			continue
		}
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, fmt.Errorf("lock the router: %w", err)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for another rebake that changes the router: %w", err)
		}
	}
}

// startOrAdopt leaves a running HAProxy with our configuration, or fails.
func (r *Router) startOrAdopt(ctx context.Context) error {
	if pid := r.pid(); pid != 0 {
		return r.adopt(ctx, pid)
	}
	// the file may be lost where the process is not
	if info, err := r.ask(ctx, "show info"); err == nil {
		for line := range strings.Lines(info) {
			n, ok := strings.CutPrefix(line, "Pid: ")
			if !ok {
				continue
			}
			if err := atomicfile.Write(r.file(pidName), []byte(n), 0o600); err != nil {
				return err
			}
			if pid := r.pid(); pid != 0 {
				return r.adopt(ctx, pid)
			}
		}
		return fmt.Errorf("socket %s belongs to a HAProxy that is not of this fleet", r.socketPath())
	}
	return r.start(ctx)
}

func (r *Router) adopt(ctx context.Context, pid int) error {
	have, err := os.ReadFile(r.file(configName))
	if err != nil {
		return fmt.Errorf("read the running router's configuration: %w", err)
	}
	if string(have) != r.config() {
		return fmt.Errorf("the router of fleet %s runs with other settings (%s): it is never restarted under traffic; put the old settings back, or end the fleet with `rebake fleet destroy %s` and deploy again",
			r.name, difference(string(have), r.config()), r.name)
	}
	patience, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		_, err := r.ask(ctx, "show info")
		if err == nil {
			return nil
		}
		if !errors.Is(err, errDown) || r.pid() != pid {
			return err
		}
		if pause(patience, 5*time.Millisecond) != nil {
			return fmt.Errorf("the router runs (process %d) but its socket %s is gone: it cannot be controlled; end that process and try again", pid, r.socketPath())
		}
	}
}

// difference shows the first line that is not the same.
func difference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("%q, wanted %q", strings.TrimSpace(h[i]), strings.TrimSpace(w[i]))
		}
	}
	return "more lines"
}

// launch writes the process id before HAProxy exists: the shell becomes
// HAProxy, and holds the lock (descriptor 3) until it has, so that a kill of
// rebake in between leaves no HAProxy that nobody knows.
const launch = `printf '%s\n' $$ >"$1.tmp" && mv -f "$1.tmp" "$1" && exec "$2" -f "$3" 3>&-`

// look finds HAProxy also where Debian puts it and a plain user's PATH does not look.
func look(binary string) (string, error) {
	path, err := exec.LookPath(binary)
	if err != nil && filepath.Base(binary) == binary {
		if path, err := exec.LookPath(filepath.Join("/usr/sbin", binary)); err == nil {
			return path, nil
		}
	}
	return path, err
}

func (r *Router) start(ctx context.Context) error {
	bin, err := look(r.cfg.Binary)
	if err != nil {
		return fmt.Errorf("find HAProxy: %w (Debian: apt-get install haproxy; or set router.haproxy.binary)", err)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if err := privateDir(r.runDir); err != nil {
		return err
	}
	if err := atomicfile.Write(r.file(configName), []byte(r.config()), 0o600); err != nil {
		return fmt.Errorf("write the router's configuration: %w", err)
	}
	if _, err := os.Stat(r.file(mapName)); errors.Is(err, os.ErrNotExist) {
		err = atomicfile.Write(r.file(mapName), mapText(noTraffic), 0o600)
		if err != nil {
			return fmt.Errorf("write the traffic split: %w", err)
		}
	}
	if err := os.Remove(r.socketPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(r.file(logName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", "-c", launch, "rebake-router", r.file(pidName), bin, r.file(configName))
	cmd.Dir = r.dir // the map's name in the configuration is relative
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{r.held}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start HAProxy: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	patience, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if _, err := r.ask(ctx, "show info"); err == nil {
			return nil
		}
		select {
		case err := <-exited:
			return r.startFailure(err)
		default:
		}
		if pause(patience, 3*time.Millisecond) != nil {
			err := cmd.Process.Kill()
			<-exited
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), err)
			}
			return errors.Join(fmt.Errorf("HAProxy did not open its socket within 20s: see %s", r.file(logName)), err)
		}
	}
}

// startFailure explains from HAProxy's own words why it ended.
func (r *Router) startFailure(exit error) error {
	out, err := os.ReadFile(r.file(logName))
	if err != nil {
		return errors.Join(exit, err)
	}
	if bytes.Contains(out, []byte("cannot bind")) && bytes.Contains(out, []byte("["+r.cfg.Listen+"]")) {
		why := "is in use by another program"
		if bytes.Contains(bytes.ToLower(out), []byte("permission denied")) {
			why = "may not be used by this user"
		}
		return fmt.Errorf("address %s %s: free it, or choose another with fleet.router.haproxy.listen", r.cfg.Listen, why)
	}
	var alerts []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "ALERT") && len(alerts) < 5 {
			alerts = append(alerts, strings.TrimSpace(line))
		}
	}
	return fmt.Errorf("HAProxy ended at once (%v): %s", exit, strings.Join(alerts, "; "))
}

// pid is the running HAProxy's, 0 if there is none. A process id that was
// given to another program is told by its command line.
func (r *Router) pid() int {
	data, err := os.ReadFile(r.file(pidName))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 || !strings.Contains(commandLine(pid), "-f "+r.file(configName)+" ") {
		return 0
	}
	return pid
}

// commandLine ends in a space; it is empty if there is no such process.
func commandLine(pid int) string {
	if runtime.GOOS == "linux" {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return ""
		}
		return strings.ReplaceAll(string(data), "\x00", " ")
	}
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out)) + " "
}

// Remove implements fleet.Router. Requests in flight are cut: drain before.
func (r *Router) Remove(ctx context.Context) error {
	if _, err := os.Stat(r.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return r.locked(ctx, func() error {
		if pid := r.pid(); pid != 0 {
			if err := r.stop(ctx, pid); err != nil {
				return err
			}
		}
		paths := []string{r.socketPath()}
		for _, n := range []string{pidName, pidName + ".tmp", configName, configName + ".tmp", mapName, mapName + ".tmp", membersName, membersName + ".tmp", epochName, epochName + ".tmp", logName, lockName} {
			paths = append(paths, r.file(n)) // the lock last: it is ours until it is gone
		}
		for _, p := range paths {
			if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the router's files: %w", err)
			}
		}
		for _, d := range []string{r.runDir, r.dir} { // others may have files in them
			if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
				return fmt.Errorf("remove the router's files: %w", err)
			}
		}
		return nil
	})
}

func (r *Router) stop(ctx context.Context, pid int) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the router (process %d): %w", pid, err)
		}
		for began := time.Now(); time.Since(began) < 3*time.Second; {
			if r.pid() != pid {
				return nil
			}
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the router (process %d) does not end", pid)
}

// privateDir makes a directory that only this user can enter, and refuses one
// that somebody else made under its name.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i, d := range []string{dir, filepath.Dir(dir)} {
		st, err := os.Lstat(d)
		if err != nil {
			return err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || !st.IsDir() {
			return fmt.Errorf("%s is not a directory", d)
		}
		mine := int(sys.Uid) == os.Getuid()
		if !mine && (i == 0 || sys.Uid != 0) {
			return fmt.Errorf("%s belongs to another user: a socket there would not be safe", d)
		}
		if i == 0 && st.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(d, 0o700); err != nil {
				return err
			}
		}
	}
	return nil
}
