"""A network namespace in the place of one that has vanished, with its interface and addresses and nothing behind them.

Some CNI plugins (bridge, ptp) find what they made on the node by the addresses of the interface in the pod's
namespace. Without one they leave it. The interface here is a bridge, which every kernel with the bridge plugin has,
and which can't leave its namespace.

Rules: blocking; from a coroutine, call through `kernel_call`. It takes the vanished one's name, so that whoever removes
that removes this, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

from cri_shim.host.namespaces import create_netns, is_netns, remove_netns, run_in_netns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Interface, IPv6Interface
    from pathlib import Path

# <linux/sockios.h>, <linux/rtnetlink.h>, <linux/netlink.h>, <linux/if_addr.h>
_SIOCBRADDBR = 0x89A0
_RTM_NEWADDR = 20
_NLM_F_REQUEST_ACK_CREATE_EXCL = 0x1 | 0x4 | 0x400 | 0x200
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_NLMSGHDR = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTATTR = struct.Struct("=HH")
_ERROR = struct.Struct("=i")


def make_standin(
    path: Path, interface: str, addresses: Sequence[IPv4Interface | IPv6Interface]
) -> None:
    """Make the namespace at `path`, with `interface` and its `addresses`. The bare file of a dead one is replaced.

    Raises FileExistsError when a live one is there, OSError for what the kernel refuses; nothing stays then.
    """
    if is_netns(path):
        raise FileExistsError(errno.EEXIST, "is a network namespace that lives", str(path))
    remove_netns(path)
    create_netns(path, {})
    try:
        run_in_netns(path, lambda: _populate(interface, addresses))
    except BaseException:
        remove_netns(path)
        raise


def _populate(interface: str, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCBRADDBR, interface.encode() + b"\0")
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as netlink:
        for address in addresses:
            _add_address(netlink, index, address)


def _add_address(
    netlink: socket.socket, index: int, address: IPv4Interface | IPv6Interface
) -> None:
    """rtnetlink(7)'s RTM_NEWADDR."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.ip.packed
    body = _IFADDRMSG.pack(family, address.network.prefixlen, 0, 0, index)
    for attribute in (_IFA_LOCAL, _IFA_ADDRESS):
        body += _RTATTR.pack(_RTATTR.size + len(packed), attribute) + packed
    flags = _NLM_F_REQUEST_ACK_CREATE_EXCL
    netlink.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_NEWADDR, flags, 1, 0) + body)
    (code,) = _ERROR.unpack_from(netlink.recv(4096), _NLMSGHDR.size)
    if code:
        raise OSError(-code, f"address {address}: {os.strerror(-code)}")
