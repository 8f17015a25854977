"""The figure of the start page and the social card, drawn from the embedded SYNTHETIC X-rays: python tools/make_images.py

Run it again when nbs/results/embedded/comparison.csv has changed: the figure remembers the checksum, and tests/test_site.py compares it.
"""
from hashlib import sha256
from pathlib import Path

import matplotlib
matplotlib.use('agg')
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image

from chestnb.core.drawing import BLUE, GREEN, ORANGE
from chestnb.data.dataset import ChestDataset
from chestnb.data.split import patient_split

ROOT = Path(__file__).resolve().parent.parent
IMAGES, SCORES = ROOT/'nbs'/'images', ROOT/'nbs'/'results'/'embedded'/'comparison.csv'
PART_COLOURS = {'train': BLUE, 'valid': GREEN, 'test': ORANGE}
NAVY = '#0b4a75'


def checksum(): return sha256(SCORES.read_bytes()).hexdigest()


def show(ax, path, boxes=()):
    "One X-ray without axes, with boxes."
    ax.imshow(Image.open(path), cmap='gray', vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    for x, y, w, h in boxes: ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=ORANGE, linewidth=2))


def boxed_images(dataset, findings):
    "For each finding an image with that finding alone, and its boxes."
    table, found = dataset.table.set_index('image'), {}
    alone = table[list(dataset.findings)].sum(axis=1) == 1
    for finding in findings:
        boxes = dataset.boxes[dataset.boxes.finding == finding]
        sizes = (boxes.width*boxes.height).groupby(boxes.image).sum()
        name = next(n for n in sizes.sort_values(ascending=False).index if alone[n] and table[finding][n])
        found[finding] = (dataset.image_path(name), boxes[boxes.image == name][['x', 'y', 'width', 'height']].to_numpy())
    return found


def draw_labels(figure, cell, dataset):
    "First panel: two X-rays with labels and boxes."
    axes = cell.subgridspec(2, 1, hspace=.22).subplots()
    for ax, (finding, (path, boxes)) in zip(axes, boxed_images(dataset, ('Cardiomegaly', 'Mass')).items()):
        show(ax, path, boxes)
        ax.set_title(finding, fontsize=11)


def draw_split(figure, cell, dataset):
    "Second panel: three patients, each with all images in one part."
    table = dataset.table.merge(patient_split(dataset.table, seed=0)[['image', 'part']], on='image')
    counts = table.groupby('patient_id').image.count()
    axes = cell.subgridspec(3, 4, hspace=.36, wspace=.06).subplots()
    for row, part in zip(axes, PART_COLOURS):
        patient = next(p for p in counts.index if counts[p] == 4 and (table[table.patient_id == p].part == part).all())
        for ax, name in zip(row, table[table.patient_id == patient].image):
            show(ax, dataset.image_path(name))
            for spine in ax.spines.values(): spine.set(edgecolor=PART_COLOURS[part], linewidth=3)
        row[0].set_title(f'{part}: one patient, four visits', fontsize=10, loc='left', color=PART_COLOURS[part], pad=5)


def draw_scores(figure, cell):
    "Third panel: AUROC of each model with its interval."
    scores = pd.read_csv(SCORES).iloc[::-1].reset_index(drop=True)
    ax = figure.add_subplot(cell)
    ax.errorbar(scores.auroc, scores.index, xerr=[(scores.auroc - scores.auroc_low).clip(lower=0), (scores.auroc_high - scores.auroc).clip(lower=0)], fmt='o', color=NAVY, capsize=4, linewidth=2)
    for i, row in scores.iterrows(): ax.annotate(f'{row.model.split(" on ")[-1]}   {row.auroc:.2f}', (max(row.auroc_low, .52), i), xytext=(0, 9), textcoords='offset points', fontsize=10)
    ax.set(yticks=[], ylim=(-.6, len(scores) - .3), xlim=(.45, 1), xlabel='macro AUROC, test patients')
    for side in ('left', 'top', 'right'): ax.spines[side].set_visible(False)
    ax.grid(axis='x', alpha=.3)


def course_figure(dataset):
    "The figure of the start page."
    figure = plt.figure(figsize=(12, 5), dpi=110)
    grid = figure.add_gridspec(1, 3, width_ratios=(.8, 1.5, 1.5), wspace=.14, left=.02, right=.98, top=.82, bottom=.12)
    draw_labels(figure, grid[0], dataset)
    draw_split(figure, grid[1], dataset)
    draw_scores(figure, grid[2])
    for i, text in enumerate(('1  Images and labels', '2  Patients kept apart', '3  Scores with intervals')):
        figure.text(grid[i].get_position(figure).x0, .92, text, fontsize=14, fontweight='bold', color=NAVY)
    figure.text(.02, .015, 'Every X-ray here is synthetic; intervals are over test patients', fontsize=9.5, color='#444')
    figure.savefig(IMAGES/'course.png', metadata={'Source': checksum()})
    plt.close(figure)


def social_card(dataset):
    "The picture that a link to the course shows."
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=NAVY)
    figure.text(.05, .83, 'chestnb', fontsize=54, fontweight='bold', color='white')
    figure.text(.05, .73, 'Chest X-ray classification, from the labels to a score you may believe', fontsize=22, color='white')
    shown = boxed_images(dataset, ('Cardiomegaly', 'Mass', 'Pneumothorax', 'Effusion'))
    for i, (finding, (path, boxes)) in enumerate(shown.items()):
        ax = figure.add_axes((.05 + .2275*i, .17, .2075, .48))
        show(ax, path, boxes)
        ax.set_title(finding, fontsize=15, color='white')
    figure.text(.05, .06, 'Eleven lessons with exercises, in notebooks that export their own library', fontsize=18, color='white')
    figure.text(.94, .062, 'synthetic X-rays', ha='right', fontsize=13, color='#cfe3f2')
    figure.savefig(IMAGES/'social.png', facecolor=NAVY)
    plt.close(figure)


if __name__ == '__main__':
    IMAGES.mkdir(exist_ok=True)
    data = ChestDataset(ROOT/'dataset')
    course_figure(data)
    social_card(data)
