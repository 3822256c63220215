"""The gallery shows results of every format in their originals' colours, in a real browser."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_page import Gallery, write
from picture_files import SRGB

from uam_jax.io.encoding import encode_image, encode_preview, needs_shown_copy
from uam_jax.io.formats import WRITTEN
from uam_jax.io.images import Picture, quietly
from uam_jax.jobs.report import render_report

pytestmark = pytest.mark.browser


def fixed(*values: float) -> bytes:
    """Numbers as ICC profiles hold them."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile_of(kind: str) -> bytes | None:
    """No profile, Display P3's primaries, or a grey one of gamma 1.4."""
    if kind == "wide":
        profile = bytearray(SRGB)
        profile[84:100] = bytes(16)  # its checksum
        primaries = {
            b"rXYZ": (0.51512, 0.2412, -0.00105),
            b"gXYZ": (0.29198, 0.69225, 0.04189),
            b"bXYZ": (0.1571, 0.06657, 0.78407),
        }
        for number in range(int.from_bytes(profile[128:132])):
            name, at, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
            if name in primaries:
                profile[at + 8 : at + 20] = fixed(*primaries[name])
        return bytes(profile)
    if kind == "grey":
        white = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.4 * 256)) + bytes(2)
        tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
        head = struct.pack(
            ">I4sI4s4s4s12x4s", 192, b"test", 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp"
        )
        return head + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48) + tags + white + curve
    return None


@pytest.mark.parametrize("suffix", [kind.suffix for kind in WRITTEN.values()])
@pytest.mark.parametrize("profile", ["", "wide", "grey"])
def test_results_of_every_format_are_shown_in_their_originals_colours(
    browser: Any, tmp_path: Path, suffix: str, profile: str
) -> None:
    pixels = np.full((40, 60, 3), 0.2, np.float32)
    if profile != "grey":
        pixels[..., 1:] = -0.6
    like = Picture(pixels, grey=profile == "grey", icc_profile=profile_of(profile))
    output, shown = f"images/a{suffix}", "shown/a.jpg"
    with quietly():
        files = {output: encode_image(output, pixels, like)}
        copied = needs_shown_copy(output, like)
    without = {"": (), "wide": (".bmp",), "grey": (".bmp", ".webp", ".avif")}[profile]
    assert copied == (suffix in (".tiff", ".jp2", ".tga", ".ppm", *without))
    if copied:
        files[shown] = encode_preview(pixels, like)
    files["originals/a.jpg"] = encode_preview(pixels, like)
    row = {
        "id": "a", "status": "ok", "output": output, "shown": shown if copied else None,
        "preview": "originals/a.jpg", "size": "60x40",
    }  # fmt: skip
    gallery = Gallery(browser, write(tmp_path, files | render_report([row], title="t", facts={})))
    gallery.wait_for_pictures("#cards")
    left, right = (gallery.colour("#cards li", at) for at in (0.25, 0.75))
    np.testing.assert_allclose(left, right, atol=2)
    plain = 255 * (pixels[0, 0] + 1) / 2
    assert (np.abs(left - plain).max() > 8) == (profile != "")  # the profile counts
    gallery.find("#cards .target").click()
    gallery.wait_for_pictures("#picture")
    links = gallery.run("return [...document.querySelectorAll('.files a')].map((a) => a.href)")
    assert links[1].endswith(f"/images/a{suffix}")
    assert gallery.complaints() == []
