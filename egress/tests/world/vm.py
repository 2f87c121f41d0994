"""Stands for a VM: the guest's eth0 on one side, the VMM that opens the TAP by name as the jail's user on the other.

usage: vm.py NETNS_PATH TAP UID   (started in the guest's namespace)
"""
import ctypes, fcntl, os, select, struct, sys

path, tap, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
TUNSETIFF = 0x400454CA
FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
libc = ctypes.CDLL(None, use_errno=True)


def attach(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), FLAGS))
    return fd


guest = attach("eth0")
namespace = os.open(path, os.O_RDONLY)
if libc.setns(namespace, 0x40000000) != 0:
    sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
vmm = attach(tap)
print("ready", flush=True)
while True:
    readable, _, _ = select.select([guest, vmm], [], [])
    for fd in readable:
        frame = os.read(fd, 65536)
        try:
            os.write(vmm if fd == guest else guest, frame)
        except OSError:
            pass  # an interface that is down loses frames
