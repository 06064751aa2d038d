"""A kernel with AppArmor, as files, and an `apparmor_parser` that loads profiles into it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class FakeAppArmor:
    """`root` stands in for /; the parser is found on PATH."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *loaded: str) -> None:
        self.root = root
        self.list = root / "sys/kernel/security/apparmor/profiles"
        self.list.parent.mkdir(parents=True)
        enabled = root / "sys/module/apparmor/parameters/enabled"
        enabled.parent.mkdir(parents=True)
        enabled.write_text("Y\n")
        self.forget()
        for name in loaded:
            self.load(name)
        self._bin = root / "bin"
        self._bin.mkdir()
        monkeypatch.setenv("PATH", f"{self._bin}:/usr/bin:/bin")

    def load(self, name: str) -> None:
        with self.list.open("a") as stream:
            stream.write(f"{name} (enforce)\n")

    def forget(self) -> None:
        """What `systemctl reload apparmor` does to profiles without a file."""
        self.list.write_text("")

    def install_parser(self, *, fails: str = "") -> Path:
        """A parser that loads the profile its file begins, or says why not; the file that notes its calls."""
        calls = self.root / "calls"
        calls.touch()
        parser = self._bin / "apparmor_parser"
        parser.write_text(
            textwrap.dedent(
                f"""\
                #!/bin/sh
                echo "$@" >>{calls}
                [ -z "{fails}" ] || {{ echo "{fails}" >&2; exit 1; }}
                for file; do :; done
                sed -n 's/^profile \\([^ ]*\\).*/\\1 (enforce)/p' "$file" >>{self.list}
                """
            )
        )
        parser.chmod(0o755)
        return calls
