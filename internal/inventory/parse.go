package inventory

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// parser reads the script's records.
type parser struct {
	inv     Inventory
	root    string
	changed []int64           // by file: when its inode changed, unix time
	owner   map[string]string // path: package
	md5     map[string]string
	written map[string]int64 // package: when its list of files was
	pkg     string           // whose list it is
	apk     Package
	dir     string   // of apk's files
	half    string   // a file's record, whose link comes next
	names   []string // of a lot, whose stats come next
	more    int      // names of it that are still to come, and the stats
	ended   bool
	every   bool // file is to be read
}

func newParser(root string) *parser {
	p := &parser{root: root, owner: map[string]string{}, md5: map[string]string{}, written: map[string]int64{}}
	p.inv.Format, p.inv.OS, p.inv.Unknown = 1, map[string]string{}, map[string]string{}
	return p
}

// take takes one record in.
func (p *parser) take(rec string) error {
	switch {
	case p.ended:
	case p.half != "":
		half := p.half
		p.half = ""
		return p.file(half, rec)
	case p.more > 1:
		p.more--
		p.names = append(p.names, rec)
	case p.more == 1:
		names := p.names
		p.more, p.names = 0, nil
		return p.stats(names, rec)
	case rec == ".":
		p.ended = true
	case len(rec) < 2:
	case rec[0] == 'f':
		p.half = rec
	case rec[0] == 'B':
		n, err := strconv.Atoi(strings.TrimPrefix(rec[1:], " "))
		if err != nil || n < 0 || n > maxEntries {
			return fmt.Errorf("%.80q is no lot of files", rec)
		}
		p.more = n + 1
	default:
		p.record(rec)
		if max(len(p.owner), len(p.md5), len(p.inv.Packages), len(p.inv.Units), len(p.inv.Users), len(p.inv.Groups)) > maxEntries {
			return fmt.Errorf("%w: more than %d entries", errFiles, maxEntries)
		}
	}
	return nil
}

// end also returns the numbers of the files that should be read.
func (p *parser) end() (*Inventory, []int, error) {
	if !p.ended {
		return nil, nil, errors.New("take the inventory: the guest stopped in the middle of it")
	}
	p.endAPK()
	read := p.finish()
	return &p.inv, read, p.inv.check()
}

func (p *parser) record(rec string) {
	inv, kind := &p.inv, rec[0]
	v := strings.TrimPrefix(rec[1:], " ")
	switch kind {
	case 'k':
		inv.Kernel, inv.Machine, _ = strings.Cut(v, " ")
	case 'c':
		inv.Cmdline = v
	case 'K':
		inv.Kernels = append(inv.Kernels, v)
	case 'o':
		if k, s, ok := strings.Cut(v, "="); ok && len(inv.OS) < 100 {
			inv.OS[k] = strings.Trim(s, `"'`)
		}
	case 'x':
		if part, why, ok := strings.Cut(v, ": "); ok && len(p.inv.Unknown) < 100 {
			p.inv.Unknown[part] = strings.TrimSpace(strings.ToValidUTF8(why[:min(200, len(why))], ""))
		}
	case 'U':
		if f := strings.Split(v, ":"); len(f) == 7 {
			inv.Users = append(inv.Users, User{f[0], f[2], f[3], f[5], f[6]})
		}
	case 'G':
		if f := strings.Split(v, ":"); len(f) == 4 {
			inv.Groups = append(inv.Groups, Group{f[0], f[2], f[3]})
		}
	case 'n':
		p.port(strings.Fields(v))
	case 'u':
		p.unit(strings.TrimPrefix(v, p.root))
	case 's':
		if k, s, _ := strings.Cut(v, " "); k != "" && k != "hostkey" {
			if inv.SSHD == nil {
				inv.SSHD = map[string][]string{}
			}
			inv.SSHD[k] = append(inv.SSHD[k], s)
		}
	case 'p':
		if f := strings.Split(v, "\t"); len(f) == 6 && len(f[5]) > 1 && f[5][1] == 'i' {
			inv.Packages = append(inv.Packages, Package{f[0], f[1], f[2], f[3], source(f[4])})
		}
	case 'A':
		p.apkLine(v)
	case 'L', 'W', '5':
		p.list(kind, v)
	case 'w':
		p.pkg = listName(v)
	case 'y':
		p.owner[v] = p.pkg
	}
}

// list reads what dpkg keeps: times of its lists of files, the lists with a line of
// the name of each, the digests.
func (p *parser) list(kind byte, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		if len(p.owner)+len(p.md5)+len(p.written) > 2*maxEntries {
			return
		}
		switch kind {
		case 'L':
			t, name, _ := strings.Cut(line, " ")
			p.written[listName(name)], _ = strconv.ParseInt(t, 10, 64)
		case 'W':
			if name, ok := strings.CutPrefix(line, "==> "); ok {
				p.pkg = listName(strings.TrimSuffix(name, " <=="))
			} else if line != "" {
				p.owner[line] = p.pkg
			}
		case '5':
			if sum, name, ok := strings.Cut(line, "  "); ok && isHex(sum, 32) {
				p.md5["/"+name] = "md5:" + sum
			}
		}
	}
}

