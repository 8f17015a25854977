# %% [markdown]
# # Exercises 07 · How far can you trust it?
#
# > An error of calibration, a repair, a new prevalence, who is missed, and a whole that is more than its halves

# %% [markdown]
# Labels are real (NIH's table); scores are **simulated** around them and spoiled on purpose: AP images are pushed up, and all probabilities are too high. Nothing has to be fetched. Not for clinical use.

# %%
import numpy as np
import pandas as pd
from scipy.special import expit, logit
from chestnb.evaluation.metrics import auroc
from chestnb.evaluation.published import simulated_chexnet
from chestnb.evaluation.reliability import calibration_error

# %%
scored = simulated_chexnet(800)
scored

# %% [markdown]
# ## 1 · The expected calibration error
#
# Cut 0 to 1 into 15 bins of equal width. In each bin take the distance between the mean score and the share of positives; average the distances, each weighted by the number of its images. Empty bins do not count.

# %% [hint]
# `np.minimum((score*15).astype(int), 14)` is the number of each image's bin. `pd.DataFrame({...}).groupby(bins)` does the rest: `.mean()` and `.size()`.

# %% [blank]
def ece(target, score): # target: array of True and False; score: probabilities
    ...

# %% [solution]
def ece(target, score): # target: array of True and False; score: probabilities
    bins = pd.DataFrame({'said': score, 'happened': target.astype(float)}).groupby(np.minimum((score*15).astype(int), 14))
    gap = (bins['said'].mean() - bins['happened'].mean()).abs()
    return (gap*bins.size()).sum()/len(score)

# %% [wrong] every bin counts the same
def ece(target, score):
    bins = pd.DataFrame({'said': score, 'happened': target.astype(float)}).groupby(np.minimum((score*15).astype(int), 14))
    return (bins['said'].mean() - bins['happened'].mean()).abs().mean()

# %% [wrong] gaps above and below cancel
def ece(target, score):
    return abs(score.mean() - target.mean())

# %% [wrong] the distance of each image from its own label
def ece(target, score):
    return np.abs(score - target).mean()

# %% [check]
said, had = np.array([.9, .9, .9, .9, .1, .1]), np.array([True, True, True, False, False, True])
assert ece(had, said) is not None, 'ece returns nothing yet: replace the dots by your code.'
assert not np.isclose(ece(had, said), abs(said.mean() - had.mean())), 'One bin says too much, the other too little; your gaps cancel. Take the distance in each bin first.'
assert not np.isclose(ece(had, said), .5*abs(.9 - .75) + .5*abs(.1 - .5)), 'Each bin has the same weight in yours; four of the six images are in one bin and two in the other.'
assert np.isclose(ece(had, said), 4/6*.15 + 2/6*.4), f'Four images are in a bin that is .15 off (.9 said, .75 happened), two in one that is .40 off: .233 is expected; yours is {ece(had, said):.3f}.'
target, score, _ = scored.finding('Effusion')
assert np.isclose(ece(target, score), calibration_error(target, score), atol=1e-6), f'On Effusion {calibration_error(target, score):.4f} is expected; yours is {ece(target, score):.4f}. Are the bins weighted by their images?'

# %% [markdown]
# ## 2 · Two numbers
#
# Platt scaling turns a probability $p$ into one whose log-odds are $a + b$ times the log-odds of $p$. Write it. Then say which of two models is too extreme: one with $b = 0.7$, or one with $b = 1.3$?

# %% [hint]
# `logit` (imported above) gives log-odds, `expit` turns them back. Too extreme: the model says 0.9 where 0.8 would be right, and 0.1 where it should say 0.2. Which $b$ pulls both towards the middle?

# %% [blank]
def platt(p, a, b): # p: probabilities
    ...
too_extreme = ... # .7 or 1.3

# %% [solution]
def platt(p, a, b): # p: probabilities
    return expit(a + b*logit(p))
too_extreme = .7

# %% [wrong] a line through the probabilities themselves
def platt(p, a, b):
    return a + b*p
