# %% [markdown]
# # Exercises 03 · The fastai DataBlock
#
# > Catch a mirror, write a splitter, undo a weight, and count what a sampler draws

# %%
import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock
from chestnb.data.augment import affine_maps
from chestnb.data.datablock import balanced_sampler_weights, positive_weights
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.folds import patient_kfold
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split

# %% [markdown]
# All images here are **synthetic**.

# %%
dataset = ChestDataset(embedded_dataset())
split = patient_split(dataset.table)
targets = dataset.targets(images_in(split, 'train'))
targets.shape

# %% [markdown]
# ## 1. Which maps mirror the chest?
#
# A colleague brings an augmentation with maps of her own, a tensor (n,2,3): the left 2×2 part turns, zooms and perhaps mirrors, the last column shifts. Write a test that says of each map whether it mirrors. It must not be fooled by a turn.

# %% [hint]
# A turn by 180° makes both entries of the diagonal negative, and mirrors nothing. What changes its sign in a mirror, and only there, is the determinant: `torch.linalg.det`.

# %% [blank]
def mirrors(maps):
    "For each affine map (n,2,3): does it mirror? bool (n,)"
    ...

# %% [solution]
def mirrors(maps):
    "For each affine map (n,2,3): does it mirror? bool (n,)"
    return torch.linalg.det(maps[:, :, :2]) < 0

# %% [wrong] the first entry: a turn by 180 degrees is no mirror, and a vertical flip is one
def mirrors(maps):
    return maps[:, 0, 0] < 0

# %% [wrong] any negative entry on the diagonal
def mirrors(maps):
    return (maps[:, 0, 0] < 0) | (maps[:, 1, 1] < 0)

# %% [wrong] the wrong sign
def mirrors(maps):
    return torch.linalg.det(maps[:, :, :2]) > 0

# %% [check]
def turned(degrees, flip_x=1, flip_y=1):
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])]) @ torch.diag(torch.tensor([float(flip_x), float(flip_y)]))
names = ['nothing', 'a left-right flip', 'a vertical flip', 'a turn by 180°', 'a turn by 90°', 'a flip and a turn by 90°', 'a flip and a turn by 180°']
cases = torch.stack([torch.cat([m, torch.tensor([[.3], [-.9]])], 1) for m in (turned(0), turned(0, -1), turned(0, 1, -1), turned(180), turned(90), turned(90, -1), turned(180, -1))])
answer = mirrors(cases)
if isinstance(answer, (list, np.ndarray)): answer = torch.as_tensor(answer)
assert answer is not None and tuple(answer.shape) == (7,) and answer.dtype == torch.bool, 'mirrors must return one true or false for each map, as a tensor of bool.'
for name, said, truth in zip(names, answer.tolist(), [False, True, True, False, False, True, True]):
    assert said == truth, f'{name[0].upper() + name[1:]} {"mirrors" if truth else "does not mirror"}, and your function says the opposite.'
assert not any(mirrors(affine_maps(torch.rand(4, 500)*2 - 1))), "The course's own maps never mirror; your function says that some do."

# %% [markdown]
# ## 2. A splitter for folds
#
# A `DataBlock` wants a function from the list of items to two lists of **positions**: training, validation. Write one for cross-validation: `valid` is the fold that validates, `test` is the fold that nobody may touch, all others train.

# %% [hint]
# Make a dictionary from image name to part first. Then `enumerate(images)` gives positions and names together.

# %% [blank]
class FoldSplitter:
    "Positions of training and validation images; the test fold is in neither"
    def __init__(self, folds, valid, test):
        ...
    def __call__(self, images):
        ...

# %% [solution]
class FoldSplitter:
    "Positions of training and validation images; the test fold is in neither"
    def __init__(self, folds, valid, test):
        self.part, self.valid, self.test = dict(zip(folds['image'], folds['part'])), valid, test
    def __call__(self, images):
        parts = [self.part[name] for name in images]
        return [i for i, part in enumerate(parts) if part not in (self.valid, self.test)], [i for i, part in enumerate(parts) if part == self.valid]

# %% [wrong] names instead of positions
class FoldSplitter:
    def __init__(self, folds, valid, test): self.part, self.valid, self.test = dict(zip(folds['image'], folds['part'])), valid, test
    def __call__(self, images):
        return [n for n in images if self.part[n] not in (self.valid, self.test)], [n for n in images if self.part[n] == self.valid]

# %% [wrong] trains on the test fold
class FoldSplitter:
    def __init__(self, folds, valid, test): self.part, self.valid = dict(zip(folds['image'], folds['part'])), valid
    def __call__(self, images):
        return [i for i, n in enumerate(images) if self.part[n] != self.valid], [i for i, n in enumerate(images) if self.part[n] == self.valid]

# %% [wrong] positions in the table, whatever the order of the items
class FoldSplitter:
    def __init__(self, folds, valid, test): self.parts, self.valid, self.test = folds['part'].tolist(), valid, test
    def __call__(self, images):
        return ([i for i, part in enumerate(self.parts) if part not in (self.valid, self.test)], [i for i, part in enumerate(self.parts) if part == self.valid])

