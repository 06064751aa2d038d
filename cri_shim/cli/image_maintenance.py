"""`cri-shim image check` and `cri-shim image gc`: finds and repairs damage, and removes unused images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.image_calls import open_images
from cri_shim.cli.output import counted, json_text, printable
from cri_shim.cli.progress import Progress, size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

EXIT_DAMAGED = 1
UNVERIFIED = "unverified"
"""The kind of a finding that is neither known to be sound nor damaged."""


def configure_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument(
        "refs", nargs="*", metavar="REF", help="names, digests or IDs (default: all images)"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="repair damage, from the node's packed layers or from the image's registry",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_check)


def configure_gc(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gc`."""
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    parser.add_argument(
        "--untagged", action="store_true", help="also remove images that have a digest but no tag"
    )
    parser.set_defaults(run=run_gc)


def run_check(arguments: argparse.Namespace) -> int:
    """Check images. Returns 1 if damage is left."""
    progress = Progress(sys.stderr if arguments.json else sys.stdout, keeps_steps=False)
    request = admin.CheckImagesRequest(
        images=[api.ImageSpec(image=ref) for ref in dict.fromkeys(arguments.refs)],
        repair=arguments.repair,
    )
    damages: list[admin.Damage] = []
    checked = admin.CheckedImages()

    def tell(answer: admin.CheckImagesResponse) -> None:
        if answer.HasField("progress"):
            step = answer.progress
            progress.show(step.step, step.done_bytes, step.total_bytes)
        elif answer.HasField("damage"):
            damages.append(answer.damage)
        else:
            checked.CopyFrom(answer.checked)

    try:
        with open_images(arguments) as images, images.errors("cannot check the images"):
            images.check_images(request, tell)
    finally:
        progress.close()
    if arguments.json:
        print(json_text(document_of(checked, damages)))
    else:
        for line in report(checked, damages, was_repair=arguments.repair):
            progress.say(line)
    return 0 if checked.sound else EXIT_DAMAGED


def report(
    checked: admin.CheckedImages, damages: Sequence[admin.Damage], *, was_repair: bool
) -> list[str]:
    """The result of a check: a line for each damage, the sums, and the remedy."""
    lines = []
    for damage in damages:
        state = "repaired" if damage.repaired else damage.kind
        line = (
            f"{state}: {damage.object} of {', '.join(damage.images) or 'no image'}: {damage.detail}"
        )
        lines.append(line + (f"; not repaired: {damage.reason}" if damage.reason else ""))
    left = sum(not damage.repaired and damage.kind != UNVERIFIED for damage in damages)
    lines.append(
        f"checked {counted(checked.images, 'image')}, {counted(checked.layers, 'layer')} and "
        f"{counted(checked.blobs, 'blob')} ({size_text(checked.bytes)}): "
        + ("no damage" if checked.sound and not left else f"{counted(left, 'damage')} left")
    )
    if not checked.sound and not was_repair:
        lines.append("to repair it: cri-shim image check --repair")
    return lines


def document_of(checked: admin.CheckedImages, damages: Sequence[admin.Damage]) -> dict[str, object]:
    """The result of a check as a JSON document."""
    return {
        "sound": checked.sound,
        "images": checked.images,
        "layers": checked.layers,
        "blobs": checked.blobs,
        "bytes": checked.bytes,
        "damages": [
            {
                "kind": damage.kind,
                "object": damage.object,
                "images": list(damage.images),
                "detail": damage.detail,
                "repaired": damage.repaired,
                "reason": damage.reason,
            }
            for damage in damages
        ],
    }


def run_gc(arguments: argparse.Namespace) -> int:
    """Remove unused images and leftovers."""
    request = admin.CollectImagesRequest(dry_run=arguments.dry_run, untagged=arguments.untagged)
    with open_images(arguments) as images, images.errors("cannot collect images"):
        collected = images.collect_images(request)
    verb = "would remove" if arguments.dry_run else "removed"
    for name in collected.images:
        print(f"{verb} {printable(name)}")
    things = ", ".join(
        [
            counted(len(collected.images), "image"),
            counted(collected.layers, "layer"),
            counted(collected.blobs, "blob"),
            counted(collected.leftovers, "leftover"),
        ]
    )
    print(f"{verb} {things}: {size_text(collected.freed_bytes)}")
    return 0
