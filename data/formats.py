"""Which files are pictures: endings that Pillow reads (or a plugin of it), and the formats that are never opened.

Left out of Pillow's own list are formats that are no pictures of pixels (EPS, PDF, WMF: drawings, the first of which
would start an interpreter) and those that it names without reading them (BUFR, GRIB, HDF5, MPEG).
"""

# What a shard holds, in the order in which a sample with several pictures is read.
STORED = ("webp", "png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff")
# Read by Pillow, and stored anew.
OTHERS = (
    *("jpe", "jfif", "apng", "avif", "avifs", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "mpo", "qoi"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "tga", "icb", "vda", "vst", "dib", "ico", "cur", "icns", "pcx", "dcx"),
    *("psd", "sgi", "rgb", "rgba", "bw", "ras", "im", "msp", "xbm", "xpm", "dds", "pcd", "pxr", "blp", "ftc", "ftu"),
    *("fli", "flc", "gbr", "fit", "fits"),
)
# Read by a plugin of Pillow: ending -> name of our extra.
BY_EXTRA = {"heic": "heic", "heif": "heic", "hif": "heic", "jxl": "jxl"}
ENDINGS = frozenset((*STORED, *OTHERS, *BY_EXTRA))


def ending(name: str) -> str:
    """The ending of a file's name in lower case without its dot, "" if there is none."""
    stem, dot, last = name.rpartition(".")
    return last.lower() if dot and stem else ""


def is_picture(name: str) -> bool:
    """Whether a file of this name should be a picture; hidden files (".DS_Store", "._a.png") are none."""
    return not name.startswith(".") and ending(name) in ENDINGS


# Names of the formats as Pillow and its plugins have them, the only ones that are opened.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "MPO", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "CUR"),
    *("ICNS", "PCX", "DCX", "PSD", "SGI", "SUN", "IM", "MSP", "XBM", "XPM", "DDS", "PCD", "PIXAR", "BLP", "FTEX"),
    *("FLI", "GBR", "FITS", "TGA", "HEIF", "JXL"),
)
PLUGINS = {"heic": "pillow_heif", "jxl": "pillow_jxl"}  # by our extra
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


def extra_for(start: bytes) -> str | None:
    """Our extra that reads a picture beginning with these bytes; None if none of them does."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "heic"
    return "jxl" if start.startswith(JXL_STARTS) else None