# %% [check]
five = pd.DataFrame({'image': list('abcde'), 'part': ['fold0', 'fold1', 'fold2', 'fold0', 'fold1']})
found = FoldSplitter(five, valid='fold1', test='fold2')(list('edcba'))
assert found is not None and len(found) == 2, 'The splitter must return two lists: positions for training, positions for validation.'
train, valid = (list(part) for part in found)
assert all(isinstance(i, (int, np.integer)) for i in train + valid), 'The lists hold names; a DataBlock wants positions in the list of items.'
assert 2 not in train, 'Item 2 (image c) is in the test fold, and your splitter trains on it.'
assert (sorted(train), sorted(valid)) == ([1, 4], [0, 3]), f'For the items e d c b a the positions are [1, 4] and [0, 3]; yours are {sorted(train)} and {sorted(valid)}. Items may come in any order.'
folds, names = patient_kfold(dataset.table), list(dataset.table['image'])
made = DataBlock(splitter=FoldSplitter(folds, valid='fold1', test='fold0')).datasets(names)
patients = [set(dataset.table.set_index('image').loc[list(part.items), 'patient_id']) for part in (made.train, made.valid)]
assert not patients[0] & patients[1], 'Patients are in training and in validation.'

# %% [markdown]
# ## 3. Undo the weight
#
# A network was trained with `positive_weights`; its outputs are too high. In the lesson a constant model with prevalence *p* and weight *w* learnt *w·p*/(*w·p* + 1 − *p*). Turn outputs `q` back into probabilities.

# %% [hint]
# Solve the formula for *p*, or go over the odds: *q*/(1 − *q*) is *w* times *p*/(1 − *p*). Divide the **odds** by *w*, not the probability.

# %% [blank]
def unweighted(q, w):
    "Probability behind an output q of a network whose positives weighed w"
    ...

# %% [solution]
def unweighted(q, w):
    "Probability behind an output q of a network whose positives weighed w"
    odds = q/(1 - q)/w
    return odds/(1 + odds)

# %% [wrong] divides the probability
def unweighted(q, w):
    return q/w

# %% [wrong] subtracts log w from the probability
def unweighted(q, w):
    return q - np.log(w)

# %% [wrong] multiplies the odds
def unweighted(q, w):
    odds = q/(1 - q)*w
    return odds/(1 + odds)

# %% [check]
p = unweighted(np.array([.5, .9, .1]), np.array([19., 19., 1.]))
assert p is not None and np.shape(p) == (3,), 'unweighted must return one probability for each output.'
assert (p >= 0).all() and (p <= 1).all(), f'{p.round(2)} are no probabilities: subtract log w from the logit, not from the probability.'
assert p[1] < .9, 'Weights push outputs up, so the probability behind .9 is lower; yours is higher. Divide the odds, do not multiply them.'
assert abs(p[1] - .9/19) > 1e-6, 'You divide the probability by w. Try q = 1: a sure finding would become 5 %. Divide the odds.'
assert abs(p[0] - .05) < 1e-6, f'Weight 19 turns a prevalence of 5 % into .5, so .5 means 5 %; yours is {p[0]:.3f}.'
assert abs(p[2] - .1) < 1e-6, f'With weight 1 nothing changes; yours is {p[2]:.3f} instead of .1.'
w, prevalence = positive_weights(targets).numpy(), targets.mean(0)
assert np.allclose(unweighted(w*prevalence/(w*prevalence + 1 - prevalence), w), prevalence), 'Weighting and undoing must give the prevalence back, for each of the 14 findings.'

# %% [markdown]
# ## 4. What will the sampler draw?
#
# Without drawing anything: which share of the drawn images will have each finding, if image *i* has the relative chance `chance[i]`? Guess first for Hernia, which 3 % of the training images have.

# %% [hint]
# Make the chances sum to one. The expected share of a finding is the sum of the chances of the images that have it: a matrix product.

# %% [blank]
def expected_share(targets, chance):
    "Expected share of each finding among the drawn images, (n_findings,)"
    ...

# %% [solution]
def expected_share(targets, chance):
    "Expected share of each finding among the drawn images, (n_findings,)"
    return (chance/chance.sum()) @ targets

# %% [wrong] forgets the chances
def expected_share(targets, chance):
    return targets.mean(0)

# %% [wrong] a sum that is not divided
def expected_share(targets, chance):
    return chance @ targets

# %% [wrong] divides by the positives
def expected_share(targets, chance):
    return (chance @ targets)/targets.sum(0)

# %% [check]
four, chance = np.array([[0, 1], [0, 1], [0, 0], [1, 0]]), np.array([1., 1, 1, 3])
share = expected_share(four, chance)
assert share is not None and np.shape(share) == (2,), 'expected_share must return one share for each finding.'
assert not np.allclose(share, four.mean(0)), 'That is the share among the images; an image with chance 3 is drawn three times as often as one with chance 1.'
assert (np.asarray(share) <= 1).all(), f'{np.round(share, 2)}: a share is at most 1. Divide the chances by their sum.'
assert np.allclose(share, [1/2, 1/3]), f'The last image is drawn in 3 of 6 cases, so the shares are 1/2 and 1/3; yours are {np.round(share, 2)}.'
shares = pd.DataFrame({'once each': targets.mean(0), 'balanced sampler': expected_share(targets, balanced_sampler_weights(targets))}, index=dataset.findings)
assert shares.loc['Hernia', 'balanced sampler'] > 1.5*shares.loc['Hernia', 'once each'], 'The balanced sampler must draw Hernia more often than it occurs.'
print((100*shares.loc[['Hernia', 'Fibrosis', 'Infiltration']]).round(1))
