"""Which addresses the server connects to: none of its own machine and network."""

import errno
import ipaddress
import socket
import threading

NAT64 = ipaddress.ip_network("64:ff9b::/96")
_state = threading.local()


def on_event(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse a connection to this machine or its network, before a byte is sent."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and not getattr(_state, "asking", False):
        address = arguments[1]
        if address is not None and not is_outside(address):
            raise PermissionError(errno.EACCES, f"connections to this machine and its network are off: {address!r}")


def is_outside(address: object) -> bool:
    """Whether an address to connect to is a public one, and not one of this machine's."""
    if not isinstance(address, tuple) or not address:
        return False  # a socket in the file system
    try:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except ValueError:
        return False  # a name, which libraries resolve before they connect
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast and not _is_own(ip)


def _is_own(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to this machine: a packet to it would come from the same address."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    _state.asking = True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip), 9))
            return str(probe.getsockname()[0]) == str(ip)
    except OSError:
        return False
    finally:
        _state.asking = False
