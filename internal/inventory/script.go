package inventory

// script prints records that end with NUL; the first letter says what it is. $R
// stands before every path (empty in a guest, a directory in tests), FILES is 1
// where files are wanted. Few processes: each costs 10 to 20 ms under emulation.
// What can be worked out elsewhere (owners, units, ports) is printed raw.
const script = `
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin; LC_ALL=C; export PATH LC_ALL
umask 077
has() { command -v "$1" >/dev/null 2>&1; }
lines() { tr '\n' '\0'; }
printf 'k %s\0m %s\0' "$(uname -r)" "$(uname -m)"
[ -n "$R" ] || { printf 'c '; lines </proc/cmdline; }
for f in etc usr/lib; do [ -f "$R/$f/os-release" ] && { sed 's/^/o /' "$R/$f/os-release" | lines; break; }; done
for d in "$R"/lib/modules/* "$R"/usr/lib/modules/*; do [ ! -d "$d" ] || printf 'K %s\0' "${d##*/}"; done
[ ! -f "$R/etc/passwd" ] || sed 's/^/U /' "$R/etc/passwd" | lines
[ ! -f "$R/etc/group" ] || sed 's/^/G /' "$R/etc/group" | lines
for p in tcp tcp6 udp udp6; do [ ! -r "$R/proc/net/$p" ] || sed "s/^/n $p /" "$R/proc/net/$p" | lines; done
set --
for d in etc/systemd/system etc/runlevels etc/cron.d etc/cron.hourly etc/cron.daily etc/cron.weekly etc/cron.monthly etc/crontab var/spool/cron; do
  [ ! -e "$R/$d" ] || set -- "$@" "$R/$d"
done
[ $# = 0 ] || find "$@" ! -type d -exec printf 'u %s\0' {} +
if [ -z "$R" ] && has sshd && has ssh-keygen && T=$(mktemp -d /run/rebake-inventory.XXXXXX 2>/dev/null); then
  # The image has no host key any more, and sshd wants one to say its settings. It
  # is in memory: whatever happens here, it is not in the image.
  if ssh-keygen -q -t ed25519 -N '' -f "$T/key" </dev/null >/dev/null 2>&1; then
    mkdir -p /run/sshd; sshd -T -h "$T/key" 2>/dev/null | sed 's/^/s /' | lines
  fi
  rm -rf "$T"
fi

if [ -f "$R/var/lib/dpkg/status" ] && has dpkg-query; then
  dpkg-query --admindir="$R/var/lib/dpkg" -W -f='p dpkg\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${db:Status-Abbrev}\n' | lines
  if [ "$FILES" = 1 ]; then
    # When each list of files was written, the lists, and what is in the files.
    set -- "$R"/var/lib/dpkg/info/*.list
    if [ -e "$1" ]; then
      stat -c 'L %Z %n' "$@" | lines
      awk '{ if (FNR == 1) { n = FILENAME; sub(".*/", "", n); print "w " n } print "y " $0 }' "$@" | lines
    fi
    set -- "$R"/var/lib/dpkg/info/*.md5sums
    [ ! -e "$1" ] || sed 's/^/5 /' "$@" | lines
  fi
fi
if has rpm && { [ -d "$R/var/lib/rpm" ] || [ -d "$R/usr/lib/sysimage/rpm" ]; }; then
  rpm --root "${R:-/}" -qa --qf 'p rpm\t%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\tii\n' | lines
  [ "$FILES" != 1 ] || rpm --root "${R:-/}" -qa --qf 'w %{NAME}.list\n[y %{FILENAMES}\n]' | lines
fi
for f in lib/apk/db/installed usr/lib/apk/db/installed; do
  [ -f "$R/$f" ] && { sed -n 's/^[PVAoFR]:/A&/p' "$R/$f" | lines; break; }
done

if [ "$FILES" = 1 ]; then
  set -- "${R:-/}"
  if [ -z "$R" ] && [ -r /proc/mounts ]; then # other file systems of disks, as /boot
    while read -r dev at type _; do
      case $dev:$type in /dev/*:ext[234]|/dev/*:xfs|/dev/*:btrfs|/dev/*:vfat) [ "$at" = / ] || set -- "$@" "$at";; esac
    done </proc/mounts
  fi
  if find "${R:-/}" -maxdepth 0 -printf '%p' >/dev/null 2>&1; then
    find "$@" -xdev \( -path "$R/proc" -o -path "$R/sys" -o -path "$R/dev" -o -path "$R/run" -o -path "$R/tmp" \) -prune -o -printf 'f %y %m %U %G %s %C@ %p\0%l\0'
  else
    find "$@" -xdev \( -path "$R/proc" -o -path "$R/sys" -o -path "$R/dev" -o -path "$R/run" -o -path "$R/tmp" \) -prune -o -exec sh -c '
      one() { l=; [ ! -L "$6" ] || l=$(readlink "$6"); printf "F %s %s %s %s %s %s\0%s\0" "$@" "$l"; }
      if out=$(stat -c "%f %u %g %s %Z" "$@" 2>/dev/null); then
        printf "%s\n" "$out" | while read -r f u g s z; do one "$f" "$u" "$g" "$s" "$z" "$1"; shift; done
      else for p do out=$(stat -c "%f %u %g %s %Z" "$p" 2>/dev/null) && one $out "$p"; done; fi' sh {} +
  fi
fi
printf '.\0'
`

// hashes reads names that end with NUL and prints a line of sha256sum for each.
const hashes = `PATH=$PATH:/usr/bin:/bin; export PATH; xargs -0 sha256sum 2>/dev/null; exit 0`