// source is the name of a source package; rpm says the name of its file.
func source(s string) string {
	if s == "(none)" {
		return ""
	}
	if base, ok := strings.CutSuffix(s, ".src.rpm"); ok {
		if f := strings.Split(base, "-"); len(f) > 2 {
			return strings.Join(f[:len(f)-2], "-")
		}
	}
	return s
}

// listName is the package of a file list: …/info/libc6:amd64.list.
func listName(s string) string {
	s = strings.TrimSuffix(s[strings.LastIndexByte(s, '/')+1:], ".list")
	s, _, _ = strings.Cut(s, ":")
	return s
}

func (p *parser) apkLine(v string) {
	k, s, _ := strings.Cut(v, ":")
	switch k {
	case "P":
		p.endAPK()
		p.apk = Package{Manager: "apk", Name: s}
	case "V":
		p.apk.Version = s
	case "A":
		p.apk.Arch = s
	case "o":
		p.apk.Source = s
	case "F":
		p.dir = strings.TrimSuffix("/"+s, "/")
	case "R":
		p.owner[p.dir+"/"+s] = p.apk.Name
	}
}

func (p *parser) endAPK() {
	if p.apk.Name != "" && p.apk.Version != "" {
		p.inv.Packages = append(p.inv.Packages, p.apk)
	}
	p.apk = Package{}
}

// enabling tells whether a file's name may be what enables something.
func enabling(path string) bool {
	for _, dir := range []string{"/etc/systemd/system/", "/etc/runlevels/", "/etc/cron.d/", "/etc/cron.hourly/", "/etc/cron.daily/", "/etc/cron.weekly/", "/etc/cron.monthly/", "/var/spool/cron/"} {
		if strings.HasPrefix(path, dir) {
			return true
		}
	}
	return path == "/etc/crontab"
}

// kept tells whether a file is a package manager's own, or a log: what it holds
// follows from the packages, or tells nothing.
func kept(path string) bool {
	for _, dir := range []string{"/var/lib/dpkg/", "/var/lib/rpm/", "/usr/lib/sysimage/rpm/", "/lib/apk/db/", "/usr/lib/apk/db/", "/var/cache/", "/var/log/"} {
		if strings.HasPrefix(path, dir) {
			return true
		}
	}
	return false
}

// unit takes a file that enables something: a link in a .wants directory, a
// service of a runlevel, what cron reads.
func (p *parser) unit(path string) {
	name, ok := strings.CutPrefix(path, "/etc/systemd/system/")
	switch {
	case ok && (strings.Contains(name, ".wants/") || strings.Contains(name, ".requires/")):
		p.inv.Units = append(p.inv.Units, name)
		if strings.HasSuffix(name, ".timer") {
			p.inv.Cron = append(p.inv.Cron, name)
		}
	case ok:
	case strings.HasPrefix(path, "/etc/runlevels/"):
		p.inv.Units = append(p.inv.Units, path[len("/etc/runlevels/"):])
	case !strings.HasSuffix(path, "/.placeholder"):
		p.inv.Cron = append(p.inv.Cron, path)
	}
}

// port reads a line of /proc/net/tcp. UDP ports that the kernel picked are nobody's.
func (p *parser) port(f []string) {
	if len(f) < 5 || len(p.inv.Ports) >= maxEntries {
		return
	}
	proto := strings.TrimSuffix(f[0], "6")
	if proto == "tcp" && f[4] != "0A" || proto == "udp" && f[4] != "07" {
		return
	}
	host, port, _ := strings.Cut(f[2], ":")
	n, err := strconv.ParseUint(port, 16, 16)
	b, err2 := hex.DecodeString(host)
	if err != nil || err2 != nil || len(b)%4 != 0 || proto == "udp" && n >= 32768 {
		return
	}
	for i := 0; i < len(b); i += 4 { // words in the order of the machine: all that rebake bakes are little-endian
		binary.BigEndian.PutUint32(b[i:], binary.LittleEndian.Uint32(b[i:]))
	}
	if a, ok := netip.AddrFromSlice(b); ok {
		p.inv.Ports = append(p.inv.Ports, proto+" "+netip.AddrPortFrom(a, uint16(n)).String())
	}
}

