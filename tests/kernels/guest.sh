#!/bin/bash
# The first process of a guest. Its root is the machine's own file system, so first of all it takes a layer of its own
# over that: what is written there goes to memory. $PYPROXY_GUEST names the folder on the host, the only place that is
# written through; uml hands unknown words of its command line to us as environment.
here=$PYPROXY_GUEST
modules=/usr/lib/uml/modules/$(uname -r)

mount -t tmpfs tmpfs /run
mkdir -p /run/modules /run/upper /run/work /run/root
mount -t proc proc /proc
mount --bind "$modules" /run/modules
# modprobe looks in one place only, which belongs to the host's kernel.
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
mount --bind "$here" run/guest
mount --bind "$modules" "lib/modules/$(uname -r)"
exec chroot . /bin/bash /run/guest/inside.sh
