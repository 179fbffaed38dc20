package fake

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"golang.org/x/crypto/ssh"
)

// shell is the login shell of a machine. What ssh wraps its commands in runs as
// it is and comes here again. It seals and powers off the machine's tree, and
// nothing else; a sealing script that it does not know it refuses to run.
const shell = `#!/bin/sh
root='%[1]s/root'
[ "$1" = -c ] || exit 127
case $2 in
"sh -c 'p=; while "*|"sh -c 'T="*) exec /bin/sh -c "$2" ;;
*poweroff*) (sleep 0.05; echo off >'%[1]s/orders') </dev/null >/dev/null 2>&1 & exit 0 ;;
*BLOB=*)
	line=$(printf '%%s\n' "$2" | sed "s#R=[^;]*; BLOB=#R=$root; BLOB=#")
	case $line in *"R=$root; BLOB="*) exec /bin/sh -c "$line" ;; esac
	echo "refusing to seal this computer" >&2
	exit 126 ;;
*"; INVENTORY="*)
	line=$(printf '%%s\n' "$2" | sed "s#R=[^;]*; INVENTORY=#R=$root; INVENTORY=#")
	case $line in *"R=$root; INVENTORY="*) ;; *) echo "refusing to look at this computer" >&2; exit 126 ;; esac
	# Names have no root in a guest, neither those that it is asked for nor those that it says.
	{ case $line in *INVENTORY=digests*) tr '\0' '\n' | sed "s#^#$root#" | tr '\n' '\0';; esac; } | /bin/sh -c "$line" | sed "s#$root/#/#g"
	exit ;;
*'date -u -s'*) # internal/wake: not this computer's clock
	[ ! -e '%[1]s/root/etc/no-reseed' ] || exit 42
	read -r now && read -r seed && echo "$now $seed" >>'%[1]s/woken'
	exit $? ;;
sync) exit 0 ;;
*'exec tar -xpf -'*) # many files at once: the directory is in $D
	line=$(printf '%%s\n' "$2" | sed "s#\"\$D\"#\"$root\$D\"#g")
	exec /bin/sh -c "$line" ;;
*)
	line=$(printf '%%s\n' "$2" | sed -E "s#(^|[^A-Za-z0-9_./-])/(etc|root|run|srv|var|www)/#\1$root/\2/#g")
	exec /bin/sh -c "$line" ;;
esac
`

// plainPath can stand in a script without quotes.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9/._+=@-]+$`)

type machine struct {
	b     *Builder
	id    string
	dir   string
	login ssh.Signer
	host  ssh.PublicKey
	keys  keys
	sshd  *SSHD
	ports map[int]string
	stop  []io.Closer
	lock  *flock.Flock // held while it runs: how another process knows
	seed  *Seed        // nil: the Builder tells it its keys

	once  sync.Once
	done  chan struct{}
	clean bool // read after done
}

// start makes a machine's tree from the tar in r, and boots it; with the keys of
// a checkpoint it goes on as that machine.
func (b *Builder) start(id string, r io.Reader, ports []int, as *keys) (builder.Machine, error) {
	return b.boot(&machine{b: b, id: id}, r, ports, as)
}

