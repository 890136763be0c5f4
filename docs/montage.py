"""Draw docs/montage.png, the README's image: the shipped encounters as served by the mirror.

python docs/montage.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from galmerhpc.preview import Preview
from galmerhpc.simulate.library import Library, library_path
from galmerhpc.simulate.render import render

TIME_MYR, THETA, PHI = 100.0, 30.0, 60.0
SIDE, GAP = 220, 4


def main() -> None:
    """Draw one row per spin and one column per inclination, for realisation 0."""
    with Library(library_path("shipped")) as library:
        snapshots = [library.snapshot(number) for number in library.snapshot_ids]
    chosen = [s for s in snapshots if s.time_myr == TIME_MYR and s.attributes["realisation"] == 0]
    columns = len(chosen) // 2
    sheet = Image.new("L", (columns * (SIDE + GAP) - GAP, 2 * (SIDE + GAP) - GAP), 255)
    for k, snapshot in enumerate(chosen):
        preview = Preview(
            nbins=400, snap_id=snapshot.snapshot_id, phi=PHI, theta=THETA, bins=1 / 6, bri=4, xc=0,
            yc=0, gas=True, stars=True, halo=False, quantity=0,
        )  # fmt: skip
        picture = Image.fromarray(np.asarray(render(snapshot, preview)))
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        text = f"{snapshot.attributes['spin']}, i = {snapshot.attributes['inclination_deg']:g}"
        ImageDraw.Draw(picture).text((8, 6), text, fill=255)
        sheet.paste(picture, ((k % columns) * (SIDE + GAP), (k // columns) * (SIDE + GAP)))
    sheet.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
