"""What a model refuses, on data that never chose a limit: python benchmarks/refusal.py --run runs/real_s0 --data ../shared/nih/dataset --lungs ../shared/lungs

Prints a table and writes it to nbs/results/refusal.csv (--out names another file). Images that must pass: the test part of the run's split, and
two other hospitals, which the limits know nothing of. What must not: these test images spoilt in each way, the pictures that scikit-learn and
scikit-image ship (as they are, and in grey), pydicom's files of other kinds (through their headers, and as grey pictures). Each picture goes
through the checks of `using.cheap_checks` and the gate of `using.gate`, as in `chestnb_predict`.

The gate is the run's own if it was made ready; otherwise it is fitted first, and kept in --work.
"""
import argparse
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from sklearn.datasets import load_sample_images

from chestnb.core.errors import UserError
from chestnb.core.files import read_json, write_csv, write_json
from chestnb.data.dataset import ChestDataset
from chestnb.data.official import read_split
from chestnb.data.squares import grey_square
from chestnb.model.runs import load_model
from chestnb.using.cheap_checks import colour_share, picture_facts, why_odd, why_strange
from chestnb.using.gate import read_gate, save_gate
from chestnb.using.inputs import open_radiograph
from chestnb.using.ready import model_folder
from chestnb.using.refusal import cell_features, fit_refusal, gate_network, gate_numbers, SPOILT, spoil
from chestnb.using.spec import GATE_FILE, SPEC_FILE

OUT = Path(__file__).resolve().parent.parent/'nbs'/'results'/'refusal.csv'


def gate_of(folder, model, dataset, split, work):
    "The gate of a run, or one that is fitted now, or was before."
    if (folder/SPEC_FILE).is_file(): place, refusal = folder, read_json(folder/SPEC_FILE, 'a spec')['refusal']
    else:
        place = work
        if not (work/'refusal.json').is_file():
            work.mkdir(parents=True, exist_ok=True)
            gate, refusal = fit_refusal(model, dataset, split)
            save_gate(gate, work/GATE_FILE), write_json(work/'refusal.json', refusal)
        refusal = read_json(work/'refusal.json', 'limits')
    return read_gate(place/GATE_FILE, refusal['scores']), refusal


class Judge:
    "Pictures in, reasons against them out."
    def __init__(self, model, gate, refusal):
        self.network, self.gate, self.refusal, self.size = gate_network(model), gate, refusal, model.info['image_size']

    def __call__(self, pictures, colours=None):
        "For each grey PIL image the reasons: 'pixels', 'gate', both or none."
        facts = [picture_facts(np.asarray(image), colour) for image, colour in zip(pictures, colours or [0.]*len(pictures))]
        numbers = gate_numbers(self.gate, cell_features(self.network, np.stack([grey_square(image, self.size) for image in pictures])))
        odd = [bool(why_odd(fact, self.refusal['checks'])) for fact in facts]
        names = {score['says']: score['name'] for score in self.refusal['scores']}
        strange = [[names[said] for said in why_strange(row, self.refusal['scores'])] for row in numbers]
        return [(['pixels'] if by_pixels else []) + by_gate for by_pixels, by_gate in zip(odd, strange)]


def row(kind, found, shown='accepted'):
    "One line of the table: how many of these pictures passed, or did not, and the first reasons against the others."
    refused, n = sum(map(bool, found)), len(found)
    count = refused if shown == 'refused' else n - refused
    reasons = pd.Series([reasons[0] for reasons in found if reasons], dtype=object).value_counts()
    said = ', '.join(f'{name} {times}' for name, times in reasons.items())
    print(f'{kind:45} {n:5}  {shown} {count:4} = {count/n:6.1%}   {said}', flush=True)
    return dict(pictures=kind, n=n, what=shown, count=count, share=round(count/n, 4), first_reasons=said)


def shipped_pictures():
    "Photographs, microscope pictures and drawings that scikit-learn and scikit-image carry, by name."
    found = {f'scikit-learn {i}': Image.fromarray(pixels) for i, pixels in enumerate(load_sample_images().images)}
    if find_spec('skimage'):
        for path in sorted((Path(find_spec('skimage').origin).parent/'data').iterdir()):
            if path.suffix in ('.png', '.jpg', '.gif'): found[path.name] = Image.open(path).convert('RGB')
    return found


