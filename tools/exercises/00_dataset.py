# %% [markdown]
# # Exercises 00 · The data set
#
# > Read an age, a mask and a label as they were meant

# %%
import numpy as np
import pandas as pd
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.findings import parse_labels
from chestnb.data.masks import decode_mask, encode_mask
from chestnb.data.tables import torchxrayvision_file

# %% [markdown]
# ## 1. Twelve days or twelve years?
#
# Older copies of NIH's table write ages as `058Y`, `011M` or `012D`: years, months, days. The newest writes `58`. Write a function that gives the age in years.

# %% [hint]
# Take the letter off the end, if there is one, and divide by 12 or by 365.25 where it says so.

# %% [blank]
def age_in_years(text):
    "'058Y' -> 58.0"
    return ...

# %% [solution]
def age_in_years(text):
    "'058Y' -> 58.0"
    per_year = {'Y': 1, 'M': 12, 'D': 365.25}
    if text[-1] in per_year: return int(text[:-1])/per_year[text[-1]]
    return float(text)

# %% [wrong] the last letter is stripped, whatever it is
def age_in_years(text): return float(text.rstrip('YMD'))

# %% [wrong] months are forgotten
def age_in_years(text): return float(text.rstrip('YMD'))/(365.25 if text[-1] == 'D' else 1)

# %% [wrong] an age without a letter fails
def age_in_years(text): return int(text[:-1])/{'Y': 1, 'M': 12, 'D': 365.25}.get(text[-1], 1)

# %% [check]
assert age_in_years('058Y') is not Ellipsis, 'Replace the three dots by an expression that uses text.'
assert age_in_years('058Y') == 58, f"'058Y' is 58 years, your function says {age_in_years('058Y')}."
assert age_in_years('012D') < 1, f"'012D' is a baby of twelve days, and your function makes it {age_in_years('012D'):g} years old."
assert abs(age_in_years('012D') - 12/365.25) < 1e-4, f"'012D' is 12/365.25 = 0.0329 years, your function says {age_in_years('012D'):g}."
assert abs(age_in_years('011M') - 11/12) < 1e-9, f"'011M' is eleven months, 0.917 years; your function says {age_in_years('011M'):g}."
assert age_in_years('58') == 58, f"'58' has no letter to take off: it is 58 years, your function says {age_in_years('58'):g}."

# %% [markdown]
# ## 2. A mask on paper
#
# Write down the run lengths of this mask, without running any code: first along the rows, as CheXmask does, then down the columns, as Kaggle does.
#
# ```
# 0 1 0
# 1 1 0
# ```

# %% [hint]
# Number the pixels from 1. By rows: 1 2 3 and 4 5 6. By columns: 1 and 2 in the first column, 3 and 4 in the second. Pixels 4 and 5 in a row are one run: `4 2`.

# %% [blank]
by_rows = ...
by_columns = ...

# %% [solution]
by_rows = '2 1 4 2'
by_columns = '2 3'

# %% [wrong] counted from 0
by_rows = '1 1 3 2'
by_columns = '1 3'

# %% [wrong] start and end instead of start and length
by_rows = '2 2 4 5'
by_columns = '2 4'

# %% [wrong] the columns are read like rows
by_rows = '2 1 4 2'
by_columns = '2 1 4 2'

# %% [check]
assert isinstance(by_rows, str) and isinstance(by_columns, str), "Write two texts such as '1 2 5 1'."
assert by_rows.split()[:1] != ['1'], 'By rows: the first white pixel has number 2, because pixels are counted from 1, not from 0.'
assert by_rows.split()[2:] != ['4', '5'] and by_rows.split()[:2] != ['2', '2'], 'By rows: the second number of a pair is the length of the run, not its last pixel.'
mask = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)
by_rows, by_columns = ' '.join(by_rows.split()), ' '.join(by_columns.split())   # blanks more or less do not matter
assert by_rows == encode_mask(mask), f'By rows: one pixel from number 2, two pixels from number 4. You wrote {by_rows!r}.'
assert by_columns != by_rows, 'By columns: number the pixels down the first column, then down the second. The two directions differ.'
assert by_columns == encode_mask(mask, order='column'), f'By columns: the white pixels have the numbers 2, 3 and 4, which is one run. You wrote {by_columns!r}.'

# %% [markdown]
# ## 3. Whose lungs are swapped?
#
# Below are masks of 60 images (synthetic). In one of them somebody exchanged `Left Lung` and `Right Lung`. Find its name by code. Remember on which side of the image the patient's left is.

