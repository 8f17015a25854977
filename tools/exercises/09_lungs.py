# %% [markdown]
# # Exercises 09 · Lungs
#
# > Paint without leaving an outline, measure a heart, say how much is left, and find masks that agree with themselves and are wrong

# %% [markdown]
# Four exercises, about 40 minutes. Everything here is NumPy; the masks are those of the **synthetic** data set, and nothing is trained.

# %%
import numpy as np
from chestnb.data.dataset import ChestDataset, embedded_dataset

# %%
dataset = ChestDataset(embedded_dataset())
names = dataset.table.image[:40].tolist()
images = {name: np.asarray(dataset.open_image(name)) for name in names}
masks = {name: {structure: dataset.mask(name, structure) for structure in ('Left Lung', 'Right Lung', 'Heart')} for name in names}
lungs = {name: mask['Left Lung'] | mask['Right Lung'] for name, mask in masks.items()}

# %% [markdown]
# ## 1. Paint that leaves no outline
#
# Write `cover(image, lungs)`: a copy of the image in which the smallest upright rectangle around both lungs is painted with the grey 128, whatever the image looks like. `image` is `uint8` (height, width), `lungs` is `bool` of the same shape.

# %% [hint]
# `np.nonzero(lungs)` gives the rows and the columns of all lung pixels. A slice leaves out its end.

# %% [blank]
def cover(image, lungs):
    return ...

