set -e
read -r now
read -r seed
read -r program
date -u -s "@$now" >/dev/null
if command -v perl >/dev/null 2>&1 && printf "$seed" | perl -e '
  local $/; binmode STDIN; my $s = <STDIN>;
  open(my $f, "+<", "/dev/random") or exit 1;
  ioctl($f, 0x40085203, $s) or exit 1;
  ioctl($f, 0x5207, 0) or exit 1;' 2>/dev/null; then exit 0; fi
if command -v python3 >/dev/null 2>&1 && printf "$seed" | python3 -c '
import fcntl, sys
with open("/dev/random", "wb") as f:
    fcntl.ioctl(f, 0x40085203, sys.stdin.buffer.read())
    fcntl.ioctl(f, 0x5207)' 2>/dev/null; then exit 0; fi
[ "$(uname -m)" = x86_64 ] || exit 42
for dir in /dev/shm /run /tmp /root; do
  file=$dir/.rebake-reseed
  (umask 077 && printf "$program" >"$file") 2>/dev/null && chmod 700 "$file" || continue
  if printf "$seed" | "$file" 2>/dev/null; then rm -f "$file"; exit 0; fi
  rm -f "$file"
done
exit 42
