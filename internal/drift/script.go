package drift

import (
	"fmt"
	"strings"

	"github.com/rebake/rebake/provisioner"
)

// Allowed is a place that changes without anybody's doing, and why.
type Allowed struct {
	Path string // a pattern of find -path: * stands for anything, / included
	Why  string
}

// Places are directories that are not looked into.
func Places() []Allowed {
	return []Allowed{
		{"/proc", "the kernel's"},
		{"/sys", "the kernel's"},
		{"/dev", "the kernel's"},
		{"/run", "in memory: gone with the next boot"},
		{"/tmp", "temporary files"},
		{"/var/tmp", "temporary files"},
		{"/var/log", "logs"},
		{"/var/cache", "can be made again from what is looked at"},
		{"/var/spool", "work in progress: mail, print jobs, cron's spool"},
		{"/var/mail", "mail"},
		{"/var/backups", "copies that cron jobs make of what is looked at"},
		{"/var/crash", "crash dumps"},
		{"/var/lib", "the data of services; what was done to packages is read from dpkg's database there"},
		{"/lost+found", "the file system check's"},
		{"/*/.cache", "can be made again"},
		{"/*/__pycache__", "Python keeps compiled modules beside what it runs"},
	}
}

// Files are files that are looked over.
func Files() []Allowed {
	return []Allowed{
		{"/etc/machine-id", "made at the first boot"},
		{"/etc/resolv.conf", "written anew with each DHCP lease"},
		{"/etc/ssh/ssh_host_*", "made at the first boot, by socket-activated servers at the first login; rebake pins the host key, so that another one is noticed"},
		{"/etc/dropbear/*_host_key*", "as above: dropbear -R makes them at the first login"},
		{"/etc/ld.so.cache", "ldconfig's list of libraries; the libraries themselves are looked at"},
		{"/etc/.updated", "systemd's note that it looked for updates"},
		{"/var/.updated", "systemd's note that it looked for updates"},
		{"/etc/adjtime", "the drift of the hardware clock, written as the clock is set"},
		{"/etc/mtab", "what is mounted"},
		{"/etc/.pwd.lock", "taken by every program that changes an account"},
		{"/etc/passwd-", "a copy of the file before; the file itself is looked at"},
		{"/etc/shadow-", "a copy of the file before; the file itself is looked at"},
		{"/etc/group-", "a copy of the file before; the file itself is looked at"},
		{"/etc/gshadow-", "a copy of the file before; the file itself is looked at"},
		{"/etc/subuid-", "a copy of the file before; the file itself is looked at"},
		{"/etc/subgid-", "a copy of the file before; the file itself is looked at"},
		{"*/lib/modules/*/modules.*", "depmod's index; the modules themselves are looked at"},
		{"/*/.bash_history", "somebody was here; what they changed is looked at"},
		{"/*/.ash_history", "somebody was here; what they changed is looked at"},
		{"/*/.lesshst", "somebody was here; what they changed is looked at"},
		{"/*/.viminfo", "somebody was here; what they changed is looked at"},
		{"/*/.sudo_as_admin_successful", "somebody was here; what they changed is looked at"},
	}
}

// IgnoreFile is the image's own list, one pattern a line: what its application
// writes outside of Places. It is always looked at itself.
const IgnoreFile = "/etc/rebake/drift-ignore"

const (
	maxPaths = 1000 // that are looked into
	booting  = 75   // exit status: EX_TEMPFAIL
	margin   = 5    // seconds after the end of the boot, for what it left running
	// A guest without systemd that does not say when its boot was over: so many
	// seconds from the start of its SSH server are the boot's. A server that was
	// started later than latest after the kernel was started by hand.
	grace, latest = 60, 120
)