too_extreme = .7

# %% [wrong] the log-odds are not taken
def platt(p, a, b):
    return expit(a + b*p)
too_extreme = .7

# %% [wrong] the wrong model
def platt(p, a, b):
    return expit(a + b*logit(p))
too_extreme = 1.3

# %% [check]
p = np.array([.1, .5, .9])
assert platt(p, 0, 1) is not None, 'platt returns nothing yet: replace the dots by your code.'
assert np.allclose(platt(p, 0, 1), p), f'With a = 0 and b = 1 nothing may change; yours turns .1, .5, .9 into {np.round(platt(p, 0, 1), 3)}. Work on log-odds, not on probabilities.'
assert np.allclose(platt(p, 0, .5), [.25, .5, .75]), f'b = 0.5 halves the log-odds: .1, .5, .9 become .25, .5, .75; yours become {np.round(platt(p, 0, .5), 3)}.'
assert np.allclose(platt(np.array([.5]), 1, 1), [expit(1)]), 'a is added to the log-odds before they are turned back.'
assert too_extreme == .7, 'A model that is too extreme needs its log-odds shrunk towards 0, the middle. Which b does that?'

# %% [markdown]
# ## 3 · A new prevalence
#
# If *nothing but the prevalence* changed, Bayes' rule says: multiply the odds by the ratio of the odds of the two prevalences. A model, calibrated where 3 % have a Pneumothorax, says 20 %. What should it say where 11 % have one?

# %% [hint]
# odds = p/(1 − p), and back: p = odds/(1 + odds). The factor is odds(after)/odds(before).

# %% [blank]
def shifted(p, before, after): # probabilities, and two prevalences
    ...

# %% [solution]
def shifted(p, before, after): # probabilities, and two prevalences
    odds = p/(1 - p)*(after/(1 - after))/(before/(1 - before))
    return odds/(1 + odds)

# %% [wrong] the probability, not the odds, is multiplied
def shifted(p, before, after):
    return p*after/before

# %% [wrong] the other way round
def shifted(p, before, after):
    odds = p/(1 - p)*(before/(1 - before))/(after/(1 - after))
    return odds/(1 + odds)

# %% [wrong] odds are left as odds
def shifted(p, before, after):
    return p/(1 - p)*(after/(1 - after))/(before/(1 - before))

# %% [check]
assert shifted(.2, .03, .11) is not None, 'shifted returns nothing yet: replace the dots by your code.'
assert np.isclose(shifted(.2, .1, .1), .2), f'With the same prevalence nothing may change: .2 stays .2; yours becomes {shifted(.2, .1, .1):.3f}. Did you turn the odds back into a probability?'
assert 0 < shifted(.6, .03, .11) < 1, f'A probability must stay between 0 and 1; yours turns .6 into {shifted(.6, .03, .11):.2f}. Multiply the odds, not the probability.'
assert shifted(.2, .03, .11) > .2, 'The finding becomes more common, so the probability must rise; yours falls.'
assert np.isclose(shifted(.2, .03, .11), expit(logit(.2) + logit(.11) - logit(.03))), f'About one half (.500) is expected; yours is {shifted(.2, .03, .11):.3f}.'

# %% [markdown]
# ## 4 · Who is missed altogether?
#
# *Underdiagnosis*: of the images that have at least one finding, the share on which the model flags **nothing at all**. Write it, from an array of labels and an array of flags, both with one row an image and one column a finding.

# %% [hint]
# Two masks over images: `targets.any(axis=1)` and `flags.any(axis=1)`. Among the first, how many are not in the second?

# %% [blank]
def underdiagnosis(targets, flags): # both True and False, (n_images, n_findings)
    ...

# %% [solution]
def underdiagnosis(targets, flags): # both True and False, (n_images, n_findings)
    return 1 - flags.any(axis=1)[targets.any(axis=1)].mean()

