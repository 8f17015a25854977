"""Batches from a pack against reading the PNGs, packing against decoding, the start on all of NIH, and cold random reading.

    python benchmarks/pack_speed.py           # prints one Markdown table
    python benchmarks/pack_speed.py --views   # only the feed of two views
    python benchmarks/pack_speed.py --json    # the last line is a JSON list of [figure, target, measured]

The originals are real NIH images of 1024×1024 pixels in ../shared/nih/originals_1024 beside the repository, repeated under
new names (links) to the size that a measurement needs; without them those rows say so. What is compared is the same end
product on all sides: a batch of 32 float32 images (32,1,224,224), in 0..1, in random order, with its labels, no
augmentation. torchxrayvision's `NIH_Dataset` runs with XRayCenterCrop and XRayResizer(224) behind a plain PyTorch
DataLoader; fastai is ImageBlock(PILImageBW), MultiCategoryBlock, Resize(224). Everything is warm in the page
cache; sides take turns, figures are medians over rounds, one PyTorch thread.

The start is measured in a process of its own, on the real 112,120 names with files of 16×16 pixels and a sparse pack (its
size and index are real, its pixels zeros): from opening the folder to the first augmented training batch of 32, imports
apart. Peak memory is the process's VmHWM, the libraries of PyTorch among it. Cold reading drops the file from the page
cache first (posix_fadvise, no root); a virtual disk's host may still cache it.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from PIL import Image

from chestnb.data.loaders import image_dataloader
from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.data.nih import nih_metadata
from chestnb.data.tables import torchxrayvision_file, write_metadata
from chestnb.data.pack import Pack, block_shuffle, pack_header, pack_images
from chestnb.data.squares import Crop
from chestnb.data.views import define_view, view_crops

ORIGINALS = Path(__file__).resolve().parent.parent.parent/'shared'/'nih'/'originals_1024'
SIZE, BATCH, CORES = 224, 32, 2


def drop_from_cache(path):
    "Ask the kernel to forget a file's pages, so that the next reading comes from the disk; needs no root."
    if not hasattr(os, 'posix_fadvise'): raise SystemExit('This system cannot drop a file from its cache (no posix_fadvise).')
    with open(path, 'r+b') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def repeated_originals(folder, n):
    "A data set of `n` names that are links to the real originals."
    import pandas as pd
    (folder/'images').mkdir(parents=True)
    table, files = nih_metadata().set_index('image', drop=False), sorted(ORIGINALS.glob('*.png'))
    rows = []
    for i in range(n):
        file = files[i % len(files)]
        name = f'{file.stem}_{i//len(files):02}.png'
        os.symlink(file, folder/'images'/name)
        rows.append(table.loc[[file.name]].assign(image=name))
    write_metadata(pd.concat(rows, ignore_index=True), folder/'data.csv')
    return ChestDataset(folder)


def per_second(batches, n):
    "Images/s of the next `n` images of an endless stream."
    started, seen = time.perf_counter(), 0
    while seen < n: seen += next(batches)
    return seen/(time.perf_counter() - started)


def endless(make):
    while True:
        for batch in make(): yield len(batch)


def packed_batches(dataset, workers=0, repeat=1, size=SIZE, views=('whole',)):
    names = list(dataset.table.image)*repeat
    random.Random(0).shuffle(names)
    loader = image_dataloader(dataset, names, image_size=size, batch_size=BATCH, views=views, num_workers=workers, device='cpu')
    return lambda: (x for x, _ in loader)


define_view('box', lambda dataset: Crop('box', {'box': [.15, .1, .85, .8]}, lambda image: (15, 10, 85, 80, 100, 100))) # as large as lungs are


def view_rows(dataset, rounds):
    "Two views, each from its pack, against one pack with twice as many pixels an image."
    double = round(SIZE*2**.5) # 317² is twice 224²
    for size, views in ((SIZE, ('whole', 'box')), (double, ('whole',))):
        for crop in view_crops(dataset, views): pack_images(dataset, size, workers=CORES, progress=False, crop=crop)
    streams = {'two views': endless(packed_batches(dataset, repeat=20, views=('whole', 'box'))), 'one pack': endless(packed_batches(dataset, repeat=20, size=double))}
    speeds = {way: [] for way in streams}
    for batches in streams.values(): per_second(batches, 640) # warm up
    for turn in range(4*rounds): # short turns, who goes first changes
        for way in (list(streams) if turn % 2 else list(streams)[::-1]): speeds[way].append(per_second(streams[way], 3200))
    yield f'batches of two views at {SIZE}², single process: images/s', '-', f"{statistics.median(speeds['two views']):,.0f}"
    yield f'batches of one view at {double}², as many bytes: images/s', '-', f"{statistics.median(speeds['one pack']):,.0f}"
    yield 'two views / one pack twice the size', 'at least 0.90', f"{statistics.median(a/b for a, b in zip(speeds['two views'], speeds['one pack'])):.2f}"


def torchxrayvision_batches(folder):
    import torchxrayvision as xrv
    from torchvision.transforms import Compose
    dataset = xrv.datasets.NIH_Dataset(str(folder/'images'), csvpath=str(folder/'data.csv'), views=['PA', 'AP'], unique_patients=False,
                                       transform=Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(SIZE)]))
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)
    return lambda: (sample['img'] for sample in loader)


def fastai_batches(dataset, workers):
    from fastai.vision.all import DataBlock, ImageBlock, MultiCategoryBlock, PILImageBW, RandomSplitter, Resize
    table = dataset.table.set_index('image')
    labels = {name: [finding for finding in FINDINGS if row[finding]] for name, row in table.iterrows()}
    block = DataBlock(blocks=(ImageBlock(PILImageBW), MultiCategoryBlock(vocab=list(FINDINGS))), get_x=lambda name: dataset.image_path(name), get_y=lambda name: labels[name],
                      splitter=RandomSplitter(.02, seed=0), item_tfms=Resize(SIZE))
    dls = block.dataloaders(list(table.index), bs=BATCH, num_workers=workers, device='cpu')
    return lambda: (x for x, _ in dls.train)


def batch_rows(dataset, folder, rounds):
    "Packed batches against torchxrayvision and fastai, no worker processes."
    ways = {'pack': (endless(packed_batches(dataset, repeat=20)), 6400), 'torchxrayvision': (endless(torchxrayvision_batches(folder)), 32),
            'fastai': (endless(fastai_batches(dataset, 0)), 64)}
    speeds = {way: [] for way in ways}
    for batches, n in ways.values(): per_second(batches, min(n, 64)) # warm up
    for _ in range(rounds):
        for way, (batches, n) in ways.items(): speeds[way].append(per_second(batches, n))
    for way in ways: yield f'batches at 224², single process: images/s, {way}', '-', f'{statistics.median(speeds[way]):,.0f}'
    for way, target in (('torchxrayvision', 200), ('fastai', 30)):
        ratio = statistics.median(a/b for a, b in zip(speeds['pack'], speeds[way]))
        yield f'batches at 224², single process: pack / {way}', f'at least {target}', f'{ratio:,.0f}'


def worker_rows(dataset, rounds):
    "The same with two reading threads (chestnb) and two worker processes (fastai), whole passes: starting them is part of them."
    ways = {'pack': (packed_batches(dataset, 2, repeat=40), 40*len(dataset)), 'fastai': (fastai_batches(dataset, 2), None)}
    speeds = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (make, _) in ways.items():
            started = time.perf_counter()
            n = sum(len(x) for x in make())
            speeds[way].append(n/(time.perf_counter() - started))
    for way in ways: yield f'batches at 224², two readers: images/s, {way}', '-', f'{statistics.median(speeds[way]):,.0f}'
    ratio = statistics.median(a/b for a, b in zip(speeds['pack'], speeds['fastai']))
    yield 'batches at 224², two readers: pack / fastai', 'at least 30', f'{ratio:,.0f}'


def only_decode(paths):
    for path in paths:
        with Image.open(path) as image: image.load()


def packing_rows(dataset, folder, rounds):
    "Packing against decoding alone, both in two processes."
    paths, packing, decoding = [str(dataset.image_path(name)) for name in dataset.table.image], [], []
    def decode():
        with ProcessPoolExecutor(CORES) as pool: list(pool.map(only_decode, [paths[i:i + 64] for i in range(0, len(paths), 64)]))
    def pack():
        shutil.rmtree(folder/'packs', ignore_errors=True)
        pack_images(dataset, SIZE, workers=CORES, progress=False)
    for _ in range(rounds):
        for call, times in ((decode, decoding), (pack, packing)):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    n = len(paths)
    yield 'decoding alone, two processes: images/s', '-', f'{n/statistics.median(decoding):.0f}'
    yield 'packing, two processes: images/s', '-', f'{n/statistics.median(packing):.0f}'
    yield 'packing / decoding alone', 'at least 0.85', f'{statistics.median(a/b for a, b in zip(decoding, packing)):.2f}'


START = '''
import sys, time, warnings
warnings.filterwarnings('ignore')
began = time.perf_counter()
import torch
from chestnb.data.dataset import ChestDataset
from chestnb.data.official import official_split
from chestnb.data.datablock import chest_dataloaders
from chestnb.data.loaders import image_reader
torch.set_num_threads(1)
opened = time.perf_counter()
dataset = ChestDataset(sys.argv[1])
dls = chest_dataloaders(dataset, official_split(dataset.table), image_size=224, batch_size=32, device='cpu')
next(iter(dls.train))
done = time.perf_counter()
assert image_reader(dls).packs[0]
peak = next(int(line.split()[1]) for line in open('/proc/self/status') if 'VmHWM' in line)
print(opened - began, done - opened, peak*1024/1e9)
'''


def all_of_nih(folder):
    "The real 112,120 names with tiny files, and a sparse pack."
    import gzip, io
    (folder/'images').mkdir(parents=True)
    (folder/'packs').mkdir()
    (folder/'data.csv').write_bytes(gzip.decompress(torchxrayvision_file('Data_Entry_2017_v2020.csv.gz').read_bytes()))
    png = io.BytesIO()
    Image.new('L', (16, 16), 90).save(png, 'PNG')
    for name in nih_metadata().image.tolist(): (folder/'images'/name).write_bytes(png.getvalue())
    dataset = ChestDataset(folder)
    header = pack_header(dataset, SIZE)
    np.lib.format.open_memmap(folder/'packs'/header['data'], 'w+', np.uint8, (len(dataset), SIZE, SIZE))
    (folder/'packs'/f'{SIZE}.json').write_text(json.dumps(header | {'sha256': ['']*-(-len(dataset)//64)}))


def start_rows(folder, rounds):
    all_of_nih(folder)
    runs = [list(map(float, subprocess.run([sys.executable, '-c', START, str(folder)], capture_output=True, text=True, check=True).stdout.split()))
            for _ in range(rounds)]
    imports, start, peak = (statistics.median(column) for column in zip(*runs))
    yield 'start to first batch, 112,120 rows, sparse pack, official split: seconds', 'under 3', f'{start:.2f} (imports before it: {imports:.1f})'
    yield 'start to first batch, 112,120 rows: peak memory, GB', 'under 1', f'{peak:.2f}'


def cold_rows(folder, rounds, n=20_000, read=3200):
    "Random reading of an array of noise (1 GB), cold and warm."
    folder.mkdir()
    squares, rng = np.lib.format.open_memmap(folder/'noise.npy', 'w+', np.uint8, (n, SIZE, SIZE)), np.random.default_rng(0)
    for start in range(0, n, 500): squares[start:start + 500] = rng.integers(0, 256, (500, SIZE, SIZE), np.uint8)
    del squares
    index = dict(recipe={'size': SIZE}, key='', data='noise.npy', images=[str(i) for i in range(n)], bytes=[0]*n, mtimes_ns=[0]*n, skipped={}, sha256=[])
    (folder/f'{SIZE}.json').write_text(json.dumps(index))
    full = random.Random(0).sample(range(n), n)
    blocks = block_shuffle(n, 256, random.Random(0))
    def rate(order, cold=True, advise=True, read_ahead=0):
        if cold: drop_from_cache(folder/'noise.npy')
        pack = Pack(folder/f'{SIZE}.json')
        pack.read_ahead = read_ahead
        if not advise: pack.advise = lambda rows: None
        started = time.perf_counter()
        for first in range(0, read, 64): pack.batch(order[first:first + 64])
        return read/(time.perf_counter() - started)
    ways = {'full shuffle, cold, page by page': dict(order=full, advise=False), 'full shuffle, cold, a batch\'s requests at once (default)': dict(order=full),
            'shuffle_block=256, cold': dict(order=blocks, read_ahead=256), 'in file order, cold': dict(order=list(range(n))),
            'full shuffle, warm': dict(order=full, cold=False)}
    for way, how in ways.items():
        yield f'reading 224² squares in batches of 64: images/s, {way}', 'measured', f'{statistics.median(rate(**how) for _ in range(rounds)):,.0f}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5, help='measurements of each side')
    parser.add_argument('--images', type=int, default=384, help='names that the 48 originals are repeated to')
    parser.add_argument('--views', action='store_true', help='only the feed of two views')
    parser.add_argument('--json', action='store_true', help='end with a JSON list of rows')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder, rows = Path(folder), []
        if ORIGINALS.is_dir():
            dataset = repeated_originals(folder/'originals', arguments.images)
            if not arguments.views: rows += packing_rows(dataset, folder/'originals', arguments.rounds)
            if not arguments.views: rows += [*batch_rows(dataset, folder/'originals', arguments.rounds), *worker_rows(dataset, arguments.rounds)]
            rows += view_rows(dataset, arguments.rounds)
        else: rows += [('packed batches and packing on real originals', '-', 'not measured: ../shared/nih/originals_1024 is not here')]
        if not arguments.views: rows += [*start_rows(folder/'nih', arguments.rounds), *cold_rows(folder/'cold', arguments.rounds)]
    print('| figure | target | measured |\n|---|---|---|')
    for row in rows: print('| ' + ' | '.join(row) + ' |')
    if arguments.json: print(json.dumps(rows))


if __name__ == '__main__': main()
