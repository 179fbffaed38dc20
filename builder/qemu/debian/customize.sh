# Runs last, on the installed root in $1.
set -e
r=$1
mkdir -p "$r/boot/grub" "$r/usr/lib/rebake" "$r/etc/systemd/network"
printf '%s' "$GRUB_CFG" > "$r/boot/grub/grub.cfg"
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$ROOT_ID" > "$r/etc/fstab"
printf 'uninitialized\n' > "$r/etc/machine-id"
echo localhost > "$r/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' > "$r/etc/hosts"
printf '[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n' > "$r/etc/systemd/network/80-dhcp.network"
printf '%s\n' "$SOURCES" > "$r/etc/apt/sources.list"
rm -f "$r"/etc/apt/sources.list.d/0000*
# Translated descriptions were 6.3 of the 15.8 MB that apt-get update fetched.
echo 'Acquire::Languages "none";' > "$r/etc/apt/apt.conf.d/90rebake-languages"
[ -z "$APT_CONF" ] || printf '%s\n' "$APT_CONF" > "$r/etc/apt/apt.conf.d/90rebake"
rm -f "$r"/etc/ssh/ssh_host_*

# What a machine is told at its first boot arrives as systemd credentials;
# systemd-tmpfiles writes the files, this does the rest.
cat > "$r/usr/lib/rebake/seed" <<'SEED'
#!/bin/sh
# rebake first boot: host name, host keys, root file system to the disk's size.
hostname -F /etc/hostname
ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A
root=$(findmnt -no SOURCE /) && part=${root##*/} && sys=$(readlink -f "/sys/class/block/$part") || exit 0
disk=${sys%/*}
[ -f "$sys/start" ] || exit 0
end=$(($(cat "$sys/start") + $(cat "$sys/size")))
if [ "$(cat "$disk/size")" -gt $((end + 4096)) ]; then
  echo ', +' | sfdisk -q -N "$(cat "$sys/partition")" --no-reread --force "/dev/${disk##*/}"
  partx -u "$root" && resize2fs "$root"
fi
exit 0
SEED
cat > "$r/usr/lib/rebake/user-data" <<'SEED'
#!/bin/sh
# rebake user data: a script that an instance is given runs once in its life.
id=$(cat /run/rebake/instance-id)
[ "$id" != "$(cat /var/lib/rebake/instance-id 2>/dev/null)" ] || exit 0
mkdir -p /var/lib/rebake
install -m 700 /run/rebake/user-data /var/lib/rebake/user-data
echo "$id" > /var/lib/rebake/instance-id
exec /var/lib/rebake/user-data
SEED
chmod 755 "$r/usr/lib/rebake/seed" "$r/usr/lib/rebake/user-data"
cat > "$r/etc/systemd/system/rebake-seed.service" <<'UNIT'
[Unit]
Description=rebake first boot
DefaultDependencies=no
After=systemd-tmpfiles-setup.service systemd-remount-fs.service
Before=ssh.service systemd-networkd.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/rebake/seed

[Install]
WantedBy=sysinit.target
UNIT
cat > "$r/etc/systemd/system/rebake-user-data.service" <<'UNIT'
[Unit]
Description=rebake user data
Wants=network-online.target
After=network-online.target
ConditionPathExists=/run/rebake/user-data

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/rebake/user-data
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
UNIT
chroot "$r" systemctl -q enable rebake-seed rebake-user-data ssh systemd-networkd systemd-resolved
# An immutable machine is not patched in place, and a booting one has better things to do.
chroot "$r" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
chroot "$r" passwd -q -l root
ln -sf /run/systemd/resolve/stub-resolv.conf "$r/etc/resolv.conf"
# Not $r/tmp: mmdebstrap keeps its apt configuration there, and without it would
# empty this computer's package lists instead of the root's. It cleans both itself.
rm -rf "$r"/var/log/*.log "$r"/var/log/apt
