package inventory

// script prints records that end with NUL; the first letter says what it is. $R
// stands before every path (empty in a guest, a directory in tests), INVENTORY is
// files where files are wanted. Few processes: each costs 10 to 20 ms under
// emulation. What can be worked out elsewhere (owners, units, ports) is printed raw.
// x says what cannot be told, and why.
const script = still + `
umask 077
has() { command -v "$1" >/dev/null 2>&1; }
lines() { tr '\n' '\0'; }
say() { while IFS= read -r l || [ -n "$l" ]; do printf '%s %s\0' "$1" "$l"; done; } # of a short file, without a process
unknown() { printf 'x %s\0' "$1"; }
for p in tr sed uname; do has $p || { echo "the guest has no $p" >&2; exit 1; }; done
printf 'k %s\0' "$(uname -rm)"
[ -n "$R" ] || say c </proc/cmdline
for f in etc usr/lib; do [ -f "$R/$f/os-release" ] && { say o <"$R/$f/os-release"; break; }; done
for d in "$R"/lib/modules/* "$R"/usr/lib/modules/*; do [ ! -d "$d" ] || printf 'K %s\0' "${d##*/}"; done
[ ! -f "$R/etc/passwd" ] || say U <"$R/etc/passwd"
[ ! -f "$R/etc/group" ] || say G <"$R/etc/group"
[ -r "$R/proc/net/tcp" ] || unknown "ports: the guest has no /proc/net/tcp"
for p in tcp tcp6 udp udp6; do [ ! -r "$R/proc/net/$p" ] || say "n $p" <"$R/proc/net/$p"; done
if [ "$INVENTORY" = files ]; then : # they are among the files
elif has find; then
  set --
  for d in etc/systemd/system etc/runlevels etc/cron.d etc/cron.hourly etc/cron.daily etc/cron.weekly etc/cron.monthly etc/crontab var/spool/cron; do
    [ ! -e "$R/$d" ] || set -- "$@" "$R/$d"
  done
  [ $# = 0 ] || find "$@" ! -type d -exec printf 'u %s\0' {} +
fi
has find || { unknown "units: the guest has no find"; unknown "cron: the guest has no find"; }
if [ -z "$R" ] && has sshd; then
  # The image has no host key any more, and sshd wants one to say its settings. It
  # is in memory: whatever happens here, it is not in the image.
  T=/run/rebake-inventory.$$
  if mkdir "$T" 2>/dev/null; then
    [ -d /run/sshd ] || { mkdir /run/sshd; made=1; }
    printf '%s\n' "$KEY" >"$T/key"
    if sshd -T -h "$T/key" >"$T/out" 2>"$T/why"; then say s <"$T/out"; else unknown "sshd: $(tr '\n\0' '  ' <"$T/why")"; fi
    [ -z "$made" ] || rmdir /run/sshd
    rm -rf "$T"
  else unknown "sshd: the guest has no place in /run"; fi
fi

if [ -f "$R/var/lib/dpkg/status" ]; then
  if has dpkg-query; then
    dpkg-query --admindir="$R/var/lib/dpkg" -W -f='p dpkg\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${db:Status-Abbrev}\n' | lines
  else unknown "packages: the guest has no dpkg-query"; fi
  if [ "$INVENTORY" = files ]; then
    # When each list of files was written, the lists, and what is in the files: as
    # they are, because a pipe of megabytes costs as much as the reading.
    set -- "$R"/var/lib/dpkg/info/*.list
    if [ ! -e "$1" ]; then :
    elif has stat && has tail; then
      printf 'L '; stat -c '%Z %n' "$@"
      printf '\0W '; tail -n +1 /dev/null "$@" # with a line of each name
      printf '\0'
    else unknown "owners: the guest has no stat or no tail"; fi
    set -- "$R"/var/lib/dpkg/info/*.md5sums
    [ ! -e "$1" ] || { printf '5 '; cat "$@"; printf '\0'; }
  fi
fi
if [ -d "$R/var/lib/rpm" ] || [ -d "$R/usr/lib/sysimage/rpm" ]; then
  if has rpm; then
    rpm --root "${R:-/}" -qa --qf 'p rpm\t%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\tii\n' | lines
    [ "$INVENTORY" != files ] || rpm --root "${R:-/}" -qa --qf 'w %{NAME}.list\n[y %{FILENAMES}\n]' | lines
  elif [ ! -f "$R/var/lib/dpkg/status" ]; then unknown "packages: the guest has no rpm"; fi
fi
for f in lib/apk/db/installed usr/lib/apk/db/installed; do
  [ -f "$R/$f" ] && { sed -n 's/^[PVAoFR]:/A&/p' "$R/$f" | lines; break; }
done

if [ "$INVENTORY" = files ]; then
  set -- "${R:-/}"
  for at in $DISKS; do [ "$at" = / ] || set -- "$@" "$at"; done # as /boot
  if ! has find; then unknown "files: the guest has no find"
  elif find "${R:-/}" -maxdepth 0 -printf '%p' >/dev/null 2>&1; then
    find "$@" -xdev \( -path "$R/proc" -o -path "$R/sys" -o -path "$R/dev" -o -path "$R/run" -o -path "$R/tmp" \) -prune -o -printf 'f %y %m %U %G %s %C@ %p\0%l\0'
  elif has stat; then # of each lot the names, and what stat says of them: no process a file
    QUOTING_STYLE=literal find "$@" -xdev \( -path "$R/proc" -o -path "$R/sys" -o -path "$R/dev" -o -path "$R/run" -o -path "$R/tmp" \) -prune -o -exec sh -c '
      printf "B %s\0" $#; printf "%s\0" "$@"; stat -c "%f %u %g %s %Z %N" "$@" 2>/dev/null; printf "\0"' sh {} +
  else unknown "files: the guest has no find that prints and no stat"; fi
  has xargs && has sha256sum || unknown "digests: the guest has no sha256sum or no xargs"
fi
printf '.\0'
`

// still sees to it that what is read leaves no trace on a disk: file systems of
// disks ($DISKS) do not keep when a file was read. The guest is shut down next, and
// the image knows nothing of it.
const still = `
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin; LC_ALL=C; export PATH LC_ALL
DISKS=
if [ -z "$R" ] && [ -r /proc/mounts ]; then
  while read -r dev at type opts _; do
    case $dev:$type in /dev/*:ext[234]|/dev/*:xfs|/dev/*:btrfs|/dev/*:vfat) ;; *) continue;; esac
    case $at in *\\*) continue;; esac
    DISKS="$DISKS $at"
    case ,$opts, in *,ro,*|*,noatime,*) ;; *) mount -o remount,noatime "$at" 2>/dev/null;; esac
  done </proc/mounts
fi
`

// hashes reads names that end with NUL and prints a line of sha256sum for each.
const hashes = `PATH=$PATH:/usr/bin:/bin; export PATH; xargs -0 sha256sum 2>/dev/null; exit 0`
