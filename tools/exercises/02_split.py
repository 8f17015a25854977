# %% [markdown]
# # Exercises 02 · Patient-level splitting
#
# > Find a leak, measure it, name people across two hospitals, and repair a split by hand

# %%
import numpy as np
import pandas as pd
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.parts import shared_patients
from chestnb.data.split import deviation, image_split, patient_split

# %% [markdown]
# All images here are **synthetic**. `leaky` is a split by image, `honest` one by patient; both have the columns `image`, `patient_id` and `part`.

# %%
table = ChestDataset(embedded_dataset()).table
leaky, honest = image_split(table), patient_split(table)
leaky.head(3)

# %% [markdown]
# ## 1. Who sits on both sides?
#
# A well-known chest X-ray project checked its split with one line: is any patient in training *and* validation *and* test? Write a better check: the set of all patients who are in **any two** parts.

# %% [hint]
# How many different parts does each patient have? `groupby` and `nunique` answer for all patients at once.

# %% [blank]
def leaking_patients(split):
    "The set of patient ids that are in more than one part"
    ...

# %% [solution]
def leaking_patients(split):
    "The set of patient ids that are in more than one part"
    n_parts = split.groupby('patient_id')['part'].nunique()
    return set(n_parts.index[n_parts > 1])

# %% [wrong] only patients in all three parts
def leaking_patients(split):
    return set.intersection(*(set(split.loc[split['part'] == part, 'patient_id']) for part in ('train', 'valid', 'test')))

# %% [wrong] only train against test
def leaking_patients(split):
    train, test = (set(split.loc[split['part'] == part, 'patient_id']) for part in ('train', 'test'))
    return train & test

# %% [wrong] patients with several images, wherever those are
def leaking_patients(split):
    n = split['patient_id'].value_counts()
    return set(n.index[n > 1])

# %% [check]
three = pd.DataFrame({'image': list('abcdef'), 'patient_id': [1, 1, 2, 2, 3, 3], 'part': ['train', 'valid', 'train', 'train', 'valid', 'test']})
found = leaking_patients(three)
assert isinstance(found, (set, frozenset)), f'leaking_patients returns {type(found).__name__}; a set of patient ids is wanted.'
assert 1 in found, 'Patient 1 is in train and valid, and your function does not name him: two parts are enough, it need not be all three.'
assert 3 in found, 'Patient 3 is in valid and test, and your function does not name her: look at every pair of parts.'
assert 2 not in found, 'Patient 2 has two images, both in train: several images are no leak as long as they are in one part.'
assert found == {1, 3}, f'The leaking patients are 1 and 3; your function says {found}.'
assert leaking_patients(honest) == set(), 'Your function finds leaking patients in the split by patient; there are none.'
assert leaking_patients(leaky) == set(shared_patients(leaky)['patient_id']), 'Your function and shared_patients name different patients of the leaky split.'

# %% [markdown]
# ## 2. How much of the test score can be memory?
#
# For the score it matters how many **test images** show somebody whom the model has met, in training or in validation (validation chooses the epoch). First guess; then compute that share for any split.

# %% [hint]
# Collect the patients of all images that are not in the test part. Then ask, for each test image, whether its patient is among them: `isin`. The mean of true and false is a share.

# %% [blank]
def exposed_share(split):
    "Share of the test images whose patient is also in another part, 0 to 1"
    ...

# %% [solution]
def exposed_share(split):
    "Share of the test images whose patient is also in another part, 0 to 1"
    is_test = split['part'] == 'test'
    met = set(split.loc[~is_test, 'patient_id'])
    return split.loc[is_test, 'patient_id'].isin(met).mean()

# %% [wrong] patients instead of images
def exposed_share(split):
    is_test = split['part'] == 'test'
    test, other = set(split.loc[is_test, 'patient_id']), set(split.loc[~is_test, 'patient_id'])
    return len(test & other)/len(test)

# %% [wrong] forgets validation
def exposed_share(split):
    met = set(split.loc[split['part'] == 'train', 'patient_id'])
    return split.loc[split['part'] == 'test', 'patient_id'].isin(met).mean()

# %% [wrong] share of all images
def exposed_share(split):
    is_test = split['part'] == 'test'
    return (is_test & split['patient_id'].isin(split.loc[~is_test, 'patient_id'])).mean()

# %% [check]
few = pd.DataFrame({'image': list('abcdefg'), 'patient_id': [1, 1, 1, 1, 2, 3, 3], 'part': ['train', 'test', 'test', 'test', 'test', 'valid', 'test']})
share = exposed_share(few)
assert isinstance(share, (float, np.floating)), f'exposed_share returns {share!r}; a number between 0 and 1 is wanted.'
assert abs(share - 2/3) > 1e-9, 'You count patients: two of three test patients are exposed. Patient 1 has three test images, and each of them counts in the score.'
assert abs(share - 3/5) > 1e-9, 'You compare with training only. Patient 3 is in validation, which chooses the epoch: her test image is exposed too.'
assert abs(share - 4/7) > 1e-9, 'You divide by all images; the question is about the test images.'
assert abs(share - 4/5) < 1e-9, f'Four of the five test images are exposed: 0.8, and your function says {share:.3f}.'
assert exposed_share(honest) == 0, 'A split by patient exposes nobody; your function says otherwise.'
print(f'split by image: {exposed_share(leaky):.0%} of the synthetic test images are exposed')

# %% [markdown]
# ## 3. Two hospitals, one table
#
# Two hospitals number their patients from 1. Their archives are joined, and one patient was seen in both: hospital B wrote her old id of hospital A, `A-2`, into the column `transferred`. Make a column `person` that has one value for each human being.

