"""The images that critest and the crictl scripts pull, under the names they pull them by.

Each is busybox and at most one layer that makes it what the tests look for: a user, a group, a web server with a pid
file. Tests of a runtime need no more of the programs that the originals hold. The bytes depend on the packages and on
this file alone.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from cri_shim.image.platforms import platform_of
from tests.conformance import packages
from tests.images import directory, file, hardlink, layer, symlink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.images import Entry, LayerBlob

BUSYBOX = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
"""What critest runs where nothing else is said."""
_E2E = "e2e-test-images"
_STAGING = "k8s-staging-cri-tools"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOST_NETWORK_PORT = 12003

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
_GROUP = """\
root:x:0:
www-data:x:33:
nogroup:x:65534:
"""

# Two commands that Debian's busybox is built without.
_PGREP = """\
#!/bin/sh
status=1
for process in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$process/comm" || continue
    [ "$name" != "$1" ] || { echo "${process#/proc/}"; status=0; }
done
exit $status
"""
_IPCS = """\
#!/bin/sh
echo 'key        shmid      owner      perms      bytes      nattch     status'
tail -n +2 /proc/sysvipc/shm | while read -r key id perms size cpid lpid nattch uid rest; do
    printf '0x%08x %-10s %-10s %-10s %-10s %-10s\\n' "$key" "$id" "$uid" "$perms" "$size" "$nattch"
done
"""

# A process of the name nginx with "master process" in its command line and its number in a pid file: what tests of PID
# namespaces look for. The server proper is its child.
_NGINX = """\
#!/bin/sh
trap 'kill $!; exit 0' TERM QUIT INT
echo $$ >/run/nginx.pid
httpd -f -p PORT -h /srv &
wait
"""
_HTTPD = """\
#!/bin/sh
echo "httpd: serving port 80"
exec httpd -f -v -p 80 -h /srv
"""
# busybox drops what a set-user-ID bit gives it; this program of another package doesn't.
_SAY_UID = 'echo "Effective uid: $(grep "^$(whoami):" /etc/passwd | cut -d : -f 3)"'


def put_all(registry: FakeRegistry, files: Mapping[str, Path]) -> None:
    """Build every image from the packages' `files`, and put them into `registry`."""
    shelf = _Shelf(registry, files)
    for tag in ("1.29-2", "1.29-4"):
        shelf.put(f"{_E2E}/busybox:{tag}")
    for tag in ("3.9", "3.10"):
        shelf.put(f"pause:{tag}", _marker(tag), entrypoint=["/bin/sleep"], cmd=["infinity"])
    shelf.put(f"{_E2E}/nginx:1.14-2", _nginx(80), cmd=["nginx", "master process"])
    shelf.put(
        f"{_STAGING}/hostnet-nginx-{shelf.architecture}:latest",
        _nginx(_HOST_NETWORK_PORT),
        cmd=["nginx", "master process"],
    )
    shelf.put(
        f"{_E2E}/httpd:2.4.39-4",
        layer(file("bin/httpd-foreground", _HTTPD.encode(), 0o755), _page(), compression="gzip"),
        cmd=["httpd-foreground"],
    )
    shelf.put(
        f"{_E2E}/nonewprivs:1.3",
        _whoami(packages.program(files["coreutils"], "whoami")),
        entrypoint=["sh", "-c", _SAY_UID],
    )
    for name, user in (
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1004"),
        ("user-username-group", "www-data:1004"),
    ):
        shelf.put(f"{_STAGING}/test-image-{name}:latest", user=user)
    shelf.put(f"{_STAGING}/test-image-predefined-group:latest", _groups(), user="1000")
    for name in ("1", "2", "3", "latest", "digest"):
        shelf.put(f"{_STAGING}/test-image-{name}:latest", _marker(name))
    for tag in ("1", "2", "3"):
        shelf.put(f"{_STAGING}/test-image-tags:{tag}", _marker("tags"))
    for tag in ("test", "all"):
        shelf.put(f"{_STAGING}/test-image-tag:{tag}", _marker(tag))


class _Shelf:
    """Puts images into the registry: busybox below, an index above with a platform that must not be chosen."""

    def __init__(self, registry: FakeRegistry, files: Mapping[str, Path]) -> None:
        self.architecture = platform_of(os.uname().machine).architecture
        self._registry = registry
        self._base = layer(*_busybox(*packages.busybox_files(files)), compression="gzip")

    def put(self, name: str, *above: LayerBlob, **config: Any) -> None:
        repository, tag = name.rsplit(":", 1)
        config = {"env": [_PATH], "cmd": ["sh"], **config}
        if "entrypoint" in config and config["cmd"] == ["sh"]:
            del config["cmd"]
        ours = self._registry.add(repository, self._base, *above, **config)
        other = "riscv64" if self.architecture != "riscv64" else "arm64"
        foreign = self._registry.add(
            repository, _marker("another platform"), architecture=other, **config
        )
        self._registry.add_index(
            repository,
            *(
                {**pushed.descriptor, "platform": {"os": "linux", "architecture": architecture}}
                for pushed, architecture in ((foreign, other), (ours, self.architecture))
            ),
            tag=tag,
        )


def _busybox(files: packages.Files, commands: list[str]) -> list[Entry]:
    """Hard links for the commands: a test that hides one of them must not hide all."""
    entries = [directory(path) for path in _parents(files)]
    entries += [symlink(name, f"usr/{name}") for name in ("lib", "lib64")]
    for path, content in sorted(files.items()):
        if isinstance(content, PurePosixPath):
            entries.append(symlink(path, str(content)))
        else:
            entries.append(file(path, content, 0o755))
    for name in commands:
        if name != "busybox":
            entries.append(hardlink(f"bin/{name}", "bin/busybox", 0o755))
    entries += [file("bin/pgrep", _PGREP.encode(), 0o755), file("bin/ipcs", _IPCS.encode(), 0o755)]
    entries += [directory(name) for name in ("dev", "etc", "proc", "sys", "run", "srv", "home")]
    entries += [directory("root", 0o700), directory("tmp", 0o1777)]
    entries += [directory("var"), symlink("var/run", "/run")]
    entries += [file("etc/passwd", _PASSWD.encode()), file("etc/group", _GROUP.encode())]
    return entries


def _parents(files: packages.Files) -> list[str]:
    parents = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    return sorted(parents - {"."})


def _marker(text: str) -> LayerBlob:
    """What tells an image from others."""
    return layer(file("marker", text.encode()), compression="gzip")


def _nginx(port: int) -> LayerBlob:
    script = _NGINX.replace("PORT", str(port)).encode()
    return layer(file("bin/nginx", script, 0o755), _page(), compression="gzip")


def _page() -> Entry:
    return file("srv/index.html", b"<html><body>It works!</body></html>\n")


def _whoami(program: bytes) -> LayerBlob:
    """A program that runs as root, and names for the users it may run as."""
    passwd = _PASSWD + "default-user:x:1000:1000::/home:/bin/sh\n"
    return layer(
        file("bin/whoami", program, 0o4755), file("etc/passwd", passwd.encode()), compression="gzip"
    )


def _groups() -> LayerBlob:
    passwd = _PASSWD + "default-user:x:1000:1000::/home:/bin/sh\n"
    group = _GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    return layer(
        file("etc/passwd", passwd.encode()), file("etc/group", group.encode()), compression="gzip"
    )