# %% [wrong] the mean of the findings' false-negative rates
def underdiagnosis(targets, flags):
    return np.mean([1 - flags[targets[:, i], i].mean() for i in range(targets.shape[1]) if targets[:, i].any()])

# %% [wrong] all images, also those without a finding
def underdiagnosis(targets, flags):
    return 1 - flags.any(axis=1).mean()

# %% [wrong] any finding missed, rather than all
def underdiagnosis(targets, flags):
    return (targets & ~flags).any(axis=1)[targets.any(axis=1)].mean()

# %% [check]
labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
flags = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
assert underdiagnosis(labels, flags) is not None, 'underdiagnosis returns nothing yet: replace the dots by your code.'
assert not np.isclose(underdiagnosis(labels, flags), .5), 'Yours is .5 on the small example: count only the images that have a finding, and ask whether anything at all is flagged on them.'
assert np.isclose(underdiagnosis(labels, flags), .25), f'Four images have a finding; on one of them (the third) nothing is flagged: .25 is expected, yours is {underdiagnosis(labels, flags):.3f}. A wrong flag still means that somebody looks again.'

# %% [markdown]
# ## 5 · A whole that is more than its halves
#
# What do you expect of the AUROC of all images: something between that of the PA and that of the AP images? An AUROC counts pairs, and there are four kinds: both AP, both PA, and the two mixed ones. Write a function that gives the AUROC of one kind, then look at Edema.

# %% [hint]
# Keep the positive images of `positives` and the negative images of `negatives`, `(positives & target) | (negatives & ~target)`, and call `auroc` on those rows.

# %%
target, score, _ = scored.finding('Edema')
ap = (scored.table['view_position'] == 'AP').to_numpy()

# %% [blank]
def auroc_between(positives, negatives): # masks over images: where the positives of a pair are from, and its negatives
    ...

# %% [solution]
def auroc_between(positives, negatives): # masks over images: where the positives of a pair are from, and its negatives
    rows = (positives & target) | (negatives & ~target)
    return auroc(target[rows], score[rows])

# %% [wrong] all images of both groups
def auroc_between(positives, negatives):
    rows = positives | negatives
    return auroc(target[rows], score[rows])

# %% [wrong] positives and negatives change places
def auroc_between(positives, negatives):
    rows = (negatives & target) | (positives & ~target)
    return auroc(target[rows], score[rows])

# %% [wrong] the mean of the two groups
def auroc_between(positives, negatives):
    return (auroc(target[positives], score[positives]) + auroc(target[negatives], score[negatives]))/2

# %% [check]
assert auroc_between(ap, ap) is not None, 'auroc_between returns nothing yet: replace the dots by your code.'
assert np.isclose(auroc_between(ap, ap), auroc(target[ap], score[ap])), 'With AP on both sides it must be the AUROC of the AP images.'
kinds = {'both AP': (ap, ap), 'both PA': (~ap, ~ap), 'positive AP, negative PA': (ap, ~ap), 'positive PA, negative AP': (~ap, ap)}
pairs = {name: (up & target).sum()*(down & ~target).sum() for name, (up, down) in kinds.items()}
whole = sum(auroc_between(*kinds[name])*n for name, n in pairs.items())/sum(pairs.values())
assert np.isclose(whole, auroc(target, score)), f'Weighted by their pairs, the four kinds must give the AUROC of all images, {auroc(target, score):.3f}; yours give {whole:.3f}. The positives come from the first mask only, the negatives from the second only.'
pd.DataFrame({'AUROC': {name: auroc_between(*masks) for name, masks in kinds.items()}, 'share of the pairs': pd.Series(pairs)/sum(pairs.values())}).round(3).rename_axis(columns=f'Edema, simulated; all pairs {auroc(target, score):.3f}')

# %% [markdown]
# The easy pairs are those of a positive AP image and a negative PA image: the view alone tells them apart. With the published predictions they are half of all pairs for Edema, with an AUROC of 0.978; both AP gives 0.817, and the whole 0.894. In a clinic the view is known before the image is read, so nobody needs a model for those pairs.
