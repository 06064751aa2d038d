"""`cri-shim image pull`: pulls an image from its registry, with a progress bar for each layer.

Credentials come from a file or from standard input, never from the command line, which other users see in /proc and the
shell keeps in its history.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.image_calls import open_images
from cri_shim.cli.layer_bars import LayerBars
from cri_shim.cli.output import short_id
from cri_shim.cli.progress import size_text
from cri_shim.errors import InvalidArgumentError
from cri_shim.host.files import read_bounded
from cri_shim.image.reference import parse_reference
from cri_shim.image.registry.credentials import load_auth_file

if TYPE_CHECKING:
    import argparse

STDIN: Final = Path("-")
MAX_CREDENTIALS_BYTES: Final = 64 << 10
"""Far longer than the tokens that registries issue."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "ref", metavar="REF", help="name or digest; short names are completed as Docker does"
    )
    credentials = parser.add_mutually_exclusive_group()
    credentials.add_argument(
        "--creds-file",
        type=Path,
        metavar="FILE",
        help="file whose first line is USER:PASSWORD; - is standard input, with a prompt on a terminal",
    )
    credentials.add_argument(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help="Docker's config.json or podman's auth.json (default: images.auth_file, as configured)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Pull one image."""
    request = admin.PullImageRequest(
        image=api.ImageSpec(image=arguments.ref),
        auth=_auth(arguments.ref, arguments.creds_file, arguments.auth_file),
    )
    bars = LayerBars(sys.stdout)
    pulled = api.Image()

    def tell(answer: admin.PullImageResponse) -> None:
        if answer.HasField("pulled"):
            pulled.CopyFrom(answer.pulled)
        else:
            bars.show(answer.layer)

    with open_images(arguments) as images:
        try:
            with images.errors(f"cannot pull {arguments.ref}"):
                images.pull_image(request, tell)
        finally:
            bars.close()
    bars.say(f"pulled {arguments.ref} as {short_id(pulled.id)} ({size_text(pulled.size)})")
    return 0


def _auth(ref: str, creds_file: Path | None, auth_file: Path | None) -> api.AuthConfig | None:
    """The credentials for the registry, or None to use those of the configuration.

    Raises InvalidArgumentError, OSError, ConfigError, BadImageReferenceError; none contains a secret.
    """
    if creds_file is not None:
        username, password = _read_credentials(creds_file)
        return api.AuthConfig(username=username, password=password)
    if auth_file is None:
        return None
    found = load_auth_file(auth_file, parse_reference(ref), named_by="--auth-file")
    if found is None:
        raise InvalidArgumentError(f"--auth-file: {auth_file} has no credentials for {ref}")
    return api.AuthConfig(
        username=found.username,
        password=found.password,
        server_address=found.registry,
        identity_token=found.identity_token,
        registry_token=found.registry_token,
    )


def _read_credentials(path: Path) -> tuple[str, str]:
    if path != STDIN:
        data = read_bounded(path, MAX_CREDENTIALS_BYTES)
    elif sys.stdin.isatty():
        data = getpass.getpass("USER:PASSWORD (not shown): ").encode()
    else:
        data = sys.stdin.buffer.readline(MAX_CREDENTIALS_BYTES)
    line, _, _ = data.partition(b"\n")
    try:
        username, colon, password = line.decode().rstrip("\r").partition(":")
    except UnicodeDecodeError:
        username = colon = password = ""
    if not username or not colon:
        raise InvalidArgumentError(f"--creds-file: the first line of {path} is not USER:PASSWORD")
    return username, password