# %% [solution]
def cover(image, lungs):
    painted, (rows, columns) = image.copy(), np.nonzero(lungs)
    painted[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 128
    return painted

# %% [wrong] the lungs alone are painted, so their outline is left
def cover(image, lungs):
    return np.where(lungs, np.uint8(128), image)

# %% [wrong] the last row and column are forgotten
def cover(image, lungs):
    painted, (rows, columns) = image.copy(), np.nonzero(lungs)
    painted[rows.min():rows.max(), columns.min():columns.max()] = 128
    return painted

# %% [wrong] the paint is the mean grey of the lungs
def cover(image, lungs):
    painted, (rows, columns) = image.copy(), np.nonzero(lungs)
    painted[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = image[lungs].mean()
    return painted

# %% [wrong] everything else is painted
def cover(image, lungs):
    painted, (rows, columns) = np.full_like(image, 128), np.nonzero(lungs)
    inside = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    painted[inside] = image[inside]
    return painted

# %% [wrong] rows and columns are mixed up
def cover(image, lungs):
    painted, (columns, rows) = image.copy(), np.nonzero(lungs)
    painted[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 128
    return painted

# %% [check]
toy, shape = np.arange(48, dtype=np.uint8).reshape(6, 8), np.zeros((6, 8), bool)
shape[1, 2] = shape[3, 6] = shape[4, 5] = True
answer = cover(toy.copy(), shape)
assert answer is not ..., 'write the painted image in place of the dots'
answer = np.asarray(answer)
assert answer.shape == toy.shape, f'the image keeps its shape, {toy.shape}; this has {answer.shape}'
assert (answer[0] == toy[0]).all() and (answer[:, :2] == toy[:, :2]).all(), 'something outside the rectangle has changed: only rows 1 to 4 and columns 2 to 6 are to be painted'
assert answer[2, 4] == answer[1, 2], 'between the lungs nothing is painted: the paint has the outline of the lungs, and a network can read it'
assert answer[1, 2] == 128, f'the paint is {answer[1, 2]} here: a grey that depends on the image tells how dense the lungs were. Take 128 for all'
assert (answer[4, 2:7] == 128).all() and (answer[1:5, 6] == 128).all(), 'the last row or column of the rectangle is not painted: a slice leaves out its end'
assert (answer[5] == toy[5]).all() and (answer[:, 7] == toy[:, 7]).all(), 'something outside the rectangle has changed: only rows 1 to 4 and columns 2 to 6 are to be painted'
assert all((np.asarray(cover(images[name], lungs[name]))[lungs[name]] == 128).all() for name in names), 'in some synthetic X-ray a lung pixel is not painted'

# %% [markdown]
# ## 2. The heart in one number
#
# Write `ratio(lungs, heart)`: the width of the heart over the width of the chest, both from their leftmost to their rightmost pixel. The chest reaches from the outer edge of one lung to the outer edge of the other.

# %% [hint]
# `mask.any(axis=0)` says for each column whether anything of the mask is in it. The middle of the chest has columns without any lung, and they count.

# %% [blank]
def ratio(lungs, heart):
    return ...

# %% [solution]
def ratio(lungs, heart):
    def width(mask): return np.ptp(np.flatnonzero(mask.any(axis=0))) + 1
    return width(heart)/width(lungs)

# %% [wrong] areas instead of widths
def ratio(lungs, heart):
    return heart.sum()/lungs.sum()

# %% [wrong] columns without lung are not counted
def ratio(lungs, heart):
    return heart.any(axis=0).sum()/lungs.any(axis=0).sum()

# %% [wrong] heights instead of widths
def ratio(lungs, heart):
    def height(mask): return np.ptp(np.flatnonzero(mask.any(axis=1))) + 1
    return height(heart)/height(lungs)

# %% [wrong] upside down
def ratio(lungs, heart):
    def width(mask): return np.ptp(np.flatnonzero(mask.any(axis=0))) + 1
    return width(lungs)/width(heart)

# %% [check]
chest, heart = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
chest[1:8, 2:8] = chest[1:8, 11:18] = True                # 16 columns from edge to edge, three of them without any lung
heart[5:9, 7:15] = True                                   # 8 columns
answer = ratio(chest, heart)
assert answer is not ..., 'write the ratio in place of the dots'
assert not np.isclose(answer, 2), 'this is the chest over the heart: turn the fraction round'
assert not np.isclose(answer, heart.sum()/chest.sum()), 'these are areas; the ratio compares widths, as with a ruler'
assert not np.isclose(answer, 8/13), 'the columns between the lungs are missing: the chest reaches from edge to edge, and its middle counts'
assert np.isclose(answer, .5), f'8 columns of heart in a chest of 16 columns make .50; this says {answer:.3f}. Are the widths taken along the columns?'
found = np.array([ratio(lungs[name], masks[name]['Heart']) for name in names])
assert ((found > .3) & (found < .8)).all(), f'the synthetic hearts should lie between .3 and .8; these go from {found.min():.2f} to {found.max():.2f}'

# %% [markdown]
# ## 3. How much is left?
#
# A network reaches an AUROC of `whole` on X-rays, and of `covered` on X-rays without lungs. Write `share_left(covered, whole)`: how much of what the network is *better than guessing* is left, as a share. If nothing is left, it is 0; if everything is left, 1.

# %% [hint]
# Guessing has an AUROC of one half, not of zero.

# %% [blank]
def share_left(covered, whole):
    return ...

# %% [solution]
def share_left(covered, whole):
    return (covered - .5)/(whole - .5)

# %% [wrong] guessing is taken for zero
def share_left(covered, whole):
    return covered/whole

# %% [wrong] the share that is lost
def share_left(covered, whole):
    return (whole - covered)/(whole - .5)

# %% [wrong] a difference, not a share
def share_left(covered, whole):
    return covered - .5

# %% [check]
answer = share_left(.5, .8)
assert answer is not ..., 'write the share in place of the dots'
assert np.isclose(answer, 0), f'an AUROC of .50 is guessing, so of .80 nothing is left; this says {answer:.3f}'
assert np.isclose(share_left(.8, .8), 1), f'with the same AUROC everything is left; this says {share_left(.8, .8):.3f}'
assert np.isclose(share_left(.59, .8), .3), f'.59 is .09 above guessing, .80 is .30 above it, so 30 % is left; this says {share_left(.59, .8):.3f}'

# %% [markdown]
# ## 4. A mask that is wrong and sure of itself
#
# A segmenter gives two lung masks and a quality between 0 and 1, which says how well its answers agree when the image is shifted a little. Where a lung is white, it may leave out that lung, agree with itself each time, and be wrong. Write `doubtful(left, right, quality)`: `True` if a person should look at the mask, because
#
# - the quality is below .75, or
# - one lung has less than half as many pixels as the other, whichever it is, or
# - a lung is missing.

# %% [hint]
# Compare the smaller of the two areas with the larger one. Then a missing lung needs no rule of its own, except where both are missing.

# %% [blank]
def doubtful(left, right, quality):
    return ...

# %% [solution]
def doubtful(left, right, quality):
    small, large = sorted((left.sum(), right.sum()))
    return bool(quality < .75 or large == 0 or small < large/2)

# %% [wrong] quality alone
def doubtful(left, right, quality):
    return quality < .75

# %% [wrong] a small left lung is noticed, a small right one is not
def doubtful(left, right, quality):
    return bool(quality < .75 or not right.any() or left.sum() < right.sum()/2)

# %% [wrong] both lungs missing passes
def doubtful(left, right, quality):
    small, large = sorted((left.sum(), right.sum()))
    return bool(quality < .75 or small < large/2)

# %% [wrong] all reasons are needed at once
def doubtful(left, right, quality):
    small, large = sorted((left.sum(), right.sum()))
    return bool(quality < .75 and small < large/2)

# %% [check]
def lung(pixels): return np.arange(100).reshape(10, 10) < pixels
assert doubtful(lung(40), lung(45), .9) is not ..., 'write True or False in place of the dots'
assert not doubtful(lung(40), lung(45), .9), 'two lungs of about the same size and a good quality: nobody needs to look'
assert doubtful(lung(40), lung(45), .5), 'a quality of .5 is below .75: this mask should be looked at'
assert doubtful(lung(10), lung(45), .95), 'the left lung has less than a quarter of the right one: quality does not see this, the areas do'
assert doubtful(lung(45), lung(10), .95), 'the right lung is the small one here: compare the smaller area with the larger one, whichever it is'
assert doubtful(lung(0), lung(45), .95), 'a lung is missing: this mask should be looked at'
assert doubtful(lung(0), lung(0), .95), 'both lungs are missing: zero is not less than half of zero, so this needs a rule of its own'
flagged = [name for name in names if doubtful(masks[name]['Left Lung'], masks[name]['Right Lung'], 1)]
assert len(flagged) < 4, f'of 40 exact synthetic masks {len(flagged)} are flagged; at most a few are so lopsided'
