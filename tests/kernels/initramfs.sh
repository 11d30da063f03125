#!/busybox sh
# The first process of a kernel in qemu. The machine's file system lies behind modules that are here, in their order.
# $PYPROXY_GUEST is the folder that guest and machine have in common.
b=/busybox
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/order); do
    $b insmod "/modules/$module" || $b echo "the module $module can't be loaded"
done
# What is read of a file is kept: nobody is asked whether it has changed meanwhile.
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro machine /machine
exec $b chroot /machine /bin/bash "$PYPROXY_GUEST/guest.sh"
