# %% [markdown]
# # Exercises 01 · Class imbalance
#
# > Baselines, batches, pairs and flagged images

# %%
import math
import numpy as np
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.findings import FINDINGS
from chestnb.data.nih import is_official_test, nih_metadata

# %%
nih = nih_metadata()
findings = list(FINDINGS)

# %% [markdown]
# ## 1. Always no, on the official test part
#
# Saying *no* to all 14 findings is 94.8 % accurate on all images. How accurate is it on the official test part? Guess first: higher or lower? (Real labels.)

# %% [hint]
# Choose the rows with `is_official_test(nih)`. The accuracy is 1 minus the mean of all labels in the columns `findings`.

# %% [blank]
accuracy = ...

# %% [solution]
accuracy = 1 - nih.loc[is_official_test(nih), findings].to_numpy().mean()

# %% [wrong] all images
accuracy = 1 - nih[findings].to_numpy().mean()

# %% [wrong] the training part
accuracy = 1 - nih.loc[~is_official_test(nih), findings].to_numpy().mean()

# %% [wrong] No Finding counted as a label
accuracy = 1 - nih.loc[is_official_test(nih), [*findings, 'No Finding']].to_numpy().mean()

# %% [wrong] the share of images without any finding
accuracy = nih.loc[is_official_test(nih), 'No Finding'].mean()

# %% [check]
assert accuracy is not Ellipsis, 'Replace the three dots by a number between 0 and 1.'
assert 0 <= accuracy <= 1, f'{accuracy:g} is not a share between 0 and 1.'
assert abs(accuracy - .9483) > 5e-4, 'That is the accuracy on all images: choose the rows of the official test part.'
assert abs(accuracy - .9555) > 5e-4, 'That is the accuracy on the training part. is_official_test is True for the test part.'
assert abs(accuracy - .3853) > 1e-3, 'That is the share of images with no finding at all. Asked is the share of the 14 labels of each image that are 0.'
assert abs(accuracy - (1 - nih.loc[is_official_test(nih), findings].to_numpy().mean())) < 1e-6, f'You have {accuracy:.4f}. Are there 14 columns, without No Finding?'

# %% [markdown]
# 92.4 %: lower, because the test part has more positives. The same model, another population, another accuracy; the model is no better and no worse.

# %% [markdown]
# ## 2. A batch with a hernia
#
# 227 of 112,120 images show a hernia. How many images must a batch have so that at least half of such batches hold a hernia? Give the smallest whole number. (Real labels.)

# %% [hint]
# A batch of $n$ holds none with probability $(1-p)^n$. Solve $(1-p)^n = 0.5$ with logarithms and round up.

# %% [blank]
p = nih['Hernia'].mean()
batch_size = ...

# %% [solution]
p = nih['Hernia'].mean()
batch_size = math.ceil(math.log(.5)/math.log(1 - p))

# %% [wrong] one hernia on average is not one in half of the batches
p = nih['Hernia'].mean()
batch_size = math.ceil(1/p)

# %% [wrong] half a hernia on average
p = nih['Hernia'].mean()
batch_size = math.ceil(.5/p)

# %% [wrong] rounded down
p = nih['Hernia'].mean()
batch_size = math.floor(math.log(.5)/math.log(1 - p))

# %% [check]
assert batch_size is not Ellipsis, 'Replace the three dots by a whole number.'
assert batch_size == int(batch_size), f'{batch_size} is not a whole number of images.'
assert batch_size != 494, '494 images hold one hernia on average, and none in 37 % of the batches. Asked is the size at which half of the batches hold one.'
assert batch_size != 247, '247 images hold half a hernia on average, which means none in 61 % of the batches.'
assert (1 - p)**batch_size <= .5, f'A batch of {batch_size:,} still holds none in {(1 - p)**batch_size:.2%} of the cases: a little larger.'
assert (1 - p)**(batch_size - 1) > .5, f'{batch_size:,} is enough, but so is a smaller batch. Find the smallest.'

# %% [markdown]
# ## 3. The pair that never meets
#
# In the synthetic set no image has both Edema and Atelectasis. How many images would have both if the two were independent?

# %%
synthetic = ChestDataset(embedded_dataset()).table

# %% [hint]
# $n_a n_b / n$: images with the one, times images with the other, over all images.

# %% [blank]
expected = ...

# %% [solution]
expected = synthetic['Edema'].sum()*synthetic['Atelectasis'].sum()/len(synthetic)

# %% [wrong] a share, not a number of images
expected = synthetic['Edema'].mean()*synthetic['Atelectasis'].mean()

# %% [wrong] what is observed
expected = (synthetic['Edema'] & synthetic['Atelectasis']).sum()

# %% [wrong] images with one or the other
expected = (synthetic['Edema'] | synthetic['Atelectasis']).sum()

# %% [check]
assert expected is not Ellipsis, 'Replace the three dots by a number of images.'
assert expected != 0, 'That is what was observed. Asked is what independent findings would give.'
assert expected > .1, f'{expected:.4f} is a share. Multiply by the number of images.'
assert expected < 100, 'That counts images with one or the other. Asked is the expected number with both.'
assert abs(expected - 66*230/1509) < .1, f'66 images with Edema, 230 with Atelectasis, 1,509 in all: {66*230/1509:.1f}. You have {expected:.2f}.'

# %% [markdown]
# Ten images expected and none seen looks like strong evidence, and would be, if the 66 images with Edema were independent. They are of 27 patients.

# %% [markdown]
# ## 4. What a flag is worth
#
# A model detects 80 % of the images with Edema and clears 90 % of those without. Which share of the images that it flags is positive, at the prevalence of the official training part (1.59 %) and of the test part (3.61 %)? Write the function.

# %% [hint]
# Of 1,000 images at 2 % prevalence, 20 are positive and 980 negative. The model flags 80 % of the 20 and 10 % of the 980.

# %% [blank]
def flagged_positive(prevalence, sensitivity=.8, specificity=.9):
    "Share of flagged images that are positive"
    return ...

# %% [solution]
def flagged_positive(prevalence, sensitivity=.8, specificity=.9):
    "Share of flagged images that are positive"
    true_positives = sensitivity*prevalence
    false_positives = (1 - specificity)*(1 - prevalence)
    return true_positives/(true_positives + false_positives)

# %% [wrong] prevalence forgotten
def flagged_positive(prevalence, sensitivity=.8, specificity=.9): return sensitivity/(sensitivity + 1 - specificity)

# %% [wrong] specificity taken for the share of negatives that are flagged
def flagged_positive(prevalence, sensitivity=.8, specificity=.9):
    return sensitivity*prevalence/(sensitivity*prevalence + specificity*(1 - prevalence))

# %% [wrong] sensitivity is the other way round
def flagged_positive(prevalence, sensitivity=.8, specificity=.9): return sensitivity

# %% [check]
assert flagged_positive(.5) is not Ellipsis, 'Replace the three dots by an expression.'
assert flagged_positive(.01) != flagged_positive(.5), 'Your answer does not depend on the prevalence. Among rare findings most flags are false.'
assert abs(flagged_positive(.02) - .8*.02/(.8*.02 + .9*.98)) > 1e-6, 'A specificity of .9 means that .1 of the negatives are flagged, not .9.'
assert abs(flagged_positive(.0159) - .1145) < 1e-3, f'At 1.59 % it is .114; your function says {flagged_positive(.0159):.3f}.'
assert abs(flagged_positive(.0361) - .2305) < 1e-3, f'At 3.61 % it is .231; your function says {flagged_positive(.0361):.3f}.'

# %% [markdown]
# One flag in nine is right on the training part, one in four on the test part.
