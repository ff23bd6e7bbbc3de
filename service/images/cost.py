"""What an image will cost to unpack, from its header: seconds of a slow core, measured, on the safe side.

docs/faults.md has the measurements. How fast a machine really is, the decoder learns as it goes; what is refused for
its cost does not depend on that.
"""

IMAGE_S = 0.0003  # of any image, however small
SCAN_NS = 0.8  # a pixel, for each pass of a progressive JPEG over it
WHITE_NS = 14.0  # a pixel, in front of white where it is transparent
DEEP = 2.5  # times as much for 16 bits
# Nanoseconds a pixel by its kind and bands, and a byte of the file.
PIXEL_NS = {"JPEG": (6.0, 8.0, 8.0, 18.0), "PNG": (7.0, 13.0, 14.0, 14.0), "WEBP": (20.0,) * 4}
OTHER_PIXEL_NS = (9.0,) * 4
BYTE_NS = {"JPEG": 12.0, "PNG": 5.0, "WEBP": 25.0, "GIF": 8.0}
PROGRESSIVE_BYTE_NS = 40.0
OTHER_BYTE_NS = 1.0
BANDS = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def decode_s(
    kind: str, mode: str, *, pixels: int, file_bytes: int, transparent: bool, deep: bool, scans: int = 0
) -> float:
    """Seconds of one core, for everything that is done to the image.

    kind and mode: Pillow's names. deep: 16 bits a band. scans: of a progressive JPEG, else 0.
    """
    kind = "JPEG" if kind == "MPO" else kind
    pixel_ns = PIXEL_NS.get(kind, OTHER_PIXEL_NS)[BANDS.get(mode, 1) - 1]
    byte_ns = PROGRESSIVE_BYTE_NS if scans else BYTE_NS.get(kind, OTHER_BYTE_NS)
    if deep:
        pixel_ns *= DEEP
    if transparent:
        pixel_ns += WHITE_NS
    pixel_ns += SCAN_NS * scans
    return IMAGE_S + (pixels * pixel_ns + file_bytes * byte_ns) / 1e9
