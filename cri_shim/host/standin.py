"""Creates a stand-in for a pod's network namespace that has vanished, so that CNI plugins can complete their DEL.

Some CNI plugins (bridge, ptp) find the rules that they made on the node by the addresses of the interface in the pod's
namespace. Without a namespace they leave the rules. The stand-in has the interface and its addresses. The interface is
a bridge: every kernel that the bridge plugin works with has bridges, and a bridge cannot leave its namespace.

The plugins leave the rules as well if the interface is there but has lost its addresses: gVisor moves the addresses
that it finds into its sandbox. `restore_addresses` adds them again.

Rules:
- Functions block. A coroutine calls them through `kernel_call`.
- The stand-in has the name of the vanished namespace, so that the removal of that name removes it.
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
    """Create a namespace at `path` with `interface` and its `addresses`. A bare file left at `path` is replaced.

    Raises FileExistsError if `path` is a network namespace, OSError from the kernel; nothing stays then.
    """
    if is_netns(path):
        raise FileExistsError(errno.EEXIST, "the network namespace still exists", str(path))
    remove_netns(path)
    create_netns(path, {})
    try:
        run_in_netns(path, lambda: _populate(interface, addresses))
    except BaseException:
        remove_netns(path)
        raise


def restore_addresses(
    path: Path, interface: str, addresses: Sequence[IPv4Interface | IPv6Interface]
) -> None:
    """Give an interface of a namespace the addresses that it had, where somebody has taken them; else nothing.

    Raises OSError for what the kernel refuses.
    """
    if is_netns(path):
        run_in_netns(path, lambda: _add_missing(interface, addresses))


def _add_missing(interface: str, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return  # it has gone with what it was of
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as netlink:
        for address in addresses:
            try:
                _add_address(netlink, index, address)
            except FileExistsError:
                continue


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
    """Add an address with RTM_NEWADDR (rtnetlink(7))."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.ip.packed
    body = _IFADDRMSG.pack(family, address.network.prefixlen, 0, 0, index)
    for attribute in (_IFA_LOCAL, _IFA_ADDRESS):
        body += _RTATTR.pack(_RTATTR.size + len(packed), attribute) + packed
    flags = _NLM_F_REQUEST_ACK_CREATE_EXCL
    netlink.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_NEWADDR, flags, 1, 0) + body)
    (code,) = _ERROR.unpack_from(netlink.recv(4096), _NLMSGHDR.size)
    if code:
        raise OSError(-code, f"adding address {address}: {os.strerror(-code)}")
