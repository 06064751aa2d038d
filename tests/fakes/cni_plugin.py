#!/usr/bin/python3 -SE
"""A CNI plugin that does what its configuration says; install it with `install_plugin`.

Its `script` is an object in the plugin's configuration, or a file named by `script_file` there, which is read at
each call, so that a test can change its mind while the configuration stays cached, or a file beside the plugin that is
called like it with `.json` behind. Keys:

    record      a file that gets one JSON line per call: the CNI_* variables (`env`), the parsed input (`stdin`)
                and all names of the environment (`names`)
    leases      a directory where ADD makes `<container>-<interface>` and DEL removes it: an effect to leak. GC removes
                what is no valid attachment, CHECK fails where there is none
    ADD, DEL…   what to do at that verb; an object with `do` and its details:
        succeed     (the default) ADD prints `result`, or prevResult, or an interface and an address made up; VERSION
                    prints `versions`, by default all
        fail        prints an error document with `code`, `msg`, `details`, exits 1
        die         writes `stderr`, exits `status` (3), nothing on stdout
        garbage     prints `text` ("not json"), exits `status` (0)
        silent      prints nothing, exits 0
        flood       prints `bytes` (64 MiB)
        hang        sleeps, once it has made the file `mark`; with `helper`, so does a child that holds the output open
        crash       kills itself with `signal` (11)
      and for each: `after_effect` false to fail before the lease is touched (default: after), `delay` seconds first
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False  # the real one costs a tenth of a second per call: this file starts often
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def install_plugin(directory: Path, name: str) -> Path:
    """Put this file into a plugin directory under the name of a plugin type."""
    import shutil

    directory.mkdir(parents=True, exist_ok=True)
    target = directory / name
    shutil.copyfile(__file__, target)
    target.chmod(0o755)
    return target


def main() -> int:
    verb = os.environ.get("CNI_COMMAND", "")
    conf = json.load(sys.stdin)
    script = dict(conf.get("script") or {})
    # VERSION is told no configuration: its script stands beside the plugin.
    for script_file in (conf.get("script_file"), f"{sys.argv[0]}.json"):
        if script_file and os.path.exists(script_file):
            with open(script_file, encoding="utf-8") as file:
                script.update(json.load(file))
    if "record" in script:
        record = {
            "plugin": os.path.basename(sys.argv[0]),
            "verb": verb,
            "env": {key: value for key, value in os.environ.items() if key.startswith("CNI_")},
            "names": sorted(os.environ),
            "stdin": conf,
        }
        with open(script["record"], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    step = script.get(verb) or {}
    time.sleep(step.get("delay", 0))
    complaint = touch_lease(verb, script, conf) if step.get("after_effect", True) else None
    if complaint is not None:
        return fail(conf, {"msg": complaint})
    return act(step.get("do", "succeed"), step, verb, conf)


def touch_lease(verb: str, script: dict[str, Any], conf: dict[str, Any]) -> str | None:
    """Do with the lease what the verb asks for; what is wrong with it, if CHECK finds something."""
    if "leases" not in script:
        return None
    if verb == "GC":
        valid = conf["cni.dev/valid-attachments"]
        names = {f"{each['containerID']}-{each['ifname']}" for each in valid}
        for name in set(os.listdir(script["leases"])) - names:
            os.unlink(os.path.join(script["leases"], name))
    if verb not in ("ADD", "DEL", "CHECK"):
        return None
    name = f"{os.environ['CNI_CONTAINERID']}-{os.environ['CNI_IFNAME']}"
    lease = os.path.join(script["leases"], name)
    if verb == "ADD":
        with open(lease, "x", encoding="utf-8"):
            pass
    elif verb == "CHECK":
        return None if os.path.exists(lease) else f"the lease of {name} is gone"
    elif os.path.exists(lease):
        os.unlink(lease)
    return None


def act(do: str, step: dict[str, Any], verb: str, conf: dict[str, Any]) -> int:
    if do == "succeed":
        if verb == "ADD":
            print(json.dumps(step.get("result") or conf.get("prevResult") or make_result(conf)))
        elif verb == "VERSION":
            versions = step.get("versions", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
            print(json.dumps({"cniVersion": conf["cniVersion"], "supportedVersions": versions}))
        return 0
    if do == "fail":
        return fail(conf, step)
    if do == "die":
        sys.stderr.write(step.get("stderr", "it hurts\n"))
        return int(step.get("status", 3))
    if do == "garbage":
        print(step.get("text", "not json"))
        return int(step.get("status", 0))
    if do == "silent":
        return 0
    if do == "flood":
        for _ in range(step.get("bytes", 64 << 20) >> 16):
            sys.stdout.write("x" * (1 << 16))
        return 0
    if do == "hang":
        if step.get("helper"):
            os.fork()  # both sleep and hold the pipes, as a plugin and its IPAM plugin do
        if "mark" in step:
            with open(step["mark"], "w", encoding="utf-8"):
                pass
        time.sleep(3600)
    if do == "crash":
        os.kill(os.getpid(), step.get("signal", 11))
    raise SystemExit(f"unknown behaviour {do!r}")


def fail(conf: dict[str, Any], step: dict[str, Any]) -> int:
    failure = {"code": 100, "msg": "scripted failure", "details": ""}
    failure.update({key: step[key] for key in failure if key in step})
    print(json.dumps({"cniVersion": conf["cniVersion"], **failure}))
    return 1


def make_result(conf: dict[str, Any]) -> dict[str, Any]:
    version = conf["cniVersion"]
    if version in ("0.1.0", "0.2.0"):
        return {"cniVersion": version, "ip4": {"ip": "10.9.0.2/24", "gateway": "10.9.0.1"}}
    address = {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}
    if version.startswith("0."):
        address["version"] = "4"
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": os.environ["CNI_IFNAME"], "sandbox": os.environ["CNI_NETNS"] or "gone"}
        ],
        "ips": [address],
        "dns": {},
    }


if __name__ == "__main__":
    sys.exit(main())
