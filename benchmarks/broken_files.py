"""Twenty-odd kinds of broken and odd files among 400 good ones: does training go to its end, and is each told in words?

python benchmarks/broken_files.py [/scratch/folder] [--workers 2] [--quick]

Two files of each kind, about a tenth of the folder; one kind is deleted while the run trains. Run by root, it gives up root's right to
read every file (by util-linux' setpriv). The CSV has a row a kind: what was expected, what `broken.csv` said.
"""

import argparse
import csv
import io
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
from common import machine, parse, work_in, write_rows
from PIL import Image
from sklearn.datasets import load_sample_images

PHOTOS = [np.ascontiguousarray(x) for x in load_sample_images().images]


def photo(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    source = PHOTOS[rng.integers(2)]
    top, left = rng.integers(source.shape[0] - size), rng.integers(source.shape[1] - size)
    return source[top : top + size, left : left + size]


def encoded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **settings)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    lines = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", lines)


def rotated(jpeg: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.open(io.BytesIO(jpeg)), exif=exif)


def kinds(rng: np.random.Generator) -> dict[str, tuple[str, object, str]]:
    """Name of the kind -> (ending, content or what to make, `broken` or `read`)."""
    rgb = photo(rng)
    jpeg, png, image = encoded(rgb), encoded(rgb, "PNG"), Image.fromarray(rgb)
    deep = (rgb.astype(np.uint16) << 8) + 77
    palette = image.quantize(32)
    objects = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 5)}".ljust(118)
    return {
        "empty": ("jpg", b"", "broken"),
        "cut in half": ("jpg", jpeg[: len(jpeg) // 2], "broken"),
        "last bytes missing": ("jpg", jpeg[:-400], "broken"),
        "header only": ("jpg", jpeg[:200], "broken"),
        "PNG cut in half": ("png", png[: len(png) // 2], "broken"),
        "web page named .jpg": ("jpg", b"<!DOCTYPE html><html><body>404</body></html>", "broken"),
        "text named .png": ("png", b"no picture at all, just words", "broken"),
        "zip archive named .jpg": ("jpg", b"PK\x03\x04" + b"x" * 500, "broken"),
        "zeros": ("jpg", b"\0" * 4000, "broken"),
        "header of 60,000x60,000": ("png", png_header(60_000, 60_000), "broken"),
        "decompression bomb": ("png", png_header(25_000, 25_000), "broken"),
        "no permission": ("jpg", "no permission", "broken"),
        "dangling link": ("jpg", "dangling link", "broken"),
        "link to itself": ("jpg", "link to itself", "broken"),
        "named pipe": ("jpg", "named pipe", "broken"),
        "array of objects": ("npy", objects, "broken"),
        "deleted while training": ("jpg", "deleted", "broken"),
        "folder named x.jpg": ("jpg", "folder", "read"),
        "PNG named .jpg": ("jpg", png, "read"),
        "CMYK": ("jpg", encoded(image.convert("CMYK")), "read"),
        "16-bit TIFF": ("tiff", cv2.imencode(".tiff", deep)[1].tobytes(), "read"),
        "16-bit grey PNG": ("png", cv2.imencode(".png", deep[..., 0])[1].tobytes(), "read"),
        "palette with alpha": ("png", encoded(palette, "PNG", transparency=3), "read"),
        "grey with alpha": ("png", encoded(image.convert("LA"), "PNG"), "read"),
        "EXIF rotation": ("jpg", rotated(jpeg), "read"),
        "animated GIF": ("gif", encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]), "read"),
        "one pixel": ("png", encoded(rgb[:1, :1], "PNG"), "read"),
        "1-bit": ("png", encoded(image.convert("1"), "PNG"), "read"),
    }  # fmt: skip


def make(root: Path, rng: np.random.Generator, good: int) -> dict[str, list[Path]]:
    """The folder; the files of each kind."""
    for i in range(good):
        folder = root / f"{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"good_{i:03d}.jpg").write_bytes(encoded(photo(rng)))
    made: dict[str, list[Path]] = {}
    for copy in range(2):
        for name, (ending, content, _) in kinds(rng).items():
            path = root / str(copy) / f"{name.replace(' ', '_').replace(',', '')}.{ending}"
            made.setdefault(name, []).append(path)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content == "dangling link":
                path.symlink_to(root / "nowhere.jpg")
            elif content == "link to itself":
                path.symlink_to(path)
            elif content == "named pipe":
                os.mkfifo(path)
            elif content == "folder":
                path.mkdir()
                (path / "inside.png").write_bytes(encoded(photo(rng), "PNG"))
                made[name][-1] = path / "inside.png"
            else:
                path.write_bytes(encoded(photo(rng)))
                if content == "no permission":
                    path.chmod(0)
    return made


def workers_left(run: Path) -> list[int]:
    """Processes that still belong to the run."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (proc / "cmdline").read_bytes():
                found.append(int(proc.name))
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="emptied first (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="among 160 good files, to see that it runs")
    args = parse(parser, __file__)
    with work_in(args.folder) as work:
        sys.exit(measure(work, args))


def measure(work: Path, args: argparse.Namespace) -> int:
    """The exit status: 0 if everything was as expected."""
    shutil.rmtree(work, ignore_errors=True)
    photos, run = work / "photos", work / "run"
    made = make(photos, np.random.default_rng(0), good=160 if args.quick else 400)
    expected = {name: what for name, (_, _, what) in kinds(np.random.default_rng(0)).items()}
    # root may read every file, unless it gives that right up
    drop = "-dac_override,-dac_read_search"
    unprivileged = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"] if os.geteuid() == 0 else []
    words = [
        *unprivileged, sys.executable, "-m", "visiontune.fit", "pretrain/simclr", f"data.train={photos}", "data.image_size=64",
        "data.batch_size=32",
        f"data.workers={args.workers}", "data.max_broken=0.3", "epochs=4", "backbone.name=convnext_atto", "trainer.accelerator=cpu",
        "backbone.args={dims: [8, 16, 16, 32], depths: [1, 1, 1, 1]}", "optim.name=adamw", "optim.lr=1e-3", "trainer.devices=1",
        "trainer.log_every_n_steps=1", "--out", str(run),
    ]  # fmt: skip
    home = {"HOME": str(work), "VISIONTUNE_CACHE": str(work / "cache"), "MPLCONFIGDIR": str(work / "matplotlib")}
    process = subprocess.Popen(words, env=os.environ | home, cwd=work)
    metrics = run / "metrics.csv"
    while process.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        time.sleep(0.1)
    for path in made["deleted while training"]:
        path.unlink()
    status = process.wait()
    time.sleep(1)
    left = workers_left(run)
    with (run / "broken.csv").open(newline="", errors="surrogateescape") as file:
        causes = {row["path"]: row["cause"] for row in csv.DictReader(file)}
    rows = []
    for name, paths in made.items():
        told = [causes.get(str(p), "") for p in paths]
        good = all(told) if expected[name] == "broken" else not any(told)
        row = {"kind": name, "expected": expected[name], "as_expected": good, "cause_in_broken_csv": told[0]}
        rows.append(row | {"exit_status": status, "processes_left": len(left), "workers": args.workers} | machine())
        write_rows(args.csv, rows)
    others = [p for p in causes if p not in {str(p) for paths in made.values() for p in paths}]
    print(f"exit status {status}, {len(left)} processes left, {sum(r['as_expected'] for r in rows)} of {len(rows)} kinds as expected")
    print(f"{len(others)} other files in broken.csv: {others}")
    return 0 if status == 0 and not left and not others and all(r["as_expected"] for r in rows) else 1


if __name__ == "__main__":
    main()
