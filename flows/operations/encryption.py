"""Encryption of a backup's files with a password: AES-256-GCM in blocks, with a key derived by scrypt.

Each block is bound to its file's name, its number and whether it is the last, so that blocks cannot be exchanged,
reordered or cut off. The library `cryptography` does the encryption.
"""

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flows.stack.processes import StackError

SALT_BYTES, NONCE_BYTES, TAG_BYTES = 16, 12, 16
BLOCK_BYTES = 1 << 20


def password_key(password: str, salt: bytes) -> bytes:
    """The key of a password; takes about half a second and 128 MiB, so that guessing is expensive."""
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << 17, r=8, p=1, maxmem=1 << 28, dklen=32)


def encrypt_file(path: Path, key: bytes, name: str) -> None:
    """Replace a file by its encrypted content; `name` is its name in the backup."""
    cipher, temporary = AESGCM(key), path.with_name(path.name + ".encrypted")
    with path.open("rb") as source, temporary.open("xb") as target:
        number, block = 0, source.read(BLOCK_BYTES)
        while True:
            following = source.read(BLOCK_BYTES)
            nonce = os.urandom(NONCE_BYTES)
            target.write(nonce + cipher.encrypt(nonce, block, _bound(name, number, last=not following)))
            if not following:
                break
            number, block = number + 1, following
    _replace(temporary, path)


def decrypt_file(path: Path, key: bytes, name: str) -> None:
    """Replace an encrypted file by its content. Raises StackError for another password or a changed file."""
    cipher, temporary = AESGCM(key), path.with_name(path.name + ".decrypted")
    size = NONCE_BYTES + BLOCK_BYTES + TAG_BYTES
    with path.open("rb") as source, temporary.open("xb") as target:
        number, block = 0, source.read(size)
        while True:
            following = source.read(size)
            bound = _bound(name, number, last=not following)
            try:
                target.write(cipher.decrypt(block[:NONCE_BYTES], block[NONCE_BYTES:], bound))
            except (InvalidTag, ValueError) as error:
                raise StackError(
                    f"{name} cannot be decrypted: the password is wrong, or the file was changed"
                ) from error
            if not following:
                break
            number, block = number + 1, following
    _replace(temporary, path)


def _bound(name: str, number: int, *, last: bool) -> bytes:
    return f"{number}:{last}:{name}".encode()


def _replace(temporary: Path, path: Path) -> None:
    """Rename the new content over the old, with the mode and times of the old."""
    before = path.stat()
    temporary.chmod(before.st_mode & 0o777)
    os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
    temporary.replace(path)
