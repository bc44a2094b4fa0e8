#!/bin/busybox sh
# The first program of a machine of the vm lab. `number` comes from the kernel's command line.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ LD_LIBRARY_PATH=/lib RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /etc/target /var/lib /run/csvfs
mount -t tmpfs tmpfs /dev/shm
for module in virtio_pci virtio_console virtio_net virtio_blk fuse; do
    modprobe $module || echo "no module $module"
done
hostname n$number
ip link set lo up
for pair in lan:52:77 san:52:78; do
    name=${pair%%:*} mac=${pair#*:}
    for card in /sys/class/net/*; do
        case $(cat $card/address) in
            *:$mac:*) ip link set ${card##*/} name $name ;;
        esac
    done
done
ip address add 10.77.0.$number/24 dev lan && ip link set lan up
ip address add 10.78.0.$number/24 dev san && ip link set san up
# It comes back should it ever end; the shell meanwhile waits for whoever lost its parent.
while :; do
    vm-agent
    echo "the agent has ended ($?)"
    sleep 1
done