func (b *Builder) boot(m *machine, r io.Reader, ports []int, as *keys) (_ *machine, err error) {
	m.dir, m.ports, m.done = filepath.Join(b.Dir, m.id), map[int]string{}, make(chan struct{})
	if !plainPath.MatchString(m.dir) {
		return nil, fmt.Errorf("directory %s has characters that a fake machine cannot have in its path", m.dir)
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	m.lock = flock.New(filepath.Join(m.dir, "lock"))
	if ok, err := m.lock.TryLock(); err != nil || !ok {
		return nil, errors.Join(err, fmt.Errorf("machine %s runs already", m.id))
	}
	defer func() {
		if err != nil {
			m.end(false)
		}
	}()
	if err := m.plant(r, as); err != nil {
		return nil, err
	}
	if err := m.listen(ports); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live == nil {
		b.live = map[string]*machine{}
	}
	b.live[m.id] = m
	return m, nil
}

func newKey() (ssh.Signer, []byte, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	return s, pem.EncodeToMemory(block), err
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

// plant makes the tree and tells it who it is, as a seed would.
func (m *machine) plant(r io.Reader, as *keys) error {
	if err := os.RemoveAll(m.file("root")); err != nil {
		return err
	}
	if err := os.Mkdir(m.file("root"), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(m.file("root"))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := (tree{root}).unpack(r); err != nil {
		return fmt.Errorf("nothing on this disk boots: %w", err)
	}
	if as == nil {
		as = new(keys)
		if _, as.Login, err = newKey(); err == nil {
			_, as.Host, err = newKey()
		}
		if m.seed != nil && len(m.seed.HostKey) > 0 {
			as.Host = m.seed.HostKey
		}
		if err != nil {
			return err
		}
	}
	m.keys = *as
	if m.login, err = ssh.ParsePrivateKey(as.Login); err != nil {
		return err
	}
	hostKey, err := ssh.ParsePrivateKey(as.Host)
	if err != nil {
		return err
	}
	m.host = hostKey.PublicKey()
	m.sshd = &SSHD{HostKey: hostKey, Shell: m.file("sh"), Root: m.file("root")}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	seed := map[string][]byte{
		"root/.ssh/authorized_keys":        ssh.MarshalAuthorizedKey(m.login.PublicKey()),
		"etc/ssh/ssh_host_ed25519_key":     as.Host,
		"etc/ssh/ssh_host_ed25519_key.pub": ssh.MarshalAuthorizedKey(m.host),
		"etc/hostname":                     []byte(m.id + "\n"),
	}
	if m.seed != nil {
		seed["root/.ssh/authorized_keys"] = []byte(strings.Join(m.seed.Authorized, "\n") + "\n")
	}
	if old, err := root.ReadFile("etc/machine-id"); err != nil || len(old) == 0 {
		seed["etc/machine-id"] = []byte(hex.EncodeToString(id) + "\n")
	}
	if as.Memory {
		seed = nil // it has been told
	} else if err := errors.Join(root.RemoveAll(volatile), root.Mkdir(volatile, 0o755)); err != nil {
		return err
	}
	for name, data := range seed {
		if err := errors.Join(root.MkdirAll(filepath.Dir(name), 0o700), root.WriteFile(name, data, 0o600)); err != nil {
			return err
		}
	}
	// Another process writes it: whatever this one starts meanwhile would hold it
	// open for writing, and what is written to cannot be run.
	sh := exec.Command("/bin/sh", "-c", `cat >"$0" && chmod 700 "$0"`, m.file("sh"))
	sh.Stdin = strings.NewReader(fmt.Sprintf(shell, m.dir))
	if out, err := sh.CombinedOutput(); err != nil {
		return fmt.Errorf("write the shell: %w: %s", err, out)
	}
	return os.WriteFile(m.file("console"), fmt.Appendf(nil, "fake machine %s is up\n", m.id), 0o600)
}

func (m *machine) listen(ports []int) error {
	if err := os.Remove(m.file("orders")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syscall.Mkfifo(m.file("orders"), 0o600); err != nil {
		return err
	}
	orders, err := os.OpenFile(m.file("orders"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m.stop = append(m.stop, orders)
	at := ""
	if m.seed != nil {
		at = m.seed.Addr
	}
	if err := m.sshd.Start(at); err != nil {
		return err
	}
	m.ports[22] = m.sshd.Addr()
	for _, p := range ports {
		if p == 22 {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		m.ports[p] = l.Addr().String()
		m.stop = append(m.stop, l)
		if p == 80 {
			srv := &http.Server{Handler: http.FileServer(http.Dir(m.file("root/www")))}
			m.stop = append(m.stop, srv)
			go func() { _ = srv.Serve(l) }()
		} else {
			go hangUp(l)
		}
	}
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := orders.Read(buf)
			if err != nil {
				return
			}
			m.end(!bytes.Contains(buf[:n], []byte("kill")))
		}
	}()
	return nil
}

// hangUp is a port on which nothing listens, as QEMU's user network shows it.
func hangUp(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

// order tells the process that runs a machine to end it; nobody there is no error.
func order(dir, what string) error {
	f, err := os.OpenFile(filepath.Join(dir, "orders"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(what + "\n")
	return errors.Join(err, f.Close())
}

// end ends the machine: by itself (clean), or by somebody.
func (m *machine) end(clean bool) {
	m.once.Do(func() {
		m.b.mu.Lock()
		delete(m.b.live, m.id)
		m.b.mu.Unlock()
		if m.sshd != nil && m.sshd.l != nil {
			m.sshd.Stop()
		}
		for _, c := range m.stop {
			c.Close()
		}
		_ = killAll(m.dir) // what is left is found by Commands
		if clean {
			if f, err := os.OpenFile(m.file("console"), os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, _ = f.WriteString("power down\n")
				f.Close()
			}
		}
		m.clean = clean
		m.lock.Close()
		close(m.done)
	})
	<-m.done
}

// commands are the processes that a session of the machine in dir began.
func commands(dir string) (pids []int, err error) {
	found, err := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range found {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00HOME="+filepath.Join(dir, "root", "root")+"\x00")) {
			continue // it ended, or is somebody else's
		}
		pid, err := strconv.Atoi(strings.Split(f, "/")[2])
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, err
}

func killAll(dir string) error {
	for range 100 { // one may be starting another
		pids, err := commands(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("commands of the machine in %s cannot be killed", dir)
}

// Done implements builder.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Console implements builder.Machine.
func (m *machine) Console(n int) string {
	b, _ := os.ReadFile(m.file("console"))
	return string(b[max(0, len(b)-n):])
}

// Endpoint implements builder.Machine.
func (m *machine) Endpoint(ctx context.Context) (builder.Endpoint, error) {
	if err := m.b.before(ctx, "endpoint", m.id); err != nil {
		return builder.Endpoint{}, err
	}
	select {
	case <-m.done:
		return builder.Endpoint{}, fmt.Errorf("the machine stopped; its console ends with:\n%s", m.Console(2000))
	default:
	}
	return builder.Endpoint{Addr: m.ports[22], User: "root", Signer: m.login, HostKeys: []ssh.PublicKey{m.host}, Ports: m.ports}, nil
}

// Capture implements builder.Machine.
func (m *machine) Capture(ctx context.Context) (artifact.Disk, error) {
	if err := m.b.before(ctx, "capture", m.id); err != nil {
		return nil, err
	}
	for up := true; up; {
		if !m.b.Stubborn && m.sshd.Execs() > 0 {
			m.end(true)
		}
		select {
		case <-m.done:
			up = false
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
	if !m.clean {
		return nil, errors.New("machine did not shut down by itself: it was killed")
	}
	if err := packDir(m.file("root"), m.file("disk")); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(m.file("disk"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	used, err := f.Seek(0, io.SeekEnd)
	size := (used/diskSize + 1) * diskSize
	if err = errors.Join(err, f.Truncate(size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &disk{f, used, size}, nil
}
