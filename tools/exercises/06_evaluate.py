# %% [markdown]
# # Exercises 06 · Evaluation and ROC
#
# > Count pairs, find out what a flag is worth, draw patients, correct p-values, change the protocol

# %% [markdown]
# Labels are real (NIH's table); scores are **simulated** around them, so that nothing has to be fetched. Not for clinical use.

# %%
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from chestnb.data.findings import NO_FINDING
from chestnb.evaluation.published import simulated_chexnet
from chestnb.evaluation.resampling import holm as holm_of_the_library
from chestnb.evaluation.scored import join
from chestnb.evaluation.scores import point_scores

# %%
scored = simulated_chexnet(800)
scored

# %% [markdown]
# ## 1 · Count pairs
#
# The AUROC is the share of (positive, negative) pairs in which the positive has the higher score; a tie counts half. Write it without scikit-learn and without sorting.

# %% [hint]
# `positive[:, None] > negative[None, :]` compares every positive with every negative and gives a table of true and false. What does `.mean()` of it say? And where do the ties go?

# %% [blank]
def area(target, score): # target: array of True and False; score: array of numbers
    ...

# %% [solution]
def area(target, score): # target: array of True and False; score: array of numbers
    positive, negative = score[target][:, None], score[~target][None, :]
    return ((positive > negative) + .5*(positive == negative)).mean()

# %% [wrong] ties are lost
def area(target, score):
    return (score[target][:, None] > score[~target][None, :]).mean()

# %% [wrong] ties are won
def area(target, score):
    return (score[target][:, None] >= score[~target][None, :]).mean()

# %% [wrong] all pairs of images, not of a positive and a negative
def area(target, score):
    return (score[:, None] > score[None, :]).mean()

# %% [wrong] accuracy at one half
def area(target, score):
    return ((score >= .5) == target).mean()

# %% [check]
four = np.array([True, False, True, False]), np.array([.9, .8, .7, .1])
tied = np.array([True, False]), np.array([.3, .3])
assert area(*four) is not None, 'area returns nothing yet: replace the dots by your code.'
assert np.isclose(area(*four), .75), f'Four images, scores .9 (positive), .8, .7 (positive), .1: three of the four pairs are in order, so .75 is expected; yours is {area(*four):.3f}. Compare positives with negatives only.'
assert np.isclose(area(*tied), .5), f'A positive and a negative with the same score are a tie and count half; yours gives {area(*tied):.3f}.'
random = np.random.default_rng(0)
target, score = random.random(200) < .2, random.integers(0, 20, 200)/20
assert np.isclose(area(target, score), roc_auc_score(target, score)), 'On 200 images with many ties your number differs from scikit-learn\'s.'

# %% [markdown]
# ## 2 · What is a flag worth?
#
# A model for Pneumonia flags 80 % of the images with it and 30 % of those without. How many of the flagged have it? That depends on how common Pneumonia is. Write the positive predictive value as a function.

# %% [hint]
# Think of 10,000 images. With a prevalence of 1.2 % there are 120 with Pneumonia and 9,880 without. How many of each kind are flagged?

# %% [blank]
def ppv(sensitivity, specificity, prevalence): # all from 0 to 1
    ...

# %% [solution]
def ppv(sensitivity, specificity, prevalence): # all from 0 to 1
    true, false = sensitivity*prevalence, (1 - specificity)*(1 - prevalence)
    return true/(true + false)

# %% [wrong] the prevalence is forgotten
def ppv(sensitivity, specificity, prevalence):
    return sensitivity/(sensitivity + 1 - specificity)

# %% [wrong] specificity in place of its complement
def ppv(sensitivity, specificity, prevalence):
    return sensitivity*prevalence/(sensitivity*prevalence + specificity*(1 - prevalence))