# %%
joined = pd.DataFrame({'image': [f'{i}.png' for i in range(7)], 'hospital': list('AAABBBB'), 'patient_id': [1, 2, 2, 1, 1, 2, 3],
                       'study': [11, 12, 13, 14, 15, 16, 17], 'transferred': ['', '', '', '', '', '', 'A-2']})
joined

# %% [hint]
# `hospital + '-' + patient_id` as text tells the two patients 1 apart. Then `mask` or `where` puts the old id in its place where there is one.

# %% [blank]
person = ...

# %% [solution]
person = (joined['hospital'] + '-' + joined['patient_id'].astype(str)).mask(joined['transferred'] != '', joined['transferred'])

# %% [wrong] the patient's number alone
person = joined['patient_id']

# %% [wrong] forgets the transfer
person = joined['hospital'] + '-' + joined['patient_id'].astype(str)

# %% [wrong] one person a study
person = joined['study']

# %% [check]
assert hasattr(person, '__len__') and len(person) == len(joined), 'person needs one value for each of the seven images.'
p = list(person)
assert p[1] == p[2], 'Images 1 and 2 are two studies of one patient of hospital A. A split by study puts her on both sides.'
assert p[0] != p[3], 'Patient 1 of hospital A and patient 1 of hospital B are two people who share a number. That leaks nothing, but it ties strangers together.'
assert p[6] == p[1], 'The last image shows patient 2 of hospital A, who was transferred. As two people she can land in training and in test.'
assert len(set(p)) == 4, f'There are four people in this table; your column has {len(set(p))}.'

# %% [markdown]
# ## 4. The most helpful move
#
# `repair_parts` finds its moves by a formula. Find one by trying: of all patients and all parts, which single move makes the sum of squared *relative* deviations smallest? A move must not empty a part. `deviation(counts, part, shares)` is the lesson's.

# %%
counts = np.array([[1, 0, 2.], [1, 0, 1], [0, 9, 12], [0, 4, 4], [0, 2, 2], [1, 1, 2]])   # rare finding, common finding, images
part, shares = np.array([0, 0, 1, 0, 1, 0]), np.array([.5, .5])                           # all three rare positives are in part 0
deviation(counts, part, shares).round(2)

# %% [hint]
# Two loops: over the patients, over the parts. Copy `part`, make the move, compute `(deviation(...)**2).sum()`, and remember the smallest. Skip a move if a part would have nobody left.

# %% [blank]
def best_move(counts, part, shares):
    "(patient, new part) of the most helpful move"
    ...

# %% [solution]
def best_move(counts, part, shares):
    "(patient, new part) of the most helpful move"
    best, smallest = None, np.inf
    for patient in range(len(part)):
        for new in range(len(shares)):
            moved = part.copy()
            moved[patient] = new
            if len(set(moved)) < len(shares): continue
            total = (deviation(counts, moved, shares)**2).sum()
            if total < smallest: best, smallest = (patient, new), total
    return best

# %% [wrong] absolute numbers instead of relative deviations
def best_move(counts, part, shares):
    def total(moved):
        in_part = np.array([counts[moved == k].sum(0) for k in range(len(shares))])
        return ((in_part - np.outer(shares, counts.sum(0)))**2).sum()
    moves = [(i, k) for i in range(len(part)) for k in range(len(shares))]
    return min(moves, key=lambda move: total(np.where(np.arange(len(part)) == move[0], move[1], part)))

# %% [wrong] deviations that are not squared cancel
def best_move(counts, part, shares):
    moves = [(i, k) for i in range(len(part)) for k in range(len(shares))]
    return min(moves, key=lambda move: deviation(counts, np.where(np.arange(len(part)) == move[0], move[1], part), shares).sum())

# %% [wrong] empties a part
def best_move(counts, part, shares):
    moves = [(i, k) for i in range(len(part)) for k in range(len(shares))]
    return min(moves, key=lambda move: (deviation(counts, np.where(np.arange(len(part)) == move[0], move[1], part), shares)**2).sum())

# %% [wrong] changes the caller's array
def best_move(counts, part, shares):
    best, smallest = None, np.inf
    for patient in range(len(part)):
        for new in range(len(shares)):
            part[patient] = new
            total = (deviation(counts, part, shares)**2).sum()
            if total < smallest: best, smallest = (patient, new), total
    return best

# %% [check]
def quality(parts): return (deviation(counts, parts, shares)**2).sum()
start = np.array([0, 0, 1, 0, 1, 0])
part = start.copy()
move = best_move(counts, part, shares)
assert (part == start).all(), 'Your function changed the array that it was given: work on a copy, or every try starts from the last one.'
assert isinstance(move, (tuple, list, np.ndarray)) and len(move) == 2, f'best_move returns {move!r}; a pair (patient, new part) is wanted.'
move = tuple(int(i) for i in move)
totals = {(i, k): quality(np.where(np.arange(6) == i, k, start)) for i in range(6) for k in range(2)}
assert move in totals, f'{move} is no patient and part: there are patients 0 to 5 and parts 0 and 1.'
assert totals[move] < quality(start), f'Moving patient {move[0]} to part {move[1]} does not help: the sum of squares goes from {quality(start):.2f} to {totals[move]:.2f}.'
assert totals[move] == min(totals.values()), f'{move} leaves a sum of squared relative deviations of {totals[move]:.2f}; {min(totals.values()):.2f} can be reached. A rare image counts more than a common one.'
stay = best_move(np.ones((2, 1)), np.array([0, 1]), np.array([.9, .1]))
assert stay is None or tuple(stay) in [(0, 0), (1, 1)], f'With one patient in each part every move would empty a part, so nobody may move; your function says {stay}.'
