#!/bin/bash
# The first process of a guest. Its root is the machine's own file system, read-only; it lays memory over that, in which
# all that is written stays. $PYPROXY_GUEST names the folder that guest and machine have in common.
here=$PYPROXY_GUEST
. "$here/settings"

mount -t tmpfs tmpfs /run
mkdir -p /run/upper /run/work /run/root
mount -t proc proc /proc
insmod "$(find "$modules" -name 'overlay.ko*')"
mount -t overlay overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work /run/root
cd /run/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/guest "lib/modules/$(uname -r)"
mount "${share[@]}" run/guest
# modprobe looks in one place only, which belongs to the host's kernel.
mount --bind "$modules" "lib/modules/$(uname -r)"
exec chroot . /bin/bash /run/guest/inside.sh