# %% [check]
assert ppv(.8, .7, .5) is not None, 'ppv returns nothing yet: replace the dots by your code.'
assert np.isclose(ppv(.8, .7, .5), .8/1.1), f'With a prevalence of one half, 80 of 110 flagged are right (.727); yours is {ppv(.8, .7, .5):.3f}. False positives are the negatives that are flagged: 1 minus the specificity.'
assert not np.isclose(ppv(.8, .7, .012), ppv(.8, .7, .5)), 'Your value does not change with the prevalence, but a rare finding has many more negatives to be flagged by mistake.'
assert np.isclose(ppv(.8, .7, .012), 96/(96 + 2964)), f'Of 10,000 images 96 of 120 and 2,964 of 9,880 are flagged: 3.1 % of them are right; yours is {ppv(.8, .7, .012):.3f}.'

# %% [markdown]
# ## 3 · Draw patients
#
# A bootstrap resample draws as many *patients* as there are, with replacement; each drawn patient brings all their images, as often as they were drawn. Write a function that returns the row numbers of one resample.

# %% [hint]
# `random.choice(np.unique(patients), size=...)` draws patients with replacement. For each of them, `np.flatnonzero(patients == patient)` are their rows; `np.concatenate` puts the pieces together.

# %% [blank]
def resample(patients, random): # patients: the patient of each image; random: a numpy Generator
    ...

# %% [solution]
def resample(patients, random): # patients: the patient of each image; random: a numpy Generator
    names = np.unique(patients)
    drawn = random.choice(names, size=len(names))
    return np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])

# %% [wrong] images are drawn
def resample(patients, random):
    return random.integers(len(patients), size=len(patients))

# %% [wrong] drawn from the list of images, so that patients with many images come more often
def resample(patients, random):
    drawn = random.choice(patients, size=len(np.unique(patients)))
    return np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])

# %% [wrong] a patient who was drawn twice comes once
def resample(patients, random):
    names = np.unique(patients)
    return np.flatnonzero(np.isin(patients, random.choice(names, size=len(names))))

# %% [wrong] without replacement: everybody, once
def resample(patients, random):
    names = random.permutation(np.unique(patients))
    return np.concatenate([np.flatnonzero(patients == patient) for patient in names])

# %% [check]
ten = np.array([7, 7, 7, 3, 3, 9, 1, 1, 1, 1])
draws = [resample(ten, np.random.default_rng(seed)) for seed in range(400)]
assert draws[0] is not None, 'resample returns nothing yet: replace the dots by your code.'
times = np.array([np.bincount(rows, minlength=10) for rows in draws])
assert all(len(set(row[ten == patient])) == 1 for row in times for patient in (7, 3, 9, 1)), 'Images of one patient were drawn a different number of times: a patient comes with all images or not at all.'
assert times.max() > 1, 'Nobody was drawn twice in 400 resamples: with replacement, a patient may come several times, with all their images each time.'
assert (times[:, [0, 3, 5, 6]].sum(axis=1) == 4).all(), 'Each resample draws as many patients as there are (four here), counting those who come again.'
assert times[:, 6].mean() < 1.25, f'The patient with four images comes {times[:, 6].mean():.1f} times a resample, and should come about once, like everybody else: draw from the names, np.unique(patients), not from the list of images.'

# %% [markdown]
# ## 4 · Holm's correction
#
# Sort the p-values; multiply the smallest by their number $k$, the next by $k - 1$ and so on; let none fall below the one before it, nor rise above 1. Return them in the order in which they came.

# %% [hint]
# With a pandas Series, `p.sort_values()` keeps the index, `.cummax()` stops a later value from falling below an earlier one, and `.reindex(p.index)` brings back the old order.

# %% [blank]
def holm(p): # p: pandas Series of p-values
    ...

# %% [solution]
def holm(p): # p: pandas Series of p-values
    rising = p.sort_values()
    return (rising*np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)

# %% [wrong] Bonferroni: every p-value times their number
def holm(p):
    return (p*len(p)).clip(upper=1)

# %% [wrong] a later one may fall below an earlier one
def holm(p):
    rising = p.sort_values()
    return (rising*np.arange(len(p), 0, -1)).clip(upper=1).reindex(p.index)

# %% [wrong] not in the order in which they came
def holm(p):
    rising = p.sort_values()
    return (rising*np.arange(len(p), 0, -1)).cummax().clip(upper=1)

