"""Intervals of what is measured, for datasets and for models alike.

- ``intervals``: BCa bootstrap (Efron 1987), for all that a gate decides by; a jackknife for what
  texts have in common, where a bootstrap sees repetition that is not there.
- ``clusters``: Wilson's interval for shares and a percentile bootstrap over dialogues, for what the
  data report shows. BCa would leave out each of thousands of dialogues for a number that no gate
  reads.
- ``resampling``: the drawing behind both, and behind the percentile interval of Krippendorff's
  alpha.
"""