def dicom_pictures():
    "pydicom's own test files: modality -> paths, and modality -> grey pictures of those whose pixels can be read."
    paths, grey = {}, {}
    for path in sorted((Path(pydicom.__file__).parent/'data'/'test_files').glob('*.dcm')):
        try:
            dicom = pydicom.dcmread(path)
            pixels = dicom.pixel_array
        except Exception: continue # broken on purpose, or compressed in a way that nobody here decodes
        while pixels.ndim > 2: pixels = pixels[..., :3].mean(-1) if pixels.shape[-1] in (3, 4) else pixels[len(pixels)//2]
        kind = str(dicom.get('Modality'))
        kind = kind if kind in ('CT', 'MR') else 'others'
        low, high = np.percentile(pixels, (1, 99))
        paths.setdefault(kind, []).append(path)
        grey.setdefault(kind, []).append(Image.fromarray((255*((pixels - low)/max(high - low, 1)).clip(0, 1)).astype(np.uint8)))
    return paths, grey


def by_header(path):
    "The reason against a file that is refused when it is read, before anybody looks at its pixels; [] if it is opened."
    try: open_radiograph(path)
    except UserError: return ['header']
    return []


def some(items, most, rng):
    "At most so many, drawn by lot, in their order."
    items = list(items)
    return [items[i] for i in sorted(rng.permutation(len(items))[:most])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', type=Path, required=True, help='a run folder with split.csv')
    parser.add_argument('--data', type=Path, required=True, help='the data set of the run')
    parser.add_argument('--lungs', type=Path, help='a folder with Montgomery and Shenzhen')
    parser.add_argument('--few', type=int, default=100, help='images of each kind of spoiling but mirrored ones')
    parser.add_argument('--most', type=int, default=600, help='images of each other group')
    parser.add_argument('--work', type=Path, default=Path('runs/refusal'), help='where a gate is kept that had to be fitted')
    parser.add_argument('--out', type=Path, default=OUT, help='CSV file')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    folder, dataset, rng = model_folder(args.run), ChestDataset(args.data), np.random.default_rng(1)
    model, split = load_model(folder), read_split(folder/'split.csv', dataset.table)
    gate, refusal = gate_of(folder, model, dataset, split, args.work)
    judge, what = Judge(model, gate, refusal), 'real' if not dataset.provenance.synthetic else 'synthetic'
    print(f"fitted on {refusal['fitted_on']}; there: {refusal['figures']}", flush=True)
    images = [dataset.open_image(name) for name in some(split.image[split.part == 'test'], args.most, rng)]
    lines = [row(f'{what} test images', judge(images), 'refused')]
    for source in ('Montgomery', 'Shenzhen') if args.lungs else ():
        lines.append(row(source, judge([Image.open(path).convert('L') for path in some(sorted((args.lungs/source/'images').iterdir()), args.most, rng)]), 'refused'))
    squares = np.stack([grey_square(image, judge.size) for image in images])
    for kind in SPOILT:
        chosen = squares if kind == 'mirrored' else squares[rng.permutation(len(squares))[:args.few]]
        lines.append(row(f'{what} test images, {kind.replace("_", " ")}', judge([Image.fromarray(square) for square in spoil(kind, chosen, rng)])))
    pictures = shipped_pictures()
    grey = [image.convert('L') for image in pictures.values()]
    lines.append(row('pictures of scikit-learn and scikit-image', judge(grey, [colour_share(np.asarray(image)) for image in pictures.values()])))
    lines.append(row('the same in grey', judge(grey)))
    paths, slices = dicom_pictures()
    for kind in paths:
        lines.append(row(f'pydicom, {kind}, as files', [by_header(path) for path in paths[kind]]))
        lines.append(row(f'pydicom, {kind}, as grey pictures', judge(slices[kind])))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(args.out, pd.DataFrame(lines))


if __name__ == '__main__': main()
