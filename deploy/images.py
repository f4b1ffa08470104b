"""The images of others in `deploy/`, by digest: a tag can be moved to another image, a digest cannot.

python deploy/images.py          list the references without a digest; exit code 1 if there are any (`make release`)
python deploy/images.py --pin    add or renew the digests, as the registries give them (`make images-pin`)
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DEPLOY = Path(__file__).parent
OURS = ("rlhf-flows:", "rlhf-label-studio:")  # built here
REFERENCE = re.compile(r"(?m)^(?:FROM|\s*image:)[ ]+(?P<tag>[^\s@]+:[^\s@]+)(?P<digest>@sha256:[0-9a-f]{64})?[ ]*$")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def files(deploy: Path) -> Iterator[Path]:
    """The files that name images."""
    yield from sorted(deploy.glob("Dockerfile*"))
    yield from sorted(deploy.rglob("*.yaml"))


def references(deploy: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Each reference to an image of others, with its file."""
    for path in files(deploy):
        for match in REFERENCE.finditer(path.read_text(encoding="utf-8")):
            if not match["tag"].startswith(OURS):
                yield path, match


def unpinned(deploy: Path) -> list[str]:
    """The references without a digest, as FILE: IMAGE."""
    return [f"{path.relative_to(deploy)}: {match['tag']}" for path, match in references(deploy) if not match["digest"]]


def pin(deploy: Path) -> list[str]:
    """Write the digests into the files, all or none; returns the references. Raises CalledProcessError."""
    digests = {tag: digest_of(tag) for tag in sorted({match["tag"] for _, match in references(deploy)})}
    for path in {path for path, _ in references(deploy)}:
        text = path.read_text(encoding="utf-8")
        for tag, digest in digests.items():
            text = re.sub(rf"(?<= ){re.escape(tag)}(@sha256:[0-9a-f]+)?(?=[ ]*$)", f"{tag}@{digest}", text, flags=re.M)
        path.write_text(text, encoding="utf-8")
    return [f"{tag}@{digest}" for tag, digest in digests.items()]


def digest_of(tag: str) -> str:
    """The digest of an image's index, for all its platforms, from its registry."""
    command = ["docker", "buildx", "imagetools", "inspect", tag, "--format", "{{.Manifest.Digest}}"]
    digest = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"docker reports {digest!r} as the digest of {tag}: expected sha256 and 64 digits")
    return digest


def main(arguments: list[str]) -> int:
    """List or pin the images."""
    parser = argparse.ArgumentParser(description="Images of others by digest.")
    parser.add_argument("--pin", action="store_true", help="write the registries' digests into the files")
    parser.add_argument("--warn", action="store_true", help="exit code 0 although digests are missing")
    parser.add_argument("--deploy", type=Path, default=DEPLOY)
    options = parser.parse_args(arguments)
    if options.pin:
        print("\n".join(pin(options.deploy)))
        return 0
    missing = unpinned(options.deploy)
    for reference in missing:
        print(f"images: {reference} has no digest; `make images-pin` writes it where the registry can be reached")
    return int(bool(missing) and not options.warn)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
