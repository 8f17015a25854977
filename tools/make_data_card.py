"""Write the data card of a synthetic data set folder: python tools/make_data_card.py dataset"""
import csv
import sys
from collections import Counter
from pathlib import Path

from chestnb.core.files import sha256_of, write_text
from chestnb.data.findings import classes_of
from chestnb.data.provenance import provenance_of
from chestnb.data.tables import read_metadata


def class_rows(table, boxes):
    "One Markdown row a class: images, patients, prevalence, boxes."
    for name in classes_of(table):
        rows = table[table[name]]
        yield f"| {name} | {len(rows)} | {rows.patient_id.nunique()} | {table[name].mean():.1%} | {boxes[name] or '–'} |"


def data_card(d):
    "The card as Markdown; every number is read from the folder."
    t = read_metadata(d/'data.csv')
    if not provenance_of(t).synthetic: raise SystemExit(f"{d/'dataset.json'} does not say that this set is synthetic; this card is for synthetic sets.")
    n = len(t)
    with open(d/'boxes.csv', encoding='utf-8') as file:
        nb = Counter(row[1].replace('Infiltrate', 'Infiltration') for row in list(csv.reader(file))[1:])
    boxes, counts = nb.total(), '\n'.join(class_rows(t, nb))
    mb = sum(f.stat().st_size for f in d.rglob('*') if f.is_file() and f.name != 'README.md')/1e6
    return f'''# Data card: the embedded synthetic chest radiographs

**Every image in this folder is synthetic.** They are drawings ("phantoms") computed from simple geometry by
`chestnb.data.phantom`; no real X-ray was used as an input and none is shown. They exist so that every lesson of the
course runs offline, in minutes, on two CPU cores.

**A phantom is not evidence about real X-rays.** Scores on this folder show that code works and learns. They say
nothing about medicine. Not for clinical use.

| | |
|---|---|
| Images | {n:,}, 128 × 128 pixels, 8-bit grey PNG |
| Patients | {t.patient_id.nunique()}, with {n/t.patient_id.nunique():.1f} images on average (at most {int(t.groupby('patient_id').size().max())}) |
| Patient ids | from 90000001, so that none is a real NIH patient; that the images are synthetic stands in `dataset.json` |
| View | {int((t.view_position=='PA').sum())} PA, {int((t.view_position=='AP').sum())} AP |
| Sex, age | {t[t.sex=='M'].patient_id.nunique()} men, {t[t.sex=='F'].patient_id.nunique()} women, {int(t.age.min())} to {int(t.age.max())} years (all made up) |
| Size | {mb:.1f} MB |
| Licence | Apache-2.0, as the project; the images and tables may also be used under CC0-1.0 |
| SHA-256 of `data.csv` | `{sha256_of(d/'data.csv')}` |

## How it was made

```python
from chestnb.data.phantom.cohort import make_cohort
make_cohort('dataset', n_patients=400, size=128, seed=0)
```

Command line: `chestnb_phantom --to NEW_FOLDER` (see `chestnb_phantom --help` for a larger cohort). The notebooks in
`nbs/api/data/phantom/` explain every step. The same seed gives the same pixels; `tests/test_phantom.py` draws a part
of this folder again and compares it pixel by pixel.

* Each patient has one body (about fifty random numbers), used in all of the patient's images.
* The **sequence of label sets** of a patient is borrowed from a real patient of NIH's `Data_Entry_2017_v2020.csv`
  (labels only). Age, sex, view, severity and image are drawn at random; the more severe the findings, the more often AP.
* **Floor.** Every second patient is drawn from all real patients, which keeps the long tail. The others take turns
  through the 14 findings, each with at least three images of its finding. Every finding therefore has at least 30
  images of at least 12 patients, and **prevalences are higher than in reality**.
* Severity runs from 0.1 to 1 and drifts between visits; some findings are subtle.

## Counts

| Class | Images | Patients | Prevalence | Boxes |
|---|---|---|---|---|
{counts}

## Files

* `images/`: `90000001_000.png` is image 0 (the first visit) of patient 90000001.
* `data.csv`: the columns of NIH's `Data_Entry_2017_v2020.csv`, including its header that splits at commas:
  `Image Index, Finding Labels` (joined by `|`, or `No Finding`)`, Follow-up #, Patient ID, Patient Age, Patient Gender,
  View Position, OriginalImage[Width,Height], OriginalImagePixelSpacing[x,y]`. The pixel spacing is 400 mm / 128.
* `dataset.json`: name, source, licence, and that the images are synthetic (`chestnb.data.provenance`).
* `segmentation.csv`: the columns of CheXmask: `Image Index, Dice RCA (Mean), Dice RCA (Max), Landmarks, Left Lung,
  Right Lung, Heart, Height, Width`. Masks are run lengths `start length start length …`, counted from 1 along the rows,
  for a mask of `Height` × `Width` = 128 × 128. `Left Lung` is the patient's left, on the right of the image. Lungs
  do not include the heart. The masks are exact; the Dice columns hold 1 and `Landmarks` is empty.
* `boxes.csv`: the columns of NIH's `BBox_List_2017.csv`: `Image Index, Finding Label, Bbox [x,y,w,h]` in pixels of the
  128 × 128 image (NIH's own are for 1024 × 1024), with NIH's word `Infiltrate` for Infiltration. {boxes:,} boxes. Tight
  boxes around what was drawn, exact. A finding may have several boxes in one image. Emphysema changes the whole lung and
  has none; a mild Edema (severity up to 0.3) has none either.

## Limits

One drawing style; adults only; no tubes, wires, implants, surgery or poor technique; findings are textbook sketches
with exact labels, while the real labels were mined from reports and are partly wrong. Because the anatomy returns in
follow-ups, a split by image leaks, as it does in reality: always split by patient.
'''


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    write_text(folder/'README.md', data_card(folder))