// script is everything that a guest runs. It prints records that end in NUL, each
// a letter, a space, fields, and last what may hold spaces:
//
//	b BTIME        the kernel's start          s SINCE       changes after it count
//	f TYPE CTIME MTIME PATH  a changed file    d … likewise  a changed directory
//	n COUNT        changed files in all        x             there are even more
//	o PACKAGE PATH an owner                    v PATH        its content is not as shipped
//	m PACKAGE PATH is not there                a ARCH        the guest's own
//	p MTIME STATUS PACKAGE VERSION             l LINE        of dpkg.log
//	.              the end: what has none is not the whole
//
// R stands before every path: empty in a guest, a directory in tests.
func script(root string) string {
	var prune, over strings.Builder
	for i, p := range Places() {
		if i > 0 {
			prune.WriteString(" -o")
		}
		fmt.Fprintf(&prune, ` -path "$R"%s`, provisioner.Quote(p.Path))
	}
	for _, f := range Files() {
		fmt.Fprintf(&over, ` ! -path "$R"%s`, provisioner.Quote(f.Path))
	}
	return fmt.Sprintf("R=%s; MAX=%d; MARGIN=%d; GRACE=%d; LATEST=%d; BOOTING=%d; IGNORE=%s\n", provisioner.Quote(root), maxPaths, margin, grace, latest, booting, IgnoreFile) +
		strings.NewReplacer("@PRUNE@", prune.String(), "@OVER@", over.String()).Replace(looker)
}

