"""The whole of NIH ChestX-ray14 in rehearsal: the real metadata, generated pixels under all 112,120 names.

    python benchmarks/rehearsal.py                    # about 8 GB of temporary disk; removed at the end
    python benchmarks/rehearsal.py --images 5000      # the first so many only

Steps: write a small PNG under every name (256 synthetic pictures of 128×128 pixels, smooth shapes with grain, repeated over
the names, about 11 kB each), open the folder, pack at 224 pixels, verify the checksums, make the official split and the
loaders, draw one epoch of training batches (64 images, normalised, no model; without augmentation, which is the GPU's work
in earnest), and the same with `shuffle_block`. Real originals are 1024×1024 and take about ten times as long to decode: the
packing time here is not that of real images (benchmarks/pack_speed.py measures their rate).

Prints one Markdown table: step, seconds, peak memory. `VmHWM` counts every page that the process touched, also pages of the
pack itself, which belong to the page cache and are given back under pressure; `anonymous` is what it really owns.
"""
import argparse
import gc
import gzip
import io
import resource
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
from PIL import Image

from chestnb.data.dataset import ChestDataset
from chestnb.data.tables import torchxrayvision_file
from chestnb.data.pack import pack_images, verify_pack
from pack_speed import drop_from_cache

ROWS = []


def status(field):
    "A line of /proc/self/status, in GB."
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field))*1024/1e9


@contextmanager
def step(name):
    "Time a step and its own peak of memory."
    Path('/proc/self/clear_refs').write_text('5') # peak memory counts from here
    started, note = time.perf_counter(), {}
    yield note
    seconds, note = time.perf_counter() - started, '; '.join(f'{key} {value}' for key, value in note.items())
    ROWS.append((name, f'{seconds:.1f}', f"{status('VmHWM'):.2f}", f"{status('RssAnon'):.2f}", note))
    print('| ' + ' | '.join(ROWS[-1]) + ' |', flush=True)


def pictures(n=256, size=128):
    "Bytes of `n` synthetic PNGs."
    rng, made = np.random.default_rng(0), []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        pixels, file = np.asarray(coarse) + rng.normal(0, 3, (size, size)), io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, 'PNG')
        made.append(file.getvalue())
    return made


def write_folder(folder, n):
    "A data set with the real names and labels and generated pixels; bytes written."
    (folder/'images').mkdir()
    lines = gzip.decompress(torchxrayvision_file('Data_Entry_2017_v2020.csv.gz').read_bytes()).decode().splitlines(keepends=True)[:n + 1]
    (folder/'data.csv').write_text(''.join(lines))
    made, total = pictures(), 0
    for i, line in enumerate(lines[1:]):
        total += (folder/'images'/line.split(',', 1)[0]).write_bytes(made[i % len(made)])
    return total


def rehearse(folder, n, workers):
    with step('write PNGs') as note: note['GB'] = f'{write_folder(folder, n)/1e9:.2f}'
    with step('open the folder'): dataset = ChestDataset(folder)
    with step(f'pack at 224, {workers} processes') as note:
        pack = pack_images(dataset, 224, workers=workers)
        note['GB'], note['largest process, GB'] = f'{pack.data_path.stat().st_size/1e9:.2f}', f'{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024/1e9:.2f}'
    with step('verify every checksum'): verify_pack(pack)
    del pack
    with step('import PyTorch and fastai'):
        import torch
        from chestnb.data.datablock import chest_dataloaders
        from chestnb.data.official import official_split
    torch.set_num_threads(1)
    with step('official split') as note:
        split = official_split(dataset.table)
        note.update(split.part.value_counts().items())
    for name, block in (('full shuffle', 0), ('shuffle_block=256', 256)):
        drop_from_cache(next((folder/'packs').glob('224-*.npy')))
        with step(f'loaders and first batch, {name}'):
            dls = chest_dataloaders(dataset, split, image_size=224, batch_size=64, augment=False, shuffle_block=block, device='cpu')
            next(iter(dls.train))
        with step(f'one epoch of training batches from a cold cache, {name}') as note:
            started, seen = time.perf_counter(), sum(len(x) for x, _ in dls.train)
            note['images'], note['images/s'] = f'{seen:,}', f'{seen/(time.perf_counter() - started):,.0f}'
        del dls
        gc.collect() # loaders refer to themselves, and hold the map of the pack


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=112_120, help='so many names')
    parser.add_argument('--workers', type=int, default=2, help='processes that pack')
    parser.add_argument('--at', default=None, help='folder for the temporary files (8 GB); the usual one if left out')
    arguments = parser.parse_args()
    print('| step | seconds | peak memory, VmHWM, GB | anonymous at the end, GB | |\n|---|---|---|---|---|', flush=True)
    folder = Path(tempfile.mkdtemp(dir=arguments.at))
    try: rehearse(folder, arguments.images, arguments.workers)
    finally: shutil.rmtree(folder)


if __name__ == '__main__': main()
