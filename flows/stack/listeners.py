"""Who listens on a port of this machine. A password goes only to a server of our own account.

When a server ends, every account of the machine may take its port, and would receive what its clients send next.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

OWN_SERVERS = "RLHF_OWN_SERVERS"  # addresses (HOST:PORT) of the servers that this account started, with spaces
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")  # of Linux; elsewhere nothing is checked
LISTEN = "0A"
ANYWHERE = {"0" * 8, "0" * 32}
MAPPED = b"\0\0\xff\xff"  # in an IPv6 address, before one of IPv4
Address = tuple[str, int]
_own: dict[Address, set[int]] = {}  # the servers of this account, with the accounts that may run them
_connect = socket.socket.connect


class NotOurs(ConnectionRefusedError):
    """Another account listens on the port of one of our servers, or nobody does."""


def guard(addresses: Collection[str], home: Path) -> None:
    """Connect to these addresses (HOST:PORT) of this machine from now on only while this account listens there, or the
    owner of `home`."""
    accounts = {os.geteuid(), home.stat().st_uid}
    for address in addresses:
        if ipv4 := _ipv4(address):
            _own[ipv4] = accounts
    vars_of_socket: Any = socket.socket  # the class takes another method, its stub does not
    vars_of_socket.connect = _checked_connect


def guard_own_servers() -> None:
    """Guard the servers that the variable RLHF_OWN_SERVERS names, as in a worker."""
    if addresses := os.environ.get(OWN_SERVERS, "").split():
        guard(addresses, Path(os.environ["RLHF_HOME"]))


def own_servers(addresses: Iterable[str]) -> dict[str, str]:
    """The variable RLHF_OWN_SERVERS for a child process; none in containers, where servers are on other machines."""
    here = sorted(address for address in addresses if _ipv4(address))
    return {OWN_SERVERS: " ".join(here)} if here else {}


def _ipv4(address: str) -> Address | None:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        return str(IPv4Address(host)), int(port)
    except ValueError:
        return None


def _checked_connect(self: socket.socket, address: Any) -> None:
    if self.family == socket.AF_INET and (accounts := _own.get((address[0], address[1]))) is not None:
        check_listener(address[0], address[1], accounts)
    _connect(self, address)


def check_listener(host: str, port: int, accounts: Collection[int]) -> None:
    """Raise NotOurs unless one of the accounts listens on a port of this machine, and nobody else."""
    listening = listening_accounts(host, port)
    if listening is None or (listening and listening <= set(accounts)):
        return
    if not listening:
        raise NotOurs(errno.ECONNREFUSED, f"nothing listens on {host}:{port}")
    others = ", ".join(str(account) for account in sorted(listening - set(accounts)))
    raise NotOurs(
        errno.ECONNREFUSED,
        f"another account of this machine (uid {others}) listens on {host}:{port}, the port of a server of this home; "
        "nothing was sent to it, and `rlhf up` starts the server on another port",
    )


def listening_accounts(host: str, port: int) -> set[int] | None:
    """The ids of the accounts that listen where a connection to an IPv4 address arrives; None if this system does not
    tell. The kernel prefers a socket that is bound to the address itself."""
    word = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}"
    exact = {word, f"{'0' * 16}{struct.unpack('=I', MAPPED)[0]:08X}{word}"}
    here, anywhere = set[int](), set[int]()
    tables = [table for table in TABLES if os.access(table, os.R_OK)]
    for table in tables:
        for local, account in _listening(Path(table).read_text(encoding="ascii").splitlines()[1:], port):
            if local in exact:
                here.add(account)
            elif local in ANYWHERE:
                anywhere.add(account)
    return (here or anywhere) if tables else None


def _listening(rows: Collection[str], port: int) -> Iterator[tuple[str, int]]:
    """The addresses and accounts of the sockets that listen on a port."""
    for row in rows:
        fields = row.split()
        local, _, hexadecimal = fields[1].partition(":")
        if fields[3] == LISTEN and int(hexadecimal, 16) == port:
            yield local, int(fields[7])