# %%
dataset = ChestDataset(embedded_dataset())
masks = {name: {side: dataset.mask(name, f'{side} Lung') for side in ('Left', 'Right')} for name in dataset.table.image[:60]}
victim = dataset.table.image[41]
masks[victim] = {'Left': masks[victim]['Right'], 'Right': masks[victim]['Left']}

# %% [hint]
# The mean column of a mask is `np.nonzero(mask)[1].mean()`. In a correct image the left lung has the larger one.

# %% [blank]
swapped = [name for name, sides in masks.items() if ...]

# %% [solution]
def centre(mask): return np.nonzero(mask)[1].mean()
swapped = [name for name, sides in masks.items() if centre(sides['Left']) < centre(sides['Right'])]

# %% [wrong] the patient's left is taken for the image's left
def centre(mask): return np.nonzero(mask)[1].mean()
swapped = [name for name, sides in masks.items() if centre(sides['Left']) > centre(sides['Right'])]

# %% [wrong] rows in place of columns
def centre(mask): return np.nonzero(mask)[0].mean()
swapped = [name for name, sides in masks.items() if centre(sides['Left']) < centre(sides['Right'])]

# %% [check]
assert len(swapped) < 60, 'Your condition is true for all 60 images: compare the two masks of each.'
assert len(swapped) != 59, "You found the 59 good ones: the patient's left lung lies on the image's right, so it has the larger column."
assert swapped, 'Your condition is true for no image.'
assert len(swapped) == 1, f'You found {len(swapped)} images, and only one was swapped. Compare the columns of the two masks: their rows do not tell left from right.'
assert swapped == [victim], f'{swapped[0]} is not the one. In it the left lung has the larger mean column, as it should.'

# %% [markdown]
# ## 4. Nodules and masses
#
# The experts of lesson 00 also answered "Nodule or mass". Of the images that NIH labels Nodule *or* Mass, what share do they confirm? (Real labels.)

# %%
experts = pd.read_csv(torchxrayvision_file('google2019_nih-chest-xray-labels.csv.gz'))
nih_sets = experts['Finding Labels'].map(parse_labels)
experts_see = experts['Nodule or mass'].eq('YES')

# %% [hint]
# `nih_sets.map(lambda labels: ...)` gives one answer per image; `labels & {'Nodule', 'Mass'}` is empty when neither is there, and `bool` makes True or False of it. Then take the mean of `experts_see` where NIH says yes.

# %% [blank]
nih_says = ...
confirmed = ...

# %% [solution]
nih_says = nih_sets.map(lambda labels: bool(labels & {'Nodule', 'Mass'}))
confirmed = experts_see[nih_says].mean()

# %% [wrong] Nodule alone
nih_says = nih_sets.map(lambda labels: 'Nodule' in labels)
confirmed = experts_see[nih_says].mean()

# %% [wrong] sets instead of True and False
nih_says = nih_sets.map(lambda labels: labels & {'Nodule', 'Mass'})
confirmed = .5

# %% [wrong] the share of the experts' images that NIH has, which is another question
nih_says = nih_sets.map(lambda labels: bool(labels & {'Nodule', 'Mass'}))
confirmed = nih_says[experts_see].mean()

# %% [wrong] the share of images where both agree
nih_says = nih_sets.map(lambda labels: bool(labels & {'Nodule', 'Mass'}))
confirmed = (nih_says == experts_see).mean()

# %% [check]
assert nih_says is not Ellipsis and confirmed is not Ellipsis, 'Replace the dots in both lines: one True or False per image, then one share.'
assert not any(isinstance(one, (set, frozenset)) for one in nih_says), 'nih_says holds sets: make each a True or False with bool(...).'
assert sum(nih_says) == 455, f'NIH labels 455 of these images Nodule or Mass; you have {sum(nih_says)}. Does your condition take both words?'
assert abs(confirmed - 256/605) > 1e-6, "That is how many of the experts' 605 images NIH has. Asked is the other way round: how many of NIH's 455 the experts confirm."
assert abs(confirmed - (nih_says == experts_see).mean()) > 1e-6, "That counts the images without any nodule as agreement. Look only at the images that NIH labels."
assert abs(confirmed - 256/455) < 1e-6, f'The experts confirm 256 of 455 images, .563; you have {confirmed:.3f}.'

# %% [markdown]
# Better than pneumothorax (46 %), and still nearly half of the labels are not confirmed. Of what the experts see, NIH has 42 %.
