"""Images per second of the course's training loader against a hand-written PyTorch Dataset and DataLoader.

    python benchmarks/data_speed.py                  # embedded synthetic data, one thread, no worker processes
    python benchmarks/data_speed.py --data FOLDER    # another data set folder
    python benchmarks/data_speed.py --json           # the last line is a JSON list of [figure, target, measured]

Both do the same work: shuffle, decode, resize, look up 14 findings, make a batch, divide by 255, one random affine map
and one random exposure an image. They run in this process, in turn, in blocks of a few batches that are long
enough to time and short enough to share a noisy machine's moods; the figures are medians over the blocks.
Two cases: every image decoded and resized (a first epoch, or a set too large for memory), and images held in memory
as `uint8` by both (all later epochs). Target: a ratio of at least 0.95. For orientation, the usual loop with
torchvision's transforms item by item is timed too.
"""
import argparse
import json
import random
import statistics
import time
import warnings

warnings.filterwarnings('ignore')
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from chestnb.data.augment import affine_maps, change_exposure
from chestnb.data.datablock import chest_dataloaders
from chestnb.data.loaders import image_reader
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split


class PlainImages(Dataset):
    "What one would write by hand: a path, a PIL image, a tensor; remembered in a list if asked."
    def __init__(self, paths, targets, image_size, remember, transform=None):
        self.paths, self.targets, self.size, self.transform = paths, torch.tensor(targets), image_size, transform
        self.memory = [None]*len(paths) if remember else None
    def __len__(self): return len(self.paths)
    def decode(self, i):
        with Image.open(self.paths[i]) as image: image = image.convert('L')
        if image.size != (self.size, self.size): image = image.resize((self.size, self.size), Image.BILINEAR)
        return self.transform(image) if self.transform else torch.from_numpy(np.array(image)[None])
    def __getitem__(self, i):
        if self.memory is None: return self.decode(i), self.targets[i]
        if self.memory[i] is None: self.memory[i] = self.decode(i)
        return self.memory[i], self.targets[i]


def plain_batches(loader):
    "The batch work of the hand-written loop."
    for x, y in loader:
        x, draws = x.float().div_(255), torch.rand(7, len(x))*2 - 1
        grid = F.affine_grid(affine_maps(draws[:4]), list(x.shape), align_corners=False)
        yield change_exposure(F.grid_sample(x, grid, padding_mode='border', align_corners=False), draws[4:]), y


def item_transforms():
    "The usual torchvision chain, one image at a time."
    from torchvision import transforms as T
    return T.Compose([T.RandomAffine(7, translate=(.05, .05), scale=(.92, 1.08), interpolation=T.InterpolationMode.BILINEAR),
                      T.ColorJitter(brightness=.1, contrast=.2), T.ToTensor()])


def endless(start_pass):
    "Pass after pass: the cost of starting one (a new order) is timed with the rest."
    while True: yield from start_pass()


def images_per_second(batches, n_batches):
    "Of the next batches."
    started = time.perf_counter()
    n = sum(len(next(batches)[0]) for _ in range(n_batches))
    return n/(time.perf_counter() - started)


def measure(dataset, image_size, remember, blocks, batch_size, threads, n_batches=4):
    "Median images per second of each way, and the median of the ratios block by block."
    torch.set_num_threads(threads)
    split = patient_split(dataset.table, seed=0)
    names = images_in(split, 'train')
    dls = chest_dataloaders(dataset, split, image_size=image_size, batch_size=batch_size, device='cpu')
    if not remember:
        reader = image_reader(dls)
        reader.is_cached = False
        reader.forget()
    paths, targets = [str(dataset.image_path(name)) for name in names], dataset.targets(names)
    def loader(transform=None):
        return DataLoader(PlainImages(paths, targets, image_size, remember and not transform, transform), batch_size, shuffle=True, drop_last=True)
    plain, items = loader(), loader(item_transforms())
    ways = {'chestnb': lambda: dls.train, 'plain PyTorch': lambda: plain_batches(plain), 'torchvision item by item': lambda: items}
    for start_pass in ways.values():
        for _ in start_pass(): pass # a pass to warm up, and to fill both memories
    streams, speeds = {way: endless(start_pass) for way, start_pass in ways.items()}, {way: [] for way in ways}
    for block in range(blocks):
        for way in (list(ways) if block % 2 else list(ways)[::-1]): # who goes first takes turns
            speeds[way].append(images_per_second(streams[way], n_batches))
    ratio = statistics.median(a/b for a, b in zip(speeds['chestnb'], speeds['plain PyTorch']))
    return {way: statistics.median(values) for way, values in speeds.items()}, ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', default=None, help='a data set folder; the embedded synthetic one if left out')
    parser.add_argument('--image-size', type=int, default=96, help='pixels, smaller than the images so that they are resized')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--blocks', type=int, default=75, help='timed blocks of four batches, of each way')
    parser.add_argument('--threads', type=int, default=1, help='threads of PyTorch')
    parser.add_argument('--json', action='store_true', help='end with a JSON list of rows')
    arguments = parser.parse_args()
    random.seed(0), torch.manual_seed(0)
    dataset = ChestDataset(arguments.data or embedded_dataset())
    rows = []
    for remember, case in ((False, 'decoded at each read'), (True, 'held in memory')):
        speeds, ratio = measure(dataset, arguments.image_size, remember, arguments.blocks, arguments.batch_size, arguments.threads)
        rows += [[f'training batches, images {case}: images/s, {way}', '-', f'{speed:,.0f}'] for way, speed in speeds.items()]
        rows += [[f'training batches, images {case}: chestnb / plain PyTorch', 'at least 0.95', f'{ratio:.2f}']]
    print(f'{len(dataset):,} images ({dataset.title_note}), {arguments.image_size} px, batches of {arguments.batch_size}, '
          f'{arguments.threads} thread(s), median of {arguments.blocks} blocks\n')
    print('| figure | target | measured |\n|---|---|---|')
    for row in rows: print('| ' + ' | '.join(row) + ' |')
    if arguments.json: print(json.dumps(rows))


if __name__ == '__main__': main()
