#!/bin/bash
# Goes on where guest.sh ends, in the guest's own root: runs the command, and carries its output, its status and what was
# asked for out. A shell that is the first process reaps whatever is orphaned.
. /run/guest/settings
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
hostname guest
ip link set lo up
modprobe -a $(cat /run/guest/preload) 2>/run/modprobe.log

# A pipe, so that the command takes its output for no terminal; and the terminal must change nothing in it.
[[ $terminal != *tty* ]] || stty -F "$terminal" raw -echo
mkfifo /run/output
cat </run/output >"$terminal" &
carrier=$!
mapfile -t environment </run/guest/environment
env -i "${environment[@]}" bash /run/guest/command.sh </dev/null >/run/output 2>&1
status=$?

# What the command left running would keep the pipe open.
for process in /proc/[0-9]*; do
    [[ ${process#/proc/} == $$ || ${process#/proc/} == "$carrier" ]] || kill -KILL "${process#/proc/}"
done 2>/dev/null
wait "$carrier"
number=0
while IFS= read -r path; do
    [[ ! -e $path ]] || cp -a "$path" "/run/guest/brought/$((number))"
    : $((number++))
done </run/guest/wanted
echo "$status" >/run/guest/status
sync
echo o >/proc/sysrq-trigger
sleep 60