// looker is the script without what stands in front of it.
const looker = `
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin; LC_ALL=C; export PATH LC_ALL
umask 077
T=$(mktemp -d /run/rebake-drift.XXXXXX 2>/dev/null || mktemp -d /tmp/rebake-drift.XXXXXX) || exit 1
trap 'rm -rf "$T"' EXIT
trap 'exit 1' HUP INT TERM
has() { command -v "$1" >/dev/null 2>&1; }
swap() { tr '\0\n' '\n\0'; }
nul() { tr '\n' '\0'; }

# When the boot was over. The guest may say so itself: by the time of a file.
boot=$(sed -n 's/^btime //p' "$R/proc/stat")
[ "${boot:-0}" -gt 0 ] || { echo "no btime in /proc/stat" >&2; exit 1; }
if [ -e "$R/run/rebake/booted" ]; then since=$(($(stat -c %Y "$R/run/rebake/booted") + MARGIN))
elif [ -d "$R/run/systemd/system" ]; then
  us=$(systemctl show -p FinishTimestampMonotonic); us=${us#*=}
  [ "${us:-0}" -gt 0 ] || exit "$BOOTING"
  since=$((boot + us / 1000000 + MARGIN))
else
  # The start of the last of our ancestors: the SSH server, or what starts it.
  p=$$ t=0
  while [ "${p:-0}" -gt 1 ] && IFS= read -r l <"/proc/$p/stat"; do
    set -- ${l##*) }; p=$2; shift 19; t=$1
  done
  t=$((t / $(getconf CLK_TCK 2>/dev/null || echo 100)))
  [ "$t" -le "$LATEST" ] || t=$LATEST
  since=$((boot + t + GRACE))
fi
[ "$since" -lt "$(date +%s)" ] || exit "$BOOTING"
printf 'b %s\0s %s\0' "$boot" "$since"

# What to look at.
set -- \( @PRUNE@ \) -prune -o @OVER@
if [ -f "$R$IGNORE" ]; then
  while IFS= read -r l || [ -n "$l" ]; do
    case $l in /*) set -- "$@" ! -path "$R$l";; esac
  done <"$R$IGNORE"
fi

# Two ways to look: GNU find by itself, or any find and stat.
gnu() { find "$1" -maxdepth 0 -newerct @0.9 -printf 'f %y %C@ %T@ /%P\0' >/dev/null 2>&1; }
plain() { find "$1" -xdev -exec sh -c 'stat -c "%Z %Y %f" "$@"' sh {} + >/dev/null 2>&1; }
if gnu "$T"; then
  scan() { s=$1; shift; find "${R:-/}" -xdev "$@" -newerct "@$since.999999999" -printf "$s %y %C@ %T@ /%P\\0"; }
elif plain "$T"; then
  # Where all of a batch can be asked at once one process does; what vanishes
  # meanwhile makes it one process for each.
  scan() { s=$1; shift; R=$R since=$since s=$s find "${R:-/}" -xdev "$@" -exec sh -c '
    show() { [ "$1" -le "$since" ] || printf "%s %s %s %s /%s\0" "$s" "$3" "$1" "$2" "${4#"${R:-}"/}"; }
    if out=$(stat -c "%Z %Y %f" "$@" 2>/dev/null); then
      printf "%s\n" "$out" | while read -r c m f; do show "$c" "$m" "$f" "$1"; shift; done
    else for p do out=$(stat -c "%Z %Y %f" "$p" 2>/dev/null) && show $out "$p"; done; fi' sh {} +; }
else echo "neither GNU find nor find and stat are there" >&2; exit 1; fi

scan f "$@" ! -type d 2>/dev/null | head -c 8000000 >"$T/all"
if [ "$(wc -c <"$T/all")" -ge 8000000 ]; then printf 'x\0'; fi
swap <"$T/all" | head -n "$MAX" >"$T/files"
scan d "$@" -type d 2>/dev/null | head -c 8000000 | swap | head -n "$MAX" >"$T/dirs"
swap <"$T/files"; swap <"$T/dirs"
printf 'n %s\0' "$(tr -cd '\0' <"$T/all" | wc -c)"
if [ -f "$R$IGNORE" ] && [ "$(stat -c %Z "$R$IGNORE")" -gt "$since" ]; then
  printf 'f f %s %s\0' "$(stat -c '%Z %Y' "$R$IGNORE")" "$IGNORE"
fi

# Whose they are, and what their packages say. A name of a package's file has no
# newline, so that lines will do. /bin may be a link to /usr/bin, and packages
# name the one or the other.
if has dpkg-query && [ -f "$R/var/lib/dpkg/status" ]; then
  ignored() {
    [ -f "$R$IGNORE" ] || return 1
    while IFS= read -r i || [ -n "$i" ]; do
      case $i in /*) case $1 in $i) return 0;; esac;; esac
    done <"$R$IGNORE"
    return 1
  }
  query() { dpkg-query --admindir="$R/var/lib/dpkg" -W -f="$1"; }
  links=; for l in bin sbin lib lib32 lib64 libx32; do [ ! -L "$R/$l" ] || links="$links /$l"; done
  sed 's|^[^/]*||' "$T/files" >"$T/f"; sed 's|^[^/]*||' "$T/dirs" >"$T/d"
  query 'P ${binary:Package}\n${db-fsys:Files}\n' | awk -v files="$T/f" -v dirs="$T/d" -v links="$links" '
    BEGIN {
      while ((getline l <files) > 0) file[l] = 1
      while ((getline l <dirs) > 0) dir[l] = 1
      n = split(links, link, " ")
    }
    /^P / { pkg = $2; next }
    /^ \// {
      p = substr($0, 2)
      for (i = 1; i <= n; i++) if (index(p, link[i] "/") == 1) p = "/usr" p
      if (p in file) { print "o", pkg, p; delete file[p] }
      if (p in dir && !(p in seen)) { print "O", pkg, p; seen[p] = 1 }
      d = p; sub("/[^/]*$", "", d); if (d == "") d = "/"
      if (d in dir && p != "/." && p !~ "^/usr/share/(doc|info|lintian|locale|man)/") print "e", pkg, p
    }' >"$T/owned"
  sed -n 's/^[oO] /o /p' "$T/owned" | nul
  sed -n 's/^e //p' "$T/owned" | while IFS= read -r l; do
    p=${l#* }
    [ -e "$R$p" ] || [ -L "$R$p" ] || ignored "$p" || printf 'm %s\n' "$l"
  done | head -n "$MAX" | nul
  set -- $(sed -n 's/^o \([^ ]*\) .*/\1/p' "$T/owned" | sort -u)
  if [ $# -gt 0 ]; then
    dpkg --root="${R:-/}" --verify "$@" 2>/dev/null | awk -v links="$links" '
      BEGIN { n = split(links, link, " ") }
      /^..5/ {
        p = substr($0, index($0, "/"))
        for (i = 1; i <= n; i++) if (index(p, link[i] "/") == 1) p = "/usr" p
        print "v", p
      }' | head -n "$MAX" | nul
  fi
  printf 'a %s\0' "$(dpkg --print-architecture)"
  query '${db-fsys:Last-Modified} ${db:Status-Abbrev}${binary:Package} ${Version}\n' |
    awk -v s="$since" '$1 > s { print "p", $0 }' | head -n "$MAX" | nul
  if [ -f "$R/var/log/dpkg.log" ]; then
    awk -v s="$(date -d "@$since" '+%Y-%m-%d %H:%M:%S')" '$1 " " $2 > s && $3 ~ /^(install|upgrade|remove|purge)$/ { print "l", $0 }' "$R/var/log/dpkg.log" |
      head -n "$MAX" | nul
  fi
fi
printf '.\0'
`
