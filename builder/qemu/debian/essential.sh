# Runs before the kernel is installed: a small initrd that boots on virtio, IDE,
# AHCI, SCSI and NVMe disks.
set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nCOMPRESS=zstd\nRESUME=none\nFSTYPE=ext4\n' > "$1/etc/initramfs-tools/conf.d/rebake"
printf 'virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nata_piix\nahci\nata_generic\nnvme\next4\ncrc32c\n' > "$1/usr/share/initramfs-tools/modules.d/rebake"
