#!/bin/bash
# Goes on where guest.sh ends, in the guest's own root: runs the command, and carries its output, its status and what was
# asked for out. A shell that is the first process reaps whatever is orphaned.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
hostname guest
ip link set lo up
# Whatever else is asked for, the kernel loads by itself; these must be there before somebody looks for them.
modprobe -a $(cat /run/guest/modules) 2>/run/modprobe.log
# A terminal's, so that what is written is seen at once; it must change nothing in it.
stty -F /dev/tty1 raw -echo
( . /run/guest/command.sh ) </dev/null 2>&1 | cat >/dev/tty1
status=${PIPESTATUS[0]}
while IFS= read -r path; do
    mkdir -p "/run/guest/bring$(dirname "$path")" && cp -a "$path" "/run/guest/bring$path"
done </run/guest/wanted
echo "$status" >/run/guest/status
sync
echo o >/proc/sysrq-trigger
sleep 60
