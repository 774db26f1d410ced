"""One differentially private release of a node's clips; whatever follows from it alone is as private as it is.

The unit is one clip, and neighbours differ in whether it counts: a release is compared with the one in which the clip
adds nothing to any sum ("zero-out"), which is add/remove with the number of clips of each class public. Bases, centre,
scales and the bound of norms come from sounds that are nobody's, so that the clips are read for two sums only, each
behind a Gaussian mechanism.

References
----------
Dwork and Roth, "The algorithmic foundations of differential privacy", 2014. Kairouz et al., "Practical and private
(deep) learning without sampling or shuffling", ICML 2021 (zero-out).
"""
