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