// stats reads what stat says of a lot of files, in their order: mode in hex, owner,
// group, size, time, and then the name, maybe in quotes, with the target of a link.
// Of a file that went meanwhile it says nothing. Names may hold new lines.
func (p *parser) stats(names []string, out string) error {
	for _, name := range names {
		f := strings.SplitN(out, " ", 6)
		if len(f) != 6 {
			break // the rest went
		}
		rest, quote := f[5], ""
		switch {
		case strings.HasPrefix(rest, "'"+name+"'"):
			rest, quote = rest[len(name)+2:], "'"
		case strings.HasPrefix(rest, name):
			rest = rest[len(name):]
		default:
			continue
		}
		link := ""
		if to, ok := strings.CutPrefix(rest, " -> "+quote); ok {
			if link, out, ok = strings.Cut(to, quote+"\n"); !ok {
				continue
			}
		} else if rest, ok = strings.CutPrefix(rest, "\n"); ok {
			out = rest
		} else {
			continue
		}
		mode, err := strconv.ParseUint(f[0], 16, 32)
		if err != nil {
			return fmt.Errorf("%.80q is no file", name)
		}
		kind := map[uint64]string{0o10: "f", 0o4: "d", 0o12: "l", 0o6: "b", 0o2: "c", 0o1: "p", 0o14: "s"}[mode>>12]
		if err := p.file(fmt.Sprintf("f %s %o %s %s %s %s %s", kind, mode&0o7777, f[1], f[2], f[3], f[4], name), link); err != nil {
			return err
		}
	}
	if out != "" {
		return fmt.Errorf("%w: stat says %.80q", errFiles, out)
	}
	return nil
}

// file reads find's record: type, mode, owner, group, size, time, name.
func (p *parser) file(rec, link string) error {
	f := strings.SplitN(rec, " ", 8)
	if len(p.inv.Files) >= maxEntries {
		return fmt.Errorf("%w: more than %d files", errFiles, maxEntries)
	}
	if len(f) != 8 {
		return fmt.Errorf("%.80q is no file", rec)
	}
	e := File{Type: f[1]}
	var mode, uid, gid uint64
	var errs [4]error
	mode, errs[0] = strconv.ParseUint(f[2], 8, 32)
	uid, errs[1] = strconv.ParseUint(f[3], 10, 32)
	gid, errs[2] = strconv.ParseUint(f[4], 10, 32)
	e.Size, errs[3] = strconv.ParseInt(f[5], 10, 64)
	when, _, _ := strings.Cut(f[6], ".")
	at, err := strconv.ParseInt(when, 10, 64)
	if err := cmp.Or(errs[0], errs[1], errs[2], errs[3], err); err != nil {
		return fmt.Errorf("%.80q is no file", rec)
	}
	e.Path, e.Mode, e.UID, e.GID, e.Link = strings.TrimPrefix(f[7], p.root), uint32(mode), uint32(uid), uint32(gid), link
	if e.Path == "" {
		e.Path = "/"
	}
	if e.Type != "f" {
		e.Size = 0
	}
	p.inv.Files = append(p.inv.Files, e)
	p.changed = append(p.changed, at)
	return nil
}

// finish gives files their packages, sorts, and says which files are to be read:
// those that no package has, those of /etc, and those whose inode changed after
// their package was unpacked. For the others dpkg's own digest will do.
func (p *parser) finish() (read []int) {
	inv := &p.inv
	moved := map[string]string{} // /bin is a link to /usr/bin, and packages name the one or the other
	for _, f := range inv.Files {
		if f.Type == "l" && strings.Count(f.Path, "/") == 1 && strings.TrimPrefix(f.Link, "/") == "usr"+f.Path {
			moved[f.Path] = "/usr" + f.Path
		}
	}
	for _, m := range []map[string]string{p.owner, p.md5} {
		for path, v := range m {
			if i := strings.IndexByte(path[min(1, len(path)):], '/'); i > 0 && moved[path[:i+1]] != "" {
				m[moved[path[:i+1]]+path[i+1:]] = v
			}
		}
	}
	when := map[string]int64{}
	for i := range inv.Files {
		f := &inv.Files[i]
		when[f.Path] = p.changed[i]
		f.Package = p.owner[f.Path]
		if f.Type != "d" && enabling(f.Path) {
			p.unit(f.Path)
		}
	}
	slices.SortFunc(inv.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	inv.Files = slices.CompactFunc(inv.Files, func(a, b File) bool { return a.Path == b.Path })
	for i := range inv.Files {
		f := &inv.Files[i]
		if f.Type != "f" {
			continue
		}
		at, known := p.written[f.Package]
		sum := p.md5[f.Path]
		if !p.every && kept(f.Path) {
			continue
		}
		if p.every || !known || sum == "" || strings.HasPrefix(f.Path, "/etc/") || when[f.Path] > at {
			read = append(read, i)
			continue
		}
		f.Digest, f.From = sum, "dpkg"
	}
	slices.SortFunc(inv.Packages, func(a, b Package) int { return cmp.Compare(a.key()+a.Version, b.key()+b.Version) })
	slices.SortFunc(inv.Users, func(a, b User) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(inv.Groups, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	for _, l := range []*[]string{&inv.Kernels, &inv.Units, &inv.Ports, &inv.Cron} {
		slices.Sort(*l)
		*l = slices.Compact(*l)
	}
	return read
}

// key tells packages apart: one name may be there for two architectures.
func (p Package) key() string { return p.Name + " " + p.Arch + " " + p.Manager }
