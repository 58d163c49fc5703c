# Two network namespaces as two hosts, with a cable between them. In a namespace of its own: sh two_hosts.sh PYTHON PROGRAM
set -eu
unshare --net sleep 100 >/dev/null 2>&1 &
other=$!
trap 'kill $other' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
there="nsenter --target $other --net"

ip link add left type veth peer name right netns $other
ip address add 10.77.0.1/24 dev left
$there ip address add 10.77.0.2/24 dev right
for link in lo left; do ip link set $link up; done
for link in lo right; do $there ip link set $link up; done

run() { # NODE_RANK INTERFACE COMMAND…: what one types on each host
  node=$1 interface=$2
  shift 2
  GLOO_SOCKET_IFNAME=$interface "$@" -m torch.distributed.run --nnodes=2 --node-rank="$node" --nproc-per-node=1 \
    --master-addr=10.77.0.1 --master-port=29400 "$program"
}
python=$1 program=$2
run 1 right $there "$python" &
second=$!
run 0 left "$python"
wait $second