# %% [check]
three = pd.Series([.04, .01, .03], index=['Mass', 'Edema', 'Hernia'])
assert holm(three) is not None, 'holm returns nothing yet: replace the dots by your code.'
assert list(holm(three).index) == ['Mass', 'Edema', 'Hernia'], 'The corrected values come in another order than the p-values; use reindex.'
assert np.isclose(holm(three)['Edema'], .03), f'The smallest of three, .01, is multiplied by 3; yours is {holm(three)["Edema"]:.3f}.'
assert np.isclose(holm(three)['Hernia'], .06), f'The second, .03, is multiplied by 2, not by 3: .06 is expected; yours is {holm(three)["Hernia"]:.3f}.'
assert np.isclose(holm(three)['Mass'], .06), f'The largest, .04 times 1, may not fall below the .06 before it; yours is {holm(three)["Mass"]:.3f}.'
fourteen = pd.Series(np.random.default_rng(1).random(14)**3)
assert np.allclose(holm(fourteen), holm_of_the_library(fourteen.to_numpy())), 'On 14 p-values yours differ from those of the library; are they all clipped at 1?'

# %% [markdown]
# ## 5 · Score the protocol without No Finding
#
# Some papers leave the images without any finding out of the test. Do it here: choose the images with at least one of the 14 findings, score them with `point_scores`, and say how the macro AUROC and the macro average precision move. Guess before you run it.

# %% [hint]
# `scored.targets` has one column a finding: an image has a finding if any of its columns is 1. `scored.rows(mask)` keeps some of the images. In what `point_scores` returns, place 14 is the macro mean.

# %% [blank]
keep = ...         # True for the images to score
auroc_change = ... # macro AUROC without the No Finding images, minus that of all images
ap_change = ...    # the same for the macro average precision

# %% [solution]
keep = (scored.targets == 1).any(axis=1)
kept = scored.rows(keep)
before, after = point_scores(scored.targets, scored.scores), point_scores(kept.targets, kept.scores)
auroc_change, ap_change = after[0][14] - before[0][14], after[1][14] - before[1][14]

# %% [wrong] the other images are kept
keep = ~(scored.targets == 1).any(axis=1)
auroc_change, ap_change = 0., 0.

# %% [wrong] images with all findings
keep = (scored.targets == 1).all(axis=1)
auroc_change, ap_change = 0., 0.

# %% [wrong] the sign is turned round
keep = (scored.targets == 1).any(axis=1)
kept = scored.rows(keep)
before, after = point_scores(scored.targets, scored.scores), point_scores(kept.targets, kept.scores)
auroc_change, ap_change = before[0][14] - after[0][14], before[1][14] - after[1][14]

# %% [check]
assert keep is not ..., 'keep is still a blank: it says for each image whether it is scored.'
assert auroc_change is not ... and ap_change is not ..., 'auroc_change or ap_change is still a blank.'
wanted = join(scored.predictions, scored.table, 'without_no_finding')
assert np.asarray(keep).sum() == len(wanted), f'{len(wanted):,} of the {len(scored):,} images have at least one finding; you keep {np.asarray(keep).sum():,}.'
assert not scored.table.loc[np.asarray(keep), NO_FINDING].any(), 'Some of the images that you keep are labelled No Finding.'
theirs, everybody = point_scores(wanted.targets, wanted.scores), point_scores(scored.targets, scored.scores)
assert np.isclose(auroc_change, theirs[0][14] - everybody[0][14]), 'The change of the macro AUROC is that of the smaller set minus that of all images, at place 14 of the first array.'
assert np.isclose(ap_change, theirs[1][14] - everybody[1][14]), 'The change of the macro average precision is that of the smaller set minus that of all images, at place 14 of the second array.'
f'macro AUROC {auroc_change:+.3f}, macro average precision {ap_change:+.3f} (simulated scores)'

# %% [markdown]
# The average precision rises because every finding is more common among images that have one. The AUROC moves little here (by less than 0.01), because the *simulated* scores of a finding do not know of the others. With the published predictions it falls, from 0.838 to 0.795: the images without any finding were the easy negatives. Neither number is wrong; to print them in one column of a table is.
